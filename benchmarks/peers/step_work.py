"""What every arm of the step benchmark trains: the shape of the model, its first values, its batches."""

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
"""Of the dense parameters, in every arm. From 0 the first update moves each weight by the whole learning rate, and the
loss of the second step, ten times that of others, would say more about first values than about training."""


@dataclass(frozen=True)
class RawBatch:
    """A batch as plain arrays.

    Attributes:
        dense: float32 [B, D].
        ids: int64 [N], feature by feature.
        offsets: int64 [F * B + 1].
        labels: float32 [B].
    """

    dense: NDArray[np.float32]
    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    labels: NDArray[np.float32]


class StepCode(NamedTuple):
    """A model that trains, as an arm gives it.

    Attributes:
        prepare: What the library wants of a batch; not part of the step.
        run: Trains on a prepared batch and returns the loss before it.
        save: Writes parameters and optimizer state to a path; None for ours, whose jobs write checkpoints themselves.
    """

    prepare: Callable[[RawBatch], Any]
    run: Callable[[Any], float]
    save: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Shape:
    """A model and its data; the defaults are a DLRM in the shape of the Criteo logs.

    Attributes:
        model: dlrm, dcnv2, deepfm or wide_deep.
        batch_size: Rows B of a step.
        num_tables: Tables, one a feature.
        num_embeddings: Rows of each table, unless `sizes` gives them table by table.
        embedding_dim: Numbers of a row.
        num_dense: Dense features.
        bottom: Hidden widths of DLRM's bottom MLP.
        top: Hidden widths of the top MLP, or of the deep network.
        zipf: Exponent of the ids' distribution; 0 is uniform.
        mean_length: Mean ids of a bag: 1 for single ids, else lengths are uniform in [0, 2 * mean].
        threads: Threads of the step.
        seed: Of values and batches.
        sizes: Rows of each table.
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
        """One line for a process's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """See `to_json`."""
        values = json.loads(text)
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    @property
    def names(self) -> list[str]:
        """Of the sparse features."""
        return [f"id_{at}" for at in range(self.num_tables)]

    @property
    def table_rows(self) -> tuple[int, ...]:
        """Rows of each table."""
        return self.sizes or (self.num_embeddings,) * self.num_tables

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """Where each table begins when all lie one behind the other."""
        return np.concatenate([[0], np.cumsum(self.table_rows)])[:-1]

    @property
    def table_bytes(self) -> int:
        """Bytes of all rows in float32."""
        return sum(self.table_rows) * self.embedding_dim * 4

    def batches(self) -> Iterator[RawBatch]:
        """The batches that all arms go through again and again."""
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
        """Zipf by inversion of the continuous distribution, then ranks are strewn over the table."""
        n, u = self.num_embeddings, rng.random(count)
        if self.zipf == 0:
            rank = u * n
        elif self.zipf == 1:
            rank = n**u - 1
        else:
            rank = ((n ** (1 - self.zipf) - 1) * u + 1) ** (1 / (1 - self.zipf)) - 1
        return np.minimum(rank.astype(np.int64), n - 1) * 2_654_435_761 % n
