"""A rebatcher regroups rows exactly, keeps order, counts losses once, and can be resumed behind every output."""

from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.engine.element import Element, merge_splits
from headrace.pipeline.engine.position import Position
from headrace.pipeline.engine.rebatcher import Rebatcher
from headrace.pipeline.row_stats import NO_ROWS, RowStats
from headrace.pipeline.transformations.slices import GrowingSize, Rebatch

SIZES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=12)


def elements(sizes: list[tuple[int, int]]) -> list[Element]:
    """Elements with so many rows and dropped rows each; the payload is a batch of the rows' numbers in the stream."""
    found, row = [], 0
    for index, (num_rows, num_dropped) in enumerate(sizes):
        batch = pa.record_batch({"row": list(range(row, row + num_rows))}, schema=pa.schema([("row", pa.int64())]))
        losses = RowStats(num_dropped=num_dropped) if num_dropped else NO_ROWS
        before, after = Position(0, index), Position(0, index + 1)
        found.append(Element(batch, num_rows, (index,), before, after, losses, splits=(0,), num_bytes=num_rows * 8))
        row += num_rows
    return found


def end_of(num_elements: int, segment: int = 0) -> Element:
    """The marker behind the last of so many elements."""
    place = Position(0, num_elements, segment=segment)
    return Element(None, 0, (num_elements,), place, place, ends_segment=True)


def regroup(sizes: list[tuple[int, int]], spec: Rebatch, after: Position | None = None) -> list[Element]:
    after = after or Position.start(1)
    rebatcher = Rebatcher(spec, after.before(0), *after.rebatches[0])
    inputs = [*elements(sizes)[after.source_batch :], end_of(len(sizes))]
    return [output for element in inputs for output in rebatcher.feed(element)]


def rows(outputs: list[Element]) -> list[list[int]]:
    return [
        [row for part in output.payload for row in part.rows["row"][part.start : part.stop].to_pylist()]
        for output in outputs
        if output.num_rows
    ]


@given(SIZES, st.integers(1, 9))
def test_every_output_but_the_last_has_exactly_the_rows_asked_for(sizes: list[tuple[int, int]], num_rows: int) -> None:
    found = rows(regroup(sizes, Rebatch(num_rows)))
    assert [row for part in found for row in part] == list(range(sum(size for size, _ in sizes)))
    assert all(len(part) == num_rows for part in found[:-1])


@pytest.mark.parametrize(
    ("rows_before", "expected"),
    [(0, [2, 2, 2, 2, 4, 4, 8, 8, 8]), (11, [4, 4, 8, 8, 8]), (1000, [8, 8, 8, 8, 8])],
)
def test_growing_outputs_have_a_power_of_two_of_at_most_a_share_of_the_rows_before(
    rows_before: int, expected: list[int]
) -> None:
    spec = Rebatch(GrowingSize(2, 8, 2, rows_before))
    assert [len(part) for part in rows(regroup([(3, 0)] * 14, spec))][: len(expected)] == expected


def test_outputs_of_a_later_segment_grow_with_the_rows_of_those_before_it() -> None:
    rebatcher = Rebatcher(Rebatch(GrowingSize(1, 8, 2, 0, (9, 3, 0))), Position(0, 0))
    segments = [[*elements([(num_rows, 0)]), end_of(1, segment)] for segment, num_rows in enumerate((9, 3, 9))]
    found = [[output.num_rows for each in segment for output in rebatcher.feed(each)] for segment in segments]
    assert found == [[1, 1, 1, 1, 2, 2, 1, 0], [3, 0], [4, 5, 0]]


@given(SIZES, st.integers(0, 30), st.integers(1, 3))
def test_a_resume_behind_any_growing_output_gives_the_rest(
    sizes: list[tuple[int, int]], rows_before: int, rows_per_row: int
) -> None:
    spec = Rebatch(GrowingSize(1, 16, rows_per_row, rows_before))
    outputs = regroup(sizes, spec)
    for number, output in enumerate(outputs[:-1], 1):
        assert rows(regroup(sizes, spec, output.after)) == rows(outputs[number:])


@given(SIZES, st.integers(1, 9), st.booleans())
def test_losses_are_counted_once_and_leftovers_count_as_dropped(
    sizes: list[tuple[int, int]], num_rows: int, drop_last: bool
) -> None:
    outputs = regroup(sizes, Rebatch(num_rows, drop_last))
    total = sum(size for size, _ in sizes)
    left_over = total % num_rows if drop_last else 0
    assert sum(output.num_rows for output in outputs) == total - left_over
    assert sum(output.losses.num_dropped for output in outputs) == sum(lost for _, lost in sizes) + left_over


def test_losses_come_with_the_last_row_of_their_element_and_not_before_the_good_rows_around_them() -> None:
    outputs = regroup([(10, 3), (0, 1), (5, 2)], Rebatch(4))
    assert [output.losses.num_dropped for output in outputs] == [0, 0, 4, 2, 0]


@given(SIZES, st.integers(1, 9))
def test_the_stream_goes_on_behind_every_output_with_each_loss_counted_once(
    sizes: list[tuple[int, int]], num_rows: int
) -> None:
    outputs = regroup(sizes, Rebatch(num_rows))
    assert [output.ends_segment for output in outputs] == [False] * (len(outputs) - 1) + [True]
    for number, output in enumerate(outputs[:-1], start=1):
        rest = regroup(sizes, Rebatch(num_rows), output.after)
        assert rows(rest) == rows(outputs[number:])
        assert [each.key for each in rest] == [each.key for each in outputs[number:]]
        assert sum(each.losses.num_dropped for each in outputs[:number] + rest) == sum(lost for _, lost in sizes)


@given(SIZES, st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_ranks_share_all_rows_and_make_the_same_number_of_steps(
    sizes: list[tuple[int, int]], num_rows: int, num_ranks: int, drop_last: bool
) -> None:
    by_rank = [regroup(sizes, Rebatch(num_rows, drop_last, num_ranks, rank)) for rank in range(num_ranks)]
    steps = [rows(outputs) for outputs in by_rank]
    assert len({len(each) for each in steps}) == 1
    total = sum(size for size, _ in sizes)
    used = [row for step in zip(*steps, strict=True) for part in step for row in part]
    assert used == list(range(len(used)))
    left_over = total % (num_rows * num_ranks)
    assert total - len(used) == (left_over if drop_last or left_over < num_ranks else 0)
    lost = [sum(output.losses.num_dropped for output in outputs) for outputs in by_rank]
    assert lost[0] == sum(each for _, each in sizes) + total - len(used)
    assert not any(lost[1:])
    assert all(before.after == after.before for outputs in by_rank for before, after in pairwise(outputs))
    assert len({tuple(output.after for output in outputs if output.num_rows) for outputs in by_rank}) == 1


def test_a_resume_with_other_ranks_goes_on_at_the_row_where_all_stopped() -> None:
    sizes = [(7, 0), (20, 0), (6, 0)]
    stopped = regroup(sizes, Rebatch(2, num_ranks=4, rank=3))[1]
    rest = [regroup(sizes, Rebatch(3, num_ranks=2, rank=rank), stopped.after) for rank in range(2)]
    assert rows(rest[0])[0] == [16, 17, 18]
    assert rows(rest[1])[0] == [19, 20, 21]


class CountingHold:
    def __init__(self) -> None:
        self.num_owners = 1

    def share(self) -> None:
        self.num_owners += 1

    def release(self) -> None:
        assert self.num_owners > 0
        self.num_owners -= 1


@pytest.mark.parametrize("spec", [Rebatch(4), Rebatch(4, drop_last=True), Rebatch(2, num_ranks=3, rank=1)])
def test_memory_is_held_as_long_as_an_output_points_into_it_and_no_longer(spec: Rebatch) -> None:
    holds, outputs = [], []
    rebatcher = Rebatcher(spec, Position(0, 0))
    for element in elements([(5, 0), (0, 1), (9, 0), (1, 0)]):
        hold = CountingHold()
        element.holds = (hold,)
        holds.append(hold)
        outputs += rebatcher.feed(element)
    outputs += rebatcher.feed(end_of(4))
    assert sum(hold.num_owners for hold in holds) == sum(len(output.payload or []) for output in outputs)
    for output in outputs:
        output.release()
    assert [hold.num_owners for hold in holds] == [0, 0, 0, 0]


@given(st.lists(SIZES, min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_behind_the_end_of_a_segment_everything_begins_anew(
    segments: list[list[tuple[int, int]]], num_rows: int, num_ranks: int, drop_last: bool
) -> None:
    spec = Rebatch(num_rows, drop_last, num_ranks, rank=num_ranks - 1)
    rebatcher = Rebatcher(spec, Position(0, 0))
    for segment, sizes in enumerate(segments):
        inputs = [*elements(sizes), end_of(len(sizes))]
        for element in inputs:
            element.before, element.after = (
                Position(0, place.source_batch, segment=segment) for place in (element.before, element.after)
            )
        outputs = [output for element in inputs for output in rebatcher.feed(element)]
        alone = regroup(sizes, spec)
        assert rows(outputs) == rows(alone)
        assert [output.key for output in outputs] == [output.key for output in alone]
        assert [output.losses for output in outputs] == [output.losses for output in alone]
        assert {place.segment for output in outputs for place in (output.before, output.after)} == {segment}
        assert [(output.after.source_batch, output.after.rebatches) for output in outputs] == [
            (output.after.source_batch, output.after.rebatches) for output in alone
        ]


def test_splits_of_an_element_are_listed_once_in_order() -> None:
    assert merge_splits([(3,), (1, 3), ()]) == (1, 3)
