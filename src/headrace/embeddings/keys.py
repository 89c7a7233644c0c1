"""`KeyLayout` maps ids of a batch to keys of tables; `KeyedPlan` finds the unique keys in the pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from headrace.embeddings.ops.unique import TableLayout, UniqueIds, unique_keys
from headrace.errors import DataError
from headrace.tensors import BatchKeys, Group, Keys
from headrace.tensors.jagged_ids import JaggedIds, collect_ids

__all__ = ["KeyLayout", "KeyedPlan", "Keys"]


@dataclass(frozen=True)
class KeyLayout:
    """A `KeyFinder`: which table each feature uses, and how ids become keys of that table.

    It does not include properties that unique keys do not depend on (dimension, optimizer, initial values). So layouts
    of modules over the same features, such as the vectors and the weights of DeepFM, are equal, and their keys are
    found once.

    Attributes:
        feature_names: Names of the F features.
        tables: Table number of each feature.
        kinds: Kind of each table: DIRECT, HASHED or EXACT.
        sizes: Number of rows of each direct or hashed table; 0 for other tables.
        salts: Salt of each hashed table; 0 for other tables.
    """

    feature_names: tuple[str, ...]
    tables: tuple[int, ...]
    kinds: tuple[int, ...]
    sizes: tuple[int, ...]
    salts: tuple[int, ...]

    def of(self, feature_names: tuple[str, ...]) -> TableLayout:
        """The layout of some features, numbered in the given order."""
        return _table_layout(self, feature_names)

    def find(self, sparse: Sequence[Group], feature_names: tuple[str, ...]) -> BatchKeys:
        """See `KeyFinder.find`."""
        sparse = [group if group.values.device.type == "cpu" else group.to("cpu") for group in sparse]
        ids = collect_ids(sparse, feature_names)
        unique = unique_keys(self.of(feature_names), ids)
        if unique.bad_value >= 0:
            raise self._out_of_range(feature_names, ids, unique)
        return BatchKeys(feature_names, ids, unique.keys, unique.inverse, unique.key_starts)

    def _out_of_range(self, feature_names: tuple[str, ...], ids: JaggedIds, unique: UniqueIds) -> DataError:
        position, size = unique.bad_value, self.sizes[unique.bad_table]
        feature = int(np.argmax((ids.value_firsts <= position) & (position < ids.value_lasts)))
        return DataError(
            f"feature {feature_names[feature]}: id {ids.values[position]} in row {ids.place_of(position, feature)} "
            f"of the batch, expected 0 <= id < {size} (a direct table with num_embeddings: {size})"
        )


@lru_cache(maxsize=256)
def _table_layout(layout: KeyLayout, feature_names: tuple[str, ...]) -> TableLayout:
    numbers = {name: number for number, name in enumerate(layout.feature_names)}
    tables = np.array([layout.tables[numbers[name]] for name in feature_names], dtype=np.int64)
    return TableLayout(
        kinds=np.array(layout.kinds, dtype=np.int64),
        sizes=np.array(layout.sizes, dtype=np.int64),
        salts=np.array(layout.salts, dtype=np.uint64),
        feature_starts=np.concatenate([[0], np.cumsum(np.bincount(tables, minlength=len(layout.kinds)))]).astype(
            np.int64
        ),
        features=np.argsort(tables, kind="stable").astype(np.int64),
    )


class KeyedPlan:
    """A feature plan that also finds the unique keys of its batches, for `Pipeline.transform`.

    Args:
        plan: A plan with a method `apply(record_batch) -> Batch`.
        layouts: Key layouts of the modules, see `EmbeddingBags.key_layout` and `key_layouts`.
    """

    def __init__(self, plan: Any, layouts: Iterable[KeyLayout]) -> None:
        self.plan = plan
        self.layouts = tuple(dict.fromkeys(layouts))

    def apply(self, rows: Any) -> Any:
        """Convert rows to a batch with its unique keys, in one thread."""
        batch = self.plan.apply(rows)
        num_threads = numba.get_num_threads()
        numba.set_num_threads(1)
        try:
            return batch.with_keys(self.layouts)
        finally:
            numba.set_num_threads(num_threads)
