"""`EmbeddingBags`: a module that pools the embeddings of a batch's id lists, one vector per row and feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from headrace.embeddings.config import EmbeddingsConfig, TableConfig, names_of_tables
from headrace.embeddings.keys import KeyLayout
from headrace.embeddings.lookup import FeatureSet, Lookup, LookupPart
from headrace.embeddings.ops.accumulation import clip_norm, merge_keys
from headrace.embeddings.ops.backend import choose_backend
from headrace.embeddings.ops.gradients import POOL_MAX, POOL_MEAN, POOL_SUM
from headrace.embeddings.ops.hashing import name_seeds
from headrace.embeddings.ops.unique import DIRECT, EXACT, HASHED
from headrace.embeddings.storage.choose import choose_storage
from headrace.embeddings.storage.device import DeviceStorage, Memory
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.protocol import MakeStorage
from headrace.embeddings.stores.local import EmbeddingStore, LocalStore
from headrace.embeddings.tables.make_group import BudgetSpec, keyed_tables, loaded_table_group, make_table_group
from headrace.embeddings.tables.state import Columns
from headrace.embeddings.tables.table_group import TableGroup
from headrace.errors import ConfigError
from headrace.tensors import Batch, Group

__all__ = ["EmbeddingBags", "Lookup", "UniquePooled", "apply_gradients", "embedding_bags", "key_layouts"]

KINDS = {"direct": DIRECT, "hashed": HASHED, "collisionless": EXACT}
NO_FEATURES = {"name": "", "feature_names": (), "pooling": "sum"}
POOLINGS = {"sum": POOL_SUM, "mean": POOL_MEAN, "max": POOL_MAX}


class UniquePooled(NamedTuple):
    """Pooled embeddings of one group of a batch, computed once per unique row.

    Attributes:
        feature_names: Names of the group's F_g features, in the module's order.
        pooled: float32 [U, F_g, dim], differentiable.
        inverse: int32 [B], the unique row of each row of the batch; None for a plain group, where U is B.
    """

    feature_names: tuple[str, ...]
    pooled: Tensor
    inverse: Tensor | None


class EmbeddingBags(nn.Module):
    """Pooled embeddings of several id-list features. Rows are kept in a store, not in `parameters()`.

    In your own training loop::

        emb_BFD = bags(batch)               # float32 [B, F, dim]
        loss.backward()
        bags.apply_gradients()     # merges duplicates and updates the rows of the batch once

    A batch keeps its unique keys. `pipe.transform(KeyedPlan(plan, key_layouts(model)))` finds them in the pipeline's
    workers; otherwise the first lookup finds them, once for all modules with an equal `key_layout`.

    A forward pass changes no rows. `apply_gradients` counts ids, allocates rows for new ids and updates rows. In
    `eval()` or under `torch.no_grad()`, ids without a row read zeros.

    Args:
        config: The tables, with their features, pooling and optimizers: a list of table configs, or the `embeddings`
            section of a job file, which has defaults for tables that it does not name.
        feature_names: Names of the F features, in the order of the output. The batch may have more features. None for
            the features of the tables.
        embedding_dim: Dimension of rows; None for that of the tables.
        seed: Seed of initial values and hashes.
        store: Store that keeps the rows; None to keep them in this process.

    Attributes:
        tables: Complete configs of the tables, in the order in which `Keys` number them.
        key_layout: How ids become keys; argument of `Batch.keys_of`.
    """

    def __init__(
        self,
        config: EmbeddingsConfig | Sequence[TableConfig],
        feature_names: Sequence[str] | None = None,
        embedding_dim: int | None = None,
        *,
        seed: int,
        store: EmbeddingStore | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, EmbeddingsConfig):
            config, feature_names, embedding_dim = _of_tables(config, feature_names, embedding_dim)
        if not feature_names:
            raise ConfigError("embeddings: given no sparse features, expected at least one")
        if embedding_dim is None:
            raise ConfigError("embeddings: given no embedding_dim, expected numbers per row")
        self.config = config
        self.feature_names = tuple(feature_names)
        self.embedding_dim = embedding_dim
        self._table_configs = config.tables_of(feature_names, embedding_dim)
        self.tables = tables = keyed_tables(config, self._table_configs)
        table_of = {feature: number for number, table in enumerate(tables) for feature in table.feature_names}
        kinds = tuple(KINDS[table.kind] for table in tables)
        salts = name_seeds(seed, [table.name for table in tables], "hash").tolist()
        self.key_layout = KeyLayout(
            self.feature_names,
            tuple(table_of[name] for name in self.feature_names),
            kinds,
            tuple(0 if kind == EXACT else table.num_embeddings for kind, table in zip(kinds, tables, strict=True)),
            tuple(salt if kind == HASHED else 0 for kind, salt in zip(kinds, salts, strict=True)),
        )
        poolings = [tables[table_of[name]].pooling_of(name) for name in self.feature_names]
        self._poolings = np.array([POOLINGS[pooling] for pooling in poolings], dtype=np.int64)
        self._feature_sets: dict[tuple[str, ...], FeatureSet] = {}
        self._seed = seed
        self._store = store
        self._table_group: TableGroup | None = None
        self._is_local = store is None
        self._pending: list[Lookup] = []
        self._device: torch.device | None = None
        self._memory: Memory = config.memory
        self._backend = choose_backend(None)

    @property
    def table_group(self) -> TableGroup | None:
        """The tables in this process, created on first use; None with another kind of store."""
        if self._table_group is None and self._is_local:
            make_storage = choose_storage(self.config.storage)
            self._table_group = make_table_group(
                self.config, self._table_configs, seed=self._seed, make_storage=make_storage
            )
        return self._table_group

    @property
    def store(self) -> EmbeddingStore:
        """The store of the rows. An assigned store is used in place of the previous one, which still keeps the rows."""
        if self._store is None:
            assert self.table_group is not None
            self._store = LocalStore(self.table_group)
        return self._store

    @store.setter
    def store(self, store: EmbeddingStore) -> None:
        self._store = store

    def use_store(self, store: EmbeddingStore) -> None:
        """Keep rows in another store from now on. Tables in this process are discarded."""
        self._store, self._table_group, self._is_local = store, None, False

    @property
    def budget(self) -> BudgetSpec | None:
        """The budget of the tables; None without one."""
        return BudgetSpec.of(self.config, self._table_configs)

    def load_tables(self, states: Sequence[Columns]) -> None:
        """Load the tables in this process from a saved table group, or from all of its parts.

        Raises:
            CheckpointError: The tables were saved with other settings.
        """
        group = self.table_group
        assert group is not None
        self._table_group = loaded_table_group(
            group, states, self.config, self._table_configs, seed=self._seed, make_storage=self._storage_maker()
        )
        if self._table_group is not group:
            self._store = None

    def _storage_maker(self) -> MakeStorage:
        if self._device is None:
            return choose_storage(self.config.storage)
        return DeviceStorage.on(self._device, self._memory)

    def place_on(self, device: torch.device | str | None, memory: Memory | None = None) -> Self:
        """Compute on a device with torch operations, and move the rows; `model.to(device)` does this for a GPU.

        Args:
            device: A torch device; None for the CPU kernels of headrace.
            memory: Where rows are kept, see `EmbeddingsConfig.memory`; None for the config's value.

        Raises:
            ConfigError: Another store is in use, or rows are in a file.
        """
        self._device = None if device is None else torch.device(device)
        self._backend = choose_backend(self._device)
        if self.table_group is not None:
            if not isinstance(self.store, LocalStore):
                raise ConfigError("embeddings: rows cannot move while another store is in use")
            if self._device is not None:
                if self.config.storage.kind != "memory":
                    raise ConfigError(
                        f"embeddings.storage.kind: given {self.config.storage.kind} for a model on {self._device}, "
                        "expected memory; embeddings.memory: host keeps rows outside of the GPU"
                    )
                self._memory = memory or self.config.memory
                self._table_group = self.table_group.moved_to(self._storage_maker())
            elif self.table_group.device is not None:
                self._table_group = self.table_group.moved_to(HostStorage)
            self._store = None
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Called by `to`, `cuda` and `cpu` of a model."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0)).device
        if device.type == "meta" or device == self._device:
            return self
        if device.type != "cpu":
            return self.place_on(device)
        return self if self._device is None or self._device.type == "cpu" else self.place_on(None)

    def forward(self, batch: Batch | Sequence[Group], out: Tensor | None = None) -> Tensor:
        """Pooled embeddings float32 [B, F, dim]; see `lookup` for the errors and `pool` for `out`."""
        return self.pool(self.lookup(batch), out)

    def lookup(self, batch: Batch | Sequence[Group]) -> Lookup:
        """Request the rows of a batch's unique keys from the store, without waiting for them.

        Ids of inverse-keyed groups are looked up once per unique row, but counted once per row of the batch.

        Args:
            batch: A batch, whose unique keys are found now if it does not have them yet, and kept; or a list of groups,
                whose keys are found at each call.

        Raises:
            DataError: An id is out of range in a direct table; the text names feature, id and range.
            ConfigError: A feature is not in the batch, or has weights but max pooling.
        """
        if isinstance(batch, Batch):
            found = batch.keys_of(self.key_layout)
        else:
            found = (self.key_layout.find(batch, self.feature_names),)
        requires_grad = self.training and torch.is_grad_enabled()
        parts = []
        for part in found:
            chosen = self._feature_set(part.feature_names)
            if len(part.ids.weights) and POOL_MAX in chosen.poolings:
                name = chosen.names[int(np.argmax(chosen.poolings == POOL_MAX))]
                raise ConfigError(f"feature {name}: pooling max with weights, expected sum or mean")
            reading = self.store.read(part.keys if requires_grad else part.keys.unseen())
            parts.append(LookupPart(chosen, part, reading, requires_grad, device=self._device))
        lookup = Lookup(tuple(parts))
        if requires_grad:
            self._pending.append(lookup)
        return lookup

    def pool(self, lookup: Lookup, out: Tensor | None = None) -> Tensor:
        """Pooled embeddings float32 [B, F, dim], features in the module's order.

        Args:
            lookup: A lookup by this module.
            out: Output tensor, float32 [B, F, dim] on the CPU with a contiguous last dimension, for instance a slice of
                the buffer for a model's interaction. The result shares its memory.

        Raises:
            ValueError: `out` does not fit.
        """
        shape = (lookup.stride, len(self.feature_names), self.embedding_dim)
        return self._backend.pool(lookup.parts, shape, out)

    def pool_unique(self, lookup: Lookup, features: Sequence[str] | None = None) -> list[UniquePooled]:
        """Pooled embeddings of each group of the batch, once per unique row, for models that compute on unique rows.

        Expand results that are computed row by row from `pooled` with `index_select(0, inverse)`.

        Args:
            lookup: A lookup by this module.
            features: Names of the features to pool; None for all.
        """
        return [
            UniquePooled(
                tuple(part.features.names[feature] for feature in group.features),
                pooled,
                None if group.inverse is None else torch.from_numpy(group.inverse).to(pooled.device),
            )
            for part in lookup.parts
            if part.groups(features)
            for group, pooled in zip(part.groups(features), self._backend.pool_unique(part, features), strict=True)
        ]

    def sequence(self, lookup: Lookup, feature_name: str) -> tuple[Tensor, Tensor]:
        """Unpooled rows of a feature's ids, for models that attend over a list.

        In an inverse-keyed group these are the lists of the unique rows; `lookup.inverse_lookup(feature_name)` maps
        rows of the batch to unique rows.

        Returns:
            float32 [n, dim] for the n ids of the feature, and offsets int64 [B + 1], or [U + 1], into them.

        Raises:
            KeyError: The module has no such feature.
        """
        return self._backend.sequence(*lookup.part_of(feature_name))

    def apply_gradients(self, num_rows: int | None = None, *, lr_factor: float = 1.0) -> None:
        """Update rows with the gradients of all forward passes since the last call, in one step.

        Forward passes without a backward pass are dropped; their ids do not count as seen.

        Args:
            num_rows: Number of rows behind the gradients, see `EmbeddingStore.update`; None for the rows of one forward
                pass.
            lr_factor: Factor of the learning rates in this step, for instance from a schedule.
        """
        pending, self._pending = self._pending, []
        used = [lookup for lookup in pending if any(part.grad is not None for part in lookup.parts)]
        parts = [part for lookup in used for part in lookup.parts if part.grad is not None]
        if parts:
            found = [part.found for part in parts]
            keys_of_parts = [each.keys if each.is_counted else each.keys.unseen() for each in found]
            keys, gradients = merge_keys([(keys, part.grad) for keys, part in zip(keys_of_parts, parts, strict=True)])
            if self.config.clip_grad_norm is not None:
                clip_norm(gradients, self.config.clip_grad_norm)
            if isinstance(gradients, Tensor) and (self.table_group is None or self.table_group.device is None):
                gradients = gradients.cpu().numpy()
            num_rows = num_rows or used[0].stride
            self.store.update(keys, gradients, num_rows=num_rows, lr_factor=lr_factor).result()

    def drop_gradients(self) -> None:
        """Discard forward passes without applying their gradients, to skip a step."""
        self._pending = []

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"features={len(self.feature_names)}, tables={len(self.tables)}, dim={self.embedding_dim}"

    def _feature_set(self, names: tuple[str, ...]) -> FeatureSet:
        """Features whose keys were found together; cached by names."""
        if names not in self._feature_sets:
            positions = np.array([self.feature_names.index(name) for name in names], dtype=np.int64)
            layout = self.key_layout.of(names)
            self._feature_sets[names] = FeatureSet(names, positions, layout, self._poolings[positions])
        return self._feature_sets[names]


def _of_tables(
    tables: Sequence[TableConfig], feature_names: Sequence[str] | None, embedding_dim: int | None
) -> tuple[EmbeddingsConfig, Sequence[str], int | None]:
    """Derive the arguments of `EmbeddingBags` from a list of table configs.

    Raises:
        ConfigError: A table has no name, or two have the same name.
    """
    names = names_of_tables(tables)
    config = EmbeddingsConfig(
        default=tables[0].model_copy(update=NO_FEATURES), tables=dict(zip(names, tables, strict=True))
    )
    if feature_names is None:
        feature_names = [feature for table in tables for feature in table.feature_names or (table.name,)]
    return config, feature_names, embedding_dim or tables[0].embedding_dim


def embedding_bags(model: nn.Module) -> dict[str, EmbeddingBags]:
    """All `EmbeddingBags` in a model by module name. Their rows are the state that `parameters()` does not hold."""
    return {name: module for name, module in model.named_modules() if isinstance(module, EmbeddingBags)}


def key_layouts(model: nn.Module) -> tuple[KeyLayout, ...]:
    """The distinct key layouts of the `EmbeddingBags` in a model."""
    return tuple(dict.fromkeys(bags.key_layout for bags in embedding_bags(model).values()))


def apply_gradients(model: nn.Module, num_rows: int | None = None, *, lr_factor: float = 1.0) -> None:
    """Call `apply_gradients` of all `EmbeddingBags` in a model."""
    for bags in embedding_bags(model).values():
        bags.apply_gradients(num_rows, lr_factor=lr_factor)
