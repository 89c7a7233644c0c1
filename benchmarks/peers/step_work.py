"""Shared by the arms of the step benchmark: the shape of the model, the batches, and the interface of an arm."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["DENSE_ADAGRAD", "RawBatch", "Shape", "StepCode"]

NUM_BATCHES = 16
DENSE_ADAGRAD = {"lr": 0.01, "initial_accumulator_value": 0.1}
"""Adagrad of the dense parameters, in every arm.

With an accumulator that starts at 0, the first update changes each weight by the whole learning rate. The loss of the
second step is then ten times that of later ones, and would reflect initial values more than training.
"""


@dataclass(frozen=True)
class RawBatch:
    """A batch of B rows as NumPy arrays, with D dense features and F sparse features that have N ids in all.

    Attributes:
        dense: float32 [B, D].
        ids: int64 [N], in the order of features and then rows.
        offsets: int64 [F * B + 1].
        labels: float32 [B].
    """

    dense: NDArray[np.float32]
    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    labels: NDArray[np.float32]


class StepCode(NamedTuple):
    """The training step of an arm.

    Attributes:
        prepare: Converts a batch to the library's tensors; not part of the timed step.
        run: Trains on a prepared batch, and returns its loss before the update.
        save: Writes parameters and optimizer state to a path; None for headrace, whose jobs write checkpoints.
    """

    prepare: Callable[[RawBatch], Any]
    run: Callable[[Any], float]
    save: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Shape:
    """A model and its data; the defaults are a DLRM on data in Criteo's format.

    Attributes:
        model: dlrm, dcnv2, deepfm or wide_deep.
        batch_size: Rows per step.
        num_tables: Number of tables, one per sparse feature.
        num_embeddings: Rows of each table, unless `sizes` sets them per table.
        embedding_dim: Numbers per embedding row.
        num_dense: Number of dense features.
        bottom: Hidden widths of DLRM's bottom MLP.
        top: Hidden widths of the top MLP, or of the deep network.
        zipf: Exponent of the Zipf distribution of ids; 0 is uniform.
        mean_length: Mean number of ids per row and feature. If it is 1, every row has one id; otherwise lengths are
            uniform in [0, 2 * mean].
        threads: Number of threads of the step.
        seed: Seed of initial values and batches.
        sizes: Rows per table, or empty for tables of `num_embeddings` rows.
    """

    model: str = "dlrm"
    batch_size: int = 4096
    num_tables: int = 26
    num_embeddings: int = 100_000
    embedding_dim: int = 16
    num_dense: int = 13
    bottom: tuple[int, ...] = (512, 256)
    top: tuple[int, ...] = (512, 256)
    zipf: float = 1.2
    mean_length: int = 1
    threads: int = 2
    seed: int = 0
    sizes: tuple[int, ...] = ()

    def to_json(self) -> str:
        """Return the shape as one line of JSON, for the command line of a process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the shape that `to_json` has written."""
        values = json.loads(text)
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    @property
    def names(self) -> list[str]:
        """Names of the sparse features."""
        return [f"id_{at}" for at in range(self.num_tables)]

    @property
    def table_rows(self) -> tuple[int, ...]:
        """Rows of each table."""
        return self.sizes or (self.num_embeddings,) * self.num_tables

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """First row of each table when all tables are concatenated."""
        return np.concatenate([[0], np.cumsum(self.table_rows)])[:-1]

    @property
    def table_bytes(self) -> int:
        """Bytes of all rows in float32."""
        return sum(self.table_rows) * self.embedding_dim * 4

    def batches(self) -> Iterator[RawBatch]:
        """Yield the `NUM_BATCHES` batches that all arms train on, repeatedly."""
        rng = np.random.default_rng(self.seed)
        weights = rng.normal(size=self.num_dense)
        for _ in range(NUM_BATCHES):
            lengths = np.ones(self.num_tables * self.batch_size, np.int64)
            if self.mean_length > 1:
                lengths = rng.integers(0, 2 * self.mean_length + 1, len(lengths))
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            dense = rng.normal(size=(self.batch_size, self.num_dense)).astype(np.float32)
            labels = (dense @ weights + rng.normal(size=self.batch_size) > 1).astype(np.float32)
            yield RawBatch(dense, self._ids(rng, int(offsets[-1])), offsets, labels)

    def _ids(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Draw ranks by inverting the continuous Zipf distribution, and scatter them over the table."""
        n, u = self.num_embeddings, rng.random(count)
        if self.zipf == 0:
            rank = u * n
        elif self.zipf == 1:
            rank = n**u - 1
        else:
            rank = ((n ** (1 - self.zipf) - 1) * u + 1) ** (1 / (1 - self.zipf)) - 1
        return np.minimum(rank.astype(np.int64), n - 1) * 2_654_435_761 % n
