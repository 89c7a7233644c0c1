"""What a job's scheduler keeps to where the plan looks for equal rows."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch import nn

from headrace.features.grouping import Grouping
from headrace.scheduling.config import SchedulerConfig
from headrace.scheduling.feature_groups import MAX_GROUPS
from headrace.training.stepping import Scheduling


@pytest.mark.parametrize(
    ("grouping", "most"),
    [
        (Grouping((), "adjacent", "nothing repeats"), MAX_GROUPS),
        (Grouping((("age", "history"),), "adjacent", "they repeat"), 1),  # parts would find other rows equal
        (None, 1),  # not decided yet
    ],
)
def test_features_are_one_group_where_the_plan_looks_for_equal_rows(grouping: Grouping | None, most: int) -> None:
    plan = cast(Any, SimpleNamespace(grouping=grouping))
    assert Scheduling(SchedulerConfig(), nn.Module())._max_groups(plan, store_waits=True) == most
