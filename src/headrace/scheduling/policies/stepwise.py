"""Policies that run training work first and features in the gaps: `serial` to `recs_early`.

`intra`, `inter` and `recs` implement RECS (SIGMOD-Companion 2025). In `recs_early`, the ids of later batches are known,
and so are the rows that no push in flight touches: FEC (SIGMOD 2023) prefetches those, and Bagpipe (SOSP 2023) delays
the rest. Every row is read after its last update, so parameters equal those of `serial`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace.scheduling.policies.base import Decision, PullStrategy, SchedulerView
from headrace.scheduling.policies.rules import after_step_before, own_features, own_features_only, run_ahead
from headrace.scheduling.policies.strategies import AHEAD, AHEAD_BY_GROUP, AT_ONCE, BY_GROUP, EARLY, IN_GROUPS

__all__ = ["INTER", "INTRA", "RECS", "RECS_EARLY", "SERIAL", "Rule", "StepwisePolicy"]

Rule = Callable[[SchedulerView, int], Decision | None]
"""A function of the view and `num_ahead`; None leaves the decision to the next rule."""


@dataclass(frozen=True)
class StepwisePolicy:
    """Runs feature operators on cores that training work does not use, chosen by the first rule that decides.

    Attributes:
        name: See `Policy`.
        num_ahead: See `Policy`.
        strategies: See `Policy`.
        rules: Rules in order; the last one always decides.
    """

    name: str
    num_ahead: int
    strategies: tuple[PullStrategy, ...]
    rules: tuple[Rule, ...]

    def num_workers(self, num_cores: int, free_cores: int) -> int:
        """See `Policy`."""
        return free_cores

    def choose(self, now: SchedulerView) -> Decision:
        """See `Policy`."""
        decisions = (rule(now, self.num_ahead) for rule in self.rules)
        return next(decision for decision in decisions if decision is not None)


SERIAL = StepwisePolicy("serial", 1, (IN_GROUPS, AT_ONCE), (after_step_before, own_features_only))
"""Features within the step, then all pulls, dense work and push, as in a TensorFlow training loop."""

INTRA = StepwisePolicy("intra", 3, (IN_GROUPS, AT_ONCE), (own_features, run_ahead))
"""Feature operators of later batches use idle CPU time while rows are in flight, as many as fit the predicted gap. RECS
calls this intra-pipeline scheduling."""

INTER = StepwisePolicy("inter", 1, (BY_GROUP,), (after_step_before, own_features_only))
"""Within a step, critical feature groups are computed first, so that their pulls overlap with computing the others.
RECS calls this inter-pipeline scheduling."""

RECS = StepwisePolicy("recs", 3, (AHEAD_BY_GROUP, AHEAD, AT_ONCE), (own_features, run_ahead))
"""`intra` and `inter` combined, in strict synchronous order."""

RECS_EARLY = StepwisePolicy("recs_early", 3, (EARLY, AHEAD_BY_GROUP, AHEAD, AT_ONCE), (own_features, run_ahead))
"""`recs`, but rows that no push in flight touches are pulled while the previous step still computes."""
