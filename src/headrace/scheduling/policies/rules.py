"""Rules that several policies share: the step's own features, running ahead into a gap, orders of groups."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.scheduling.cost import Costs
from headrace.scheduling.graph import Kind
from headrace.scheduling.ordering import critical_path_order, johnson_order
from headrace.scheduling.policies.base import Choice, Situation, nothing
from headrace.scheduling.probing import Mode

__all__ = [
    "AHEAD",
    "AHEAD_BY_GROUP",
    "BY_GROUP",
    "EARLY",
    "IN_GROUPS",
    "WHOLE",
    "as_declared",
    "critical_first",
    "features_of_early_pull",
    "own_features",
    "run_ahead",
]

BY_GROUP, IN_GROUPS, WHOLE = Mode(by_group=True), Mode(), Mode(joint=True)
EARLY, AHEAD = Mode(early=True, ahead=True, joint=True), Mode(ahead=True, joint=True)
AHEAD_BY_GROUP = Mode(ahead=True, by_group=True)

SLACK_RATIO = 0.1
"""An operator may be longer than the predicted gap by this much of the gap: predictions are no better than that."""


def own_features(now: Situation) -> Choice | None:
    """The next feature operator of the batch that trains next; None if all are begun."""
    group = now.next_group(now.current)
    return None if group is None else Choice(now.current, group, "the next batch to train needs it")


def features_of_early_pull(now: Situation) -> Choice | None:
    """The next feature operator that an early pull waits for; None if there is none to begin."""
    batch = now.current + 1
    group = now.next_group(batch) if now.feeds_early_pull(batch) else None
    return None if group is None else Choice(batch, group, "its early pull is to run under the dense work before it")


def run_ahead(now: Situation, num_ahead: int) -> Choice:
    """A feature operator of a later batch, if it ends within the predicted gap and fits the byte budget.

    Asked while training work runs, there are cores which that leaves free, and no gap to keep to.
    """
    for batch in range(now.current + 1, min(now.current + num_ahead, now.last_read) + 1):
        group = now.next_group(batch)
        if group is None:
            continue
        if not now.fits(batch, group):
            return nothing("the byte budget is used up")
        if now.training_first:
            return Choice(batch, group, "a core that training work leaves free")
        if now.cpu_bound:
            return Choice(batch, group, "feature work is the longer part, so no processor rests")
        seconds, left = now.costs.seconds(Kind.FEATURES, group), now.gap_left_s
        if seconds > left + SLACK_RATIO * now.costs.gap_s.value:
            return nothing(f"the next operator takes {seconds * 1e3:.1f} ms, of the gap {left * 1e3:.1f} ms are left")
        return Choice(batch, group, f"fits the {left * 1e3:.1f} ms that are left of the gap")
    return nothing("all batches that may run ahead are done")


def as_declared(costs: Costs) -> Sequence[int]:
    """Groups in the order in which the job lists them."""
    return range(costs.num_groups)


def critical_first(costs: Costs, num_cores: int) -> Sequence[int]:
    """Groups in the order that ends all pulls soonest: Johnson's rule on one core, longest path first on several.

    A pull's seconds are its bytes at the rate of pushes, which are sent one at a time: pulls in flight together slow
    each other down, and may wait in the store, so what they took says little.
    """
    groups = range(costs.num_groups)
    cpu_s = [costs.seconds(Kind.FEATURES, group) for group in groups]
    s_per_byte = costs.seconds(Kind.PUSH) / max(costs.num_bytes(Kind.PUSH), 1)
    network_s = [s_per_byte * costs.num_bytes(Kind.PULL, group) for group in groups]
    return johnson_order(cpu_s, network_s) if num_cores == 1 else critical_path_order(cpu_s, network_s)
