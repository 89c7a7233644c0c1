"""`Scorer`: scores logs with a checkpoint, for metrics or for predictions as Parquet."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headrace.embeddings import key_layouts
from headrace.errors import CheckpointError, ConfigError
from headrace.features import FeaturePlan
from headrace.files import new_file, writing
from headrace.logs import ErrorBudget, LogFile, ParquetSource, check_output, list_log, select_files
from headrace.logs.row_ids import RowIds
from headrace.observe.progress import Progress
from headrace.paths import local_path
from headrace.pipeline import BatchIterator, RowStats
from headrace.scoring.forward import Forward
from headrace.scoring.predictions import predicted
from headrace.tensors import Batch
from headrace.threads import use_threads
from headrace.training.batch_size import largest_batch
from headrace.training.checkpoint import CheckpointFolder
from headrace.training.commits import restore
from headrace.training.components import JobComponents, build_components
from headrace.training.feed import PlannedSources, open_batches, source_columns
from headrace.training.job import JobConfig
from headrace.training.metrics import Scores, metrics_of
from headrace.training.run_folder import RunFolder
from headrace.training.state import TrainingState

__all__ = ["Scorer"]


class Scorer:
    """A job's model loaded from a checkpoint, read-only.

    Attributes:
        checkpoint: Number of the checkpoint.
        step: Optimizer steps at the checkpoint.
        components: Plan and model.
        forward: Calls the model.
        rows: Row statistics of the last scoring pass.
    """

    def __init__(
        self, job: JobConfig, *, checkpoint: int | None = None, on_message: Callable[[str], None] = lambda line: None
    ) -> None:
        """Load a checkpoint.

        Args:
            job: The resolved job.
            checkpoint: Number of the checkpoint; None for the newest valid one.
            on_message: Called with a line for each damaged newer checkpoint, and for entries of logs that are not read.

        Raises:
            CheckpointError: There is no checkpoint, or it cannot be used.
        """
        self.job = job
        self._on_message = on_message
        self.components: JobComponents = build_components(job)
        folder = CheckpointFolder(RunFolder(job.run).checkpoints)
        snapshot, refused = folder.load_latest() if checkpoint is None else (folder.load(checkpoint), [])
        for line in refused:
            on_message(f"refused a checkpoint, falling back to the previous one: {line}")
        if snapshot is None:
            raise CheckpointError(f"{folder.path}: no checkpoint yet; train first: headrace train JOB")
        state = TrainingState(self.components.label_names, self.components.is_regression)
        restore(snapshot, state, self.components.model, None, self.components.shape)
        self.checkpoint, self.step = snapshot.number, state.step
        self.rows = RowStats()
        self.forward = Forward(self.components.model)
        use_threads(job.training.threads)

    def evaluate(self, path: str) -> dict[str, Scores]:
        """Compute metrics over all rows of the logs at `path`, by label."""
        kinds = zip(self.components.label_names, self.components.is_regression, strict=True)
        metrics = {name: metrics_of(is_regression) for name, is_regression in kinds}
        for batch, logits in self.score(self.list_logs(path), "evaluate"):
            weights = None if batch.weights is None else batch.weights.numpy()
            for place, name in enumerate(metrics):
                metrics[name].update(logits[:, place], batch.labels.numpy()[:, place], weights)
        return {name: metric.compute() for name, metric in metrics.items()}

    def predict(self, path: str, out: Path) -> int:
        """Write a prediction for each row of the logs at `path`, which need no labels; returns their number.

        The Parquet file `out` has the columns `row_id`, `file` and `row` (only `row_id` if the logs have the schema's
        row id column), and for each label a float32 probability `p_<label>`, or the predicted number `pred_<label>`.
        For a clustered copy, file and row refer to the original log. The file is written atomically.
        """
        out = local_path(out, where="OUT")
        if out.is_dir():
            raise ConfigError(f"{out}: is a folder, expected a path for the Parquet file")
        files = self.list_logs(path)
        check_output(out, path, what="predictions")
        check_output(out, self.job.data.path, what="predictions")
        check_output(out, RunFolder(self.job.run).checkpoints, what="predictions")
        plan = self.components.plan.without_labels()
        source = self._open_source(files, plan)
        schema = self._prediction_schema(source.row_ids)
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        with new_file(out) as partial, pq.ParquetWriter(str(partial.absolute()), schema, compression="zstd") as writer:
            for batch, logits in self._score(source, "predict", plan):
                columns = predicted(logits, self.components.is_regression)
                writer.write_batch(_rows_of(batch, columns, source.row_ids, schema))
        return self.rows.num_used

    def list_logs(self, path: str) -> list[LogFile]:
        """List the files of the logs at `path`, and report entries that are not read."""
        listing = list_log(path)
        for note in listing.notes:
            self._on_message(note)
        return list(listing.files)

    def score(
        self, files: Sequence[LogFile], what: str, plan: FeaturePlan | None = None
    ) -> Generator[tuple[Batch, NDArray[np.float32]], None, None]:
        """Yield batches of the logs in file order, with the model's outputs, float32 [B, L].

        The logs may have a different layout than the training logs, and need neither row ids nor sessions unless these
        are features.

        Args:
            files: The logs.
            what: Name of the progress bar.
            plan: The job's plan without labels, for logs without labels.

        Raises:
            ErrorBudgetExceeded: There are more bad rows than the job allows.
        """
        plan = self.components.plan if plan is None else plan
        return self._score(self._open_source(files, plan), what, plan)

    def _open_source(self, files: Sequence[LogFile], plan: FeaturePlan) -> ParquetSource:
        schema = self.job.schema_of_logs
        unread = set() if plan.label_names else {schema.weight, *(label.name for label in schema.labels)}
        columns = [name for name in source_columns(self.job, plan, shuffled=False) if name not in unread]
        apart = [name for name in (schema.row_id, schema.session_id) if name is not None]
        return ParquetSource(
            select_files(files),
            schema,
            columns=columns,
            policy=self.job.data.bad_rows,
            optional=[name for name in apart if name not in plan.columns],
        )

    def _score(
        self, source: ParquetSource, what: str, plan: FeaturePlan
    ) -> Generator[tuple[Batch, NDArray[np.float32]], None, None]:
        budget = ErrorBudget(self.job.data.bad_rows)
        self.rows = RowStats()
        total = sum(source.num_rows(split) for split in range(len(source)))
        batch_size = largest_batch(self.job.training.batch_size)
        sources = PlannedSources(self.job, plan, [lambda: source], batch_size=batch_size, shuffled=False)
        with (
            Progress(what, total=total) as progress,
            open_batches(self.job, sources, layouts=key_layouts(self.components.model)) as batches,
        ):
            batch: Batch | None
            while (batch := next(batches, None)) is not None:
                logits = self.forward(batch).cpu().numpy()
                self._count(batches, budget, progress)
                yield batch, logits
            self._count(batches, budget, progress)  # bad rows after the last good one

    def _count(self, batches: BatchIterator, budget: ErrorBudget, progress: Progress) -> None:
        rows = batches.take_row_stats()
        self.rows += rows.counts()
        budget.add(num_read=rows.num_read, num_bad=rows.num_bad)
        progress.advance(rows.num_read)

    def _prediction_schema(self, row_ids: RowIds) -> pa.Schema:
        fields = [pa.field("row_id", pa.int64())]
        if row_ids.are_places:
            fields += [pa.field("file", pa.dictionary(pa.int32(), pa.string())), pa.field("row", pa.int64())]
        kinds = zip(self.components.label_names, self.components.is_regression, strict=True)
        names = [f"pred_{name}" if is_regression else f"p_{name}" for name, is_regression in kinds]
        return pa.schema(fields + [pa.field(name, pa.float32()) for name in names])


def _rows_of(
    batch: Batch, predicted: Sequence[NDArray[np.float32]], row_ids: RowIds, schema: pa.Schema
) -> pa.RecordBatch:
    ids = batch.row_ids.numpy()
    columns = [pa.array(ids), *(row_ids.places(ids) if row_ids.are_places else ())]
    return pa.RecordBatch.from_arrays([*columns, *map(pa.array, predicted)], schema=schema)
