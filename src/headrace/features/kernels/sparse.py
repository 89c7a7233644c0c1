"""Writing id features, one after the other, into the values, lengths and offsets of one keyed jagged tensor."""

from typing import Any

import numpy as np

from headrace.compiling import kernel
from headrace.features.kernels.interpret import BLOCK, run
from headrace.features.kernels.lists import close_up
from headrace.features.kernels.load import load_ids, load_numbers, load_valid
from headrace.features.kernels.memory import at_i32, at_i64, at_u8, is_set
from headrace.features.sources import (
    ELEMENT_VALIDITY,
    FIXED_SIZE,
    LENGTH,
    LIST32,
    LIST64,
    LIST_OFFSETS,
    ROW_OFFSET,
    ROW_VALIDITY,
    SCALAR,
    SHAPE,
)

__all__ = ["count_ids", "write_sparse"]

# Columns of a chain.
_SOURCE, _START, _STOP, _ON_IDS, _LIMIT = range(5)


@kernel()
def _row_start(source: Any, row: int) -> Any:
    """Where the elements of a row start (and those of the row before end)."""
    if source[SHAPE] == LIST32:
        return np.int64(at_i32(source[LIST_OFFSETS], source[ROW_OFFSET] + row + 1)[source[ROW_OFFSET] + row])
    if source[SHAPE] == LIST64:
        return np.int64(at_i64(source[LIST_OFFSETS], source[ROW_OFFSET] + row + 1)[source[ROW_OFFSET] + row])
    return np.int64((source[ROW_OFFSET] + row) * source[FIXED_SIZE])


@kernel()
def _row_size(source: Any, row: int) -> Any:
    """Elements of a row, 0 where it is null."""
    if source[ROW_VALIDITY] != 0:
        at = source[ROW_OFFSET] + row
        if not is_set(at_u8(source[ROW_VALIDITY], (at >> 3) + 1), at):
            return 0
    return _row_start(source, row + 1) - _row_start(source, row)


@kernel()
def _limit(source: Any, chain: Any) -> Any:
    """Elements of a row that are read at all: a leading first_x, unless nulls among the ids must be skipped first."""
    if chain[_ON_IDS] != 0 and source[ELEMENT_VALIDITY] != 0:
        return np.int64(1 << 62)
    return np.int64(chain[_LIMIT])


@kernel()
def _first_op(source: Any, chain: Any) -> Any:
    """Where the chain's program starts: past a leading first_x if `_limit` has done its work."""
    skip = chain[_LIMIT] < (1 << 62) and not (chain[_ON_IDS] != 0 and source[ELEMENT_VALIDITY] != 0)
    return np.int64(chain[_START] + (1 if skip else 0))


@kernel()
def count_ids(sources: Any, chains: Any) -> Any:
    """An upper bound on the ids that all chains write: exact unless operators or nulls leave some out."""
    total = 0
    for at in range(chains.shape[0]):
        chain = chains[at]
        source = sources[chain[_SOURCE]]
        num_rows = source[LENGTH]
        limit = _limit(source, chain)
        if source[SHAPE] == SCALAR:
            total += num_rows
        elif limit == 1 << 62 and source[ROW_VALIDITY] == 0:
            total += _row_start(source, num_rows) - _row_start(source, 0)
        else:
            for row in range(num_rows):
                total += min(limit, _row_size(source, row))
    return total


@kernel()
def _finish(ids: Any, keep: Any, some_left_out: bool, bounds: Any, num_rows: int, lengths: Any) -> Any:
    """Close up the ids of a block if some were left out; writes lengths and returns how many ids there are."""
    if some_left_out:
        return close_up(ids, keep, bounds, num_rows, lengths)
    for row in range(num_rows):
        lengths[row] = bounds[row + 1] - bounds[row]
    return np.int64(bounds[num_rows])


@kernel()
def _run_block(source: Any, chain: Any, program: Any, start: int, count: int, ids: Any, scratch: Any, bounds: Any,
               num_rows: int, row_ids: Any) -> Any:  # fmt: skip
    """Load elements that lie next to each other and run the chain on them, into `ids`."""
    ops, integers, floats = program
    numbers, keep = scratch
    left_out = False
    if chain[_ON_IDS] != 0:
        load_ids(source, start, count, ids)
        left_out = load_valid(source, start, count, keep)
    else:
        load_numbers(source, start, count, numbers)
    first = _first_op(source, chain)
    return run(
        ops, first, chain[_STOP], integers, floats, numbers, ids, keep, left_out, count, bounds, num_rows, row_ids
    )


@kernel()
def _write_scalars(source: Any, chain: Any, program: Any, scratch: Any, one_each: Any, row_ids: Any, values: Any,
                   lengths: Any) -> Any:  # fmt: skip
    at = 0
    for start in range(0, lengths.size, BLOCK):
        count = min(BLOCK, lengths.size - start)
        ids = values[at : at + count]
        rows = row_ids[start : start + count]
        left_out = _run_block(source, chain, program, start, count, ids, scratch, one_each, count, rows)
        at += _finish(ids, scratch[1], left_out, one_each, count, lengths[start : start + count])
    return at


@kernel()
def _load_rows(source: Any, chain: Any, first: int, num_rows: int, limit: int, bounds: Any, ids: Any,
               scratch: Any) -> Any:  # fmt: skip
    """Load the first `limit` elements of rows one after the other, into places given by `bounds`."""
    numbers, keep = scratch
    left_out = False
    for row in range(num_rows):
        start, stop = bounds[row], bounds[row + 1]
        if stop > start:
            element = _row_start(source, first + row)
            if chain[_ON_IDS] != 0:
                load_ids(source, element, stop - start, ids[start:stop])
                left_out = load_valid(source, element, stop - start, keep[start:stop])
            else:
                load_numbers(source, element, stop - start, numbers[start:stop])
    return left_out


@kernel()
def _write_lists(source: Any, chain: Any, program: Any, small: Any, row_ids: Any, values: Any, lengths: Any) -> Any:
    """Write a list feature, as many whole rows at a time as fit into a block (or one row larger than that)."""
    ops, integers, floats = program
    num_rows = lengths.size
    limit = _limit(source, chain)
    adjacent = limit == 1 << 62 and source[ROW_VALIDITY] == 0
    bounds = np.empty(BLOCK + 1, np.int64)
    scratch = small
    at = first = 0
    while first < num_rows:
        count, rows = 0, 0
        bounds[0] = 0
        while first + rows < num_rows and rows < BLOCK:
            size = min(limit, _row_size(source, first + rows))
            if rows > 0 and count + size > BLOCK:
                break
            count += size
            rows += 1
            bounds[rows] = count
        if count > scratch[0].size:
            scratch = (np.empty(count, np.float64), np.empty(count, np.uint8))
        ids = values[at : at + count]
        ids_of_rows = row_ids[first : first + rows]
        if adjacent:
            start = _row_start(source, first)
            left_out = _run_block(source, chain, program, start, count, ids, scratch, bounds, rows, ids_of_rows)
        else:
            left_out = _load_rows(source, chain, first, rows, limit, bounds, ids, scratch)
            left_out = run(ops, _first_op(source, chain), chain[_STOP], integers, floats, scratch[0], ids, scratch[1],
                           left_out, count, bounds, rows, ids_of_rows)  # fmt: skip
        at += _finish(ids, scratch[1], left_out, bounds, rows, lengths[first : first + rows])
        first += rows
    return at


@kernel()
def write_sparse(
    sources: Any,
    chains: Any,
    ops: Any,
    integers: Any,
    floats: Any,
    row_ids: Any,
    one_each: Any,
    values: Any,
    lengths: Any,
    offsets: Any,
) -> Any:
    """Compute one key for each chain.

    Args:
        sources: int64 [S, WIDTH], see `headrace.features.sources`.
        chains: int64 [F, 5]: source, first operator, past the last one, whether it starts with ids (else numbers), and
            the elements of a row to read (a leading first_x) or 2^62 for all.
        ops: The program, see `headrace.features.kernels.interpret.run`.
        integers: Its tables of integers.
        floats: Its parameters and tables of floats.
        row_ids: int64 [B].
        one_each: int64 [BLOCK + 1], 0, 1, 2, ...
        values: int64 [at least `count_ids`], written from its start.
        lengths: int32 [F * B], written.
        offsets: int64 [F * B + 1], written.

    Returns:
        Ids written.
    """
    num_rows = row_ids.size
    program = (ops, integers, floats)
    scratch = (np.empty(BLOCK, np.float64), np.empty(BLOCK, np.uint8))
    at = 0
    for feature in range(chains.shape[0]):
        chain = chains[feature]
        source = sources[chain[_SOURCE]]
        mine = lengths[feature * num_rows : (feature + 1) * num_rows]
        if source[SHAPE] == SCALAR:
            at += _write_scalars(source, chain, program, scratch, one_each, row_ids, values[at:], mine)
        else:
            at += _write_lists(source, chain, program, scratch, row_ids, values[at:], mine)
    total = 0
    offsets[0] = 0
    for index in range(lengths.size):
        total += lengths[index]
        offsets[index + 1] = total
    return at
