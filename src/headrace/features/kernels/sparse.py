"""Writes id features into the values, lengths and offsets of one keyed jagged tensor."""

from typing import Any

import numpy as np

from headrace.compiling import kernel
from headrace.features.kernels.ids import close_up
from headrace.features.kernels.interpret import BLOCK, run
from headrace.features.kernels.load import load_ids, load_numbers, load_valid
from headrace.features.kernels.memory import at_i32, at_i64, unowned
from headrace.features.kernels.sources import (
    ELEMENT_OFFSET,
    ELEMENT_TYPE,
    ELEMENT_VALIDITY,
    I64,
    LENGTH,
    LIST32,
    LIST_OFFSETS,
    ROW_OFFSET,
    ROW_VALIDITY,
    SCALAR,
    SHAPE,
    VALUES,
    VIEW32,
    VIEW64,
    row_size,
    row_start,
)

__all__ = ["chain_limit", "count_ids", "first_op", "write_feature", "write_sparse"]

# Columns of a chain.
_SOURCE, _START, _STOP, _ON_IDS, _LIMIT, _WEIGHTS = range(6)


@kernel()
def _is_view(source: Any) -> Any:
    """Whether rows are slices that may overlap, in any order."""
    return source[SHAPE] == VIEW32 or source[SHAPE] == VIEW64


@kernel()
def _are_neighbours(source: Any, first: int, num_rows: int, bounds: Any) -> Any:
    """Whether the elements of rows are contiguous: no row is truncated, or null with elements."""
    if _is_view(source):
        return False
    return row_start(source, first + num_rows) - row_start(source, first) == bounds[num_rows]


@kernel()
def chain_limit(source: Any, chain: Any) -> Any:
    """Maximum elements read per row: a leading first_x, unless nulls among the ids must be skipped first."""
    if chain[_ON_IDS] != 0 and source[ELEMENT_VALIDITY] != 0:
        return np.int64(1 << 62)
    return np.int64(chain[_LIMIT])


@kernel()
def first_op(source: Any, chain: Any) -> Any:
    """The chain's first operator: after a leading first_x if `chain_limit` already applies it."""
    skip = chain[_LIMIT] < (1 << 62) and not (chain[_ON_IDS] != 0 and source[ELEMENT_VALIDITY] != 0)
    return np.int64(chain[_START] + (1 if skip else 0))


@kernel()
def count_ids(sources: Any, chains: Any) -> Any:
    """An upper bound on the ids that all chains write, exact unless operators or nulls drop some."""
    total = 0
    for at in range(chains.shape[0]):
        chain = chains[at]
        source = sources[chain[_SOURCE]]
        num_rows = source[LENGTH]
        limit = chain_limit(source, chain)
        if source[SHAPE] == SCALAR:
            total += num_rows
        elif limit == 1 << 62 and source[ROW_VALIDITY] == 0 and not _is_view(source):
            total += row_start(source, num_rows) - row_start(source, 0)
        else:
            for row in range(num_rows):
                total += min(limit, row_size(source, row))
    return total


@kernel()
def _finish(
    ids: Any, keep: Any, some_left_out: bool, bounds: Any, num_rows: int, before: int, lengths: Any, offsets: Any
) -> Any:
    """Compact the ids of a block if some were dropped, write lengths and offsets; returns the number of ids."""
    if some_left_out:
        count = close_up(ids, keep, bounds, num_rows, lengths)
        for row in range(num_rows):
            before += lengths[row]
            offsets[row + 1] = before
        return count
    for row in range(num_rows):
        lengths[row] = bounds[row + 1] - bounds[row]
    for row in range(num_rows + 1):
        offsets[row] = before + bounds[row]
    return bounds[num_rows]


@kernel()
def _next_rows(source: Any, first: int, num_rows: int, limit: int, bounds: Any) -> Any:
    """Number of rows from `first` on that fit into a block, at least one however long; writes their starts."""
    rows: Any = np.int64(0)
    count: Any = np.int64(0)
    bounds[0] = 0
    if source[SHAPE] == LIST32 and source[ROW_VALIDITY] == 0:
        starts = at_i32(source[LIST_OFFSETS] + 4 * (source[ROW_OFFSET] + first), num_rows - first + 1)
        most = min(BLOCK, num_rows - first)
        while rows < most:
            full = np.int64(starts[rows + 1] - starts[rows])
            size = min(limit, full)
            if rows > 0 and count + size > BLOCK:
                break
            count += size
            rows += 1
            bounds[rows] = count
        return rows
    while first + rows < num_rows and rows < BLOCK:
        size = min(limit, row_size(source, first + rows))
        if rows > 0 and count + size > BLOCK:
            break
        count += size
        rows += 1
        bounds[rows] = count
    return rows


@kernel()
def _load_ids(source: Any, first: int, num_rows: int, bounds: Any, ids: Any, keep: Any) -> Any:
    """Load rows of ids at the positions in `bounds`; returns whether `keep` is valid, see `load_valid`."""
    left_out = False
    if _are_neighbours(source, first, num_rows, bounds):
        start = row_start(source, first)
        load_ids(source, start, bounds[num_rows], ids)
        left_out = load_valid(source, start, bounds[num_rows], keep)
    elif source[ELEMENT_TYPE] == I64 and source[ELEMENT_VALIDITY] == 0:
        # Most truncated lists are plain int64: 8 instead of 70 ns per row.
        elements = at_i64(source[VALUES], 1)  # the size is ignored
        for row in range(num_rows):
            at = source[ELEMENT_OFFSET] + row_start(source, first + row)
            for index in range(bounds[row + 1] - bounds[row]):
                ids[np.uint64(bounds[row] + index)] = elements[np.uint64(at + index)]
    else:
        for row in range(num_rows):
            at, stop = bounds[row], bounds[row + 1]
            if stop > at:
                element = row_start(source, first + row)
                load_ids(source, element, stop - at, ids[at:stop])
                left_out = load_valid(source, element, stop - at, keep[at:stop])
    return left_out


@kernel()
def _load_numbers(source: Any, first: int, num_rows: int, bounds: Any, numbers: Any) -> None:
    """Load rows of numbers at the positions in `bounds`."""
    if _are_neighbours(source, first, num_rows, bounds):
        load_numbers(source, row_start(source, first), bounds[num_rows], numbers)
    else:
        for row in range(num_rows):
            if bounds[row + 1] > bounds[row]:
                at, stop = bounds[row], bounds[row + 1]
                load_numbers(source, row_start(source, first + row), stop - at, numbers[at:stop])


@kernel()
def write_feature(
    source: Any,
    chain: Any,
    program: Any,
    scratch: Any,
    bounds: Any,
    row_ids: Any,
    before: int,
    values: Any,
    lengths: Any,
    offsets: Any,
    weight_source: Any,
    weights: Any,
) -> Any:
    """Write one feature, in blocks of whole rows.

    Returns:
        End of its ids in `values`; or -1 - r if row r has a different number of weights than ids.
    """
    ops, integers, floats = program
    num_rows, limit, first_of_chain = lengths.size, chain_limit(source, chain), first_op(source, chain)
    is_list = source[SHAPE] != SCALAR
    if not is_list:
        for row in range(bounds.size):
            bounds[row] = row
    at = before
    first: Any = np.int64(0)  # a literal 0 would cause another compilation for the literal type
    while first < num_rows:
        rows = _next_rows(source, first, num_rows, limit, bounds) if is_list else min(BLOCK, num_rows - first)
        count = bounds[rows]
        if count > scratch[0].size:
            scratch = (np.empty(count, np.float64), np.empty(count, np.uint8))
        numbers, keep = scratch
        ids = values[at : at + count]
        left_out = False
        if chain[_ON_IDS] != 0:
            left_out = _load_ids(source, first, rows, bounds, ids, keep)
        else:
            _load_numbers(source, first, rows, bounds, numbers)
        left_out = run(
            ops,
            first_of_chain,
            chain[_STOP],
            integers,
            floats,
            numbers,
            ids,
            keep,
            left_out,
            count,
            bounds,
            rows,
            row_ids[first : first + rows],
        )
        if weights.size:
            wrong = _write_weights(
                source, weight_source, first, rows, bounds, keep, left_out, numbers, weights[at : at + count]
            )
            if wrong >= 0:
                return -1 - wrong
        at += _finish(ids, keep, left_out, bounds, rows, at, lengths[first : first + rows], offsets[first:])
        first += rows
    return at


@kernel()
def _write_weights(
    source: Any,
    weight_source: Any,
    first: int,
    num_rows: int,
    bounds: Any,
    keep: Any,
    some_left_out: bool,
    numbers: Any,
    out: Any,
) -> Any:
    """Write the weights of a block's kept ids; returns a row with more or fewer weights than ids, or -1."""
    for row in range(first, first + num_rows):
        if row_size(source, row) != row_size(weight_source, row):
            return row
    _load_numbers(weight_source, first, num_rows, bounds, numbers)
    at = 0
    for index in range(bounds[num_rows]):
        weight = numbers[index]
        out[at] = weight if weight == weight else 0.0
        at += keep[index] if some_left_out else 1
    return np.int64(-1)


@kernel()
def write_sparse(
    sources: Any,
    chains: Any,
    ops: Any,
    integers: Any,
    floats: Any,
    row_ids: Any,
    values: Any,
    lengths: Any,
    offsets: Any,
    weights: Any,
) -> Any:
    """Compute one key per chain.

    Args:
        sources: int64 [S, WIDTH], see `headrace.features.kernels.sources`.
        chains: int64 [F, 6]: source, first operator, end of operators, whether it starts with ids (else numbers), the
            maximum elements to read per row (a leading first_x) or 2^62 for all, and the source of weights.
        ops: The program, see `headrace.features.kernels.interpret.run`.
        integers: The program's integer tables.
        floats: The program's float parameters and tables.
        row_ids: int64 [B].
        values: int64 [at least `count_ids`], output, written from its start.
        lengths: int32 [F * B], output.
        offsets: int64 [F * B + 1], output.
        weights: float32, same size as `values`, output; or of size 0 if the features have no weights.

    Returns:
        Number of ids written; or -1 - (f * B + r) if row r of feature f has a different number of weights than ids.
    """
    program = (ops, integers, floats)
    scratch = (np.empty(BLOCK, np.float64), np.empty(BLOCK, np.uint8))
    bounds = np.empty(BLOCK + 1, np.int64)
    return _write_features(sources, chains, program, scratch, bounds, row_ids, values, lengths, offsets, weights)


@kernel()
def _write_features(
    sources: Any,
    chains: Any,
    program: Any,
    scratch: Any,
    bounds: Any,
    row_ids: Any,
    values: Any,
    lengths: Any,
    offsets: Any,
    weights: Any,
) -> Any:
    """Implementation of `write_sparse`, with its working memory."""
    sources, chains, row_ids, bounds = unowned(sources), unowned(chains), unowned(row_ids), unowned(bounds)
    program = (unowned(program[0]), unowned(program[1]), unowned(program[2]))
    scratch = (unowned(scratch[0]), unowned(scratch[1]))
    values, lengths, offsets, weights = unowned(values), unowned(lengths), unowned(offsets), unowned(weights)
    num_rows = row_ids.size
    at: Any = np.int64(0)
    offsets[0] = 0
    for feature in range(chains.shape[0]):
        chain = chains[feature]
        start = feature * num_rows
        mine = lengths[start : start + num_rows]
        source = sources[chain[_SOURCE]]
        weight_source = sources[max(chain[_WEIGHTS], 0)]
        at = write_feature(
            source,
            chain,
            program,
            scratch,
            bounds,
            row_ids,
            at,
            values,
            mine,
            offsets[start:],
            weight_source,
            weights,
        )
        if at < 0:
            return at - start
    return at
