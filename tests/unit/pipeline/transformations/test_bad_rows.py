"""Rows a function raises on are found by halving, and follow the policy."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.logs.raw_rows import decode_rows, parse_row
from headrace.logs.source import ROW_ID
from headrace.pipeline.transformations.bad_rows import find_bad_rows
from headrace.pipeline.transformations.chain import StageFault, run_chain
from headrace.pipeline.transformations.map import Map
from headrace.pipeline.transformations.transformation import BadRows


def numbers(num_rows: int) -> pa.RecordBatch:
    return pa.record_batch({"value": list(range(num_rows)), ROW_ID: list(range(1000, 1000 + num_rows))})


class RaisesOn:
    """A function that raises if any of some values is in its batch, and counts its calls."""

    def __init__(self, values: set[int]) -> None:
        self.values = values
        self.num_calls = 0

    def __call__(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        self.num_calls += 1
        for value in rows["value"].to_pylist():
            if value in self.values:
                raise ValueError(f"bad value {value}")
        return rows


def run(function: object, num_rows: int, policy: BadRows) -> object:
    transformation = Map(function, bad_rows=policy)
    return run_chain([transformation], numbers(num_rows), num_rows, 100, (0, 0, 0))


@given(st.integers(1, 300), st.sets(st.integers(0, 299), max_size=10))
def test_exactly_the_bad_rows_are_left_out(num_rows: int, bad: set[int]) -> None:
    bad = {value for value in bad if value < num_rows}
    result = run(RaisesOn(bad), num_rows, "quarantine")
    left = [] if result.payload is None else result.payload["value"].to_pylist()
    assert left == [value for value in range(num_rows) if value not in bad]
    found = [row for fault in result.faults for row in fault.bad_rows]
    assert [row.row_id - 1000 for row in found] == sorted(bad)
    assert all(f"bad value {row.row}" in row.reason and f'"value": {row.row}' in row.raw for row in found)
    assert result.num_filtered == 0


def test_a_quarantined_row_is_kept_whole_and_can_be_read_back() -> None:
    long = "x" * 10_000
    batch = pa.record_batch(
        {"value": [1, 2], "word": [long, long], "list": [[1.5, float("nan")], None], ROW_ID: [7, 8]}
    )
    (bad,) = find_bad_rows(RaisesOn({2}), batch, ValueError("bad value 2"))
    parsed = parse_row(bad.raw)
    assert parsed == {"value": 2, "word": long, "list": None, ROW_ID: 8}
    (bad,) = find_bad_rows(RaisesOn({1}), batch, ValueError("bad value 1"))
    (rows, row_ids), *_ = decode_rows([parse_row(bad.raw)], ["value", "word"])
    assert (rows["value"].to_pylist(), rows["word"].to_pylist(), list(row_ids)) == ([1], [long], [7])


def test_one_bad_row_costs_about_two_calls_for_each_halving() -> None:
    function = RaisesOn({700})
    run(function, 1024, "drop")
    assert function.num_calls <= 2 + 2 * 10


def test_policy_fail_names_the_rows() -> None:
    with pytest.raises(StageFault) as caught:
        run(RaisesOn({3, 5}), 100, "fail")
    assert caught.value.row_ids == (1003, 1005)
    assert caught.value.reason == "ValueError: bad value 3"


def test_a_function_that_raises_on_many_rows_is_itself_at_fault() -> None:
    function = RaisesOn(set(range(1000)))
    with pytest.raises(StageFault) as caught:
        run(function, 1000, "quarantine")
    assert caught.value.row_ids == ()
    assert function.num_calls < 500


def test_an_error_that_no_single_row_causes_is_raised_as_it_is() -> None:
    def needs_few_rows(rows: pa.RecordBatch) -> pa.RecordBatch:
        if rows.num_rows > 10:
            raise MemoryError("too many rows")
        return rows

    with pytest.raises(MemoryError):
        find_bad_rows(needs_few_rows, numbers(16), MemoryError("too many rows"))
    with pytest.raises(StageFault, match="too many rows"):
        run(needs_few_rows, 16, "drop")


def test_a_wrong_return_value_is_not_blamed_on_rows() -> None:
    function = RaisesOn(set())
    with pytest.raises(StageFault) as caught:
        run(lambda rows: function(rows)["value"], 64, "drop")
    assert "returned Int64Array, expected pyarrow.RecordBatch" in caught.value.reason
    assert function.num_calls == 1


def test_a_batch_without_row_ids_is_refused() -> None:
    with pytest.raises(StageFault, match="dropped the column __row_id"):
        run(lambda rows: rows.select(["value"]), 4, "drop")


def test_an_element_whose_rows_are_all_bad_ends_without_payload() -> None:
    result = run(RaisesOn({0}), 1, "drop")
    assert result.payload is None
    assert result.num_rows == 0
