"""Encoding of columns as bytes: gaps of sorted ids, narrow integers, numbers as they are, bf16 or int8; zstd.

| encoding | of | bytes |
|---|---|---|
| `raw` | floating-point numbers and everything else | as in memory, little-endian |
| `integers` | integers | the value above the smallest one, in as few bytes as the largest needs, one plane per byte |
| `gaps` | ascending ids | the difference from the id before, as `integers`; the first one is `base` |
| `int8` | float32 [R, D] | bf16 [R], the scale m / 127 for the greatest magnitude m of each row, then int8 [R, D] |
| `bf16` | float32 | the nearest bf16 number |

The scale of `int8` is the nearest bf16 number, so the greatest value of a row is always 127, and encoding decoded
numbers again gives the same bytes. Rows below 2^-126 times 127 become zeros.

Planes have the first byte of all values, then the second byte, and so on; the upper ones are mostly zeros. Each encoded
column is compressed with zstd if that makes it smaller by a tenth, which is tried on its first 64 KiB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.embeddings.changes.row_kernels import join_planes

__all__ = ["Empty", "EncodedColumn", "Encoding", "Floats", "decode_column", "encode_column", "from_bf16", "rounded"]

Encoding = Literal["raw", "integers", "gaps", "int8", "bf16"]
Floats = Literal["exact", "int8", "bf16"]
Empty = Callable[[int, npt.DTypeLike], npt.NDArray[Any]]
"""Allocates an uninitialised array of some rows, like `numpy.empty`."""

SAMPLE_BYTES = 1 << 16
PAYS_BELOW = 0.9
"""Compressed size of the sample, as a part of its size, below which a column is compressed. Weights stay at 0.92 to
0.93, and taking them apart again would be slower than reading them."""

SMALLEST_NORMAL = 0x0080
"""Bits of 2^-126 in bf16."""

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
    column: npt.NDArray[Any], *, is_sorted: bool = False, as_floats: Floats = "exact"
) -> tuple[EncodedColumn, memoryview]:
    """Encode a column [R] or [R, width].

    Args:
        column: The column.
        is_sorted: Whether to store gaps; the order of ids may start again, for instance with another table.
        as_floats: How to store float32: as it is; [R, width] as int8, with an error of up to 1/253 of the row's
            maximum; or as bf16, with an error of up to 2^-8 of each number.
    """
    column = np.ascontiguousarray(column)
    encoding: Encoding = "raw"
    base = plane_bytes = 0
    if as_floats == "int8" and column.dtype == np.float32:
        encoding, data = "int8", _to_int8(column)
    elif as_floats == "bf16" and column.dtype == np.float32:
        encoding, data = "bf16", _to_bf16(column.reshape(-1)).view(np.uint8)
    elif column.dtype.kind in "iu" and column.ndim == 1 and len(column):
        encoding, base, plane_bytes, data = _integers(column, is_sorted)
    else:
        data = column.reshape(-1).view(np.uint8)
    packed, is_compressed = _compress(data)
    width = None if column.ndim == 1 else column.shape[1]
    dtype = column.dtype.newbyteorder("<").str
    return EncodedColumn(dtype, width, encoding, base, plane_bytes, len(data), is_compressed), packed


def decode_column(about: EncodedColumn, data: memoryview, num_rows: int, empty: Empty = np.empty) -> npt.NDArray[Any]:
    """Inverse of `encode_column`, for R rows; not a copy if it is stored as it is."""
    if about.is_compressed:
        data = memoryview(_ZSTD.decompress(data, decompressed_size=about.num_bytes))
    raw = np.frombuffer(data, dtype=np.uint8)
    raw.flags.writeable = False  # wherever it is, so that kernels are compiled once
    dtype = np.dtype(about.dtype)
    if about.encoding == "int8":
        assert about.width is not None
        scales = from_bf16(raw[: 2 * num_rows].view(np.uint16))
        values = raw[2 * num_rows :].view(np.int8).reshape(num_rows, about.width)
        with np.errstate(invalid="ignore"):
            weights: npt.NDArray[Any] = values * scales[:, None]
        return weights
    if about.encoding in ("raw", "bf16"):
        numbers = raw.view(dtype) if about.encoding == "raw" else from_bf16(raw.view(np.uint16))
        return numbers if about.width is None else numbers.reshape(num_rows, about.width)
    integers = empty(num_rows, np.int64)
    join_planes(raw.reshape(about.plane_bytes, num_rows), about.base, about.encoding == "gaps", integers)
    if dtype == np.int64:
        return integers
    narrow = empty(num_rows, dtype)
    narrow[:] = integers
    return narrow


def rounded(column: npt.NDArray[Any], as_floats: Floats) -> npt.NDArray[Any]:
    """The numbers of a column after it was stored in a way, see `encode_column`."""
    about, data = encode_column(column, as_floats=as_floats)
    return decode_column(about, data, len(column))


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
    scales = _to_bf16((np.abs(column).max(axis=1, initial=0) / np.float32(127)).astype(np.float32))
    scales[scales < SMALLEST_NORMAL] = 0  # smaller ones have fewer digits
    factors = from_bf16(scales)
    with np.errstate(invalid="ignore"):
        values = np.rint(column / np.where(factors > 0, factors, 1)[:, None])
    values = np.clip(np.nan_to_num(values), -127, 127).astype(np.int8)  # infinity and NaN arrive as NaN
    return np.concatenate([scales.view(np.uint8), values.reshape(-1).view(np.uint8)])


def _to_bf16(column: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = column.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)  # ties to even
    return np.where(np.isnan(column), np.uint32(0x7FC0), rounded).astype(np.uint16)


def from_bf16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The float32 numbers of the bits of bf16 numbers."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _compress(data: npt.NDArray[np.uint8]) -> tuple[memoryview, bool]:
    plain, sample = memoryview(data.data), data[:SAMPLE_BYTES]
    if len(data) == 0 or len(_ZSTD.compress(sample)) > PAYS_BELOW * len(sample):
        return plain, False
    packed = memoryview(_ZSTD.compress(data))
    return (packed, True) if len(packed) < len(data) else (plain, False)
