"""`EmbeddingBags`: the id lists of a batch in, one pooled embedding per row and feature out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headrace.buffers import empty
from headrace.embeddings.config import EmbeddingsConfig
from headrace.embeddings.keys import DIRECT, EXACT, HASHED, SpaceLayout, UniqueIds, unique_keys
from headrace.embeddings.lookup import FeatureSet, Lookup
from headrace.embeddings.ops.accumulation import clip_norm, merge_keys
from headrace.embeddings.ops.device_pooling import (
    gather_sequence_on_device,
    pool_rows_on_device,
    pool_unique_rows_on_device,
)
from headrace.embeddings.ops.gradients import POOL_MAX, POOL_MEAN, POOL_SUM
from headrace.embeddings.ops.hashing import name_seeds
from headrace.embeddings.ops.jagged_ids import Group, JaggedIds, collect_ids
from headrace.embeddings.ops.key_sets import find_keys
from headrace.embeddings.ops.pooling import gather_sequence, pool_rows, pool_unique_rows
from headrace.embeddings.storage.device import DeviceTable, Memory
from headrace.embeddings.stores.local import EmbeddingStore, LocalStore
from headrace.embeddings.tables.table import EmbeddingTable
from headrace.errors import ConfigError, DataError

__all__ = ["BegunLookups", "EmbeddingBags", "Lookup", "UniquePooled", "apply_gradients", "embedding_bags"]

KINDS = {"direct": DIRECT, "hashed": HASHED, "collisionless": EXACT}
POOLINGS = {"sum": POOL_SUM, "mean": POOL_MEAN, "max": POOL_MAX}


class BegunLookups(tuple[Group, ...]):
    """The groups of a batch whose lookups have begun already: a module takes those in place of new ones.

    Attributes:
        begun: Of each module the lookups, from `EmbeddingBags.begin`, that together have all its features.
    """

    begun: Mapping[EmbeddingBags, Sequence[Lookup]]


class UniquePooled(NamedTuple):
    """Pooled embeddings of one group of a batch, once per unique row.

    Attributes:
        feature_names: Features of the group, F_g of them, in the module's order.
        pooled: float32 [U, F_g, dim], differentiable.
        inverse: int32 [B], which unique row each row of the batch has; None for a plain group, where U is B.
    """

    feature_names: tuple[str, ...]
    pooled: Tensor
    inverse: Tensor | None


class EmbeddingBags(nn.Module):
    """Embeddings of several id-list features, pooled per row; rows live in a store, not in `parameters()`.

    In a training loop of your own::

        emb_BFD = bags(batch.sparse)        # float32 [B, F, dim]
        loss.backward()
        bags.apply_gradients()              # duplicates merged, one optimizer pass over the rows that occurred

    A forward pass changes nothing in the table. `apply_gradients` counts ids, gives rows to new ones and updates rows;
    in `eval()` or under `torch.no_grad()` ids without a row read zeros.

    Args:
        config: Spaces, pooling, optimizers.
        feature_names: Features F, in the order of the output. The batch may hold more.
        embedding_dim: Floats per row.
        seed: Of first values and hashes.
        store: Where rows live; None for a table in this process.
    """

    def __init__(
        self,
        config: EmbeddingsConfig,
        feature_names: Sequence[str],
        embedding_dim: int,
        *,
        seed: int,
        store: EmbeddingStore | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.feature_names = tuple(feature_names)
        self.embedding_dim = embedding_dim
        if not self.feature_names:
            raise ConfigError("embeddings: given no sparse features, expected at least one")
        plan = config.layout(feature_names)
        spaces = list(plan.spaces.values())
        self.spaces = plan.spaces
        self._space_of_feature = np.array(plan.space_of_feature, dtype=np.int64)
        self._poolings = np.array([POOLINGS[pooling] for pooling in plan.poolings], dtype=np.int64)
        self._kinds = np.array([KINDS[space.kind] for space in spaces], dtype=np.int64)
        self._sizes = np.array([space.num_embeddings for space in spaces], dtype=np.int64)
        self._salts = name_seeds(seed, list(plan.spaces), "hash")
        self._feature_sets: dict[tuple[str, ...], FeatureSet] = {}
        self._seed = seed
        self._store = store
        self._table: EmbeddingTable | None = None
        self._is_local = store is None
        self._pending: list[Lookup] = []
        self._device: torch.device | None = None

    @property
    def table(self) -> EmbeddingTable | None:
        """The table in this process, made when it is first needed; None with a store of another kind."""
        if self._table is None and self._is_local:
            self._table = EmbeddingTable(self.spaces, self.embedding_dim, seed=self._seed)
        return self._table

    @property
    def store(self) -> EmbeddingStore:
        """Where rows live. What is assigned stands in front of the store before, which keeps the rows."""
        if self._store is None:
            assert self.table is not None
            self._store = LocalStore(self.table)
        return self._store

    @store.setter
    def store(self, store: EmbeddingStore) -> None:
        self._store = store

    def use_store(self, store: EmbeddingStore) -> None:
        """Rows live there from now on; a table in this process is forgotten, or never made."""
        self._store, self._table, self._is_local = store, None, False

    def place_on(self, device: torch.device | str | None, memory: Memory | None = None) -> Self:
        """Compute with torch's operations on a device, and move the rows; `model.to(device)` does this for a GPU.

        Args:
            device: Any that torch has; None for the host and its own kernels.
            memory: Where rows live, see `EmbeddingsConfig.memory`; None for what the config says.
        """
        self._device = None if device is None else torch.device(device)
        if self.table is not None:
            if not isinstance(self.store, LocalStore):
                raise ConfigError("embeddings: rows with a store in front of them cannot move, expected none")
            if self._device is not None:
                memory = memory or self.config.memory
                self._table = DeviceTable.of(self.table, self._device, memory)
            elif isinstance(self.table, DeviceTable):
                on_host = EmbeddingTable(self.spaces, self.embedding_dim, seed=self._seed)
                on_host.load_state_dict(self.table.state_dict())
                self._table = on_host
            self._store = None
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `cuda` and `cpu` of a model call."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0)).device
        if device.type == "meta" or device == self._device:
            return self
        if device.type != "cpu":
            return self.place_on(device)
        return self if self._device is None or self._device.type == "cpu" else self.place_on(None)

    def forward(self, sparse: Sequence[Group], out: Tensor | None = None) -> Tensor:
        """Pooled embeddings float32 [B, F, dim]; see `lookup` for the errors and `pool` for `out`."""
        if isinstance(sparse, BegunLookups):
            return self.pool(self._take(sparse.begun[self]), out)
        return self.pool(self.lookup(sparse), out)

    def lookup(self, sparse: Sequence[Group], features: Sequence[str] | None = None) -> Lookup:
        """Begin: make ids unique and ask the store for their rows, without waiting for them.

        Ids of inverse-keyed groups are looked up once per unique row, but counted as often as rows have them.

        Args:
            sparse: The groups of a batch.
            features: Names of the features to look up; None for all. Features that share a space belong in one lookup
                if a key's gradient is to be summed in the same order as without this argument.

        Raises:
            DataError: An id is out of range in a direct space; names feature, id and range.
            ConfigError: A feature is not in the batch or not in the module, or has weights but max pooling.
        """
        if isinstance(sparse, BegunLookups):
            return self._take([self._from_begun(sparse, features)])[0]
        return self._take([self.begin(sparse, features)])[0]

    def begin(self, sparse: Sequence[Group], features: Sequence[str] | None = None) -> Lookup:
        """As `lookup`, of a batch that comes later: `apply_gradients` leaves it alone until `BegunLookups` bring it."""
        chosen = self._feature_set(self.feature_names if features is None else tuple(features))
        sparse = [group if group.values.device.type == "cpu" else group.to("cpu") for group in sparse]
        ids = collect_ids(sparse, chosen.names)
        if len(ids.weights) and POOL_MAX in chosen.poolings:
            name = chosen.names[int(np.argmax(chosen.poolings == POOL_MAX))]
            raise ConfigError(f"feature {name}: pooling max with weights, expected sum or mean")
        unique = unique_keys(chosen.layout, ids)
        if unique.bad_value >= 0:
            raise self._out_of_range(chosen, ids, unique)
        requires_grad = self.training and torch.is_grad_enabled()
        reading = self.store.read(unique.keys if requires_grad else unique.keys.unseen())
        return Lookup(chosen, ids, unique, reading, requires_grad, device=self._device)

    def pool(self, lookups: Lookup | Sequence[Lookup], out: Tensor | None = None) -> Tensor:
        """Finish: float32 [B, F, dim], features in the module's order.

        Args:
            lookups: One lookup, or several that together have every feature once.
            out: Where to write: float32 [B, F, dim] on the CPU, the last dimension contiguous, such as a part of a
                buffer for a model's interaction. The result shares its memory.

        Raises:
            ValueError: Features are missing or there twice, lookups have different numbers of rows, or `out` does
                not fit.
        """
        parts = (lookups,) if isinstance(lookups, Lookup) else tuple(lookups)
        names = [name for part in parts for name in part.features.names]
        if sorted(names) != sorted(self.feature_names):
            raise ValueError(f"lookups have the features {', '.join(names)}, expected {', '.join(self.feature_names)}")
        strides = {part.stride for part in parts}
        if len(strides) > 1:
            raise ValueError(f"lookups have {' and '.join(map(str, sorted(strides)))} rows, expected the same number")
        shape = (strides.pop(), len(names), self.embedding_dim)
        if self._device is not None:
            pooled = pool_rows_on_device(parts)
            return pooled if out is None else out.copy_(pooled)
        if out is None:
            out = empty(shape)
        elif out.shape != shape or out.dtype != torch.float32 or (out.stride(2) != 1 and shape[2] > 1):
            raise ValueError(
                f"out is {out.dtype} {list(out.shape)} with strides {list(out.stride())}, "
                f"expected torch.float32 {list(shape)} with the last dimension contiguous"
            )
        return pool_rows(parts, out)

    def pool_unique(self, lookup: Lookup) -> list[UniquePooled]:
        """Pooled embeddings of each group of the batch, once per unique row, for models that work on unique rows.

        What is computed from `pooled` row by row is expanded by `index_select(0, inverse)` at the end.
        """
        pool = pool_unique_rows if self._device is None else pool_unique_rows_on_device
        return [
            UniquePooled(
                tuple(lookup.features.names[feature] for feature in group.features),
                pooled,
                None if group.inverse is None else torch.from_numpy(group.inverse).to(pooled.device),
            )
            for group, pooled in zip(lookup.ids.groups, pool(lookup), strict=True)
        ]

    def sequence(self, lookup: Lookup, feature_name: str) -> tuple[Tensor, Tensor]:
        """Rows of a feature's ids one by one, for models that attend over a list.

        In an inverse-keyed group these are the lists of the unique rows; `lookup.inverse_lookup(feature_name)` says
        which of them each row of the batch has.

        Returns:
            float32 [n, dim] for the n ids of the feature, and offsets int64 [B + 1], or [U + 1], into them.
        """
        gather = gather_sequence if self._device is None else gather_sequence_on_device
        return gather(lookup, lookup.features.number(feature_name))

    def apply_gradients(self, num_rows: int | None = None) -> None:
        """Update rows with the gradients of all forward passes since the last call, as one step.

        Passes without a backward are dropped: their ids do not count as seen.

        Args:
            num_rows: Rows the gradients are of, see `EmbeddingStore.update`; None for those of one forward pass.
        """
        pending, self._pending = self._pending, []
        used = [lookup for lookup in pending if lookup.grad is not None]
        parts = [(lookup.keys, lookup.grad) for lookup in used]
        if parts:
            keys, gradients = merge_keys(parts)
            if self.config.clip_grad_norm is not None:
                clip_norm(gradients, self.config.clip_grad_norm)
            if isinstance(gradients, Tensor) and not isinstance(self.table, DeviceTable):
                gradients = gradients.cpu().numpy()
            self.store.update(keys, gradients, num_rows=num_rows or used[0].stride).result()

    def drop_gradients(self) -> None:
        """Forget forward passes whose gradients are not wanted (a skipped step)."""
        self._pending = []

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"features={len(self.feature_names)}, spaces={len(self.spaces)}, dim={self.embedding_dim}"

    def _from_begun(self, sparse: BegunLookups, features: Sequence[str] | None) -> Lookup:
        """A lookup of some features whose rows come from lookups that have begun, however those split the features."""
        chosen = self._feature_set(self.feature_names if features is None else tuple(features))
        for begun in sparse.begun[self]:
            if begun.features is chosen:
                return begun
        ids = collect_ids(sparse, chosen.names)
        unique = unique_keys(chosen.layout, ids)
        rows = np.zeros((len(unique.keys), self.embedding_dim), dtype=np.float32)
        for begun in sparse.begun[self]:
            places = find_keys(unique.keys, begun.keys)
            found = np.flatnonzero(places >= 0)
            rows[found] = begun.rows()[places[found]]
        reading: Future[npt.NDArray[np.float32]] = Future()
        reading.set_result(rows)
        return Lookup(chosen, ids, unique, reading, self.training and torch.is_grad_enabled())

    def _take(self, lookups: Sequence[Lookup]) -> Sequence[Lookup]:
        """Lookups that a forward pass now uses; `apply_gradients` hands on their gradients."""
        self._pending += [lookup for lookup in lookups if lookup.requires_grad and lookup not in self._pending]
        return lookups

    def _feature_set(self, names: tuple[str, ...]) -> FeatureSet:
        """The features of a lookup; the same object for the same names."""
        if names not in self._feature_sets:
            unknown = [name for name in names if name not in self.feature_names]
            if unknown or not names:
                given = f"feature {unknown[0]}" if unknown else "no features"
                raise ConfigError(f"lookup: given {given}, expected some of: {', '.join(self.feature_names)}")
            positions = np.array(sorted({self.feature_names.index(name) for name in names}), dtype=np.int64)
            spaces = self._space_of_feature[positions]
            sizes = np.bincount(spaces, minlength=len(self.spaces))
            layout = SpaceLayout(
                kinds=self._kinds,
                sizes=self._sizes,
                salts=self._salts,
                feature_starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
                features=np.argsort(spaces, kind="stable").astype(np.int64),
            )
            chosen = tuple(self.feature_names[position] for position in positions)
            self._feature_sets[names] = FeatureSet(chosen, positions, layout, self._poolings[positions])
        return self._feature_sets[names]

    def _out_of_range(self, features: FeatureSet, ids: JaggedIds, unique: UniqueIds) -> DataError:
        position = unique.bad_value
        feature = int(np.argmax((ids.value_firsts <= position) & (position < ids.value_lasts)))
        size = int(self._sizes[unique.bad_space])
        return DataError(
            f"feature {features.names[feature]}: id {ids.values[position]} in row {ids.place_of(position, feature)} "
            f"of the batch, expected 0 <= id < {size} (a direct space with num_embeddings: {size})"
        )


def embedding_bags(model: nn.Module) -> dict[str, EmbeddingBags]:
    """All `EmbeddingBags` in a model, by their name in it: the part of its state that `parameters()` does not hold."""
    return {name: module for name, module in model.named_modules() if isinstance(module, EmbeddingBags)}


def apply_gradients(model: nn.Module, num_rows: int | None = None) -> None:
    """`apply_gradients` of all `EmbeddingBags` in a model."""
    for bags in embedding_bags(model).values():
        bags.apply_gradients(num_rows)
