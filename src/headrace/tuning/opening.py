"""`open_tuner`: called by `Pipeline.open` to tune a pipeline, or only to explain it."""

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
    """Explains a pipeline without tuning it, from the engine's counters."""

    def __init__(self, job: LiveJob) -> None:
        """Explain the running pipeline `job`."""
        self._job = job

    def explain(self) -> Explanation:
        """See `headrace.pipeline.engine.tuners.Tuner`."""
        return explain([self._job.look()], self._job.space)

    def close(self) -> None:
        """Do nothing: there is no thread."""


def open_tuner(policy: str | Policy, pipeline: Tunables, decisions: DecisionRecorder | None) -> Tuner | Explainer:
    """Start tuning a running pipeline; see `headrace.pipeline.engine.tuners.open_tuner`."""
    job = LiveJob(pipeline, measures_machine=str(policy).startswith("intune"))
    return Explainer(job) if policy == "none" else Tuner(job, policy, decisions=decisions)
