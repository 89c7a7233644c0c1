"""Writing id features of unique rows, ids that overlapping lists share once, and expanding dense ones to all rows."""

from typing import Any

import numpy as np

from headrace.compiling import kernel
from headrace.features.kernels.gathering import element_width
from headrace.features.kernels.interpret import BLOCK
from headrace.features.kernels.memory import unowned
from headrace.features.kernels.sources import (
    ELEMENT_TYPE,
    ELEMENT_VALIDITY,
    LIST_OFFSETS,
    LIST_SIZES,
    ROW_OFFSET,
    ROW_VALIDITY,
    SCALAR,
    SHAPE,
    VIEW32,
    VIEW64,
    WIDTH,
    row_size,
    row_start,
)
from headrace.features.kernels.sparse import chain_limit, first_op, write_feature

__all__ = ["count_expanded_ids", "count_row_bytes", "expand_rows", "write_unique"]

_SOURCE, _START, _STOP, _ON_IDS, _LIMIT, _WEIGHTS = range(6)


@kernel()
def _merge(source: Any, limit: int, before: int, starts: Any, lengths: Any, spans: Any) -> Any:
    """Merge the slices that rows are into spans of the shared buffer, in the order of the rows.

    A slice that begins inside the span of the row before it, as in a history that shifts, makes that span longer.

    Args:
        source: A list view.
        limit: Elements of a row that count.
        before: Where the ids of the first span will be written.
        starts: int64 [U], written: where each row's ids will be.
        lengths: int32 [U], written.
        spans: int64 [2, U], its first columns written: start and size of each span.

    Returns:
        Spans, and ids that all rows together have.
    """
    count, covered, total = 0, np.int64(before), np.int64(0)
    for row in range(lengths.size):
        size = min(np.int64(limit), row_size(source, row))
        lengths[row] = size
        total += size
        if size == 0:
            starts[row] = covered + (spans[1, count - 1] if count else 0)
            continue
        start = row_start(source, row)
        if count == 0 or start < spans[0, count - 1] or start > spans[0, count - 1] + spans[1, count - 1]:
            if count:
                covered += spans[1, count - 1]
            spans[0, count], spans[1, count] = start, 0
            count += 1
        inside = start - spans[0, count - 1]
        starts[row] = covered + inside
        spans[1, count - 1] = max(spans[1, count - 1], inside + size)
    return count, total


@kernel()
def write_unique(
    sources: Any,
    chains: Any,
    shareable: Any,
    ops: Any,
    integers: Any,
    floats: Any,
    row_ids: Any,
    values: Any,
    lengths: Any,
    offsets: Any,
) -> Any:
    """As `write_sparse` without weights, but ids that overlapping lists share are computed and written once.

    Args:
        sources: int64 [S, WIDTH], see `headrace.features.kernels.sources`.
        chains: int64 [F, 6], as for `write_sparse`.
        shareable: Bool [F]: whether ids may be worked on apart from the lists they are in.
        ops: The program, see `headrace.features.kernels.interpret.run`.
        integers: Its tables of integers.
        floats: Its parameters and tables of floats.
        row_ids: int64 [U].
        values: int64 [at least `count_ids`], written from its start.
        lengths: int32 [F * U], written.
        offsets: int64 [F * U + 1], written: where each list starts in `values`.

    Returns:
        Ids written, and ids that were not, because another list shares them: if 0, `offsets` are cumulated lengths.
    """
    program = (ops, integers, floats)
    scratch = (np.empty(BLOCK, np.float64), np.empty(BLOCK, np.uint8))
    bounds = np.empty(BLOCK + 1, np.int64)
    spans = np.empty((2, row_ids.size), np.int64)
    span_lengths, span_offsets = np.empty(row_ids.size, np.int32), np.empty(row_ids.size + 1, np.int64)
    fake = (np.zeros(WIDTH, np.int64), np.zeros(6, np.int64), np.empty(0, np.float32))
    return _write(
        sources,
        chains,
        shareable,
        program,
        scratch,
        bounds,
        row_ids,
        values,
        lengths,
        offsets,
        spans,
        span_lengths,
        span_offsets,
        fake,
    )


@kernel()
def _write(
    sources: Any,
    chains: Any,
    shareable: Any,
    program: Any,
    scratch: Any,
    bounds: Any,
    row_ids: Any,
    values: Any,
    lengths: Any,
    offsets: Any,
    spans: Any,
    span_lengths: Any,
    span_offsets: Any,
    fake: Any,
) -> Any:
    """The work of `write_unique`, in memory that it owns."""
    sources, chains, row_ids, bounds = unowned(sources), unowned(chains), unowned(row_ids), unowned(bounds)
    program = (unowned(program[0]), unowned(program[1]), unowned(program[2]))
    scratch = (unowned(scratch[0]), unowned(scratch[1]))
    values, lengths, offsets = unowned(values), unowned(lengths), unowned(offsets)
    spans, span_lengths, span_offsets = unowned(spans), unowned(span_lengths), unowned(span_offsets)
    view, chain_of_view, no_weights = unowned(fake[0]), unowned(fake[1]), unowned(fake[2])
    num_rows = row_ids.size
    at: Any = np.int64(0)
    shared: Any = np.int64(0)
    for feature in range(chains.shape[0]):
        chain = chains[feature]
        source, start = sources[chain[_SOURCE]], feature * num_rows
        mine, places = lengths[start : start + num_rows], offsets[start:]
        weight_source = sources[0]
        is_view = source[SHAPE] in (VIEW32, VIEW64)
        if num_rows > 0:
            places[0] = at
        if not (shareable[feature] and is_view and source[ELEMENT_VALIDITY] == 0):
            at = write_feature(
                source, chain, program, scratch, bounds, row_ids, at, values, mine, places, weight_source, no_weights
            )
            continue
        count, total = _merge(source, chain_limit(source, chain), at, places, mine, spans)
        view[:] = source
        view[SHAPE], view[ROW_OFFSET], view[ROW_VALIDITY] = VIEW64, 0, 0
        view[LIST_OFFSETS], view[LIST_SIZES] = spans[0].ctypes.data, spans[1].ctypes.data
        chain_of_view[:] = chain
        chain_of_view[_START], chain_of_view[_LIMIT] = first_op(source, chain), 1 << 62
        stop = write_feature(
            view,
            chain_of_view,
            program,
            scratch,
            bounds,
            row_ids,
            at,
            values,
            span_lengths[:count],
            span_offsets,
            weight_source,
            no_weights,
        )
        shared += total - (stop - at)
        at = stop
    offsets[chains.shape[0] * num_rows] = at
    return at, shared


@kernel()
def expand_rows(unique: Any, inverse: Any, runs: Any, out: Any) -> None:
    """Write the dense features of unique rows to the rows that have them.

    Args:
        unique: float32 [U, P].
        inverse: int32 [B].
        runs: int64 [R, 3]: first column in `unique`, first column in `out`, and how many lie side by side in both.
        out: float32 [B, D], written in part.
    """
    width, out_width = unique.shape[1], out.shape[1]
    given, written = unique.reshape(-1), out.reshape(-1)
    for row in range(inverse.size):
        for run in range(runs.shape[0]):
            # Unsigned places need no check for a count from the end: the copy is done in vectors.
            first = np.uint64(np.int64(inverse[row]) * width + runs[run, 0])
            place = np.uint64(row * out_width + runs[run, 1])
            for column in range(np.uint64(runs[run, 2])):
                written[place + column] = given[first + column]


@kernel()
def count_expanded_ids(lengths: Any, inverse: Any, num_unique: int) -> Any:
    """Ids that all rows have, of lengths int32 [F * U] of unique rows."""
    uses = np.zeros(num_unique, np.int64)
    for row in inverse:
        uses[row] += 1
    total: Any = np.int64(0)
    for place in range(lengths.size):
        total += lengths[place] * uses[place % num_unique]
    return total


@kernel()
def count_row_bytes(sources: Any, which: Any, rows: Any, uses: Any, counts: Any, num_rows: int) -> Any:
    """Bytes that some sources hold in a batch of rows, and that they would hold in plain rows.

    Elements that a list of a shared buffer has in common with the list before it are held once. Strings count as the
    ids they become.

    Args:
        sources: int64 [S, WIDTH], see `headrace.features.kernels.sources`.
        which: int64 [S], the group of each source; -1 for plain columns.
        rows: int64 [G, B], the unique rows of each group that the batch has, from its start.
        uses: int64 [G, B], how many rows of the batch have each of them.
        counts: int64 [G], how many there are.
        num_rows: B.
    """
    held: Any = np.int64(4 * num_rows * counts.size)
    plain: Any = np.int64(0)
    for at in range(which.size):
        source, group = sources[at], which[at]
        width = element_width(source[ELEMENT_TYPE])
        count = num_rows if group < 0 else counts[group]
        if source[SHAPE] == SCALAR:
            held += width * count
            plain += width * num_rows
            continue
        is_view = source[SHAPE] in (VIEW32, VIEW64)
        held += (8 if is_view else 4) * count
        plain += 4 * num_rows
        last: Any = np.int64(0)
        for index in range(count):
            row: Any = np.int64(index) if group < 0 else rows[group, index]
            size = row_size(source, row)
            plain += width * size * (1 if group < 0 else uses[group, index])
            if is_view and size > 0:
                start = row_start(source, row)
                before = start if index == 0 or start > last else last
                size, last = max(np.int64(0), start + size - before), start + size
            held += width * size
    return held, plain
