"""Operators on several columns, and operators that users write, against their plain definitions."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import plain_operators as plain
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from random_columns import Drawn, columns, list_columns

from headrace.errors import ConfigError
from headrace.features import Column, ColumnOperator, FeaturePlan, Kind, operators, register
from headrace.logs.schema import Schema
from headrace.registry import OPERATORS
from headrace.tensors import validate_batch

EXAMPLES = settings(max_examples=40, deadline=None)

SCHEMA = Schema.from_dict(
    {
        "labels": ["y"],
        "dense": ["number"],
        "ids": ["user", "item"],
        "id_lists": [{"name": "a", "weights": "a_scores"}, {"name": "b", "weights": "b_scores"}, "c"],
    },
    where="schema",
)


def apply(section: str, sources: list[str], ops: list[Any], **arrays: pa.Array) -> Any:
    size = len(next(iter(arrays.values())))
    plan = FeaturePlan.from_config({section: {"f": {"from": sources, "ops": ops}}}, SCHEMA)
    result = plan.apply(pa.record_batch({**arrays, "y": pa.array(np.zeros(size))}))
    validate_batch(result)
    return result.dense[:, 0].tolist() if section == "dense" else result.sparse[0].to_lists()["f"]


@st.composite
def same_rows(draw: st.DrawFn, *kinds: str) -> list[Drawn]:
    rows = draw(st.integers(0, 20))
    return [draw(list_columns("id", rows=rows) if kind == "ids" else columns(kind, rows=rows)) for kind in kinds]


@st.composite
def alike(draw: st.DrawFn) -> list[tuple[list[int], list[float], list[int], list[float]]]:
    """Rows of two scored lists that share many ids."""
    ids = st.lists(st.tuples(st.integers(-3, 3), st.integers(-8, 8).map(float)), max_size=7)
    pairs = draw(st.lists(st.tuples(ids, ids), min_size=1, max_size=12))
    return [([i for i, _ in x], [s for _, s in x], [i for i, _ in y], [s for _, s in y]) for x, y in pairs]


@EXAMPLES
@given(same_rows("ids", "ids"))
def test_cartesian_makes_all_pairs(drawn: list[Drawn]) -> None:
    expected = [plain.cartesian(x, y) for x, y in zip(*(plain.listed(d.rows) for d in drawn), strict=True)]
    assert apply("sparse", ["a", "b"], ["cartesian"], a=drawn[0].array, b=drawn[1].array) == expected


@EXAMPLES
@given(same_rows("id", "ids", "ids"), st.integers(1, 9))
def test_cartesian_of_three_columns_is_limited(drawn: list[Drawn], limit: int) -> None:
    rows = zip(*(plain.listed(d.rows) for d in drawn), strict=True)
    expected = [plain.cartesian(*row, limit=limit) for row in rows]
    arrays = dict(zip(("user", "a", "b"), (d.array for d in drawn), strict=True))
    assert apply("sparse", ["user", "a", "b"], [{"cartesian": limit}], **arrays) == expected


@EXAMPLES
@given(same_rows("ids"), st.integers(2, 4))
def test_ngram_joins_neighbours(drawn: list[Drawn], size: int) -> None:
    expected = [plain.ngram(row, size) for row in plain.listed(drawn[0].rows)]
    assert apply("sparse", ["a"], [{"ngram": size}], a=drawn[0].array) == expected


@EXAMPLES
@given(same_rows("ids", "id", "ids"), st.integers(2, 3))
def test_ngram_puts_several_columns_end_to_end(drawn: list[Drawn], size: int) -> None:
    rows = zip(*(plain.listed(d.rows) for d in drawn), strict=True)
    expected = [plain.ngram(x + y + z, size) for x, y, z in rows]
    arrays = dict(zip(("a", "item", "b"), (d.array for d in drawn), strict=True))
    assert apply("sparse", ["a", "item", "b"], [{"ngram": size}], **arrays) == expected


@EXAMPLES
@given(alike(), st.booleans())
def test_id_list_transform_keeps_order_and_repeats(rows: Any, common: bool) -> None:
    expected = [[i for i in x if (i in y) == common] for x, _, y, _ in rows]
    a, b = pa.array([r[0] for r in rows], pa.list_(pa.int64())), pa.array([r[2] for r in rows], pa.list_(pa.int64()))
    ops = [{"id_list_transform": "intersection" if common else "difference"}]
    assert apply("sparse", ["a", "b"], ops, a=a, b=b) == expected


@pytest.mark.parametrize("mode", ["overlap", "count", "max_count", "jaccard", "cosine", "sum", "min", "max"])
@settings(max_examples=20, deadline=None)
@given(rows=alike())
def test_compute_score(mode: str, rows: Any) -> None:
    kinds = (pa.int32(), pa.float32(), pa.int64(), pa.float64())
    arrays = [pa.array([row[at] for row in rows], pa.list_(kind)) for at, kind in enumerate(kinds)]
    names = ["a", "a_scores", "b", "b_scores"]
    got = apply("dense", names, [{"compute_score": mode}], **dict(zip(names, arrays, strict=True)))
    assert got == pytest.approx([plain.compute_score(mode, *row) for row in rows], rel=1e-6, abs=1e-7)


# The worked examples of torcharrow's ComputeScoreTest.
IDS = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 10, 11, 12]]
OTHERS = [[1, 2, 3], [0, 10], [7, 10, 10], [10, 10, 11, 13]]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("overlap", [1, 0, 1, 1]),
        ("count", [3, 0, 1, 3]),
        ("max_count", [3, 0, 1, 3]),
        ("jaccard", [1, 0, 1 / 5, 3 / 5]),
        (
            "cosine",
            [
                1,
                0,
                49 / math.sqrt(49 + 64 + 81) / math.sqrt(49 + 400),
                (400 + 121) / math.sqrt(400 + 121 + 144) / math.sqrt(400 + 121 + 169),
            ],
        ),
        ("sum", [6, 0, 7, 31]),
        ("min", [1, 0, 7, 10]),
        ("max", [3, 0, 7, 11]),
    ],
)
def test_compute_score_gives_the_published_values(mode: str, expected: list[float]) -> None:
    names = ["a", "a_scores", "b", "b_scores"]
    arrays = [pa.array(rows, pa.list_(pa.int64())) for rows in (IDS, IDS, OTHERS, OTHERS)]
    got = apply("dense", names, [{"compute_score": mode}], **dict(zip(names, arrays, strict=True)))
    assert got == pytest.approx(expected)


def test_compute_score_refuses_scores_that_do_not_pair_up() -> None:
    names = ["a", "a_scores", "b", "b_scores"]
    arrays = [pa.array(rows, pa.list_(pa.int64())) for rows in ([[1], [2, 3]], [[1], [2]], [[], []], [[], []])]
    with pytest.raises(ValueError, match="row 1 has 2 ids and 1 scores"):
        apply("dense", names, ["compute_score"], **dict(zip(names, arrays, strict=True)))


@EXAMPLES
@given(same_rows("ids", "ids"))
def test_fused_operators_act_on_each_column_before_and_on_the_result_after_a_join(drawn: list[Drawn]) -> None:
    ops = [{"first_x": 2}, {"positive_modulus": 3}, "cartesian", {"first_x": 3}, {"hash": 50}]
    expected = []
    for x, y in zip(*(plain.listed(d.rows) for d in drawn), strict=True):
        pairs = plain.cartesian([i % 3 for i in x[:2]], [i % 3 for i in y[:2]])[:3]
        expected.append([plain.sigrid_hash(i, 50) for i in pairs])
    assert apply("sparse", ["a", "b"], ops, a=drawn[0].array, b=drawn[1].array) == expected


@pytest.mark.parametrize(
    ("section", "sources", "ops", "message"),
    [
        ("sparse", ["a"], ["cartesian"], "(cartesian): given 1 column, expected at least two"),
        ("sparse", ["a", "b", "c"], ["id_list_transform"], "(id_list_transform): given 3 columns, expected two"),
        (
            "dense",
            ["a", "a_scores"],
            ["compute_score"],
            "(compute_score): given a list of ids per row, a list of numbers",
        ),
        ("dense", ["a", "number"], ["compute_score"], "(compute_score): given one number per row, expected"),
    ],
)
def test_columns_that_do_not_suit_are_named(section: str, sources: list[str], ops: list[Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FeaturePlan.from_config({section: {"f": {"from": sources, "ops": ops}}}, SCHEMA)
    assert message in str(caught.value)


class Longest(ColumnOperator):
    """A user's operator: the longer of two lists, numbers of its parameter's length put before it."""

    name: ClassVar[str] = "longest"
    takes: ClassVar[tuple[Kind, ...]] = (Kind.IDS,)
    purpose: ClassVar[str] = "the longer list"
    wrong: str = ""

    def returns(self, kinds: Sequence[Kind]) -> Kind:
        return Kind.IDS

    def apply(self, columns: Sequence[Column], row_ids: NDArray[np.int64]) -> Column:
        first = columns[0]
        assert first.offsets is not None
        if self.wrong == "dtype":
            return Column(first.values.astype(np.int32), first.offsets)
        return Column(first.values, first.offsets[:-1] if self.wrong == "rows" else first.offsets)


@pytest.fixture
def longest() -> Iterator[type[Longest]]:
    yield register(Longest)
    OPERATORS.unregister("longest")


@pytest.mark.usefixtures("longest")
def test_users_register_operators() -> None:
    a = pa.array([[1, 2], [], [3]])
    assert apply("sparse", ["a"], ["longest", {"hash": 100}], a=a) == [[60, 54], [], [54]]
    assert "longest" in operators()


@pytest.mark.usefixtures("longest")
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            "rows",
            ValueError,
            r"features.sparse.f, operator 1 \(longest\): returned 2 rows with offsets, expected 3 rows",
        ),
        ("dtype", TypeError, r"features.sparse.f, operator 1 \(longest\): returned values of int32, expected int64"),
    ],
)
def test_a_users_operator_that_breaks_its_promise_is_named(wrong: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        apply("sparse", ["a"], [{"longest": {"wrong": wrong}}], a=pa.array([[1, 2], [], [3]]))


@pytest.mark.usefixtures("longest")
def test_two_operators_of_one_name_are_refused() -> None:
    class Other(Longest):
        """Another one."""

    with pytest.raises(ConfigError, match="operator longest: registered twice"):
        register(Other)
