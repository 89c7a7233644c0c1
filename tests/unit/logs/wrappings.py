"""The same values in every Arrow type that may wrap them."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

Wrapping = Callable[[pa.Array], pa.Array]


def text_of(values: list[bytes | None]) -> pa.Array:
    """Text as a Parquet file may hold it: nobody has checked that it is UTF-8."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


def run_ends(array: pa.Array) -> pa.Array:
    """Run-end encoded, a run a row."""
    ends = pa.array(range(1, len(array) + 1), pa.int32())
    return pa.RunEndEncodedArray.from_arrays(ends, array)


def twice_as_dictionary(array: pa.Array) -> pa.Array:
    """A dictionary in which each value stands twice, with the null inside it."""
    indices = pa.array(range(len(array), 2 * len(array)), pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.concat_arrays([array, array]))


def extension(array: pa.Array) -> pa.Array:
    """An extension type."""
    return pa.ExtensionArray.from_storage(pa.opaque(array.type, "a type", "somebody"), array)


def sliced(array: pa.Array) -> pa.Array:
    """The middle of a longer array."""
    return pa.concat_arrays([array, array, array]).slice(len(array), len(array))


def sliced_runs(array: pa.Array) -> pa.Array:
    """The middle of a longer run-end encoded array."""
    return run_ends(pa.concat_arrays([array, array, array])).slice(len(array), len(array))


def retyped(kind: pa.DataType) -> Wrapping:
    """Bytes under another type of text."""

    def wrap(array: pa.Array) -> pa.Array:
        return array.cast(pa.binary()).cast(kind, safe=False)

    return wrap


def large_text(array: pa.Array) -> pa.Array:
    """Text with offsets of 64 bits, unchecked."""
    raw = array.cast(pa.large_binary())
    return pa.Array.from_buffers(pa.large_string(), len(raw), raw.buffers(), raw.null_count, raw.offset)


def through(*wrappings: Wrapping) -> Wrapping:
    """One wrapping in another."""

    def wrap(array: pa.Array) -> pa.Array:
        for wrapping in wrappings:
            array = wrapping(array)
        return array

    return wrap


ANY: dict[str, Wrapping] = {
    "as it is": lambda array: array,
    "slice": sliced,
    "dictionary": twice_as_dictionary,
    "runs": run_ends,
    "slice of runs": sliced_runs,
    "extension": extension,
    "extension of a dictionary": through(twice_as_dictionary, extension),
}

TEXT: dict[str, Wrapping] = {
    **ANY,
    "large_string": large_text,
    "binary": retyped(pa.binary()),
    "large_binary": retyped(pa.large_binary()),
    "binary_view": retyped(pa.binary_view()),
    "dictionary of binary": through(retyped(pa.binary()), twice_as_dictionary),
    # Arrow makes no runs of text that is not UTF-8.
    "runs": through(retyped(pa.binary()), run_ends),
    "slice of runs": through(retyped(pa.binary()), sliced_runs),
    "runs of a dictionary": through(retyped(pa.large_binary()), twice_as_dictionary, run_ends),
}


def _decimals(kind: pa.DataType) -> Wrapping:
    return lambda array: pa.array([None if v is None else Decimal(v) for v in array.to_pylist()], kind)


def _texts(array: pa.Array) -> pa.Array:
    return pa.array([None if v is None else str(v) for v in array.to_pylist()], pa.string())


WHOLE: dict[str, Wrapping] = {
    **ANY,
    "decimal128": _decimals(pa.decimal128(38, 0)),
    "decimal256": _decimals(pa.decimal256(76, 0)),
    "decimal with zeros": _decimals(pa.decimal128(38, 2)),
    "text": _texts,
    "text with spaces": lambda array: pa.array([None if v is None else f" {v}\t" for v in array.to_pylist()]),
    "runs of text": through(_texts, run_ends),
    "binary": through(_texts, retyped(pa.binary())),
    "dictionary of decimals": through(_decimals(pa.decimal128(38, 0)), twice_as_dictionary),
}
"""Of uint64 or int64 columns."""

SMALL: dict[str, Wrapping] = {
    **WHOLE,
    "float64": lambda array: array.cast(pa.float64()),
    "decimal32": _decimals(pa.decimal32(9, 0)),
    "decimal64": _decimals(pa.decimal64(18, 1)),
    **{str(kind): (lambda array, kind=kind: array.cast(kind)) for kind in (pa.int32(), pa.int64(), pa.float32())},
}
"""Of integers below 2^24."""


def _relisted(make: Any, index: Any) -> Wrapping:
    def wrap(array: pa.Array) -> pa.Array:
        offsets = pa.array(array.offsets.to_numpy().astype(index))
        return make.from_arrays(offsets, array.values, mask=array.is_null())

    return wrap


def _views(make: Any, index: Any) -> Wrapping:
    def wrap(array: pa.Array) -> pa.Array:
        offsets = array.offsets.to_numpy()
        starts, sizes = offsets[:-1].astype(index), np.diff(offsets).astype(index)
        return make.from_arrays(pa.array(starts), pa.array(sizes), array.values, mask=array.is_null())

    return wrap


def elements(wrapping: Wrapping) -> Wrapping:
    """Lists whose elements are wrapped."""

    def wrap(array: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(array.offsets, wrapping(array.values), mask=array.is_null())

    return wrap


LISTS: dict[str, Wrapping] = {
    "list": lambda array: array,
    "slice": sliced,
    "large_list": _relisted(pa.LargeListArray, np.int64),
    "list_view": _views(pa.ListViewArray, np.int32),
    "large_list_view": _views(pa.LargeListViewArray, np.int64),
    "dictionary of lists": twice_as_dictionary,
    "runs of lists": run_ends,
    "extension": extension,
}
