"""The step scheduler: overlaps feature work, communication and dense work without changing any number."""

from headrace.scheduling.bounds import StepParts
from headrace.scheduling.graph import Kind, Lane, Operator
from headrace.scheduling.policies import POLICIES, Policy, make_policy
from headrace.scheduling.state import SchedulerState

__all__ = ["POLICIES", "Kind", "Lane", "Operator", "Policy", "SchedulerState", "StepParts", "make_policy"]
