"""Tuners: choose a pipeline's workers and buffer sizes from its counters, and record the reasons."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.pipeline.engine.explanation import Explanation as Explanation
    from headrace.tuning.adapter import Job as Job
    from headrace.tuning.adapters import TunedDataLoader as TunedDataLoader
    from headrace.tuning.adapters import TunedRayData as TunedRayData
    from headrace.tuning.adapters import TunedRebuilt as TunedRebuilt
    from headrace.tuning.explaining import explain as explain
    from headrace.tuning.guard import Guard as Guard
    from headrace.tuning.job import SimulatedJob as SimulatedJob
    from headrace.tuning.live import LiveJob as LiveJob
    from headrace.tuning.loop import Tuner as Tuner
    from headrace.tuning.observation import Observation as Observation
    from headrace.tuning.observation import StageObservation as StageObservation
    from headrace.tuning.policies import Policy as Policy
    from headrace.tuning.policies import Proposal as Proposal
    from headrace.tuning.policies import make_policy as make_policy
    from headrace.tuning.space import Knob as Knob
    from headrace.tuning.space import Space as Space
    from headrace.tuning.trial import Trial as Trial
    from headrace.tuning.trial import recovery_times as recovery_times
    from headrace.tuning.trial import run_trial as run_trial

__all__ = [
    "Explanation",
    "Guard",
    "Job",
    "Knob",
    "LiveJob",
    "Observation",
    "Policy",
    "Proposal",
    "SimulatedJob",
    "Space",
    "StageObservation",
    "Trial",
    "TunedDataLoader",
    "TunedRayData",
    "TunedRebuilt",
    "Tuner",
    "explain",
    "make_policy",
    "recovery_times",
    "run_trial",
]

_HOMES = {
    "Explanation": "headrace.pipeline.engine.explanation",
    "Guard": "headrace.tuning.guard",
    "Job": "headrace.tuning.adapter",
    "Knob": "headrace.tuning.space",
    "LiveJob": "headrace.tuning.live",
    "Observation": "headrace.tuning.observation",
    "Policy": "headrace.tuning.policies",
    "Proposal": "headrace.tuning.policies",
    "SimulatedJob": "headrace.tuning.job",
    "Space": "headrace.tuning.space",
    "StageObservation": "headrace.tuning.observation",
    "Trial": "headrace.tuning.trial",
    "TunedRebuilt": "headrace.tuning.adapters",
    "TunedRayData": "headrace.tuning.adapters",
    "TunedDataLoader": "headrace.tuning.adapters",
    "Tuner": "headrace.tuning.loop",
    "explain": "headrace.tuning.explaining",
    "make_policy": "headrace.tuning.policies",
    "recovery_times": "headrace.tuning.trial",
    "run_trial": "headrace.tuning.trial",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that the tuner of a running job loads neither simulator nor learner."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'headrace.tuning' has no attribute {name!r}")
