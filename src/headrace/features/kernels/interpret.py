"""Interpreter that runs a column's operators block by block; a few integers encode each operator and its parameters.

A plan is data, not code, so a new plan needs no compilation. A block is small enough to stay in the first-level cache
between operators, and decoding an operator costs a few nanoseconds per block.
"""

from typing import Any

import numpy as np

from headrace.compiling import kernel
from headrace.features.kernels import buckets, ids, numbers

__all__ = [
    "BLOCK",
    "BOX_COX",
    "BUCKETIZE",
    "CLAMP",
    "CLAMP_IDS",
    "ENUMERATE",
    "FILL",
    "FILL_IDS",
    "FIRST_X",
    "HASH",
    "IS_NULL",
    "LOCAL_HOUR",
    "LOG1P",
    "LOGIT",
    "MAP_ID",
    "MODULUS",
    "NUMBER_BITS",
    "SAMPLE",
    "SAMPLE_NUMBERS",
    "STANDARDIZE",
    "TO_ID",
    "TO_NUMBER",
    "run",
]

BLOCK = 1024
"""Values per block: 8 KiB of ids. 512 and 2048 were within 5 % on a Zen 5 core with 48 KiB of L1."""

(
    FILL,
    CLAMP,
    LOG1P,
    BOX_COX,
    LOGIT,
    IS_NULL,
    STANDARDIZE,
    BUCKETIZE,
    TO_ID,
    NUMBER_BITS,
    SAMPLE_NUMBERS,
    TO_NUMBER,
    FILL_IDS,
    CLAMP_IDS,
    HASH,
    MODULUS,
    MAP_ID,
    LOCAL_HOUR,
    FIRST_X,
    ENUMERATE,
    SAMPLE,
) = range(21)

_FIRST_ON_IDS = TO_NUMBER
_FIRST_ON_LISTS = FIRST_X


@kernel()
def _run_on_numbers(op: Any, integers: Any, floats: Any, block: Any, keep: Any, block_ids: Any, count: int) -> Any:
    """Run an operator on numbers, which may turn them into ids; returns whether an id was dropped."""
    code = op[0]
    if code == FILL:
        numbers.fill(block, count, floats[op[3]])
    elif code == CLAMP:
        numbers.clamp(block, count, floats[op[3]], floats[op[3] + 1])
    elif code == LOG1P:
        numbers.log1p(block, count, op[1] != 0)
    elif code == BOX_COX:
        numbers.box_cox(block, count, floats[op[3]])
    elif code == LOGIT:
        numbers.logit(block, count, floats[op[3]])
    elif code == IS_NULL:
        numbers.is_null(block, count)
    elif code == STANDARDIZE:
        numbers.standardize(block, count, floats[op[3]], floats[op[3] + 1])
    elif code == BUCKETIZE:
        borders = floats[op[3] + 2 : op[3] + op[4]]
        starts = integers[op[5] : op[5] + op[6]].view(np.int32)[: op[2]]
        low, scale = floats[op[3]], floats[op[3] + 1]
        return buckets.bucketize(block, keep, block_ids, count, borders, starts, low, scale, op[1])
    elif code == TO_ID:
        return numbers_to_ids(block, keep, block_ids, count)
    elif code == NUMBER_BITS:
        for index in range(count):
            block_ids[index] = np.float64(block[index]).view(np.int64)
    return False


@kernel()
def numbers_to_ids(block: Any, keep: Any, block_ids: Any, count: int) -> Any:
    """Truncate numbers towards zero; NaN and values outside int64 become null."""
    missing = 0
    for index in range(count):
        number = np.float64(block[index])
        fits = abs(number) < 9.2e18
        missing += 0 if fits else 1
        keep[index] = fits
        block_ids[index] = np.int64(number if fits else 0.0)
    return missing > 0


@kernel()
def _run_on_ids(op: Any, integers: Any, block_ids: Any, keep: Any, count: int) -> None:
    """Run an elementwise operator on ids."""
    code = op[0]
    if code == HASH:
        ids.sigrid_hash(block_ids, count, op[1], op[2], op[3], op[4])
    elif code == MODULUS:
        ids.modulus(block_ids, count, op[2], op[3], op[4])
    elif code == FILL_IDS:
        ids.fill_ids(block_ids, keep, count, op[1])
    elif code == CLAMP_IDS:
        ids.clamp_ids(block_ids, count, op[1], op[2])
    elif code == MAP_ID:
        ids.look_up(block_ids, keep, count, integers[op[5] : op[5] + op[6]], op[1], op[2], op[3] != 0)
    elif code == LOCAL_HOUR:
        ids.local_hour(block_ids, count, op[1], integers[op[5] : op[5] + op[6]])


@kernel()
def _run_on_lists(op: Any, block_ids: Any, keep: Any, bounds: Any, num_rows: int, row_ids: Any) -> None:
    """Run an operator that depends on the rows of id lists."""
    code = op[0]
    if code == FIRST_X:
        ids.first_x(keep, bounds, num_rows, op[1])
    elif code == ENUMERATE:
        ids.enumerate_ids(block_ids, keep, bounds, num_rows, op[1] != 0)
    elif code == SAMPLE:
        ids.keep_some_rows(keep, bounds, num_rows, row_ids, op[1], op[2])


@kernel()
def run(
    ops: Any,
    start: int,
    stop: int,
    integers: Any,
    floats: Any,
    block: Any,
    block_ids: Any,
    keep: Any,
    some_left_out: bool,
    count: int,
    bounds: Any,
    num_rows: int,
    row_ids: Any,
) -> Any:
    """Run the operators ops[start:stop] on one block.

    Args:
        ops: int64 [N, 7]: opcode, three integers or a position in `floats`, then tables; see the operators' `emit`.
        start: The first operator.
        stop: End of the operators.
        integers: Integer tables.
        floats: Float parameters and tables.
        block: The numbers of the block, if it holds numbers.
        block_ids: The ids of the block, if it holds ids.
        keep: uint8: which ids are present.
        some_left_out: Whether `keep` is valid; if not, all ids are present.
        count: Number of values in the block.
        bounds: int64 [num_rows + 1]: start of each row in the block.
        num_rows: Number of rows in the block.
        row_ids: Ids of these rows.

    Returns:
        Whether `keep` is valid now.
    """
    for at in range(start, stop):
        op = ops[at]
        code = op[0]
        if code == SAMPLE_NUMBERS:
            for row in range(num_rows):
                if not ids.sample(row_ids[row], op[1], op[2]):
                    block[bounds[row] : bounds[row + 1]] = np.nan
        elif code < _FIRST_ON_IDS:
            some_left_out = _run_on_numbers(op, integers, floats, block, keep, block_ids, count)
        elif code == TO_NUMBER:
            for index in range(count):
                block[index] = block_ids[index] if not some_left_out or keep[index] else np.nan
            some_left_out = False
        else:
            marks = code >= _FIRST_ON_LISTS or code == FILL_IDS or (code == MAP_ID and op[3] != 0)
            if marks and not some_left_out:
                keep[:count] = 1
                some_left_out = True
            if code >= _FIRST_ON_LISTS:
                _run_on_lists(op, block_ids, keep, bounds, num_rows, row_ids)
            else:
                _run_on_ids(op, integers, block_ids, keep, count)
    return some_left_out
