"""Finds where a column changes from row to row, for values and lists of any comparable Arrow type."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from headrace.compiling import kernel
from headrace.logs.gathering import is_list, list_parts, primitive_view

__all__ = ["can_compare", "changed", "codes_of"]

Ints = npt.NDArray[np.int32] | npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def can_compare(kind: pa.DataType) -> bool:
    """Whether `changed` supports a type: anything except structs, maps, unions, and lists of lists."""
    kind = _storage(kind)
    if is_list(kind):
        return not pt.is_nested(_storage(kind.value_type))
    return not pt.is_nested(kind)


def changed(array: pa.Array) -> Mask:
    """Whether each row except the first differs from the previous one; nulls are equal, and so are identical NaNs.

    Returns:
        bool [rows - 1].
    """
    if is_list(array.type):
        starts, lengths, elements, valid = list_parts(array)
        differs = np.empty(max(len(array) - 1, 0), dtype=np.bool_)
        _lists_changed(codes_of(elements), starts, lengths, differs)
        if valid is not None:
            differs |= valid[1:] != valid[:-1]
        return differs
    codes = codes_of(array)
    return np.asarray(codes[1:] != codes[:-1])


def codes_of(array: pa.Array) -> npt.NDArray[np.generic]:
    """Integers that are equal exactly if the values are; for numbers without nulls their bits, without a copy."""
    if isinstance(array, pa.ExtensionArray):
        return codes_of(array.storage)
    view = primitive_view(array)
    if view is not None:
        return view
    if pt.is_null(array.type):
        return np.zeros(len(array), dtype=np.int32)
    if pt.is_floating(array.type):  # as bits: NaN equals itself, and -0.0 differs from 0.0
        width = array.type.bit_width
        array = array.view(pa.int16() if width == 16 else pa.int32() if width == 32 else pa.int64())
    elif pt.is_decimal32(array.type) or pt.is_decimal64(array.type):  # Arrow 26 cannot encode these
        array = array.cast(pa.decimal128(array.type.precision, array.type.scale))
    encoded = array if pt.is_dictionary(array.type) else array.dictionary_encode()
    codes = encoded.indices.cast(pa.int64()).fill_null(-1)
    return np.asarray(codes.to_numpy(zero_copy_only=False))


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


@kernel()
def _lists_changed(codes: npt.NDArray[np.generic], starts: Ints, lengths: Ints, differs: Mask) -> None:
    for i in range(len(differs)):
        differs[i] = lengths[i] != lengths[i + 1]
        if not differs[i]:
            one, other = np.int64(starts[i]), np.int64(starts[i + 1])
            for j in range(np.int64(lengths[i])):
                if codes[one + j] != codes[other + j]:
                    differs[i] = True
                    break
