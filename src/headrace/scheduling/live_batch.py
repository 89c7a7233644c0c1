"""`LiveBatch`: what a scheduler keeps of a batch between reading and training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.embeddings import Keys
from headrace.embeddings.ops.key_sets import find_keys
from headrace.pipeline import RowStats
from headrace.scheduling.graph import Operator, Part
from headrace.scheduling.store import PendingRead
from headrace.tensors import Batch

__all__ = ["BatchFeatures", "LiveBatch"]

BYTES_PER_KEY = 16
"""Of table, id and count, beside the row."""


@dataclass
class BatchFeatures:
    """The features of one group and part, and the reads of their keys; the batch is None once it is trained."""

    batch: Batch | None
    reads: list[PendingRead]


@dataclass
class LiveBatch:
    """One batch between reading and training.

    Attributes:
        rows: None once all features are computed.
        num_rows: Rows of the batch.
        row_stats: What became of the rows it took.
        position: Where in the pipeline the batch after it begins.
        features: Those computed, by group and part.
        computed: Groups computed, those of a part in proportion.
        features_cpu_s: CPU seconds of all feature work.
        features_s: Wall seconds of the same, added up.
        trained: Batch and result of each part that is trained.
        computed_s: When the last features were there.
        dense_s: When dense work began.
    """

    rows: pa.RecordBatch | None
    num_rows: int
    row_stats: RowStats
    position: dict[str, Any]
    features: dict[tuple[int, Part], BatchFeatures] = field(default_factory=dict)
    computed: Fraction = Fraction(0)
    features_cpu_s: float = 0.0
    features_s: float = 0.0
    trained: list[tuple[Batch, Any]] = field(default_factory=list)
    computed_s: float = 0.0
    dense_s: float = 0.0

    def reads(self, operators: Sequence[Operator]) -> list[tuple[Part, PendingRead]]:
        """The reads of operators, with the part that each is for."""
        found = [(operator.part, self.features.get((operator.group, operator.part))) for operator in operators]
        return [(part, read) for part, features in found if features is not None for read in features.reads]

    def num_bytes(self, operators: Sequence[Operator]) -> int:
        """Bytes of the keys and rows of operators, one way."""
        reads = self.reads(operators)
        return sum(len(read.keys) * (BYTES_PER_KEY + 4 * read.store.embedding_dim) for _, read in reads)

    def count_in_batch(self, operator: Operator) -> None:
        """Give the keys of a part their counts in the whole batch: those that the one update of all parts brings.

        An id is admitted by its counts, so a part that counted for itself could read zeros where the whole batch reads
        a first value.

        Raises:
            ValueError: The features of some part are not there yet.
        """
        if self.rows is not None:
            raise ValueError(f"{operator}: started before the features of all parts, expected it to need all of them")
        every_read = [read for features in self.features.values() for read in features.reads]
        for _, read in self.reads([operator]):
            counts = np.zeros(len(read.keys), dtype=np.int32)
            for other in every_read:
                if other.store is read.store:
                    places = find_keys(read.keys, other.asked)
                    found = places >= 0
                    counts[found] += other.asked.counts[places[found]]
            read.keys = Keys(read.keys.tables, read.keys.ids, counts)
