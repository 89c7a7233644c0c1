"""Scheduling policies, registered by name in `headrace.registry.STEP_POLICIES`."""

from __future__ import annotations

from headrace.scheduling.policies.base import Decision, Policy, PullStrategy, SchedulerView, StepContext, nothing
from headrace.scheduling.policies.batch_prefetch import BATCH_PREFETCH, BatchPrefetch
from headrace.scheduling.policies.stepwise import INTER, INTRA, RECS, RECS_EARLY, SERIAL, StepwisePolicy

__all__ = [
    "BATCH_PREFETCH",
    "INTER",
    "INTRA",
    "RECS",
    "RECS_EARLY",
    "SERIAL",
    "BatchPrefetch",
    "Decision",
    "Policy",
    "PullStrategy",
    "SchedulerView",
    "StepContext",
    "StepwisePolicy",
    "nothing",
]
