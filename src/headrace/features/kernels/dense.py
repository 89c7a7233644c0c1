"""Writes dense features into the rows of a float32 matrix."""

from typing import Any

import numpy as np

from headrace.compiling import kernel
from headrace.features.kernels.interpret import run
from headrace.features.kernels.load import load_ids, load_numbers, load_valid
from headrace.features.kernels.memory import unowned
from headrace.features.kernels.sources import BOOL, ELEMENT_TYPE, F32, I8, I16, U8, U16

__all__ = ["ROW_BOUNDS", "write_dense", "write_one_hot", "write_row_ids"]

_ROWS = 1024  # rows of a tile of 64 KiB; 512 took 5 % longer, 256 20 %
_TILE = 16  # columns transposed together: a whole cache line of each row, so that none is fetched twice

ROW_BOUNDS = np.arange(_ROWS + 1, dtype=np.int64)
"""Row starts of a block in which each row holds one value."""

_FIRST: Any = np.int64(0)  # a literal 0 would cause another compilation for the literal type


@kernel()
def _turn(tile: Any, out: Any, first_row: int, count: int, first_column: int, width: int) -> None:
    """Copy `tile` [16, count] into out[first_row:, first_column:] transposed, in blocks of 8 x 8: vector shuffles."""
    whole = count & ~7
    if width == _TILE:
        for row in range(0, whole, 8):
            for half in range(0, _TILE, 8):
                for inner in range(8):
                    for column in range(8):
                        out[first_row + row + inner, first_column + half + column] = tile[half + column, row + inner]
    else:
        whole = 0
    for row in range(whole, count):
        for column in range(width):
            out[first_row + row, first_column + column] = tile[column, row]


@kernel()
def _is_small(source: Any) -> bool:
    """Whether float32 represents every value of a source's type: float32 itself and integers up to 16 bits."""
    type_ = source[ELEMENT_TYPE]
    return type_ in (F32, I8, I16, U8, U16, BOOL)


@kernel()
def _column_32(sources: Any, chain: Any, ops: Any, integers: Any, floats: Any, start: int, scratch: Any, line: Any,
               row_ids: Any, bounds: Any) -> None:  # fmt: skip
    load_numbers(sources[chain[0]], start, line.size, line)
    ids, keep, _ = scratch
    run(ops, chain[1], chain[2], integers, floats, line, ids, keep, False, line.size, bounds, line.size, row_ids)


@kernel()
def _column_64(sources: Any, chain: Any, ops: Any, integers: Any, floats: Any, start: int, scratch: Any, line: Any,
               row_ids: Any, bounds: Any) -> None:  # fmt: skip
    count = line.size
    ids, keep, wide = scratch
    left_out = False
    if chain[3] != 0:
        load_ids(sources[chain[0]], start, count, ids)
        left_out = load_valid(sources[chain[0]], start, count, keep)
    else:
        load_numbers(sources[chain[0]], start, count, wide)
    run(ops, chain[1], chain[2], integers, floats, wide, ids, keep, left_out, count, bounds, count, row_ids)
    for index in range(count):
        line[index] = wide[index]


@kernel()
def write_dense(
    sources: Any,
    chains: Any,
    ops: Any,
    integers: Any,
    floats: Any,
    row_ids: Any,
    bounds: Any,
    out: Any,
    first_column: int,
    fill: bool,
) -> None:
    """Compute one column of `out` for each chain, from `first_column` on.

    Args:
        sources: int64 [S, WIDTH], see `headrace.features.kernels.sources`.
        chains: int64 [C, 6]: source, first operator, end of operators, whether it starts with ids (else numbers), and
            two fields that only lists use.
        ops: The program, see `headrace.features.kernels.interpret.run`.
        integers: The program's integer tables.
        floats: The program's float parameters and tables.
        row_ids: int64 [B].
        bounds: `ROW_BOUNDS`.
        out: float32 [B, D], written in part.
        first_column: Output column of the first chain; the others follow.
        fill: Whether to write 0 for null results instead of NaN.
    """
    tile = np.empty((_TILE, _ROWS), np.float32)
    scratch = (np.empty(_ROWS, np.int64), np.empty(_ROWS, np.uint8), np.empty(_ROWS, np.float64))
    program = (ops, integers, floats)
    _write_tiles(sources, chains, program, row_ids, bounds, out, first_column, fill, tile, scratch)


@kernel()
def _write_tiles(
    sources: Any,
    chains: Any,
    program: Any,
    row_ids: Any,
    bounds: Any,
    out: Any,
    first_column: int,
    fill: bool,
    tile: Any,
    scratch: Any,
) -> None:
    """Implementation of `write_dense`, with its working memory."""
    sources, chains, row_ids, bounds = unowned(sources), unowned(chains), unowned(row_ids), unowned(bounds)
    ops, integers, floats = unowned(program[0]), unowned(program[1]), unowned(program[2])
    out, tile = unowned(out), unowned(tile)
    scratch = (unowned(scratch[0]), unowned(scratch[1]), unowned(scratch[2]))
    num_rows, num_columns = out.shape[0], chains.shape[0]
    for first in range(0, num_columns, _TILE):
        width = min(_TILE, num_columns - first)
        for start in range(0, num_rows, _ROWS):
            count = min(_ROWS, num_rows - start)
            for column in range(width):
                line = tile[column, :count]
                chain = chains[first + column]
                rows = row_ids[start : start + count]
                if chain[3] == 0 and _is_small(sources[chain[0]]):
                    _column_32(sources, chain, ops, integers, floats, start, scratch, line, rows, bounds)
                else:
                    _column_64(sources, chain, ops, integers, floats, start, scratch, line, rows, bounds)
                if fill:
                    for index in range(count):
                        line[index] = line[index] if line[index] == line[index] else np.float32(0)
            _turn(tile, out, start, count, first_column + first, width)


@kernel()
def write_one_hot(buckets: Any, column: int, out: Any, first_column: int, width: int) -> None:
    """Write `width` columns of `out` from `first_column` on: 1 in the bucket's column, 0 elsewhere and for NaN."""
    for row in range(out.shape[0]):
        out[row, first_column : first_column + width] = np.float32(0)
        bucket = buckets[row, column]
        if bucket == bucket:
            out[row, first_column + np.int64(bucket)] = np.float32(1)


@kernel()
def write_row_ids(sources: Any, source: int, out: Any) -> None:
    """Copy an int64 column, or count from 0 if `source` is negative."""
    if source >= 0:
        load_ids(sources[source], _FIRST, out.size, out)
    else:
        for row in range(out.size):
            out[row] = row
