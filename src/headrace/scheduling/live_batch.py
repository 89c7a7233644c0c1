"""`LiveBatch`: the state of a batch between reading and training under a scheduler."""

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
from headrace.scheduling.feature_groups import FeatureGroups
from headrace.scheduling.graph import Operator, Part
from headrace.scheduling.store import PendingRead
from headrace.tensors import Batch

__all__ = ["BatchFeatures", "LiveBatch"]

BYTES_PER_KEY = 16
"""Bytes of table, id and count, in addition to the row."""


@dataclass
class BatchFeatures:
    """The features of one group and part, and the reads of their keys; the batch is None after training."""

    batch: Batch | None
    reads: list[PendingRead]


@dataclass
class LiveBatch:
    """A batch between reading and training.

    Attributes:
        rows: The rows; None once all features are computed.
        num_rows: Number of rows.
        row_stats: Statistics of the rows read for it.
        position: Pipeline position of the next batch.
        groups: The feature groups of its segment.
        features: Computed features, by group and part.
        computed: Number of groups computed, counting parts in proportion.
        features_cpu_s: CPU seconds of all feature computation.
        features_s: Wall seconds of feature computation, summed over operators.
        trained: Batch and result of each trained part.
        computed_s: Time at which the last features were ready.
        dense_s: Time at which dense work started.
    """

    rows: pa.RecordBatch | None
    num_rows: int
    row_stats: RowStats
    position: dict[str, Any]
    groups: FeatureGroups
    features: dict[tuple[int, Part], BatchFeatures] = field(default_factory=dict)
    computed: Fraction = Fraction(0)
    features_cpu_s: float = 0.0
    features_s: float = 0.0
    trained: list[tuple[Batch, Any]] = field(default_factory=list)
    computed_s: float = 0.0
    dense_s: float = 0.0

    def reads(self, operators: Sequence[Operator]) -> list[tuple[Part, PendingRead]]:
        """The reads of operators, each with its part."""
        found = [(operator.part, self.features.get((operator.group, operator.part))) for operator in operators]
        return [(part, read) for part, features in found if features is not None for read in features.reads]

    def num_bytes(self, operators: Sequence[Operator]) -> int:
        """Bytes of the keys and rows of operators, in one direction."""
        reads = self.reads(operators)
        return sum(len(read.keys) * (BYTES_PER_KEY + 4 * read.store.embedding_dim) for _, read in reads)

    def count_in_batch(self, operator: Operator) -> None:
        """Set the counts of a part's keys to those in the whole batch, which the update of all parts will bring.

        Admission of an id depends on its counts. With its own counts, a part could read zeros where the whole batch
        reads an initial value.

        Raises:
            ValueError: The features of some part are not computed yet.
        """
        if self.rows is not None:
            raise ValueError(f"{operator}: started before the features of all parts, but must need all of them")
        every_read = [read for features in self.features.values() for read in features.reads]
        for _, read in self.reads([operator]):
            counts = np.zeros(len(read.keys), dtype=np.int32)
            for other in every_read:
                if other.store is read.store:
                    places = find_keys(read.keys, other.asked)
                    found = places >= 0
                    counts[found] += other.asked.counts[places[found]]
            read.keys = Keys(read.keys.tables, read.keys.ids, counts)
