"""The logs of `bench_budget` as batches in memory, for all arms to train on without reading them again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from quality.logs import make_log
from quality.ours import init_job, job_of_init

from headrace.logs.files import list_files
from headrace.tensors import Batch, InverseKeyedJaggedTensor, KeyedJaggedTensor
from headrace.training.components import build_components

__all__ = ["LOGS", "BudgetLog", "make_budget_log"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

PAST = 5
"""The first of so many equal parts of a log is its past: ids are counted there, and no arm trains on it."""
PHASES = 5
"""In the generated log, popularity moves by one step at the start of each phase but the first, the past."""


@dataclass(frozen=True)
class BudgetLog:
    """A log to train on.

    Attributes:
        name: Name in `LOGS`.
        batches: The rows in order; their unique keys are not found yet.
        num_ids: Number of distinct ids of each sparse feature in these batches.
        past: How often ids occurred in the past: columns table, id and count.
    """

    name: str
    batches: list[Batch]
    num_ids: dict[str, int]
    past: pa.Table

    @property
    def num_dense(self) -> int:
        """Number of dense features."""
        return int(self.batches[0].dense.shape[1])

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return sum(len(batch) for batch in self.batches)

    def first(self, num_batches: int) -> BudgetLog:
        """The log up to a batch."""
        return replace(self, batches=self.batches[:num_batches])

    def fresh(self) -> list[Batch]:
        """The batches without keys that an earlier pass has found."""
        return [replace(batch, unique_keys={}) for batch in self.batches]


def make_budget_log(name: str, num_rows: int, batch_size: int) -> BudgetLog:
    """Make a log; real ones need `HEADRACE_DATA`.

    Raises:
        MissingLog: It is not there.
    """
    batches = LOGS[name](num_rows, batch_size)
    first = len(batches) // PAST
    ids, past = _ids_of(batches[first:]), _ids_of(batches[:first])
    counted = {feature: np.unique(values, return_counts=True) for feature, values in past.items()}
    counts = pa.table(
        {
            "table": np.repeat(list(counted), [len(values) for values, _ in counted.values()]),
            "id": np.concatenate([values for values, _ in counted.values()]),
            "count": np.concatenate([each for _, each in counted.values()]),
        }
    )
    num_ids = {feature: len(np.unique(values)) for feature, values in ids.items()}
    return BudgetLog(name, list(batches[first:]), num_ids, counts)


def _ids_of(batches: Sequence[Batch]) -> dict[str, Ints]:
    """All ids of each feature."""
    ids: dict[str, list[Ints]] = {}
    for batch in batches:
        for group in batch.sparse:
            plain = group.expand() if isinstance(group, InverseKeyedJaggedTensor) else group
            for feature in plain.keys:
                ids.setdefault(feature, []).append(plain[feature].values.numpy())
    return {feature: np.concatenate(parts) for feature, parts in ids.items()}


def generated(num_rows: int, batch_size: int) -> list[Batch]:
    """Six id features of 200 to 60,000 ids, whose popularity moves on, and the planted teacher: an effect per id.

    Ids are drawn from a Zipf distribution over ranks; in each of the phases, the ranks of a table move by a tenth of
    its ids, so that popular ids become rare and new ones appear. An id's effect has a standard deviation that differs
    between features, so that rows are worth more in some tables than in others. Two numbers have an effect too.
    """
    random = np.random.default_rng(29)
    sizes, spreads = (200, 2_000, 10_000, 20_000, 40_000, 60_000), (0.5, 0.7, 0.9, 0.3, 0.9, 0.2)
    phase = np.arange(num_rows) * PHASES // num_rows
    logits = np.full(num_rows, -1.2)
    columns = {}
    for number, (size, spread) in enumerate(zip(sizes, spreads, strict=True)):
        weights = (np.arange(size) + 1.0) ** -1.05
        ranks = random.choice(size, num_rows, p=weights / weights.sum())
        order = random.permutation(size)
        ids = order[(ranks + phase * (size // 10)) % size]
        effects = random.normal(0, spread, size)
        logits += effects[ids]
        columns[f"id{number}"] = ids.astype(np.int64)
    dense = random.normal(size=(num_rows, 2)).astype(np.float32)
    logits += 0.4 * dense[:, 0] - 0.3 * dense[:, 1]
    labels = (random.random(num_rows) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    return [
        _batch(columns, dense, labels, first, min(first + batch_size, num_rows))
        for first in range(0, num_rows, batch_size)
    ]


def _batch(columns: dict[str, Ints], dense: Floats, labels: Floats, first: int, last: int) -> Batch:
    lengths = torch.ones((last - first) * len(columns), dtype=torch.int32)
    values = torch.from_numpy(np.concatenate([ids[first:last] for ids in columns.values()]))
    return Batch(
        torch.from_numpy(dense[first:last]),
        (KeyedJaggedTensor.from_lengths(list(columns), values, lengths),),
        torch.from_numpy(labels[first:last, None]),
        torch.arange(first, last),
    )


def _real(name: str) -> Callable[[int, int], list[Batch]]:
    def make(num_rows: int, batch_size: int) -> list[Batch]:
        log = make_log(name, num_rows)
        with tempfile.TemporaryDirectory(prefix="headrace-bench-budget-") as folder:
            job = job_of_init(init_job(log.path, Path(folder) / "job"), Path(folder) / "run", seed=0)
            plan = build_components(job).plan
            tables = [pq.ParquetFile(file.path).read() for file in list_files(log.path)]
            return [
                plan.apply(rows)
                for table in tables
                for rows in table.combine_chunks().to_batches(max_chunksize=batch_size)
            ]

    return make


LOGS: dict[str, Callable[[int, int], list[Batch]]] = {
    "drift": generated,
    "criteo": _real("criteo"),
    "news": _real("news"),
}
"""Functions of (rows, batch size)."""
