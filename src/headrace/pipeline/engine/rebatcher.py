"""`Rebatcher`: regroups a stream of elements into elements with an exact number of rows, without copying rows.

All other stages make one output per input. Batching gathers slices of rows and then joins them; shuffling gathers
blocks and then permutes each. Workers join and permute; gathering is cheap and sequential. It uses no threads, clocks
or Arrow calls.

Two source batches of 5 rows, regrouped by 4 (`|` marks the ends of outputs)::

    inputs     [a0 a1 a2 a3 a4]  [b0 b1 b2 b3 b4]
    outputs     a0 a1 a2 a3 | a4   b0 b1 b2 | b3 b4
    after       (a, 4)                (b, 3)     end

`after` is the position to resume from: read source batch a again, and skip four of its rows.

After the marker that ends a segment, regrouping starts anew: no output has rows of two segments, and outputs are
numbered from 0 again.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.pipeline.engine.element import Element, Hold, merge_splits
from headrace.pipeline.engine.position import Position
from headrace.pipeline.row_stats import NO_ROWS, RowStats
from headrace.pipeline.transformations.slices import Rebatch, RowSlice

__all__ = ["Rebatcher"]


@dataclass(slots=True)
class _Part:
    """Some rows of an input element, waiting for their output."""

    rows: RowSlice
    num_bytes: int
    splits: tuple[int, ...]
    holds: tuple[Hold, ...]

    def release(self) -> None:
        for hold in self.holds:
            hold.release()


class Rebatcher:
    """Regroups elements that are fed in order; the marker that ends a segment returns the rest.

    Each output has the losses (bad rows) of the input elements whose last row it uses. So every loss is counted with
    exactly one output, also after a resume in the middle of an element, and not before the good rows around it: the
    error budget must not compare all bad rows of a large source batch with only the first batch of its good rows.
    Losses of all ranks' inputs go to rank 0.

    Attributes:
        num_rows: Rows of this rank in the next output.
    """

    def __init__(self, spec: Rebatch, before: Position, skip_rows: int = 0, index: int = 0) -> None:
        """Start or resume a stream.

        Args:
            spec: How to regroup.
            before: Position of the first input element in the input stream.
            skip_rows: Number of rows of that element that were already used.
            index: Number of the next output.
        """
        self._spec = spec
        self._skip_rows = skip_rows
        self._index = index
        self._parts: list[_Part] = []
        self._num_rows = 0
        self._losses = NO_ROWS
        self._before = before.behind(skip_rows, index)
        self._sizes = spec.sizes(before.segment, index)
        self.num_rows = next(self._sizes)

    @property
    def num_ranks(self) -> int:
        """Number of ranks whose rows are gathered."""
        return self._spec.num_ranks

    @property
    def filled_ratio(self) -> float:
        """Share of the next output's rows that has been gathered."""
        return self._num_rows / (self.num_rows * self._spec.num_ranks)

    def feed(self, element: Element) -> list[Element]:
        """Add an element; returns the outputs that it completes, if any."""
        if element.ends_segment:
            return self._end_segment(element)
        outputs = []
        position = self._skip_rows
        self._skip_rows = 0
        if not element.num_rows:
            self._lose(element.losses)
        while position < element.num_rows:
            needed = self.num_rows * self._spec.num_ranks
            stop = min(element.num_rows, position + needed - self._num_rows)
            self._add(element, position, stop)
            position = stop
            at_end = stop == element.num_rows
            if at_end:
                self._lose(element.losses)
            if self._num_rows == needed:
                outputs.append(self._emit(element.after if at_end else element.before, 0 if at_end else stop))
                self.num_rows = next(self._sizes)
        element.release()
        return outputs

    def _end_segment(self, marker: Element) -> list[Element]:
        """Return the rest of a segment and its marker, and start the next segment.

        The rest is kept if every rank gets at least one of its rows, so that all ranks make the same number of steps;
        otherwise its rows count as dropped. The marker has the losses after the last row.
        """
        outputs = []
        self._lose(marker.losses)
        if self._num_rows >= self._spec.num_ranks and self._num_rows and not self._spec.drop_last:
            outputs.append(self._emit(marker.after, 0))
        if self._num_rows:
            self._lose(RowStats(num_dropped=self._num_rows))
        for part in self._parts:
            part.release()
        self._parts, self._num_rows = [], 0
        end = self._emit(marker.after, 0)
        end.ends_segment = True
        marker.release()
        self._index, self._skip_rows = 0, 0
        self._before = Position.start(len(end.after.rebatches), marker.segment + 1)
        self._sizes = self._spec.sizes(marker.segment + 1, 0)
        self.num_rows = next(self._sizes)
        return [*outputs, end]

    def _lose(self, losses: RowStats) -> None:
        if self._spec.rank == 0:
            self._losses += losses

    def _add(self, element: Element, start: int, stop: int) -> None:
        num_bytes = element.num_bytes * (stop - start) // element.num_rows
        self._parts.append(_Part(RowSlice(element.payload, start, stop), num_bytes, element.splits, element.holds))
        self._num_rows += stop - start
        for hold in element.holds:
            hold.share()

    def _emit(self, upstream: Position, used_rows: int) -> Element:
        """Make an element of the gathered rows; `upstream` and `used_rows` are the start of the next one."""
        after = upstream.behind(used_rows, self._index + 1)
        parts = self._own_parts()
        output = Element(
            payload=[part.rows for part in parts] or None,
            num_rows=sum(part.rows.num_rows for part in parts),
            key=(self._index, self._spec.rank),
            before=self._before,
            after=after,
            losses=self._losses,
            splits=merge_splits(part.splits for part in parts),
            num_bytes=sum(part.num_bytes for part in parts),
            holds=tuple(hold for part in parts for hold in part.holds),
        )
        self._parts, self._num_rows, self._losses = [], 0, NO_ROWS
        self._before = after
        self._index += 1
        return output

    def _own_parts(self) -> list[_Part]:
        """This rank's slice of the gathered rows; rows of other ranks are released."""
        rank, num_ranks = self._spec.rank, self._spec.num_ranks
        if num_ranks == 1:
            return self._parts
        first, last = self._num_rows * rank // num_ranks, self._num_rows * (rank + 1) // num_ranks
        own, position = [], 0
        for part in self._parts:
            length = part.rows.num_rows
            start, stop = max(first - position, 0), min(last - position, length)
            position += length
            if start < stop:
                rows = RowSlice(part.rows.rows, part.rows.start + start, part.rows.start + stop)
                own.append(_Part(rows, part.num_bytes * (stop - start) // length, part.splits, part.holds))
            else:
                part.release()
        return own
