"""Random Arrow columns: all types the kernels read, with nulls, slices, dictionaries, empty and single rows."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

INTEGERS = {pa.int8(): 7, pa.int16(): 15, pa.int32(): 31, pa.int64(): 63}
UNSIGNED = {pa.uint8(): 8, pa.uint16(): 16, pa.uint32(): 32}


@dataclass
class Drawn:
    """An Arrow array and the same rows as Python values (floats, ints or lists)."""

    array: pa.Array
    rows: list[Any]

    def __repr__(self) -> str:
        return f"{self.array.type}, offset {self.array.offset}: {self.rows}"


@st.composite
def elements(draw: st.DrawFn, size: int, kind: str, *, nulls: bool = True) -> pa.Array:
    """An array without lists; `kind` is "number", "id" or "string"."""
    if kind == "string":
        value: st.SearchStrategy[Any] = st.text(max_size=40)
        type_ = draw(st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]))
    elif kind == "number" and draw(st.booleans()):
        type_ = draw(st.sampled_from([pa.float32(), pa.float64(), pa.bool_(), pa.dictionary(pa.int16(), pa.float32())]))
        inner = type_.value_type if pa.types.is_dictionary(type_) else type_
        narrow = 64 if pa.types.is_float64(inner) else 32
        value = st.booleans() if pa.types.is_boolean(type_) else st.floats(-1e9, 1e9, width=narrow) | st.just(0.5)
        if not pa.types.is_boolean(type_) and not pa.types.is_dictionary(type_) and nulls:
            value = value | st.just(float("nan"))
    else:
        type_ = draw(st.sampled_from([*INTEGERS, *UNSIGNED, pa.int64(), pa.dictionary(pa.int8(), pa.int64())]))
        if type_ in UNSIGNED:
            value = st.integers(0, 2 ** UNSIGNED[type_] - 1)
        else:
            bits = INTEGERS.get(type_, 63) if kind == "id" else min(INTEGERS.get(type_, 50), 50)
            value = st.integers(-5, 5) | st.integers(-(2**bits), 2**bits - 1)
    if nulls:
        value = value | st.none()
    return pa.array(draw(st.lists(value, min_size=size, max_size=size)), type_)


@st.composite
def columns(draw: st.DrawFn, kind: str, *, nulls: bool = True, rows: int | None = None) -> Drawn:
    """A sliced column with one value a row."""
    size = draw(st.integers(0, 40)) if rows is None else rows
    before, after = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    array = draw(elements(before + size + after, kind, nulls=nulls)).slice(before, size)
    return Drawn(array, array.to_pylist())


@st.composite
def list_columns(draw: st.DrawFn, kind: str, *, rows: int | None = None, null_elements: bool | None = None) -> Drawn:
    """A sliced column of lists, with null rows, null elements and elements that no row holds."""
    size = draw(st.integers(0, 30)) if rows is None else rows
    before, after, skipped = draw(st.integers(0, 4)), draw(st.integers(0, 4)), draw(st.integers(0, 3))
    lengths = draw(st.lists(st.integers(0, 6), min_size=before + size + after, max_size=before + size + after))
    holes = draw(st.booleans()) if null_elements is None else null_elements
    hidden = draw(st.integers(0, 3))
    values = draw(elements(hidden + skipped + sum(lengths), kind, nulls=holes)).slice(hidden)
    offsets = [skipped]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    mask = None
    if draw(st.booleans()):
        mask = pa.array(draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))), pa.bool_())
    wide = draw(st.booleans())
    make, index = (pa.LargeListArray, pa.int64()) if wide else (pa.ListArray, pa.int32())
    array = make.from_arrays(pa.array(offsets, index), values, mask=mask)
    array = array.slice(before, size)
    return Drawn(array, array.to_pylist())
