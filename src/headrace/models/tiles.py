"""Register tiles of small matrix products, for kernels whose matrices are too small for a GEMM library.

LLVM keeps these sums in vector registers, which it does not do in loops over possibly overlapping arrays. The copy
function for short runs exists for the same reason.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types
from numba.core import cgutils as _cgutils
from numba.np import arrayobj

__all__ = ["TILE_COLUMNS", "TILE_ROWS", "copy_numbers", "tile_add", "tile_product", "transpose_tile"]

# Numba has no types for these.
_numba: Any = extending
cgutils: Any = _cgutils
make_array: Any = arrayobj.make_array

TILE_ROWS, TILE_COLUMNS = 4, 16
FLOAT, VECTOR = ir.FloatType(), ir.VectorType(ir.FloatType(), TILE_COLUMNS)


def _code(context: Any, builder: Any, signature: Any, arguments: Any, *, adds: bool) -> Any:
    a_type, b_type, c_type = signature.args[0], signature.args[4], signature.args[8]
    a, a_at, a_row, a_step, b, b_at, b_step, depth, c, c_at = arguments
    a_data = builder.gep(make_array(a_type)(context, builder, a).data, [a_at])
    b_data = builder.gep(make_array(b_type)(context, builder, b).data, [b_at])
    c_data = make_array(c_type)(context, builder, c).data
    targets = [
        builder.bitcast(builder.gep(c_data, [builder.extract_value(c_at, row)]), VECTOR.as_pointer())
        for row in range(TILE_ROWS)
    ]
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(VECTOR, [VECTOR] * 3), f"llvm.fma.v{TILE_COLUMNS}f32"
    )
    sums = [cgutils.alloca_once(builder, VECTOR) for _ in targets]
    for place, target in zip(sums, targets, strict=True):
        builder.store(builder.load(target, align=4) if adds else ir.Constant(VECTOR, None), place)
    all_lanes = ir.Constant(ir.VectorType(ir.IntType(32), TILE_COLUMNS), None)
    nothing = ir.Constant(VECTOR, ir.Undefined)
    with cgutils.for_range(builder, depth) as loop:
        b_row = builder.bitcast(builder.gep(b_data, [builder.mul(loop.index, b_step)]), VECTOR.as_pointer())
        b_numbers = builder.load(b_row, align=4)
        for row, place in enumerate(sums):
            at = builder.mul(ir.Constant(loop.index.type, row), a_row)
            number = builder.load(builder.gep(a_data, [builder.add(at, builder.mul(loop.index, a_step))]))
            lane = builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
            splat = builder.shuffle_vector(lane, nothing, all_lanes)
            builder.store(builder.call(fma, [splat, b_numbers, builder.load(place)]), place)
    for place, target in zip(sums, targets, strict=True):
        builder.store(builder.load(place), target, align=4)
    return context.get_dummy_value()


def _signature(a: Any, b: Any, c: Any) -> Any:
    at: Any = types.intp
    places: Any = types.UniTuple(at, TILE_ROWS)  # type: ignore[no-untyped-call]
    return types.void(a, at, at, at, b, at, at, at, c, places)


@_numba.intrinsic
def tile_product(typing_context, a, a_at, a_row, a_step, b, b_at, b_step, depth, c, c_at):  # type: ignore[no-untyped-def]
    """In a kernel: multiply 4 rows of A with 16 columns of B over `depth`, and write to 4 positions of C.

    All arrays are float32, one-dimensional and contiguous. Arguments are not checked.

    Args:
        typing_context: Numba's typing context.
        a: Element (i, d) of A is at `a_at + i * a_row + d * a_step`.
        a_at: See `a`.
        a_row: See `a`.
        a_step: See `a`.
        b: The 16 numbers of row d of B start at `b_at + d * b_step`.
        b_at: See `b`.
        b_step: See `b`.
        depth: Columns of A and rows of B.
        c: Output.
        c_at: Tuple of the positions in `c` of the 16 numbers of each of the 4 rows.
    """
    return _signature(a, b, c), lambda *arguments: _code(*arguments, adds=False)


@_numba.intrinsic
def tile_add(typing_context, a, a_at, a_row, a_step, b, b_at, b_step, depth, c, c_at):  # type: ignore[no-untyped-def]
    """Like `tile_product`, adding to the existing values."""
    return _signature(a, b, c), lambda *arguments: _code(*arguments, adds=True)


@_numba.intrinsic
def copy_numbers(typing_context, source, source_at, target, target_at, count):  # type: ignore[no-untyped-def]
    """In a kernel: `target[target_at:][:count] = source[source_at:][:count]`, for few numbers.

    Both are float32, one-dimensional and contiguous. Arguments are not checked.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, source_at, target, target_at, count = arguments
        source_data = builder.gep(make_array(signature.args[0])(context, builder, source).data, [source_at])
        target_data = builder.gep(make_array(signature.args[2])(context, builder, target).data, [target_at])
        lanes, mask = ir.VectorType(ir.IntType(64), TILE_COLUMNS), ir.VectorType(ir.IntType(1), TILE_COLUMNS)
        pointer, align = VECTOR.as_pointer(), ir.IntType(32)
        load_type = ir.FunctionType(VECTOR, [pointer, align, mask, VECTOR])
        store_type = ir.FunctionType(ir.VoidType(), [VECTOR, pointer, align, mask])
        load = cgutils.get_or_insert_function(builder.module, load_type, "llvm.masked.load.v16f32.p0")
        store = cgutils.get_or_insert_function(builder.module, store_type, "llvm.masked.store.v16f32.p0")
        nothing, first = ir.Constant(lanes, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        all_lanes = ir.Constant(ir.VectorType(ir.IntType(32), TILE_COLUMNS), None)
        numbers = ir.Constant(lanes, list(range(TILE_COLUMNS)))
        blocks = builder.udiv(
            builder.add(count, ir.Constant(count.type, TILE_COLUMNS - 1)), ir.Constant(count.type, 16)
        )
        with cgutils.for_range(builder, blocks) as loop:
            at = builder.mul(loop.index, ir.Constant(loop.index.type, TILE_COLUMNS))
            left = builder.insert_element(nothing, builder.sub(count, at), first)
            wanted = builder.icmp_signed("<", numbers, builder.shuffle_vector(left, nothing, all_lanes))
            places = [builder.bitcast(builder.gep(data, [at]), pointer) for data in (source_data, target_data)]
            four = ir.Constant(align, 4)
            values = builder.call(load, [places[0], four, wanted, ir.Constant(VECTOR, None)])
            builder.call(store, [values, places[1], four, wanted])
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp, types.intp), code


@_numba.intrinsic
def transpose_tile(typing_context, source, source_at, source_step, target, target_at, target_step):  # type: ignore[no-untyped-def]
    """In a kernel: `target[i][j] = source[j][i]` for 16 rows of 16 numbers, in registers.

    Both are float32, one-dimensional and contiguous; rows start every `step` numbers from `at`. Arguments are not
    checked.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, source_at, source_step, target, target_at, target_step = arguments
        pointer, index = VECTOR.as_pointer(), source_at.type

        def place(array: Any, kind: Any, at: Any, step: Any, row: int) -> Any:
            offset = builder.add(at, builder.mul(step, ir.Constant(index, row)))
            return builder.bitcast(builder.gep(make_array(kind)(context, builder, array).data, [offset]), pointer)

        half = TILE_COLUMNS // 2
        masks = [
            ir.Constant(
                ir.VectorType(ir.IntType(32), TILE_COLUMNS),
                [first + lane // 2 + TILE_COLUMNS * (lane % 2) for lane in range(TILE_COLUMNS)],
            )
            for first in (0, half)
        ]
        rows = [
            builder.load(place(source, signature.args[0], source_at, source_step, row), align=4)
            for row in range(TILE_COLUMNS)
        ]
        for _ in range(4):  # a perfect shuffle of rows and lanes; log2(16) of them transpose
            rows = [builder.shuffle_vector(rows[row], rows[row + half], mask) for row in range(half) for mask in masks]
        for row, vector in enumerate(rows):
            builder.store(vector, place(target, signature.args[3], target_at, target_step, row), align=4)
        return context.get_dummy_value()

    at = types.intp
    return types.void(source, at, at, target, at, at), code
