"""The step scheduler: overlaps feature work, communication and dense work without changing any number."""

from headrace.scheduling.bounds import StepParts
from headrace.scheduling.graph import ALL_GROUPS, WHOLE, Kind, Lane, Node, Operator, Part, Start
from headrace.scheduling.policies import Decision, Policy, PullStrategy, SchedulerView, StepContext, nothing
from headrace.scheduling.state import SchedulerState

__all__ = [
    "ALL_GROUPS",
    "WHOLE",
    "Decision",
    "Kind",
    "Lane",
    "Node",
    "Operator",
    "Part",
    "Policy",
    "PullStrategy",
    "SchedulerState",
    "SchedulerView",
    "Start",
    "StepContext",
    "StepParts",
    "nothing",
]
