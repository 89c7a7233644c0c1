"""`Trainer`: one pass over the new rows since the last checkpoint, window by window, as one stream of batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor, nn

from headrace.embeddings import embedding_bags
from headrace.embeddings.tables.budgeted_table_group import TableRows
from headrace.embeddings.tables.partitioned_table_group import PartitionedTableGroup
from headrace.errors import ConfigError, HeadraceError
from headrace.logs import BadRowPolicy, ErrorBudget, Window, replay_source
from headrace.logs.generate import read_bounds
from headrace.messages import count_of
from headrace.observe.decisions import DecisionLog
from headrace.observe.progress import Progress
from headrace.observe.tensorboard import TensorBoard
from headrace.pipeline import GrowingSize, RowStats
from headrace.publishing.publications import PublicationFolder
from headrace.threads import Threads
from headrace.training.batch_size import batch_sizes, largest_batch, smallest_batch
from headrace.training.change_features import Change, with_job_features
from headrace.training.checkpoint import CheckpointFolder, Snapshot
from headrace.training.checkpoint_writer import CheckpointWriter
from headrace.training.choices import describe_choices, describe_unused
from headrace.training.commits import UncommittedOutput, commit, follow, newest_checkpoint, restore, settle
from headrace.training.components import build_components
from headrace.training.feed import PlannedSources, find_new_windows, first_batch, read_window, source_columns
from headrace.training.job import JobConfig
from headrace.training.label_rate import LabelStart, start_at_labels
from headrace.training.learning_rate import schedule_messages
from headrace.training.process_group import ProcessGroup, SingleProcess
from headrace.training.publisher import Publisher
from headrace.training.records import StepRecorder, progress_columns, rows_by_table
from headrace.training.results import RunTotals, TrainResult, WindowResult
from headrace.training.run_folder import RunFolder
from headrace.training.sharded import ShardedTables
from headrace.training.state import TrainingState
from headrace.training.step import TrainingStep
from headrace.training.stepping import FEATURES, StepOutput, StepRunner, choose_policy, open_steps

__all__ = ["Trainer"]


class Trainer:
    """Trains a job on new windows, one pass over each, and writes a checkpoint after each window.

    Results, rejected rows and counts are committed together with a checkpoint. So a run that is killed and started
    again makes the same steps on the same rows as an uninterrupted one.
    """

    def __init__(
        self,
        job: JobConfig,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_message: Callable[[str], None] = lambda line: None,
        on_window: Callable[[WindowResult], None] = lambda result: None,
        process_group: ProcessGroup | None = None,
        change_features: bool = False,
    ) -> None:
        """Build plan and model, without reading data.

        Args:
            job: The resolved job.
            should_stop: Called after each step; training stops with a checkpoint once it returns True.
            on_message: Called with lines for the user, for instance on resuming or on a damaged checkpoint.
            on_window: Called with the result of each window once its checkpoint is written; trainer 0 only.
            process_group: The trainers of the run; None for a single one. Trainer 0 writes to the run's folder, the
                others to `trainers/<rank>` in it.
            change_features: Whether to continue a run whose checkpoint has other features than the job; see
                `headrace.training.change_features`. Otherwise the checkpoint is refused.

        Raises:
            ConfigError: There are several trainers, but no shards for their embeddings.
        """
        self.job = job
        self._process_group = process_group or SingleProcess()
        main = RunFolder(job.run, quarantine=job.data.bad_rows.path)
        rank = self._process_group.rank
        self.run_folder = main if rank == 0 else RunFolder(main.path / "trainers" / str(rank))
        if self._process_group.size > 1 and not job.cluster.shards:
            raise ConfigError(
                f"cluster.shards: given none, expected some for {self._process_group.size} trainers; "
                "start them with: headrace launch"
            )
        self.components = build_components(job)
        self.state = TrainingState(
            self.components.label_names, self.components.is_regression, baseline_name=job.training.baseline
        )
        self._checkpoints = CheckpointFolder(main.checkpoints, keep=job.training.checkpoints.keep)
        self._writer: CheckpointWriter | None = None  # while training
        self._publisher: Publisher | None = None  # while training
        self._unreported: list[WindowResult] = []  # windows whose checkpoint is being written
        self._shards = ShardedTables(job, self.components.model, self._process_group) if job.cluster.shards else None
        self._step = TrainingStep(
            self.components.model,
            self.components.optimizer,
            loss=self.components.loss,
            clip_grad_norm=job.training.clip_grad_norm,
            precision=job.training.precision,
            schedule=job.training.learning_rate_schedule,
            average=self._average if self._process_group.size > 1 else None,
        )
        self._may_change_features = change_features
        self._wants_stop = should_stop
        self._stopping = False  # agreed on by all trainers with their last step
        self._on_message, self._on_window = on_message, on_window
        self._told: list[tuple[str, Change]] = []  # on resuming, before there is a log of decisions
        self._threads = Threads(job.training.threads)
        self._recorder = StepRecorder(
            job.training.log_every_steps,
            self.components.plan,
            self.components.model,
            self._step,
            (lambda: None) if self._shards is None else self._shards.moves,
            partial(_rows_by_table, self.components.model, self._shards, self._process_group.rank),
        )
        self._uncommitted = UncommittedOutput(keeps_ledger=job.training.row_ledger)
        baseline = job.training.baseline
        self._baseline = None if baseline is None else self.components.plan.dense_names.index(baseline)
        self._bounds = read_bounds(job.data.path)
        self._start: LabelStart | None = None  # what the model started from, if this process set it
        self.finished: list[WindowResult] = []

    @property
    def rank(self) -> int:
        """Rank of this trainer in the run."""
        return self._process_group.rank

    def run(self, *, windows: int | None = None, until: str | None = None) -> TrainResult:
        """Train on new windows.

        Args:
            windows: Maximum number of windows; None for all.
            until: Last window to train on, see `headrace.logs.plan_windows`.

        Raises:
            HeadraceError: The logs, the job or a checkpoint cannot be used, or another process writes to this run.
        """
        with self._resumed():
            found, rest = find_new_windows(
                self.job, self.state, self._process_group, until=until, limit=windows, on_message=self._on_message
            )
            stopped_in = self._train_windows(found) if found else None
            self._settle()
            self._finish_publishing()
            if stopped_in is not None:
                rest = f"stopped in window {stopped_in.name}"
            return TrainResult(tuple(self.finished), self.state.step, stopped_in is not None, rest)

    def replay(self) -> WindowResult | None:
        """Train on quarantined rows after the job's schema or the quarantine files were corrected.

        Rows that are now valid are counted as used instead of quarantined; the job's policy is applied again to rows
        that are still bad. The replay is committed as a whole with one checkpoint, or discarded.

        Returns:
            The result; None if the quarantine is empty.

        Raises:
            HeadraceError: As for `run`; or a window is in progress; or the replay was stopped and discarded.
        """
        with self._resumed():
            if self.state.window is not None:
                raise HeadraceError(f"window {self.state.window.name} is in progress; finish it first: headrace train")
            files = self.run_folder.quarantined()
            if not files:
                return None
            source = replay_source(
                self.run_folder.quarantine,
                self.job.schema_of_logs,
                columns=source_columns(self.job, self.components.plan),
                policy=self.job.data.bad_rows,
            )
            num_rows = sum(source.num_rows(split) for split in range(len(source)))
            self.state.start_stretch()
            every_row = self.job.data.bad_rows.model_copy(update={"max_ratio": 1.0})  # all rows may still be bad
            sources = PlannedSources(
                self.job, self.components.plan, [lambda: source], batch_size=self._batch_sizes([num_rows])
            )
            with (
                self._open(sources) as steps,
                Progress(f"replay of {count_of(len(files), 'file')}", total=num_rows) as progress,
            ):
                self._watch(sources, 0)
                if not self._train_on(steps, progress, allowed=every_row, every=None):
                    raise HeadraceError("stopped; the replay was discarded")
            self.state.rows += RowStats(num_quarantined=-num_rows)  # they were counted when first read
            self.state.replayed += tuple(path.name for path in files)
            self._commit()
            self._settle()
            self._finish_publishing()
            self.run_folder.set_aside(self.state.replayed)
            return self._result("replay", None)

    def _train_windows(self, windows: Sequence[Window]) -> Window | None:
        """Train on windows in order, as segments of one stream; returns the window in which training was stopped, if
        any."""
        job, plan = self.job, self.components.plan
        sources = PlannedSources(
            job,
            plan,
            [partial(read_window, job, plan, window) for window in windows],
            batch_size=self._batch_sizes([window.num_rows for window in windows]),
        )
        if self.state.step == 0:
            self._start_at_label_rate(sources)
        with self._open(sources) as steps:
            for number, window in enumerate(windows):
                self._watch(sources, number)
                result = self._train_window(window, steps)
                if result is None:
                    return window
                sources.close(number)
                self._unreported.append(result)
                self._report_windows()
        return None

    def _train_window(self, window: Window, steps: StepRunner) -> WindowResult | None:
        """Train on a window, or on the rest of it; returns None if stopped before its end."""
        state = self.state
        if state.window is None:
            state.start_window(window)
        with Progress(f"train {window.name}", total=window.num_rows, always_ends=True) as progress:
            every = self.job.training.checkpoint_every_steps
            if not self._train_on(steps, progress, allowed=self.job.data.bad_rows, every=every):
                self._commit()
                return None
            state.gather(self._process_group)
            result = self._result(window.name, self._bounds.get(window.name))
            if self._process_group.rank == 0:
                self._record(result.to_record(step=state.step, time_s=state.seconds))
                progress.finish(result.rows.num_used, result.seconds, result.summary())
            # Evict ids, and mark the window as used.
            for bags in embedding_bags(self.components.model).values():
                if bags.table_group is not None:
                    bags.table_group.end_window()
            if self._shards is not None:
                self._shards.end_window(state.step)
            self._record_rebalancings()
            if self._shards is not None and (moves := self._shards.take_moves()) is not None:
                kept = f"up to {self._shards.num_kept_rows:,} rows were kept"
                self._decisions.record("placement", {}, f"{moves}; {kept}", asdict(moves))
            state.finish_window()
            self._commit()
        return result

    def _record_rebalancings(self) -> None:
        """Record how the budgets of partitions changed at the end of a window, and why."""
        decided = {} if self._shards is None else self._shards.rebalancings
        for name, bags in embedding_bags(self.components.model).items():
            if isinstance(bags.table_group, PartitionedTableGroup) and bags.table_group.rebalancing is not None:
                decided = decided | {name: bags.table_group.rebalancing}
        for name, rebalancing in decided.items():
            self._decisions.record("budget", {}, f"{name}: {rebalancing.reason}", {"bytes": list(rebalancing.budgets)})

    def _train_on(self, steps: StepRunner, progress: Progress, *, allowed: BadRowPolicy, every: int | None) -> bool:
        """The training loop, until the end of the window; returns False if stopped before.

        Args:
            steps: Runs the steps of the window.
            progress: Progress bar of rows read.
            allowed: Policy for bad rows.
            every: Steps between checkpoints; None for no checkpoints.
        """
        state, finished = self.state, False
        steps.restart_counters()
        budget = ErrorBudget(allowed, num_read=state.window_rows.num_read, num_bad=state.window_rows.num_bad)
        progress.update(state.window_rows.num_read)
        while not self._should_stop():
            asked = time.perf_counter()
            is_due = every is not None and (state.step + 1) % every == 0

            # Predict, then train. The pipeline or the scheduler has prepared the batches.
            output = steps.run_step()
            if output is None:
                finished = True
                break
            state.step += 1

            # Score the predictions and count the rows; later checkpoints include both.
            self._score(output)
            self._count(steps, budget, seconds=time.perf_counter() - asked)

            # Report windows whose checkpoint is complete; and the training, every few steps.
            self._report_windows()
            columns: dict[str, Any] | None = None
            if self._recorder.add(output):
                record = self._recorder.take(state, steps)
                self._record(record)
                self._replan(steps)
                columns = progress_columns(record)
            progress.update(state.window_rows.num_read, columns)

            # Commit if a checkpoint within the window is due; and publish.
            if is_due:
                steps.settle()
                self._commit()
            if self._publisher is not None:
                self._publisher.cut_if_due(state, steps.settle, is_committed=is_due)
                self._tell_of_publishing()
        if finished:
            self._count(steps, budget, seconds=0.0)  # bad rows after the last good one
        else:
            steps.settle()
            progress.stop()
        if self._recorder.has_steps:
            self._record(self._recorder.take(state, steps))
        self._explain(progress.what, steps)
        return finished

    def _open(self, sources: PlannedSources) -> AbstractContextManager[StepRunner]:
        """Open the steps over some sources, from the state's position in the first one."""
        return open_steps(
            self.job,
            sources,
            self._step,
            position=self.state.position,
            process_group=self._process_group,
            decisions=self._decisions,
            folder=self.run_folder.path,
            samples=None if self._shards is None else self._shards.samples,
        )

    def _batch_sizes(self, num_rows: Sequence[int]) -> int | GrowingSize:
        """Rows of the batches of windows with these rows; trainer 0 has the counts of all trainers."""
        read, in_window = self.state.rows.num_read, self.state.window_rows.num_read
        before = self._process_group.share(read - in_window if self.state.window else read)
        training = self.job.training
        return batch_sizes(training.batch_size, training.first_batch_size, before, num_rows)

    def _start_at_label_rate(self, sources: PlannedSources) -> None:
        """Have the untrained model predict the rates and means of the labels in the first rows."""
        training = self.job.training
        num_rows = smallest_batch(training.batch_size, training.first_batch_size) * self._process_group.size
        batch = first_batch(self.job, sources, num_rows)
        if batch is None:
            return  # no window has a good row
        self._start = start_at_labels(self.components.model, batch, self.components.is_regression)
        if self._start is None:
            return  # a model of the user's own without a `head`
        doubts = self._start.doubts(self.job.schema_of_logs.labels)
        for line in [*self._start.messages(self.components.label_names), *doubts]:
            self._decisions.record("training", {}, line)
        for line in doubts:
            self._on_message(line)

    def _watch(self, sources: PlannedSources, number: int) -> None:
        """Report progress of reading a source, and record how its features are grouped."""
        self._recorder.watch(sources[number])
        plan = sources.plan_of(number)
        if plan.dedup == "auto" and plan.grouping is not None:
            self._decisions.record("features", {}, f"deduplication: {plan.grouping.reason}")

    def _explain(self, what: str, steps: StepRunner) -> None:
        """Record what limited the pipeline, if it ran long enough."""
        try:
            found = steps.explain()
        except ConfigError:
            return
        self._decisions.record(
            "explain", {}, f"{what}: {found.reason}", {**asdict(found), "text": str(found), "ended": True}
        )

    def _result(self, name: str, best_ne: float | None) -> WindowResult:
        state = self.state
        scores = {label: metrics.compute() for label, metrics in state.in_window.items()}
        baseline_auc = state.baseline.compute().auc
        running = {label: metrics.compute() for label, metrics in state.running.items()}
        known = state.running_baseline
        run = RunTotals(state.rows, state.seconds, running, math.nan if known is None else known.compute().auc)
        return WindowResult(name, state.window_rows, state.window_seconds, scores, best_ne, baseline_auc, run)

    def _score(self, output: StepOutput) -> None:
        """Add the predictions that a step made before training."""
        for batch, result in output.parts:
            labels, weights = batch.labels.numpy(), None if batch.weights is None else batch.weights.numpy()
            logits = result.logits
            if self._start is not None and self.state.step == 1:
                logits = self._start.removed_from(logits, batch)
            self.state.update_metrics(logits, labels, weights)
            if self._baseline is not None:
                self.state.update_baseline(batch.dense.numpy()[:, self._baseline], labels[:, 0], weights)
            self._uncommitted.add_step(self.state.step, batch.row_ids)

    def _count(self, steps: StepRunner, budget: ErrorBudget, *, seconds: float) -> None:
        """Count the rows trained on, and store the position of the next batch."""
        rows = steps.take_row_stats()
        budget.add(
            num_read=rows.num_read + (self._process_group.size - 1) * rows.num_used, num_bad=rows.num_bad
        )  # trainer 0 has all bad rows
        self.state.count(rows, seconds)
        self.state.position = steps.state_dict()
        self._uncommitted.add_rejects(rows.rejects)

    def _replan(self, steps: StepRunner) -> None:
        """Adjust the threads of this process to a resize of the machine or of the pipeline."""
        stages = steps.counters(window_s=1.0).stages.values()
        workers = {stage.group: stage.num_workers for stage in stages if stage.name != FEATURES}  # FEATURES yields
        plan = self._threads.update(sum(workers.values()))
        if plan is not None:
            self._decisions.record("threads", {}, plan.reason, asdict(plan))

    def _record(self, record: dict[str, Any]) -> None:
        self.run_folder.append_metrics({**record, "checkpoint": self.state.checkpoint + 1})
        self._tensorboard.write(record)

    def _commit(self) -> None:
        """Commit a checkpoint, see `commit`; its time is reported with the next steps."""
        start = time.perf_counter()
        if self._shards is not None:
            self._shards.return_rows()
        self.state.published = None if self._publisher is None else self._publisher.cursor
        commit(
            self.state,
            self.components,
            self._uncommitted,
            self.run_folder,
            self._checkpoints,
            self._process_group,
            self._shards,
            self._writer,
        )
        for message in self._writer.take_messages() if self._writer is not None else ():
            self._decisions.record("checkpoints", {}, message)
        self._recorder.add_seconds("checkpoint", time.perf_counter() - start)
        if self._publisher is not None:
            self._publisher.committed(self.state)

    def _finish_publishing(self) -> None:
        if self._publisher is not None:
            self._publisher.finish(self.state)
            self._tell_of_publishing()

    def _tell_of_publishing(self) -> None:
        for is_for_user, line in () if self._publisher is None else self._publisher.take_messages():
            self._decisions.record("publishing", {}, line)
            if is_for_user:
                self._on_message(line)

    def _settle(self) -> None:
        """Wait until the last checkpoint is complete."""
        if self._writer is not None:
            settle(self._writer, self.components.model)
        self._report_windows()

    def _report_windows(self) -> None:
        """Report the results of windows whose checkpoint is complete."""
        if self._unreported and (self._writer is None or self._writer.is_complete):
            for result in self._unreported:
                self.finished.append(result)
                if self._process_group.rank == 0:
                    self._on_window(result)
            self._unreported.clear()

    def _average(self, parameters: Sequence[Tensor], num_rows: int) -> int:
        """Average the gradients of all trainers, and share requests to stop; returns the rows of all."""
        self._stopping, num_rows = self._process_group.average(parameters, num_rows, wants_stop=self._wants_stop())
        return num_rows

    def _should_stop(self) -> bool:
        return self._wants_stop() if self._process_group.size == 1 else self._stopping

    @contextmanager
    def _resumed(self) -> Iterator[None]:
        """Lock the run, and resume from its newest complete checkpoint."""
        self.run_folder.lock()
        is_done = False
        try:
            self._resume()
            with (
                DecisionLog(self.run_folder.decisions, start_s=self.state.seconds) as self._decisions,
                TensorBoard(self.run_folder.path / "tensorboard") as self._tensorboard,
            ):
                for message, change in self._told:
                    self._decisions.record("training", change, message)
                if self._step.precision is not None:
                    self._decisions.record("precision", {}, f"matrix products in {self._step.precision.reason}")
                if self._shards is not None:
                    self._decisions.record("placement", {}, self._shards.placement.reason)
                yield
                self._settle()
            is_done = True
        finally:
            self._close_writers()
            if self._shards is not None:
                self._shards.close(wait=is_done)
            self.run_folder.unlock()

    def _close_writers(self) -> None:
        """End the threads that write checkpoints and publications, also after an error; what is being written is
        completed."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()
            for is_for_user, line in publisher.take_messages():
                if is_for_user:
                    self._on_message(line)
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        except HeadraceError:  # after an error it is that one that counts, else it was settled before
            self._unreported.clear()
        self._report_windows()

    def _tell(self, message: str, change: Change | None = None) -> None:
        """Tell the user, and keep the message for the log of decisions."""
        self._on_message(message)
        self._told.append((message, change or {}))

    def _resume(self) -> None:
        """Resume from the newest complete checkpoint, and move newer output aside."""
        self._threads.update()
        self._told.clear()
        config = self.job.training.checkpoints
        if config.kind == "delta" and self.rank == 0:
            self._writer = CheckpointWriter(self._checkpoints, config)
        snapshot, refused = newest_checkpoint(self._checkpoints, self._process_group)
        for line in refused:
            self._tell(line)
        if snapshot is not None:
            snapshot = with_job_features(
                snapshot,
                self.job,
                self.components,
                may_change=self._may_change_features,
                run=self.run_folder,
                checkpoints=self._checkpoints,
                process_group=self._process_group,
                tell=self._tell,
            )
        if self._shards is not None:
            step, number = (0, None) if snapshot is None else (snapshot.state["step"], snapshot.number)
            self._shards.open(step=step, checkpoint=number)
        if snapshot is not None:
            restore(snapshot, self.state, self.components.model, self.components.optimizer, self.components.shape)
            if self._writer is not None:
                follow(self._writer, snapshot, self.components.model, self._shards)
            if self._process_group.rank:
                self.state.forget_counts()  # trainer 0 has the counts of all trainers
            where = f", in window {self.state.window.name}" if self.state.window else ""
            # Scripts look for "going on from checkpoint".
            self._tell(f"going on from checkpoint {self.state.checkpoint}, step {self.state.step}{where}")
        self._start_publishing(snapshot)
        self._step.num_rows = self._process_group.share(self.state.rows.num_used)
        schedule = self.job.training.learning_rate_schedule
        for line in schedule_messages(schedule, self.state.schedule, self._step.num_rows):
            self._tell(line)
        self.state.schedule = None if schedule is None else schedule.model_dump(mode="json")
        precision = self._step.settle_precision(largest_batch(self.job.training.batch_size), self.state.precision)
        self.state.precision = precision.precision
        if snapshot is None and self.rank == 0:
            placement = None if self._shards is None else self._shards.placement.reason
            for line in describe_choices(self.job, self.components.plan, precision, placement):
                self._tell(line)
        for line in self._unused_settings() if self.rank == 0 else ():
            self._tell(line)
        moved = self.run_folder.rewind(self.state.checkpoint)
        self.run_folder.set_aside(self.state.replayed)
        if moved:
            self._tell(self.run_folder.describe_rewound(moved))
        self.run_folder.write_config(self.job.to_yaml())

    def _start_publishing(self, snapshot: Snapshot | None) -> None:
        config = self.job.training.publish
        if config is None:
            return
        self._publisher = Publisher(
            config,
            PublicationFolder(RunFolder(self.job.run).publications, keep=config.keep),
            self.components.model,
            job=self.job.to_yaml(),
            shape=self.components.shape,
            process_group=self._process_group,
            shards=None if self._shards is None else self._shards.publications,
            return_rows=lambda: None if self._shards is None else self._shards.return_rows(),
        )
        self._publisher.resume(None if snapshot is None else snapshot.state)
        for _, line in self._publisher.take_messages():
            self._tell(line)

    def _unused_settings(self) -> list[str]:
        """Lines about settings of the job that have no effect, once stores are in place."""
        keeps_rows = self._shards is not None and self._shards.placement.keeps_rows
        policy = choose_policy(self.job.scheduler, self.components.model)
        return describe_unused(
            self.job,
            keeps_rows=keeps_rows,
            has_scheduler=policy is not None,
            num_trainers=self._process_group.size,
        )


def _rows_by_table(model: nn.Module, shards: ShardedTables | None, rank: int) -> dict[str, TableRows]:
    """The rows of each table under a budget; those of shards only in trainer 0."""
    if shards is None:
        return rows_by_table(model)
    return shards.rows_by_table() if rank == 0 else {}
