"""`StepRecorder`: sums up every few steps into one record of `metrics.jsonl`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import psutil
from torch import nn

from headrace.embeddings import embedding_bags
from headrace.embeddings.storage.protocol import ReadAheadStorage, StorageCounters
from headrace.embeddings.tables.budgeted_table_group import BudgetedTableGroup, TableRows
from headrace.embeddings.tables.partitioned_table_group import PartitionedTableGroup
from headrace.features import FeaturePlan, Savings
from headrace.logs import ParquetSource, Source
from headrace.logs.parquet_source import BytesRead
from headrace.models.tower_work import TowerWork, tower_work
from headrace.pipeline import StageReading
from headrace.placement.moves import Moves
from headrace.resources import ResourceMonitor
from headrace.training.state import TrainingState
from headrace.training.step import TrainingStep
from headrace.training.stepping import StepOutput, StepRunner

__all__ = ["StepRecorder", "limiting_part", "progress_columns", "rows_by_table"]


RESOURCES_EVERY_S = 1.0
"""Interval of reading CPU and memory limits, which takes 0.9 ms."""


STEP_METRICS = {False: ("auc", "ne"), True: ("rmse", "relative_mse")}
"""Metrics of the first label in records of steps, by whether it is a number."""


class StepRecorder:
    """Sums up steps into records."""

    def __init__(
        self,
        every_steps: int,
        plan: FeaturePlan | None = None,
        model: nn.Module | None = None,
        step: TrainingStep | None = None,
        moves: Callable[[], Moves | None] = lambda: None,
        rows_by_table: Callable[[], dict[str, TableRows]] = dict,
    ) -> None:
        """Start empty.

        Args:
            every_steps: Steps per record.
            plan: Feature plan, for the savings from deduplication.
            model: Model, for the savings in its towers.
            step: Training step, for the factor of its learning-rate schedule.
            moves: Returns what has moved so far, if this process keeps rows of shards; otherwise None.
            rows_by_table: Returns the rows of each table under a budget; empty without one.
        """
        self.every_steps = every_steps
        self._plan = plan
        self._savings = Savings()
        self._model = model
        self._step = step
        self._work = TowerWork()
        self._source: ParquetSource | None = None
        self._bytes_read = BytesRead()
        self._moves_so_far = moves
        self._rows_by_table = rows_by_table
        self._moves = Moves()
        self._storage = StorageCounters()
        self._start_s = time.perf_counter()
        self._process = psutil.Process()
        self._resources, self._looked_s = ResourceMonitor(), self._start_s
        self._clear()

    def watch(self, source: Source) -> None:
        """Record the bytes read from this source, if it reads files, and the rows that move from now on."""
        self._source = source if isinstance(source, ParquetSource) else None
        self._moves = self._moves_so_far() or Moves()
        self._bytes_read = BytesRead()

    def add(self, output: StepOutput) -> bool:
        """Count a step; returns whether a record is due."""
        self._steps += 1
        self._rows += output.num_rows
        self.add_seconds("wait", output.wait_s)
        for _, result in output.parts:
            self._loss += result.loss * output.num_rows
            for part, seconds in result.seconds.items():
                self.add_seconds(part, seconds)
        return self._steps >= self.every_steps

    def add_seconds(self, part: str, seconds: float) -> None:
        """Count time outside of steps, such as writing a checkpoint."""
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds

    @property
    def has_steps(self) -> bool:
        """Whether steps were added since the last record."""
        return self._steps > 0

    @property
    def loss(self) -> float:
        """Mean loss of the rows since the last record."""
        return self._loss / self._rows if self._rows else float("nan")

    def take(self, state: TrainingState, steps: StepRunner) -> dict[str, Any]:
        """Return the record of the steps since the last one, and start the next."""
        now = time.perf_counter()
        counters = steps.counters(window_s=now - self._start_s)
        window = state.window.name if state.window else ""
        scores = state.in_window[state.label_names[0]].compute()
        if now - self._looked_s > RESOURCES_EVERY_S:
            self._resources.poll()
            self._looked_s = now
        resources = self._resources.resources
        record = {
            "kind": "step",
            "time_s": state.seconds,
            "step": state.step,
            "rows": state.rows.num_used,
            "window": window,
            "loss": self.loss,
            **{name: getattr(scores, name) for name in STEP_METRICS[scores.is_regression]},
            "rows_per_s": self._rows / (now - self._start_s),
            "seconds": self._seconds,
            "stages": {name: _stage(reading) for name, reading in counters.stages.items()},
            "limiting": limiting_part(self._seconds),
            "threads": counters.num_threads,
            "cpus": resources.cpus.count,
            "bytes_in_flight": counters.bytes_in_flight,
            "budget_bytes": counters.budget_bytes,
            "memory_bytes": self._process.memory_info().rss,
            "memory_limit_bytes": resources.memory.limit_bytes,
        }
        if self._step is not None and self._step.schedule is not None:
            record["lr_factor"] = self._step.lr_factor
        if (moves := self._moves_so_far()) is not None:
            record["placement"] = asdict(moves - self._moves)
            self._moves = moves
        storages = [] if self._model is None else _storages(self._model)
        if storages:
            total_storage = sum((each.counters for each in storages), StorageCounters())
            record["storage"] = asdict(total_storage - self._storage)
            self._storage = total_storage
        if tables := self._rows_by_table():
            record["budget"] = {name: rows._asdict() for name, rows in tables.items()}
        if self._plan is not None:
            savings = self._plan.savings
            record["dedup"] = asdict(savings - self._savings)
            self._savings = savings
            if self._source is not None:
                total = self._source.bytes_read
                read, self._bytes_read = total - self._bytes_read, total
                record["dedup"] |= {
                    "num_read_bytes": read.num_bytes,
                    "num_plain_read_bytes": read.num_plain_bytes,
                }
            if self._model is not None:
                work, before = tower_work(self._model), self._work
                self._work = work
                record["dedup"] |= {
                    "num_flop": work.num_flop - before.num_flop,
                    "num_plain_flop": work.num_plain_flop - before.num_plain_flop,
                }
        self._start_s = now
        self._clear()
        return record

    def _clear(self) -> None:
        self._steps = self._rows = 0
        self._loss = 0.0
        self._seconds: dict[str, float] = {}


def rows_by_table(model: nn.Module) -> dict[str, TableRows]:
    """The rows of each table under a budget, of the table groups in this process."""
    groups = [bags.table_group for bags in embedding_bags(model).values()]
    budgeted = [group for group in groups if isinstance(group, BudgetedTableGroup | PartitionedTableGroup)]
    return TableRows.total(group.rows_by_table() for group in budgeted)


def progress_columns(record: dict[str, Any]) -> dict[str, Any]:
    """Columns of the progress bar from a record of steps."""
    quality = {"AUC": record["auc"]} if "auc" in record else {"RMSE": record["rmse"]}
    storage = {}
    if "storage" in record:
        used, read = (record["storage"][name] for name in ("num_used_rows", "num_read_rows"))
        storage = {"rows from memory": f"{1 - read / max(used, 1):.1%}"}
    return {"loss": record["loss"], **quality, **storage, "limited by": record["limiting"]}


def _storages(model: nn.Module) -> list[ReadAheadStorage]:
    """The storages of a model in this process that have rows in files."""
    groups = [bags.table_group for bags in embedding_bags(model).values()]
    storages = [storage for group in groups if group is not None for storage in group.storages]
    return [storage for storage in storages if isinstance(storage, ReadAheadStorage)]


def limiting_part(seconds: dict[str, float]) -> str:
    """The bottleneck of steps: "pipeline" if they mostly waited for batches, else the longest phase of the step."""
    if not seconds:
        return ""
    part = max(seconds, key=lambda name: seconds[name])
    return "pipeline" if part == "wait" else part


def _stage(reading: StageReading) -> dict[str, Any]:
    return {
        "queue": reading.queue_depth,
        "busy_s": reading.cpu_s,
        "workers": reading.num_workers,
    }
