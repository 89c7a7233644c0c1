"""Scheduling policies by the name a job file gives them."""

from __future__ import annotations

from headrace.scheduling.policies.base import Choice, Policy, Situation
from headrace.scheduling.policies.batch_prefetch import BatchPrefetch
from headrace.scheduling.policies.inter import Inter
from headrace.scheduling.policies.intra import Intra
from headrace.scheduling.policies.recs import Recs
from headrace.scheduling.policies.recs_early import RecsEarly
from headrace.scheduling.policies.serial import Serial

__all__ = [
    "POLICIES",
    "BatchPrefetch",
    "Choice",
    "Inter",
    "Intra",
    "Policy",
    "Recs",
    "RecsEarly",
    "Serial",
    "Situation",
    "make_policy",
]

POLICIES: dict[str, type[Policy]] = {
    "serial": Serial,
    "batch_prefetch": BatchPrefetch,
    "intra": Intra,
    "inter": Inter,
    "recs": Recs,
    "recs_early": RecsEarly,
}


def make_policy(name: str) -> Policy:
    """The policy of a name, with its defaults.

    Raises:
        KeyError: There is none of that name.
    """
    return POLICIES[name]()
