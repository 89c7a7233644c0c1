"""Scoring logs with a checkpoint: metrics, or predictions as Parquet."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from headrace.errors import CheckpointError, ConfigError
from headrace.logs import LogFile, ParquetSource, list_files, select_files, split_row_id
from headrace.observe.progress import Progress
from headrace.tensors import Batch
from headrace.training.assembly import Assembly, assemble
from headrace.training.checkpoint import CheckpointFolder
from headrace.training.feed import open_batches, source_columns
from headrace.training.job import JobConfig
from headrace.training.metrics import BinaryMetrics, Scores
from headrace.training.run_folder import RunFolder
from headrace.training.state import TrainingState, restore
from headrace.training.threads import use_threads

__all__ = ["Scorer"]


class Scorer:
    """A job's model as one of its checkpoints has it, for reading only.

    Attributes:
        checkpoint: Number of the checkpoint.
        step: Optimizer steps it has behind it.
        assembly: Plan and model.
    """

    def __init__(self, job: JobConfig, *, checkpoint: int | None = None) -> None:
        """Load a checkpoint.

        Args:
            job: The job, resolved.
            checkpoint: Its number; None for the newest whole one.

        Raises:
            CheckpointError: There is none, or it cannot be used.
        """
        self.job = job
        self.assembly: Assembly = assemble(job)
        folder = CheckpointFolder(RunFolder(job.run).checkpoints)
        snapshot = folder.load_latest()[0] if checkpoint is None else folder.load(checkpoint)
        if snapshot is None:
            raise CheckpointError(f"{folder.path}: holds no checkpoint yet; train first: headrace train JOB")
        state = TrainingState(self.assembly.label_names)
        restore(snapshot, state, self.assembly.model, None, self.assembly.shape)
        self.checkpoint, self.step = snapshot.number, state.step
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
        """Write a prediction for each row of the logs at `path`; returns how many.

        The Parquet file `out` has the columns `row_id`, `file` and `row` (only `row_id` if the schema names a column
        for it), and a float32 probability `p_<label>` for each label. It appears whole or not at all.
        """
        if out.is_dir():
            raise ConfigError(f"{out}: is a folder, expected the Parquet file to write")
        files = list_files(path)
        schema = self._prediction_schema()
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.partial")
        num_rows = 0
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for batch, logits in self.score(files, "predict"):
                writer.write_batch(self._predictions(batch, logits, files, schema))
                num_rows += len(batch)
        temporary.rename(out)
        return num_rows

    def score(self, files: Sequence[LogFile], what: str) -> Generator[tuple[Batch, NDArray[np.float32]], None, None]:
        """Batches of the logs in file order, with their logits float32 [B, L]; `what` names the progress bar."""
        selections = select_files(files)
        source = ParquetSource(
            selections,
            self.job.schema_of_logs,
            columns=source_columns(self.job, self.assembly.plan),
            policy=self.job.data.bad_rows,
        )
        total = sum(selection.num_rows for selection in selections)
        with (
            Progress(what, total=total) as progress,
            open_batches(self.job, self.assembly.plan, source, shuffled=False) as batches,
        ):
            for batch in batches:
                with torch.inference_mode():
                    logits = self.assembly.model(batch).numpy()
                yield batch, logits
                progress.advance(batches.take_account().num_read)

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
