"""Retention by quotient and remainder (Shi et al., "Compositional embeddings using complementary partitions for
memory-efficient recommendation systems", KDD 2020, section 3.1): no two ids have the same pair of rows.

The vector of id i of a table of N ids is the product, element by element, of row i // m of a quotient table and row
i % m of a remainder table. It cannot be smaller than 2 sqrt(N) rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from headrace.compiling import kernel
from headrace.embeddings.budget import RetentionConfig
from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.storage.protocol import MakeStorage
from headrace.embeddings.tables.lifecycle.hash import INDEX_BYTES
from headrace.embeddings.tables.lifecycle.row_retention import bounded_ids
from headrace.embeddings.tables.row_plan import bytes_per_row
from headrace.embeddings.tables.shared_rows import split_rows
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.embeddings.tables.table_group import TableGroup
from headrace.errors import ConfigError, HeadraceError

__all__ = ["CompositionalTableGroup", "QRConfig"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]


class QRConfig(RetentionConfig):
    """Each id is the product of a row of a quotient table and a row of a remainder table."""

    kind: Literal["qr"] = "qr"

    def keyed(self, tables: Sequence[TableConfig], budget_bytes: int) -> tuple[TableConfig, ...]:
        """See `RetentionConfig.keyed`: ids are numbers below `num_embeddings`."""
        return bounded_ids(tables)

    def build(
        self, tables: Sequence[TableConfig], budget_bytes: int, *, seed: int, make_storage: MakeStorage
    ) -> TableGroup:
        """See `RetentionConfig.build`.

        Raises:
            ConfigError: A table would need more rows.
        """
        num_rows = (budget_bytes - INDEX_BYTES) // bytes_per_row(tables) - 1
        smallest = [_rows_of(table.num_embeddings, math.isqrt(table.num_embeddings)) for table in tables]
        if num_rows < sum(smallest):
            needed = INDEX_BYTES + (1 + sum(smallest)) * bytes_per_row(tables)
            raise ConfigError(
                f"embeddings.budget: given {budget_bytes} bytes, expected at least {needed} with policy qr"
            )
        sizes = split_rows(num_rows - sum(smallest), [table.num_embeddings for table in tables])
        divisors = [
            _divisor(table.num_embeddings, least + more - 1)
            for table, least, more in zip(tables, smallest, sizes.tolist(), strict=True)
        ]
        return CompositionalTableGroup(tables, divisors, budget_bytes, seed=seed, make_storage=make_storage)


class CompositionalTableGroup(TableGroup):
    """A table group whose vectors are products of two rows.

    Args:
        tables: Configs of the tables, whose ids are numbers below `num_embeddings`.
        divisors: The divisor m of each table.
        budget_bytes: The budget, which the rows fit.
        seed: Seed of initial values.
        make_storage: Creates the storage of the rows.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        divisors: Sequence[int],
        budget_bytes: int,
        *,
        seed: int,
        make_storage: MakeStorage,
    ) -> None:
        self._divisors: Int64s = np.array(divisors, dtype=np.int64)
        self._whole, self._budget_bytes = tuple(tables), budget_bytes
        parts = [
            table.model_copy(
                update={
                    "name": f"{table.name}/{part}",
                    "kind": "direct",
                    "num_embeddings": -(-table.num_embeddings // divisor) if part == "quotient" else divisor,
                    # With factors near 0 in both, gradients of both would be near 0, too.
                    "init_scale": table.scale if part == "quotient" else 1.0,
                }
            )
            for part in ("quotient", "remainder")
            for table, divisor in zip(tables, divisors, strict=True)
        ]
        super().__init__(parts, seed=seed, make_storage=make_storage)

    def read(self, keys: Keys) -> Any:
        """See `TableGroup.read`."""
        quotients, remainders = self._factors(keys)
        return super().read(quotients) * super().read(remainders)

    def update(self, keys: Keys, gradients: Any, *, num_rows: int = 1, lr_factor: float = 1.0) -> None:
        """See `TableGroup.update`. Gradients of ids that share a factor are summed, in the order of the keys."""
        quotients, remainders = self._factors(keys)
        of_quotients, of_remainders = super().read(quotients), super().read(remainders)
        rows = np.concatenate([self.index.resolve(quotients), self.index.resolve(remainders)])
        _, firsts, places = np.unique(rows, return_index=True, return_inverse=True)
        tables = np.concatenate([quotients.tables, remainders.tables])[firsts]
        ids = np.concatenate([quotients.ids, remainders.ids])[firsts]
        counts = np.bincount(places, weights=np.tile(keys.counts, 2), minlength=len(firsts)).astype(np.int32)
        parts = (gradients * of_remainders, gradients * of_quotients)
        if isinstance(gradients, np.ndarray):
            sums: Any = np.zeros((len(firsts), gradients.shape[1]), dtype=np.float32)
            _sum_rows(np.concatenate(parts), places, sums)
        else:
            where = torch.from_numpy(places).to(gradients.device)
            sums = gradients.new_zeros((len(firsts), gradients.shape[1])).index_add_(0, where, torch.cat(parts))
        super().update(Keys(tables, ids, counts), sums, num_rows=num_rows, lr_factor=lr_factor)

    def evict(self, keys: Keys) -> int:
        """Refused: the rows of an id belong to others as well.

        Raises:
            HeadraceError: Always.
        """
        raise HeadraceError("table group: policy qr cannot evict ids, because they share rows")

    def moved_to(self, make_storage: MakeStorage) -> TableGroup:
        """See `TableGroup.moved_to`."""
        moved = CompositionalTableGroup(
            self._whole, self._divisors.tolist(), self._budget_bytes, seed=self.seed, make_storage=make_storage
        )
        moved.load_state_dict(self.state_dict())
        return moved

    def _header(self) -> TableGroupHeader:
        return replace(super()._header(), retention=f"{self._budget_bytes} bytes, policy qr")

    def _factors(self, keys: Keys) -> tuple[Keys, Keys]:
        """The keys [U] of the quotient and of the remainder of each key; not unique."""
        divisors = self._divisors[keys.tables]
        shifted = keys.tables + np.int32(len(self._whole))
        return Keys(keys.tables, keys.ids // divisors, keys.counts), Keys(shifted, keys.ids % divisors, keys.counts)


def _rows_of(num_ids: int, divisor: int) -> int:
    return -(-num_ids // divisor) + divisor


def _divisor(num_ids: int, num_rows: int) -> int:
    """The largest divisor whose two tables have at most `num_rows` rows: the fewest ids then share a remainder."""
    low, high = math.isqrt(num_ids), num_ids  # the number of rows grows from the square root on
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _rows_of(num_ids, middle) <= num_rows else (low, middle - 1)
    return max(1, low)


@kernel()
def _sum_rows(gradients: Float32s, places: Int64s, out: Float32s) -> None:
    for u in range(len(places)):
        for d in range(out.shape[1]):
            out[places[u], d] += gradients[u, d]
