"""Tuners: what a pipeline's workers and buffers should be, decided from its counters, with the reason."""

from headrace.tuning.explain import Explanation, explain
from headrace.tuning.guard import Guard
from headrace.tuning.job import Job, SimulatedJob
from headrace.tuning.live import LiveJob
from headrace.tuning.loop import Tuner
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.policies import POLICIES, Policy, Proposal, make_policy
from headrace.tuning.space import Knob, Space
from headrace.tuning.trial import Trial, recovery_times, run_trial

__all__ = [
    "POLICIES",
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
    "Tuner",
    "explain",
    "make_policy",
    "recovery_times",
    "run_trial",
]
