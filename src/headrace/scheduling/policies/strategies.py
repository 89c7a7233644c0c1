"""Strategies for building a step: features at once or in groups; pulls in strict order, sent ahead, or early.

Each is a function from a `StepContext` to the operators of a step, composed of the building blocks above it. Your own
policy may use the building blocks, or list its operators one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.scheduling.bounds import critical_path_order, johnson_order
from headrace.scheduling.graph import ALL_GROUPS, WHOLE, Kind, Node, Operator, Part, Start
from headrace.scheduling.policies.base import PullStrategy, StepContext

__all__ = [
    "AHEAD",
    "AHEAD_BY_GROUP",
    "AT_ONCE",
    "BY_GROUP",
    "EARLY",
    "IN_GROUPS",
    "after_push",
    "asked_ahead",
    "at_once",
    "critical_first",
    "deferred_pull",
    "early",
    "early_pulls",
    "features",
    "pulls",
    "training",
    "while_idle",
]


# Building blocks


def at_once(step: StepContext) -> Sequence[int]:
    """All features as one operator."""
    return (ALL_GROUPS,) if step.num_groups > 1 else (0,)


def critical_first(step: StepContext) -> Sequence[int]:
    """Groups in the order that finishes all pulls earliest: Johnson's rule on one core, longest path first on several.

    The seconds of a pull are estimated from its bytes and the rate of pushes, which are sent one at a time. Measured
    times of pulls are not useful, because concurrent pulls slow each other down and may wait in the store.
    """
    groups, costs = range(step.num_groups), step.costs
    cpu_s = [costs.seconds(Kind.FEATURES, group) for group in groups]
    s_per_byte = costs.seconds(Kind.PUSH) / max(costs.num_bytes(Kind.PUSH), 1)
    network_s = [s_per_byte * costs.num_bytes(Kind.PULL, group) for group in groups]
    return johnson_order(cpu_s, network_s) if step.num_cores == 1 else critical_path_order(cpu_s, network_s)


def features(step: StepContext, groups: Sequence[int], parts: Sequence[Part] = (WHOLE,)) -> list[Node]:
    """Feature operators in order of priority; policies choose when they run."""
    operators = [Operator(Kind.FEATURES, step.batch, group, part) for part in parts for group in groups]
    return [Node(operator, priority=place) for place, operator in enumerate(operators)]


def pulls(
    step: StepContext,
    groups: Sequence[int],
    starts: Callable[[Operator], Sequence[Start]],
    parts: Sequence[Part] = (WHOLE,),
) -> list[Node]:
    """Pulls of feature groups with given start conditions. Pulls that start together are sent as one request."""
    operators = [Operator(Kind.PULL, step.batch, group, part) for part in parts for group in groups]
    return [Node(operator, tuple(starts(operator)), place) for place, operator in enumerate(operators)]


def training(step: StepContext, *needs: Operator, parts: Sequence[Part] = (WHOLE,)) -> list[Node]:
    """Dense work once all rows of its part have arrived, then push and update.

    Args:
        step: Context of the step.
        needs: Needs of dense work in addition to its pulls and the previous update.
        parts: Micro-batches, trained in order.
    """
    batch, gradients = step.batch, Start((Operator(Kind.DENSE, step.batch),), "its gradients are known")
    nodes = []
    for number, part in enumerate(parts):
        rows = (Operator(Kind.PULL, batch, part=part), Operator(Kind.UPDATE, batch - 1), *needs)
        nodes.append(Node(Operator(Kind.DENSE, batch, part=part), (Start(rows, "all its rows have arrived"),), number))
    push, update = Operator(Kind.PUSH, batch), Operator(Kind.UPDATE, batch)
    return [*nodes, Node(push, (gradients,)), Node(update, (gradients,), priority=len(parts))]


def after_push(step: StepContext) -> Start:
    """A pull starts once all keys of its batch are known and the previous push is applied."""
    needs = (Operator(Kind.FEATURES, step.batch), Operator(Kind.PUSH, step.batch - 1))
    return Start(needs, "its keys are known", after=step.batch - 1)


def asked_ahead(step: StepContext) -> list[Start]:
    """A pull starts once its keys are known, and the store waits for the previous push, if it can.

    Only used if the update is certain to come; otherwise the store would hold the request until its timeout.
    """
    needs = (Operator(Kind.FEATURES, step.batch), Operator(Kind.REQUEST, step.batch - 1))
    ahead = Start(needs, "its keys are known; answered when the previous push is applied", after=step.batch - 1)
    return [ahead] if step.store_waits else []


def while_idle(step: StepContext, pull: Operator) -> list[Start]:
    """A group's pull starts alone if the network is idle and there are several groups."""
    needs = (Operator(Kind.FEATURES, step.batch, pull.group, pull.part), Operator(Kind.PUSH, step.batch - 1))
    alone = Start(needs, "its keys are known, and the network is idle", after=step.batch - 1, only_if_idle=True)
    return [alone] if step.num_groups > 1 else []


def early(step: StepContext) -> Start:
    """A pull starts before the push in flight is applied, and skips the keys that the push touches."""
    batch = step.batch
    needs = (Operator(Kind.FEATURES, batch), Operator(Kind.FEATURES, batch - 1), Operator(Kind.PUSH, batch - 2))
    reason = "its keys and those of the push in flight are known"
    return Start(needs, reason, after=batch - 2, defers=True)


def deferred_pull(step: StepContext, group: int) -> Node:
    """The keys that an early pull skipped, which are known once it has arrived.

    If sent ahead, it follows all early pulls, so that it does not block them while the store holds it back.
    """
    batch = step.batch
    pull, push = Operator(Kind.PULL, batch, group), Operator(Kind.PUSH, batch - 1)
    starts = [Start((pull, push), "the previous push is applied", after=batch - 1)]
    if step.store_waits:
        needs = (Operator(Kind.PULL, batch), Operator(Kind.REQUEST, batch - 1))
        starts.append(Start(needs, "answered when the previous push is applied", after=batch - 1))
    return Node(Operator(Kind.DEFERRED_PULL, batch, group), tuple(starts))


# Strategies


def _strict_at_once(step: StepContext) -> list[Node]:
    groups = at_once(step)
    return [*features(step, groups), *pulls(step, groups, lambda pull: [after_push(step)]), *training(step)]


def _strict_in_groups(step: StepContext) -> list[Node]:
    groups = range(step.num_groups)
    return [*features(step, groups), *pulls(step, groups, lambda pull: [after_push(step)]), *training(step)]


def _strict_by_group(step: StepContext) -> list[Node]:
    groups = critical_first(step)
    starts: Callable[[Operator], list[Start]] = lambda pull: [after_push(step), *while_idle(step, pull)]  # noqa: E731
    return [*features(step, groups), *pulls(step, groups, starts), *training(step)]


def _ahead_at_once(step: StepContext) -> list[Node]:
    groups = at_once(step)
    starts = [after_push(step), *asked_ahead(step)]
    return [*features(step, groups), *pulls(step, groups, lambda pull: starts), *training(step)]


def _ahead_by_group(step: StepContext) -> list[Node]:
    groups = critical_first(step)
    ahead = [after_push(step), *asked_ahead(step)]
    starts: Callable[[Operator], list[Start]] = lambda pull: [*ahead, *while_idle(step, pull)]  # noqa: E731
    return [*features(step, groups), *pulls(step, groups, starts), *training(step)]


def early_pulls(step: StepContext, groups: Sequence[int]) -> list[Node]:
    """Dense work waits for the features of the next batch, whose early pull can then overlap with it."""
    dense, *rest = training(step, Operator(Kind.DEFERRED_PULL, step.batch))
    dense = Node(dense.operator, dense.starts, yields_to=(Operator(Kind.FEATURES, step.batch + 1),))
    starts = [after_push(step), early(step)]
    deferred = [deferred_pull(step, group) for group in groups]
    return [*features(step, groups), *pulls(step, groups, lambda pull: starts), *deferred, dense, *rest]


def _early_at_once(step: StepContext) -> list[Node]:
    return early_pulls(step, at_once(step))


AT_ONCE = PullStrategy("features at once", _strict_at_once)
"""All features are one operator and one pull."""
IN_GROUPS = PullStrategy("in groups", _strict_in_groups)
"""Features are computed by group and pulled together."""
BY_GROUP = PullStrategy("by group", _strict_by_group)
"""Like `IN_GROUPS`, critical groups first; a group is pulled alone if the network is idle."""
AHEAD = PullStrategy("features at once, sent ahead", _ahead_at_once)
"""Like `AT_ONCE`, but pulls are sent before the push they must include is applied, and the store holds them back."""
AHEAD_BY_GROUP = PullStrategy("by group, sent ahead", _ahead_by_group)
"""Both."""
EARLY = PullStrategy("features at once, early pulls", _early_at_once)
"""Like `AT_ONCE`, but rows that no push in flight touches are pulled before that push is applied."""
