"""Rules with which policies choose feature operators: the step's own features first, then later batches in the gaps.

A rule returns a decision, or None to leave it to the next rule.
"""

from __future__ import annotations

import math

from headrace.scheduling.policies.base import Decision, SchedulerView, nothing

__all__ = ["after_step_before", "own_features", "own_features_only", "run_ahead"]

SLACK_RATIO = 0.1
"""An operator may exceed the predicted gap by this fraction, which is the precision of predictions."""


def after_step_before(now: SchedulerView, num_ahead: int) -> Decision | None:
    """Run nothing until the push of the previous step is applied."""
    return None if now.is_applied(now.current - 1) else nothing("the previous step is not finished")


def own_features(now: SchedulerView, num_ahead: int) -> Decision | None:
    """Run the next feature operator of the batch that trains next, if any is left."""
    operator = now.next_features(now.current)
    return None if operator is None else Decision(operator, "the next batch to train needs it")


def own_features_only(now: SchedulerView, num_ahead: int) -> Decision:
    """Run only feature operators of the batch that trains next."""
    return own_features(now, num_ahead) or nothing("the step's features are done")


def run_ahead(now: SchedulerView, num_ahead: int) -> Decision:
    """Run a feature operator of a later batch, if it ends within the predicted gap and fits the byte budget.

    While training work runs, only cores that it leaves free are used, so no gap applies.
    """
    for batch in range(now.current + 1, min(now.current + num_ahead, now.last_read) + 1):
        operator = now.next_features(batch)
        if operator is None:
            continue
        if not now.fits(operator):
            return nothing("the byte budget is used up")
        if now.training_first:
            return Decision(operator, "a core is not used by training work")
        if now.cpu_bound:
            return Decision(operator, "feature computation is the bottleneck, so no core stays idle")
        if now.gap_left_s == math.inf:
            return Decision(operator, "the trainer is between two segments")
        seconds, left = now.costs.seconds(operator.kind, operator.group, operator.part), now.gap_left_s
        if seconds > left + SLACK_RATIO * now.costs.gap_s.value:
            return nothing(f"the next operator takes {seconds * 1e3:.1f} ms, {left * 1e3:.1f} ms of the gap are left")
        return Decision(operator, f"fits into the remaining {left * 1e3:.1f} ms of the gap")
    return nothing("all batches ahead are done")
