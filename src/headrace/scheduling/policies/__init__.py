"""Scheduling policies by the name that a job file gives them."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.scheduling.policies.base import Decision, Policy, PullStrategy, SchedulerView, StepContext, nothing
from headrace.scheduling.policies.batch_prefetch import BatchPrefetch
from headrace.scheduling.policies.stepwise import INTER, INTRA, RECS, RECS_EARLY, SERIAL, StepwisePolicy

__all__ = [
    "INTER",
    "INTRA",
    "POLICIES",
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

POLICIES: Mapping[str, StepwisePolicy | BatchPrefetch] = {
    policy.name: policy for policy in (SERIAL, BatchPrefetch(), INTRA, INTER, RECS, RECS_EARLY)
}
"""The policies with their defaults; `dataclasses.replace` changes them."""
