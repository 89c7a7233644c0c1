"""What is done to one element: map, filter, permute, combine, transform, move to a device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import PipelineError
from headrace.logs import groups
from headrace.logs.source import ROW_ID
from headrace.messages import shorten_list
from headrace.pipeline.engine.element import Cut
from headrace.pipeline.transformations.shuffle import row_order, session_order
from headrace.pipeline.transformations.slices import slices_of

__all__ = [
    "BadRows",
    "Combine",
    "FilterRows",
    "MapRows",
    "Operation",
    "Permute",
    "Plan",
    "ToDevice",
    "Transform",
    "call_name",
    "takes_rng",
]

BadRows = Literal["fail", "drop", "quarantine"]
"""What happens to rows on which a user function raises."""


class Plan(Protocol):
    """What `Pipeline.transform` accepts: `headrace.features.FeaturePlan`, or anything with this method."""

    def apply(self, batch: pa.RecordBatch) -> Any:
        """Tensors of a record batch, normally a `headrace.tensors.Batch`; called by several threads at once."""
        ...


class Operation(Protocol):
    """One element in, one element out; called by several threads at once.

    Attributes:
        bad_rows: What to do with rows the operation raises on, or None if it works on elements as a whole.
        label: The user's function by name, for error texts; empty if there is none.
    """

    @property
    def bad_rows(self) -> BadRows | None: ...

    @property
    def label(self) -> str: ...

    def __call__(self, payload: Any, seed: tuple[int, ...]) -> Any:
        """The new payload; `seed` is (epoch, key of the element): all that random numbers may depend on."""
        ...


@dataclass(frozen=True)
class MapRows:
    """Applies a user function to each record batch, whose columns are plain: groups are expanded before.

    Attributes:
        function: RecordBatch -> RecordBatch; given `rng` too if there is a seed.
        seed: Where its random numbers start, for a function that has a parameter `rng`.
        bad_rows: What to do with rows it raises on.
    """

    function: Callable[..., Any]
    seed: tuple[int, ...] | None = None
    bad_rows: BadRows = "fail"

    @property
    def label(self) -> str:
        return call_name(self.function)

    def __call__(self, payload: pa.RecordBatch, seed: tuple[int, ...]) -> pa.RecordBatch:
        return _record_batch(_call(self.function, groups.expand(payload), self.seed, seed))


@dataclass(frozen=True)
class FilterRows:
    """Keeps the rows a user function or an Arrow expression says true to; null counts as false.

    It looks at plain columns; the rows that stay keep their groups.

    Attributes:
        predicate: RecordBatch -> booleans, or an Arrow expression.
        seed: As for `MapRows`.
        bad_rows: What to do with rows it raises on.
    """

    predicate: Any
    seed: tuple[int, ...] | None = None
    bad_rows: BadRows = "fail"

    @property
    def label(self) -> str:
        return "" if isinstance(self.predicate, pc.Expression) else call_name(self.predicate)

    def __call__(self, payload: pa.RecordBatch, seed: tuple[int, ...]) -> pa.RecordBatch:
        if isinstance(self.predicate, pc.Expression):
            return _filter_by(self.predicate, payload)
        mask = _call(self.predicate, groups.expand(payload), self.seed, seed)
        if isinstance(mask, pa.ChunkedArray):
            mask = mask.combine_chunks()
        if not isinstance(mask, pa.Array):
            mask = pa.array(np.asarray(mask))
        if not pa.types.is_boolean(mask.type) or len(mask) != payload.num_rows:
            raise PipelineError(
                f"the filter function returned {len(mask)} values of type {mask.type}, "
                f"expected {payload.num_rows} booleans"
            )
        return payload.filter(mask)


@dataclass(frozen=True)
class Permute:
    """Brings the rows of a block into an order that depends on (seed, epoch, block) only.

    Attributes:
        seed: Another one gives another order.
        session: Column whose equal values are a session: sessions are shuffled, each stays in one piece. None for
            rows, each by itself.
    """

    seed: int
    session: str | None = None
    bad_rows: None = None
    label: str = ""

    def __call__(self, payload: list[Cut], seed: tuple[int, ...]) -> pa.RecordBatch:
        slices = slices_of(payload)
        schema = _same_schema(slices)
        if self.session is None:
            order = row_order(sum(rows.num_rows for rows in slices), (self.seed, *seed))
        else:
            order = session_order(_join([_column(rows, self.session) for rows in slices]), (self.seed, *seed))
        indices = pa.array(order)
        if groups.has_groups(schema):
            return groups.concat(slices).take(indices)
        # Column by column, so that the copy needed for joining the slices is one column and not the whole block.
        columns = [_join([rows.column(index) for rows in slices]).take(indices) for index in range(len(schema))]
        return pa.RecordBatch.from_arrays(columns, schema=schema)


@dataclass(frozen=True)
class Combine:
    """Joins the cuts of a batch; a batch cut from a single element is a view of it."""

    bad_rows: None = None
    label: str = ""

    def __call__(self, payload: list[Cut], seed: tuple[int, ...]) -> pa.RecordBatch:
        slices = slices_of(payload)
        if len(slices) == 1:
            return slices[0]
        _same_schema(slices)
        return groups.concat(slices)


@dataclass(frozen=True)
class Transform:
    """Turns a record batch into tensors."""

    plan: Plan
    bad_rows: BadRows = "fail"

    @property
    def label(self) -> str:
        return type(self.plan).__name__

    def __call__(self, payload: pa.RecordBatch, seed: tuple[int, ...]) -> Any:
        return self.plan.apply(payload)


@dataclass(frozen=True)
class ToDevice:
    """Copies a batch of tensors to a device; to CUDA through page-locked memory, on a stream of its own."""

    device: str
    bad_rows: None = None
    label: str = ""

    def __call__(self, payload: Any, seed: tuple[int, ...]) -> Any:
        if not self.device.startswith("cuda"):
            return payload.to(self.device)
        import torch

        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            moved = payload.pin_memory().to(self.device, non_blocking=True)
        stream.synchronize()
        # The consumer computes on the default stream: until it has, the memory must not be given to the next copy.
        for tensor in _tensors_of(moved):
            tensor.record_stream(torch.cuda.default_stream(self.device))
        return moved


def call_name(function: Callable[..., Any]) -> str:
    """How a function is named in texts."""
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def takes_rng(function: Callable[..., Any]) -> bool:
    """Whether a function has a parameter named `rng`."""
    try:
        return "rng" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # built in, without a signature
        return False


def _call(
    function: Callable[..., Any], rows: pa.RecordBatch, seed: tuple[int, ...] | None, key: tuple[int, ...]
) -> Any:
    return function(rows) if seed is None else function(rows, rng=np.random.default_rng((*seed, *key)))


def _tensors_of(value: Any) -> Iterator[Any]:
    """All tensors on a CUDA device in a (nested) batch."""
    if getattr(value, "is_cuda", False):
        yield value
    elif is_dataclass(value):
        for part in fields(value):
            yield from _tensors_of(getattr(value, part.name))
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors_of(part)


def _record_batch(value: Any) -> pa.RecordBatch:
    if isinstance(value, pa.Table):
        value = pa.concat_batches(value.to_batches()) if value.num_rows else _empty(value.schema)
    if not isinstance(value, pa.RecordBatch):
        raise PipelineError(f"the function returned {type(value).__name__}, expected pyarrow.RecordBatch")
    if ROW_ID not in value.schema.names:
        raise PipelineError(
            f"the function returned a batch without the column {ROW_ID}; keep it, it says which row is which"
        )
    return value


def _column(rows: pa.RecordBatch, name: str) -> pa.Array:
    """A plain column, or a feature of a group for every row."""
    try:
        return groups.expand(rows, [name]).column(0)
    except KeyError:
        raise PipelineError(
            f"column {name}: missing in the rows to shuffle by session, which have "
            f"{shorten_list(groups.feature_names(rows.schema))}"
        ) from None


def _filter_by(predicate: pc.Expression, rows: pa.RecordBatch) -> pa.RecordBatch:
    if not groups.has_groups(rows.schema):
        return rows.filter(predicate)
    place = "__place"
    plain = groups.expand(rows).append_column(place, pa.array(np.arange(rows.num_rows)))
    return rows.take(plain.filter(predicate).column(place))


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _join(arrays: list[pa.Array]) -> pa.Array:
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)


def _same_schema(slices: list[pa.RecordBatch]) -> pa.Schema:
    first = slices[0].schema
    for rows in slices[1:]:
        if not rows.schema.equals(first):
            raise PipelineError(
                f"rows that belong together have different columns: {_columns(first)} and {_columns(rows.schema)}; "
                "the functions before must always return the same ones"
            )
    return first


def _columns(schema: pa.Schema) -> str:
    return shorten_list(f"{field.name} {field.type}" for field in schema)
