"""Tuning policies, one per file: headrace's own and the baselines, with the same two methods, registered by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headrace.registry import TUNERS
from headrace.tuning.policies.auto import Auto, AutoConfig
from headrace.tuning.policies.autotune import Autotune
from headrace.tuning.policies.base import Policy, Proposal
from headrace.tuning.policies.even import EvenSplit
from headrace.tuning.policies.one_per_stage import OnePerStage
from headrace.tuning.policies.plumber import Plumber
from headrace.tuning.policies.relaunched import Relaunched

if TYPE_CHECKING:
    from headrace.tuning.policies.intune import InTune as InTune
    from headrace.tuning.policies.oracle import Oracle as Oracle

__all__ = [
    "Auto",
    "AutoConfig",
    "Autotune",
    "EvenSplit",
    "InTune",
    "OnePerStage",
    "Oracle",
    "Plumber",
    "Policy",
    "Proposal",
    "Relaunched",
    "make_policy",
]

_HEAVY = {"InTune": "headrace.tuning.policies.intune", "Oracle": "headrace.tuning.policies.oracle"}
"""Loaded on first use, because the others need neither torch nor the simulator."""


def __getattr__(name: str) -> Any:
    if name in _HEAVY:
        return getattr(import_module(_HEAVY[name]), name)
    raise AttributeError(f"module 'headrace.tuning.policies' has no attribute {name!r}")


def make_policy(name: str) -> Policy:
    """Create a policy by its name in `headrace.registry.TUNERS`, or by "package.module:name".

    Raises:
        ConfigError: There is no policy with that name, or it cannot be imported.
    """
    policy: Policy = TUNERS.find(name, where="open")()
    return policy
