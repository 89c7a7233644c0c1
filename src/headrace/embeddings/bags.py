"""`EmbeddingBags`: the id lists of a batch in, one pooled embedding per row and feature out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headrace.embeddings.config import EmbeddingsConfig
from headrace.embeddings.hashing import name_seeds
from headrace.embeddings.keys import DIRECT, EXACT, HASHED, SpaceLayout, UniqueIds, merge_keys, unique_keys
from headrace.embeddings.occurrences import POOL_MAX, POOL_MEAN, POOL_SUM, JaggedIds
from headrace.embeddings.pooling import gather_sequence, pool_bags
from headrace.embeddings.store import EmbeddingStore, LocalStore
from headrace.embeddings.table import EmbeddingTable
from headrace.errors import ConfigError, DataError
from headrace.tensors import KeyedJaggedTensor

__all__ = ["EmbeddingBags", "Lookup", "apply_gradients", "embedding_bags"]

KINDS = {"direct": DIRECT, "hashed": HASHED, "collisionless": EXACT}
POOLINGS = {"sum": POOL_SUM, "mean": POOL_MEAN, "max": POOL_MAX}
NO_WEIGHTS = np.empty(0, dtype=np.float32)


@dataclass(eq=False)
class Lookup:
    """Unique keys of a batch and their rows, on the way: what one forward pass needs, and nothing of the model.

    Attributes:
        ids: The ids of the batch.
        unique: Their unique keys.
        pulled: The rows float32 [U, dim].
        learns: Whether gradients are to be collected.
    """

    ids: JaggedIds
    unique: UniqueIds
    pulled: Future[npt.NDArray[np.float32]]
    learns: bool
    _rows: Tensor | None = None

    def rows(self) -> Tensor:
        """The unique rows as a leaf of the autograd graph, float32 [U, dim]; waits until they are here.

        After `backward`, its `grad` holds the gradient of each unique row, duplicates merged.
        """
        if self._rows is None:
            self._rows = torch.from_numpy(self.pulled.result()).requires_grad_(self.learns)
        return self._rows


class EmbeddingBags(nn.Module):
    """Embeddings of several id-list features, pooled per row; rows live in a store, not in `parameters()`.

    In a training loop of your own::

        emb_BFD = bags(batch.sparse)        # float32 [B, F, dim]
        loss.backward()
        bags.apply_gradients()              # duplicates merged, one optimizer pass over the rows that occurred

    In training (`bags.train()` and gradients enabled) a forward pass counts ids and may give rows to new ones. In
    `eval()` or under `torch.no_grad()` nothing in the table changes.

    Args:
        config: Spaces, pooling, optimizers.
        feature_names: Features F, in the order of the output. The batch may hold more.
        embedding_dim: Floats per row.
        seed: Of first values and hashes.
        store: Where rows live; None for a table in this process.

    Attributes:
        table: The table in this process; None with a store of another kind.
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
        sizes = np.bincount(self._space_of_feature, minlength=len(spaces))
        self._layout = SpaceLayout(
            kinds=np.array([KINDS[space.kind] for space in spaces], dtype=np.int64),
            sizes=np.array([space.num_embeddings for space in spaces], dtype=np.int64),
            salts=name_seeds(seed, list(plan.spaces), "hash"),
            feature_starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            features=np.argsort(self._space_of_feature, kind="stable").astype(np.int64),
        )
        self.table = EmbeddingTable(plan.spaces, embedding_dim, seed=seed) if store is None else None
        self.store: EmbeddingStore = LocalStore(self.table) if self.table is not None else store  # type: ignore[assignment]
        self._pending: list[Lookup] = []

    def forward(self, sparse: Sequence[KeyedJaggedTensor]) -> Tensor:
        """Pooled embeddings float32 [B, F, dim]; see `lookup` for the errors."""
        return self.pool(self.lookup(sparse))

    def lookup(self, sparse: Sequence[KeyedJaggedTensor]) -> Lookup:
        """Begin: make ids unique and ask the store for their rows, without waiting for them.

        Args:
            sparse: The groups of a batch.

        Raises:
            DataError: An id is out of range in a direct space; names feature, id and range.
            ConfigError: A feature is not in the batch, or has weights but max pooling.
        """
        ids = self._jagged_ids(sparse)
        unique = unique_keys(self._layout, ids.values, ids.offsets, ids.stride, ids.columns)
        if unique.bad_value >= 0:
            raise self._out_of_range(ids, unique)
        learns = self.training and torch.is_grad_enabled()
        lookup = Lookup(ids, unique, self.store.pull(unique.keys, admit=learns), learns)
        if learns:
            self._pending.append(lookup)
        return lookup

    def pool(self, lookup: Lookup) -> Tensor:
        """Finish: float32 [B, F, dim]."""
        return pool_bags(lookup.rows(), self._layout, self._poolings, lookup.ids, lookup.unique)

    def sequence(self, lookup: Lookup, feature_name: str) -> tuple[Tensor, Tensor]:
        """Rows of a feature's ids one by one, for models that attend over a list.

        Returns:
            float32 [n, dim] for the n ids of the feature, and offsets int64 [B + 1] into them.
        """
        ids = lookup.ids
        column = int(ids.columns[self.feature_names.index(feature_name)])
        offsets = ids.offsets[column * ids.stride : (column + 1) * ids.stride + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        rows = gather_sequence(lookup.rows(), lookup.unique.inverse, first, last)
        return rows, torch.from_numpy(offsets - first)

    def apply_gradients(self) -> None:
        """Push the gradients of all forward passes since the last call as one step; passes without one are dropped."""
        pending, self._pending = self._pending, []
        parts = []
        for lookup in pending:
            grad = lookup.rows().grad
            if grad is not None:
                parts.append((lookup.unique.keys, grad.contiguous().numpy()))
        if parts:
            self.store.push(*merge_keys(parts)).result()

    def drop_gradients(self) -> None:
        """Forget forward passes whose gradients are not wanted (a skipped step)."""
        self._pending = []

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"features={len(self.feature_names)}, spaces={len(self.spaces)}, dim={self.embedding_dim}"

    def _jagged_ids(self, sparse: Sequence[KeyedJaggedTensor]) -> JaggedIds:
        group = sparse[0] if len(sparse) == 1 else _join(sparse)
        places = {key: column for column, key in enumerate(group.keys)}
        missing = [name for name in self.feature_names if name not in places]
        if missing:
            raise ConfigError(f"feature {missing[0]}: not in the batch, which has: {', '.join(group.keys)}")
        weights = NO_WEIGHTS
        if group.weights is not None:
            if POOL_MAX in self._poolings:
                name = self.feature_names[int(np.argmax(self._poolings == POOL_MAX))]
                raise ConfigError(f"feature {name}: pooling max with weights, expected sum or mean")
            weights = group.weights.numpy()
        columns = np.array([places[name] for name in self.feature_names], dtype=np.int64)
        return JaggedIds(group.values.numpy(), group.offsets.numpy(), group.stride, columns, weights)

    def _out_of_range(self, ids: JaggedIds, unique: UniqueIds) -> DataError:
        bag = int(np.searchsorted(ids.offsets, unique.bad_value, side="right")) - 1
        column, row = divmod(bag, ids.stride)
        name = self.feature_names[int(np.flatnonzero(ids.columns == column)[0])]
        size = int(self._layout.sizes[unique.bad_space])
        return DataError(
            f"feature {name}: id {ids.values[unique.bad_value]} in row {row} of the batch, "
            f"expected 0 <= id < {size} (a direct space with num_embeddings: {size})"
        )


def embedding_bags(model: nn.Module) -> dict[str, EmbeddingBags]:
    """All `EmbeddingBags` in a model, by their name in it: the part of its state that `parameters()` does not hold."""
    return {name: module for name, module in model.named_modules() if isinstance(module, EmbeddingBags)}


def apply_gradients(model: nn.Module) -> None:
    """`apply_gradients` of all `EmbeddingBags` in a model."""
    for bags in embedding_bags(model).values():
        bags.apply_gradients()


def _join(sparse: Sequence[KeyedJaggedTensor]) -> KeyedJaggedTensor:
    """Several groups as one, so that ids shared between them are made unique together."""
    weights = None
    if any(group.weights is not None for group in sparse):
        parts = [torch.ones(g.values.numel()) if g.weights is None else g.weights for g in sparse]
        weights = torch.cat(parts)
    return KeyedJaggedTensor.from_lengths(
        [key for group in sparse for key in group.keys],
        torch.cat([group.values for group in sparse]),
        torch.cat([group.lengths for group in sparse]),
        weights,
    )
