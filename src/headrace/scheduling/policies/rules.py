"""Rules that policies choose feature operators by: the step's own features first, then later batches in the gaps.

A rule gives a decision, or None to leave it to the next rule.
"""

from __future__ import annotations

from headrace.scheduling.policies.base import Decision, SchedulerView, nothing

__all__ = ["after_step_before", "own_features", "own_features_only", "run_ahead"]

SLACK_RATIO = 0.1
"""An operator may be longer than the predicted gap by this much of the gap: predictions are no better than that."""


def after_step_before(now: SchedulerView, num_ahead: int) -> Decision | None:
    """Nothing until the push of the step before is applied."""
    return None if now.is_applied(now.current - 1) else nothing("the step before is not over")


def own_features(now: SchedulerView, num_ahead: int) -> Decision | None:
    """The next feature operator of the batch that trains next, if one has yet to begin."""
    operator = now.next_features(now.current)
    return None if operator is None else Decision(operator, "the next batch to train needs it")


def own_features_only(now: SchedulerView, num_ahead: int) -> Decision:
    """Those, and nothing of later batches."""
    return own_features(now, num_ahead) or nothing("the step's features are done")


def run_ahead(now: SchedulerView, num_ahead: int) -> Decision:
    """A feature operator of a later batch, if it ends within the predicted gap and fits the byte budget.

    While training work runs, the cores asked for are those that it leaves free, so there is no gap to keep to.
    """
    for batch in range(now.current + 1, min(now.current + num_ahead, now.last_read) + 1):
        operator = now.next_features(batch)
        if operator is None:
            continue
        if not now.fits(operator):
            return nothing("the byte budget is used up")
        if now.training_first:
            return Decision(operator, "a core that training work leaves free")
        if now.cpu_bound:
            return Decision(operator, "feature work is the longer part, so no processor rests")
        seconds, left = now.costs.seconds(operator.kind, operator.group, operator.part), now.gap_left_s
        if seconds > left + SLACK_RATIO * now.costs.gap_s.value:
            return nothing(f"the next operator takes {seconds * 1e3:.1f} ms, {left * 1e3:.1f} ms of the gap are left")
        return Decision(operator, f"fits the {left * 1e3:.1f} ms that are left of the gap")
    return nothing("all batches that may run ahead are done")
