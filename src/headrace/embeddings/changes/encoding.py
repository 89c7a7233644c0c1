"""Encoding of columns as bytes: gaps of sorted ids, narrow integers, plain numbers, int8 with a scale per row; zstd.

| encoding | of | bytes |
|---|---|---|
| `raw` | floating-point numbers and everything else | as in memory, little-endian |
| `integers` | integers | the value above the smallest one, in as few bytes as the largest needs, one plane per byte |
| `gaps` | ascending ids | the difference from the id before, as `integers`; the first one is `base` |
| `int8` | float32 [R, D] | float32 [R], the scale m / 127 for the greatest magnitude m of each row, then int8 [R, D] |

Planes have the first byte of all values, then the second byte, and so on; the upper ones are mostly zeros. Each encoded
column is compressed with zstd if that makes it smaller by a tenth, which is tried on its first 64 KiB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.embeddings.changes.row_kernels import join_planes

__all__ = ["EncodedColumn", "Encoding", "decode_column", "encode_column"]

Encoding = Literal["raw", "integers", "gaps", "int8"]

SAMPLE_BYTES = 1 << 16
PAYS_BELOW = 0.9
"""Compressed size of the sample, as a part of its size, below which a column is compressed. Weights stay at 0.92 to
0.93, and taking them apart again would be slower than reading them."""

_ZSTD = pa.Codec("zstd", compression_level=1)  # level 3 made deltas 1 % smaller, in twice the time


@dataclass(frozen=True)
class EncodedColumn:
    """How a column is stored, without its bytes.

    Attributes:
        dtype: Data type, as of NumPy, little-endian.
        width: Numbers per row; None for a column of one dimension.
        encoding: See the table above.
        base: Smallest value of `integers`, first value of `gaps`.
        plane_bytes: Bytes per value of `integers` and `gaps`.
        num_bytes: Bytes before compression.
        is_compressed: Whether it is compressed.
    """

    dtype: str
    width: int | None
    encoding: Encoding
    base: int
    plane_bytes: int
    num_bytes: int
    is_compressed: bool


def encode_column(
    column: npt.NDArray[Any], *, is_sorted: bool = False, as_int8: bool = False
) -> tuple[EncodedColumn, memoryview]:
    """Encode a column [R] or [R, width].

    Args:
        column: The column.
        is_sorted: Whether to store gaps; the order of ids may start again, for instance with another table.
        as_int8: Whether to store float32 [R, width] as int8, with an error of up to 1/254 of the row's maximum.
    """
    column = np.ascontiguousarray(column)
    encoding: Encoding = "raw"
    base = plane_bytes = 0
    if as_int8:
        encoding, data = "int8", _to_int8(column)
    elif column.dtype.kind in "iu" and column.ndim == 1 and len(column):
        encoding, base, plane_bytes, data = _integers(column, is_sorted)
    else:
        data = column.reshape(-1).view(np.uint8)
    packed, is_compressed = _compress(data)
    width = None if column.ndim == 1 else column.shape[1]
    dtype = column.dtype.newbyteorder("<").str
    return EncodedColumn(dtype, width, encoding, base, plane_bytes, len(data), is_compressed), packed


def decode_column(about: EncodedColumn, data: memoryview, num_rows: int) -> npt.NDArray[Any]:
    """Inverse of `encode_column`, for R rows; not a copy if it is stored as it is."""
    if about.is_compressed:
        data = memoryview(_ZSTD.decompress(data, decompressed_size=about.num_bytes))
    raw = np.frombuffer(data, dtype=np.uint8)
    dtype = np.dtype(about.dtype)
    if about.encoding == "int8":
        assert about.width is not None
        scales = raw[: 4 * num_rows].view(np.float32)
        values: npt.NDArray[Any] = raw[4 * num_rows :].view(np.int8).reshape(num_rows, about.width) * scales[:, None]
        return values
    if about.encoding == "raw":
        return raw.view(dtype) if about.width is None else raw.view(dtype).reshape(num_rows, about.width)
    integers = np.empty(num_rows, dtype=np.int64)
    join_planes(raw.reshape(about.plane_bytes, num_rows), about.base, about.encoding == "gaps", integers)
    return integers.astype(dtype, copy=False)


def _integers(column: npt.NDArray[Any], is_sorted: bool) -> tuple[Encoding, int, int, npt.NDArray[np.uint8]]:
    values = column.astype(np.int64).view(np.uint64)
    if is_sorted:
        encoding: Encoding = "gaps"
        base = int(column[0])
        above = np.zeros_like(values)
        np.subtract(values[1:], values[:-1], out=above[1:])  # modulo 2^64, so any two ids have a difference
    else:
        encoding, base = "integers", int(column.min())
        above = values - np.uint64(base & (2**64 - 1))
    plane_bytes = (int(above.max()).bit_length() + 7) // 8
    planes = above.view(np.uint8).reshape(len(above), 8)[:, :plane_bytes]
    return encoding, base, plane_bytes, np.ascontiguousarray(planes.T).reshape(-1)


def _to_int8(column: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    scales = (np.abs(column).max(axis=1, initial=0) / np.float32(127)).astype(np.float32)
    divisors = np.where(scales > 0, scales, 1)[:, None]
    values = np.nan_to_num(np.rint(column / divisors)).astype(np.int8)  # infinity and NaN arrive as NaN
    return np.concatenate([scales.view(np.uint8), values.reshape(-1).view(np.uint8)])


def _compress(data: npt.NDArray[np.uint8]) -> tuple[memoryview, bool]:
    plain, sample = memoryview(data.data), data[:SAMPLE_BYTES]
    if len(data) == 0 or len(_ZSTD.compress(sample)) > PAYS_BELOW * len(sample):
        return plain, False
    packed = memoryview(_ZSTD.compress(data))
    return (packed, True) if len(packed) < len(data) else (plain, False)
