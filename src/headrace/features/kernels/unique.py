"""Writes id features of unique rows, with ids of overlapping lists shared, and expands dense features to all rows."""

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
    """Merge the rows' slices into spans of the shared buffer, in row order.

    A slice that starts inside the previous row's span, as in a shifting history, extends that span.

    Args:
        source: A list view.
        limit: Maximum elements per row.
        before: Output position of the first span's ids.
        starts: int64 [U], output: output position of each row's ids.
        lengths: int32 [U], output.
        spans: int64 [2, U], output in its first columns: start and size of each span.

    Returns:
        The number of spans, and the number of ids of all rows.
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
    """Like `write_sparse` without weights, but ids shared by overlapping lists are computed and written once.

    Args:
        sources: int64 [S, WIDTH], see `headrace.features.kernels.sources`.
        chains: int64 [F, 6], as for `write_sparse`.
        shareable: Bool [F]: whether ids may be computed independently of their lists.
        ops: The program, see `headrace.features.kernels.interpret.run`.
        integers: The program's integer tables.
        floats: The program's float parameters and tables.
        row_ids: int64 [U].
        values: int64 [at least `count_ids`], output, written from its start.
        lengths: int32 [F * U], output.
        offsets: int64 [F * U + 1], output: start of each list in `values`.

    Returns:
        Number of ids written, and number of ids saved by sharing; if 0, `offsets` are cumulative lengths.
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
    """Implementation of `write_unique`, with its working memory."""
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
        for column in range(WIDTH):  # an array assignment would take three seconds to compile
            view[column] = source[column]
        view[SHAPE], view[ROW_OFFSET], view[ROW_VALIDITY] = VIEW64, 0, 0
        view[LIST_OFFSETS], view[LIST_SIZES] = spans[0].ctypes.data, spans[1].ctypes.data
        for column in range(chain.size):
            chain_of_view[column] = chain[column]
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
    """Expand the dense features of unique rows to all rows.

    Args:
        unique: float32 [U, P].
        inverse: int32 [B].
        runs: int64 [R, 3]: first column in `unique`, first column in `out`, and number of adjacent columns.
        out: float32 [B, D], written in part.
    """
    width, out_width = unique.shape[1], out.shape[1]
    given, written = unique.reshape(-1), out.reshape(-1)
    for row in range(inverse.size):
        for run in range(runs.shape[0]):
            # Unsigned indices need no check for counting from the end, so the copy vectorises.
            first = np.uint64(np.int64(inverse[row]) * width + runs[run, 0])
            place = np.uint64(row * out_width + runs[run, 1])
            for column in range(np.uint64(runs[run, 2])):
                written[place + column] = given[first + column]


@kernel()
def count_expanded_ids(lengths: Any, inverse: Any, num_unique: int) -> Any:
    """Number of ids of all rows, from the lengths int32 [F * U] of unique rows."""
    uses = np.zeros(num_unique, np.int64)
    for row in inverse:
        uses[row] += 1
    total: Any = np.int64(0)
    for place in range(lengths.size):
        total += lengths[place] * uses[place % num_unique]
    return total


@kernel()
def count_row_bytes(sources: Any, which: Any, rows: Any, uses: Any, counts: Any, num_rows: int) -> Any:
    """Bytes of sources in a batch, as stored and as plain rows.

    Elements that a list in a shared buffer has in common with the previous list count once. Strings count as ids.

    Args:
        sources: int64 [S, WIDTH], see `headrace.features.kernels.sources`.
        which: int64 [S], group of each source; -1 for plain columns.
        rows: int64 [G, B], the unique rows of each group in the batch, from its start.
        uses: int64 [G, B], number of batch rows with each unique row.
        counts: int64 [G], number of unique rows.
        num_rows: Number of rows B.
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
