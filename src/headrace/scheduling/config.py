"""The `scheduler:` section of a job file."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, model_validator

from headrace.config import Config
from headrace.errors import ConfigError
from headrace.registry import STEP_POLICIES, OneOf
from headrace.scheduling.policies import BatchPrefetch, Policy, StepwisePolicy

__all__ = ["SchedulerConfig"]

PARTS = ("name", "num_ahead", "strategies", "num_workers", "choose")
"""Methods of a `Policy`."""


class SchedulerConfig(Config):
    """How feature work, communication and dense work of training steps overlap. Results do not depend on it.

    As YAML, a policy alone is just its name::

        scheduler: recs_early
        scheduler: {policy: batch_prefetch, batches_ahead: 4, threads: 2}
    """

    policy: Annotated[str, OneOf(STEP_POLICIES, "auto")] = "auto"
    """auto is `recs_early` if rows live in remote shards and stay there, see `placement`, and with several trainers
    `recs`; otherwise a plain loop behind the pipeline, without a scheduler."""
    batches_ahead: int | None = Field(default=None, ge=0)
    """Batches after the next one whose features can be computed ahead; None for the policy's default."""
    threads: int | None = Field(default=None, ge=1)
    """Threads that compute features; None for one per CPU."""
    max_groups: int | None = Field(default=None, ge=1)
    """Maximum number of feature groups: parts of the feature plan that can be computed and pulled separately, if
    measurements show that this is faster. None is 4 with shards, and 1 if rows are in this process, where there are
    no pulls to overlap."""
    verify: bool = False
    """Pull every row again right before it is used, and compare. Doubles the traffic; proves that nothing races."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_a_policy(cls, values: Any) -> Any:
        return {"policy": values} if isinstance(values, str) else values

    def choose(self, *, remote: bool, alone: bool = True) -> Policy | None:
        """Choose the policy; None for the plain loop.

        Args:
            remote: Whether rows are in shards.
            alone: Whether this is the only trainer. With several, another trainer's pushes may touch rows that this
                one's do not, so `recs_early` becomes `recs`.

        Raises:
            ConfigError: A user-defined policy cannot be imported, or is not a policy.
        """
        name = self.policy
        if name == "auto":
            if not remote:
                return None
            name = "recs_early"
        if name == "recs_early" and not alone:
            name = "recs"
        policy = _make(name)
        if isinstance(policy, BatchPrefetch):
            policy = replace(policy, num_threads=self.threads or 0)
        if self.batches_ahead is None:
            return policy
        if isinstance(policy, BatchPrefetch):
            return replace(policy, num_ahead=self.batches_ahead)
        if isinstance(policy, StepwisePolicy):
            return replace(policy, num_ahead=max(1, self.batches_ahead))
        raise ConfigError(f"scheduler.batches_ahead: given {self.batches_ahead}, but policy {name} sets it itself")


def _make(name: str) -> Policy:
    """Find a policy by name: an object, or a class to instantiate without arguments."""
    found = STEP_POLICIES.find(name, where="scheduler.policy")
    policy: Policy = found() if isinstance(found, type) else found
    lacks = [part for part in PARTS if not hasattr(policy, part)]
    if lacks:
        raise ConfigError(f"scheduler.policy: {name} has no {', '.join(lacks)}, expected a scheduling policy")
    return policy
