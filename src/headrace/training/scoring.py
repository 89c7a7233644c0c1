"""Scoring logs with a checkpoint: metrics, or predictions as Parquet."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from headrace.errors import CheckpointError, ConfigError
from headrace.features import FeaturePlan
from headrace.logs import ErrorBudget, LogFile, ParquetSource, list_files, select_files, split_row_id
from headrace.observe.progress import Progress
from headrace.pipeline import BatchIterator
from headrace.tensors import Batch
from headrace.threads import use_threads
from headrace.training.assembly import Assembly, assemble
from headrace.training.checkpoint import CheckpointFolder
from headrace.training.feed import count_rows, open_batches, source_columns
from headrace.training.job import JobConfig
from headrace.training.metrics import BinaryMetrics, Scores
from headrace.training.rows import RowCounts
from headrace.training.run_folder import RunFolder
from headrace.training.state import TrainingState, restore

__all__ = ["Scorer"]


class Scorer:
    """A job's model as one of its checkpoints has it, for reading only.

    Attributes:
        checkpoint: Number of the checkpoint.
        step: Optimizer steps it has behind it.
        assembly: Plan and model.
        rows: What became of the rows scored last.
    """

    def __init__(
        self, job: JobConfig, *, checkpoint: int | None = None, say: Callable[[str], None] = lambda line: None
    ) -> None:
        """Load a checkpoint.

        Args:
            job: The job, resolved.
            checkpoint: Its number; None for the newest whole one.
            say: Given a line for each newer checkpoint that was refused.

        Raises:
            CheckpointError: There is none, or it cannot be used.
        """
        self.job = job
        self.assembly: Assembly = assemble(job)
        folder = CheckpointFolder(RunFolder(job.run).checkpoints)
        snapshot, refused = folder.load_latest() if checkpoint is None else (folder.load(checkpoint), [])
        for line in refused:
            say(f"refused a checkpoint, using the one before: {line}")
        if snapshot is None:
            raise CheckpointError(f"{folder.path}: holds no checkpoint yet; train first: headrace train JOB")
        state = TrainingState(self.assembly.label_names)
        restore(snapshot, state, self.assembly.model, None, self.assembly.shape)
        self.checkpoint, self.step = snapshot.number, state.step
        self.rows = RowCounts()
        self.assembly.model.eval()
        use_threads(job.training.threads)

    def evaluate(self, path: str) -> dict[str, Scores]:
        """Metrics over all rows of the logs at `path`, by label."""
        metrics = {name: BinaryMetrics() for name in self.assembly.label_names}
        for batch, logits in self.score(list_files(path), "evaluate"):
            weights = None if batch.weights is None else batch.weights.numpy()
            for place, name in enumerate(metrics):
                metrics[name].update(logits[:, place], batch.labels.numpy()[:, place], weights)
        return {name: metric.compute() for name, metric in metrics.items()}

    def predict(self, path: str, out: Path) -> int:
        """Write a prediction for each row of the logs at `path`, which need no labels; returns how many.

        The Parquet file `out` has the columns `row_id`, `file` and `row` (only `row_id` if the schema names a column
        for it), and a float32 probability `p_<label>` for each label. It appears whole or not at all.
        """
        if out.is_dir():
            raise ConfigError(f"{out}: is a folder, expected the Parquet file to write")
        files = list_files(path)
        schema = self._prediction_schema()
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.partial")
        try:
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                for batch, logits in self.score(files, "predict", self.assembly.plan.without_labels()):
                    writer.write_batch(self._predictions(batch, logits, files, schema))
            temporary.rename(out)
        finally:
            temporary.unlink(missing_ok=True)
        return self.rows.used

    def score(
        self, files: Sequence[LogFile], what: str, plan: FeaturePlan | None = None
    ) -> Generator[tuple[Batch, NDArray[np.float32]], None, None]:
        """Batches of the logs in file order, with their logits float32 [B, L].

        Args:
            files: The logs.
            what: Names the progress bar.
            plan: The job's plan without labels, for logs that have none.

        Raises:
            ErrorBudgetExceeded: More rows are bad than the job allows.
        """
        plan = self.assembly.plan if plan is None else plan
        schema = self.job.schema_of_logs
        unread = set() if plan.label_names else {schema.weight, *(label.name for label in schema.labels)}
        columns = [name for name in source_columns(self.job, plan) if name not in unread]
        selections = select_files(files)
        source = ParquetSource(selections, schema, columns=columns, policy=self.job.data.bad_rows)
        budget = ErrorBudget(self.job.data.bad_rows)
        self.rows = RowCounts()
        total = sum(selection.num_rows for selection in selections)
        with (
            Progress(what, total=total) as progress,
            open_batches(self.job, plan, source, shuffled=False) as batches,
        ):
            batch: Batch | None
            while (batch := next(batches, None)) is not None:
                with torch.inference_mode():
                    logits = self.assembly.model(batch).cpu().numpy()
                self._count(batches, budget, progress)
                yield batch, logits
            self._count(batches, budget, progress)  # bad rows behind the last good one

    def _count(self, batches: BatchIterator, budget: ErrorBudget, progress: Progress) -> None:
        rows = count_rows(batches.take_account())
        self.rows += rows
        budget.add(num_read=rows.read, num_bad=rows.bad)
        progress.advance(rows.read)

    def _prediction_schema(self) -> pa.Schema:
        fields = [pa.field("row_id", pa.int64())]
        if self.job.schema_of_logs.row_id is None:
            fields += [pa.field("file", pa.dictionary(pa.int32(), pa.string())), pa.field("row", pa.int64())]
        return pa.schema(fields + [pa.field(f"p_{name}", pa.float32()) for name in self.assembly.label_names])

    def _predictions(
        self, batch: Batch, logits: NDArray[np.float32], files: Sequence[LogFile], schema: pa.Schema
    ) -> pa.RecordBatch:
        ids = batch.row_ids.numpy()
        columns = [pa.array(ids)]
        if self.job.schema_of_logs.row_id is None:
            numbers, rows = split_row_id(ids)
            names = pa.array([file.path for file in files])
            columns += [pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), names), pa.array(rows)]
        probabilities = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
        columns += [pa.array(part.astype(np.float32)) for part in probabilities.T]
        return pa.RecordBatch.from_arrays(columns, schema=schema)
