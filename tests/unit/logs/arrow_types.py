"""A column of each type that Arrow writes to Parquet, alone and in lists, for tests of what must take them all."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pyarrow as pa

NUM_ROWS = 60


def every_column() -> dict[str, pa.Array]:
    """Columns of 60 rows with seven values that repeat, by the name of their type."""
    sevens = [number % 7 for number in range(NUM_ROWS)]
    whole = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]
    real = [pa.float16(), pa.float32(), pa.float64(), pa.bool_()]
    times = [pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.timestamp("ms", "Europe/Berlin"), pa.time64("us")]
    times += [pa.duration("s"), pa.duration("us")]
    texts = [pa.string(), pa.large_string(), pa.string_view()]
    arrays = [pa.array(sevens).cast(kind) for kind in (*whole, *real, *times, *texts)]
    arrays += [pa.array([n * 1000 for n in sevens]).cast(kind) for kind in (pa.time64("ns"), pa.duration("ns"))]
    arrays += [pa.array(sevens, pa.int32()).cast(kind) for kind in (pa.date32(), pa.time32("ms"))]
    decimals = (pa.decimal32(5, 0), pa.decimal64(10, 2), pa.decimal128(38, 0), pa.decimal256(50, 2))
    arrays += [pa.array([Decimal(number) for number in sevens], kind) for kind in decimals]
    raw = [bytes([0xFF, number]) * 8 for number in sevens]  # not UTF-8
    kinds = (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(16), pa.uuid())
    arrays += [pa.array(raw, kind) for kind in kinds]
    arrays.append(pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(['{"a": 1}'] * NUM_ROWS)))
    arrays.append(pa.ExtensionArray.from_storage(pa.bool8(), pa.array([n % 2 for n in sevens], pa.int8())))
    arrays.append(pa.ExtensionArray.from_storage(pa.opaque(pa.binary(), "x", "y"), pa.array(raw, pa.binary())))
    arrays.append(
        pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float32(), (2,)), pa.array([[1.0, n] for n in sevens], pa.list_(pa.float32(), 2))
        )
    )
    arrays.append(pa.array([f"w{number}" for number in sevens]).dictionary_encode())
    arrays.append(pa.nulls(NUM_ROWS))
    offsets = pa.array(range(NUM_ROWS + 1), pa.int32())
    arrays += [pa.ListArray.from_arrays(offsets, array) for array in arrays]
    arrays += [pa.array([[n] for n in sevens], kind(pa.int64())) for kind in (pa.large_list, pa.list_view)]
    arrays.append(pa.array([[n, n] for n in sevens], pa.list_(pa.int64(), 2)))
    arrays.append(pa.array([[[n]] for n in sevens]))
    arrays.append(pa.array([{"a": n, "b": [date(2024, 1, 1)], "c": None} for n in sevens]))
    arrays.append(pa.StructArray.from_arrays([pa.array(raw, pa.uuid()), pa.array(raw, pa.binary(16))], ["x", "y"]))
    arrays.append(pa.array([[{"a": n}] for n in sevens]))
    arrays.append(pa.array([[(n, "x")] for n in sevens], pa.map_(pa.int64(), pa.string())))
    return {f"{number:02d} {array.type}": array for number, array in enumerate(arrays)}
