"""Network encoding of rows and gradients: fp32, or bf16 and int8 with bounded errors.

| precision | bytes of a row of D numbers | greatest error of a number x |
|---|---|---|
| fp32 | 4 D | 0 |
| bf16 | 2 D | 2^-8 |x|, round to nearest even |
| int8 | D + 4 | m / 254, m the greatest magnitude in the row; a row with an infinity or NaN arrives as NaN |
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.storage.row_formats import nearest_bf16

__all__ = ["PRECISIONS", "Precision", "decode", "encode", "row_bytes"]

Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Uint16s = npt.NDArray[np.uint16]
Uint32s = npt.NDArray[np.uint32]
Int8s = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]


def row_bytes(precision: Precision, dim: int) -> int:
    """Bytes of an encoded row, without the scale of int8."""
    return dim * {"fp32": 4, "bf16": 2, "int8": 1}[precision]


def encode(rows: Float32s, places: Int64s | None, precision: Precision) -> tuple[Bytes, Float32s]:
    """Encode rows as bytes.

    Args:
        rows: Rows, float32 [R, dim], contiguous.
        places: Positions of the rows to encode, int64 [U]; None for all (for fp32 without a copy).
        precision: Precision of the encoding.

    Returns:
        uint8 [U, row_bytes], and scales float32 [U] for int8, [0] otherwise.
    """
    num_rows, dim = (len(rows) if places is None else len(places)), rows.shape[1]
    none = np.empty(0, dtype=np.float32)
    if precision == "fp32" and places is None:
        return rows.view(np.uint8).reshape(num_rows, 4 * dim), none
    if places is None:
        places = np.arange(num_rows)
    out = np.empty((num_rows, row_bytes(precision, dim)), dtype=np.uint8)
    if precision == "fp32":
        _take(rows, places, out.view(np.float32))
    elif precision == "bf16":
        _to_bf16(rows.view(np.uint32), places, out.view(np.uint16))
    else:
        scales = np.empty(num_rows, dtype=np.float32)
        _to_int8(rows, places, out.view(np.int8), scales)
        return out, scales
    return out, none


def decode(data: Bytes, scales: Float32s, places: Int64s | None, precision: Precision, out: Float32s) -> None:
    """Decode rows into the rows `places` of float32 `out`, or into all rows in order; see `encode`."""
    if precision == "fp32" and places is None:
        out[:] = data.view(np.float32)
        return
    if places is None:
        places = np.arange(len(out))
    if precision == "fp32":
        _put(data.view(np.float32), places, out)
    elif precision == "bf16":
        _from_bf16(data.view(np.uint16), places, out.view(np.uint32))
    else:
        _from_int8(data.view(np.int8), scales, places, out)


@kernel()
def _take(rows: Float32s, places: Int64s, out: Float32s) -> None:
    for u in range(len(places)):
        for d in range(rows.shape[1]):
            out[u, d] = rows[places[u], d]


@kernel()
def _put(rows: Float32s, places: Int64s, out: Float32s) -> None:
    for u in range(len(places)):
        for d in range(rows.shape[1]):
            out[places[u], d] = rows[u, d]


@kernel()
def _to_bf16(bits: Uint32s, places: Int64s, out: Uint16s) -> None:
    for u in range(len(places)):
        for d in range(bits.shape[1]):
            x = bits[places[u], d]
            if (x & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):  # rounding could turn a NaN into an infinity
                out[u, d] = np.uint16((x >> np.uint32(16)) | np.uint32(0x40))
            else:
                out[u, d] = nearest_bf16(x)


@kernel()
def _from_bf16(bits: Uint16s, places: Int64s, out: Uint32s) -> None:
    for u in range(len(places)):
        for d in range(bits.shape[1]):
            out[places[u], d] = np.uint32(bits[u, d]) << np.uint32(16)


@kernel()
def _to_int8(rows: Float32s, places: Int64s, out: Int8s, scales: Float32s) -> None:
    for u in range(len(places)):
        row = rows[places[u]]
        most = np.float32(0.0)
        is_finite = True
        for d in range(len(row)):
            most = max(most, abs(row[d]))
            is_finite = is_finite and np.isfinite(row[d])
        scale = most / np.float32(127.0)
        scales[u] = scale if is_finite else np.float32(np.nan)
        for d in range(len(row)):
            x = np.rint(row[d] / scale) if is_finite and scale > 0 else np.float32(0.0)
            out[u, d] = np.int8(min(max(x, np.float32(-127.0)), np.float32(127.0)))


@kernel()
def _from_int8(data: Int8s, scales: Float32s, places: Int64s, out: Float32s) -> None:
    for u in range(len(places)):
        for d in range(data.shape[1]):
            out[places[u], d] = scales[u] * np.float32(data[u, d])
