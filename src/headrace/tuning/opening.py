"""`open_tuner`: what `Pipeline.open` calls to have a pipeline tuned, or only explained."""

from __future__ import annotations

from headrace.pipeline.engine.decisions import DecisionRecorder
from headrace.pipeline.engine.explanation import Explanation
from headrace.pipeline.engine.tuners import Tunables
from headrace.tuning.explaining import explain
from headrace.tuning.live import LiveJob
from headrace.tuning.loop import Tuner
from headrace.tuning.policies import Policy

__all__ = ["Explainer", "open_tuner"]


class Explainer:
    """Watches a pipeline that nobody tunes; everything it needs is in the engine's counters when it is asked."""

    def __init__(self, job: LiveJob) -> None:
        """Args: job: The running pipeline."""
        self._job = job

    def explain(self) -> Explanation:
        """See `headrace.pipeline.engine.tuners.Tuner`."""
        return explain([self._job.look()], self._job.space)

    def close(self) -> None:
        """Nothing is running."""


def open_tuner(policy: str | Policy, pipeline: Tunables, decisions: DecisionRecorder | None) -> Tuner | Explainer:
    """Begin to tune a running pipeline; see `headrace.pipeline.engine.tuners.open_tuner`."""
    job = LiveJob(pipeline, measures_machine=str(policy).startswith("intune"))
    return Explainer(job) if policy == "none" else Tuner(job, policy, decisions=decisions)
