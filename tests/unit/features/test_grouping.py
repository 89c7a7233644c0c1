"""Groups are chosen where they save bytes, and nowhere else; the reason says what was measured."""

import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import ConfigError
from headrace.features import FeaturePlan
from headrace.features.grouping import ColumnUse, choose_groups
from headrace.logs import Schema
from headrace.tensors import InverseKeyedJaggedTensor, KeyedJaggedTensor

ROWS = 1600
SCHEMA = Schema.from_dict(
    {"labels": ["y"], "dense": ["age"], "ids": ["item"], "id_lists": ["history", "likes"]}, where="t"
)


def every(number: int, shift: int = 0) -> np.ndarray:
    """A change with every so many rows."""
    changed = (np.arange(ROWS) + shift) % number == 0
    changed[0] = True
    return changed


def lists(name: str, changed: np.ndarray, length: float = 20.0) -> ColumnUse:
    return ColumnUse(name, changed, 8 * length + 4, 0.0)


def test_columns_that_change_together_share_a_group_and_others_do_not() -> None:
    found = choose_groups([lists("a", every(16)), lists("b", every(16)), lists("c", every(16, shift=7))])
    assert found.groups == (("a", "b"), ("c",))
    assert "3 of 3 columns in 2 groups: 15.95 rows per unique row" in found.reason


def test_what_changes_with_every_row_is_left_alone() -> None:
    found = choose_groups([lists("user", every(16)), lists("item", every(1))])
    assert found.groups == (("user",),)


def test_a_single_id_needs_company_to_pay() -> None:
    single = ColumnUse("city", every(3), 12.0, 0.0)
    assert choose_groups([single]).groups == ()
    assert "break-even is 1.5" in choose_groups([single]).reason
    assert choose_groups([lists("history", every(3)), single]).groups == (("history", "city"),)


def test_a_factor_below_break_even_switches_grouping_off() -> None:
    below, above = every(10), every(10)
    below[: int(0.7 * ROWS)] = True
    above[: int(0.45 * ROWS)] = True
    assert choose_groups([lists("a", below)]).groups == ()
    assert choose_groups([lists("a", above, length=100)]).groups == (("a",),)


def rows_of_sessions(size: int, num_rows: int = 600) -> pa.RecordBatch:
    session = np.arange(num_rows) // size
    return pa.record_batch(
        {
            "y": pa.array(np.zeros(num_rows), pa.float32()),
            "age": pa.array(session.astype(np.float32)),
            "item": pa.array(np.arange(num_rows)),
            "history": pa.array([[int(number)] * 10 for number in session]),
            "likes": pa.array([[int(number)] * 3 for number in session]),
        }
    )


def test_a_plan_decides_once_on_its_first_batch_and_keeps_to_it() -> None:
    plan = FeaturePlan.default(SCHEMA)
    first = plan.apply(rows_of_sessions(15))
    assert plan.grouping is not None
    assert plan.grouping.groups == (("history", "likes"),) or plan.grouping.groups == (("history", "likes", "age"),)
    plain, grouped = first.sparse
    assert isinstance(plain, KeyedJaggedTensor)
    assert plain.keys == ("item",)
    assert isinstance(grouped, InverseKeyedJaggedTensor)
    assert grouped.unique_stride == 40
    decided = plan.grouping
    assert [type(group) for group in plan.apply(rows_of_sessions(1)).sparse] == [KeyedJaggedTensor, KeyedJaggedTensor]
    assert plan.grouping is decided


def test_deciding_makes_another_plan_and_leaves_the_shared_one_open() -> None:
    plan = FeaturePlan.default(SCHEMA)
    of_sessions, of_single_rows = plan.decide(rows_of_sessions(15)), plan.decide(rows_of_sessions(1))
    assert plan.grouping is None
    assert of_sessions.grouping is not None
    assert of_sessions.grouping.groups
    assert of_single_rows.grouping is not None
    assert not of_single_rows.grouping.groups
    again = of_single_rows.decide(rows_of_sessions(15))  # a later window decides on its own rows
    assert again.grouping == of_sessions.grouping
    kinds = [{type(group) for group in p.apply(rows_of_sessions(15)).sparse} for p in (of_sessions, of_single_rows)]
    assert kinds == [{KeyedJaggedTensor, InverseKeyedJaggedTensor}, {KeyedJaggedTensor}]


def test_what_a_decided_plan_saves_is_counted_by_the_plan_it_was_made_from() -> None:
    plan = FeaturePlan.default(SCHEMA)
    decided = plan.decide(rows_of_sessions(15))
    decided.apply(rows_of_sessions(15))
    plan.keep_plain("for a test").apply(rows_of_sessions(15))
    assert plan.savings == decided.savings
    assert plan.savings.num_rows == 1200
    assert plan.savings.num_plain_ids > plan.savings.num_ids


@pytest.mark.parametrize("dedup", ["off", {"groups": [["history", "likes"]]}])
def test_a_plan_keeps_to_what_the_job_says_about_groups(dedup: object) -> None:
    plan = FeaturePlan.from_config({"sparse": {"history": None, "likes": None}, "dedup": dedup}, SCHEMA)
    assert plan.decide(rows_of_sessions(15)) is plan
    assert plan.keep_plain("shuffled") is plan


def test_no_rows_leave_a_plan_as_open_as_it_was() -> None:
    plan = FeaturePlan.default(SCHEMA)
    assert plan.decide(rows_of_sessions(15).slice(0, 0)) is plan


def test_few_rows_decide_nothing() -> None:
    plan = FeaturePlan.default(SCHEMA)
    plan.apply(rows_of_sessions(15, num_rows=30))
    assert plan.grouping is None


def test_a_log_without_sessions_stays_plain_and_says_why() -> None:
    plan = FeaturePlan.default(SCHEMA)
    (group,) = plan.apply(rows_of_sessions(1)).sparse
    assert isinstance(group, KeyedJaggedTensor)
    assert plan.grouping is not None
    assert "no group of columns saves enough" in plan.grouping.reason


@pytest.mark.parametrize(
    ("dedup", "said"),
    [
        ("often", "features.dedup: given 'often', expected auto, off or groups"),
        ({"groups": [["age", "height"]]}, "features.dedup.groups: given column 'height', expected one of: age"),
        ({"groups": [["age"], ["age"]]}, "features.dedup.groups: column 'age' is given twice"),
        ({"groups": []}, "features.dedup: groups: given [], expected"),
        ({"groups": [["age"]], "by": 1}, "features.dedup: by: unknown key, expected one of: groups, order"),
    ],
)
def test_a_mistake_in_the_job_names_the_key(dedup: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FeaturePlan.from_config({"dedup": dedup}, SCHEMA)
    assert said in str(caught.value)


def test_off_and_groups_by_hand_are_kept_to() -> None:
    for off in ("off", False):
        (group,) = FeaturePlan.from_config({"dedup": off}, SCHEMA).apply(rows_of_sessions(15)).sparse
        assert isinstance(group, KeyedJaggedTensor)
    plan = FeaturePlan.from_config({"dedup": {"groups": [["likes"]]}}, SCHEMA)
    plain, grouped = plan.apply(rows_of_sessions(15)).sparse
    assert (plain.keys, grouped.keys) == (("item", "history"), ("likes",))
