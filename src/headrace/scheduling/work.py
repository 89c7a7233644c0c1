"""`TrainingWork` implements the operators of a training step with feature plans, embeddings and a model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from time import perf_counter, thread_time
from typing import Any, Protocol

from torch import nn

from headrace.embeddings import Keys, LocalStore, embedding_bags, key_layouts
from headrace.pipeline import BatchIterator, RowStats
from headrace.pipeline.engine.downstream import DownstreamStage
from headrace.pipeline.transformations.chain import StageUse
from headrace.scheduling.feature_groups import FeatureGroups
from headrace.scheduling.graph import ALL_GROUPS, WHOLE, Kind, Operator, Part
from headrace.scheduling.live_batch import BatchFeatures, LiveBatch
from headrace.scheduling.runtime import Done
from headrace.scheduling.store import PendingRead, Selection, StepStore
from headrace.tensors import Batch

__all__ = ["Phases", "Trained", "TrainingWork"]


class Phases(Protocol):
    """A training step in three calls, made in order by one thread."""

    def forward_backward(self, batch: Batch, num_rows: int) -> Any:
        """Run the forward and backward pass, and accumulate gradients.

        Args:
            batch: A whole batch or a part of one; the parts of a batch are passed in consecutive calls.
            num_rows: Number of rows in the whole batch. The loss is divided by it, so that losses and gradients of all
                parts add up to those of the batch.
        """

    def push(self) -> None:
        """Send the gradients of embedding rows to their stores."""

    def update(self) -> None:
        """Step the dense optimizer."""


@dataclass(frozen=True)
class Trained:
    """A batch after its step.

    Attributes:
        parts: The batch and the result of `Phases.forward_backward`; several pairs if it was split into micro-batches.
        row_stats: Row statistics of the batch.
        position: Position of the next batch in the pipeline.
        computed_s: Time when its features were complete, by `time.perf_counter`.
        dense_s: Start time of its dense work, by `time.perf_counter`.
    """

    parts: tuple[tuple[Batch, Any], ...]
    row_stats: RowStats
    position: dict[str, Any]
    computed_s: float
    dense_s: float


class TrainingWork:
    """Implements the operators for `StepRuntime`. A context manager that wraps the stores of the embeddings.

    Attributes:
        deferred_ratio: Share of keys of the newest early pull that had to wait for the previous push.
    """

    def __init__(
        self,
        batches: BatchIterator,
        groups_of: Callable[[int], FeatureGroups],
        model: nn.Module,
        phases: Phases,
        *,
        stage: DownstreamStage | None = None,
        verify: bool = False,
    ) -> None:
        """Wrap the stores of a model.

        Args:
            batches: Batches of rows, from a pipeline without `transform`.
            groups_of: Returns the feature groups of a segment, see `group_features`; called for each batch.
            model: Model with the `EmbeddingBags`.
            phases: Training step of the model.
            stage: Stage that counts the feature work, see `BatchIterator.add_stage`.
            verify: Whether to read every row again right before its use and compare, which doubles traffic and checks
                that no pull missed a push.
        """
        self.deferred_ratio = 0.0
        self._batches = batches
        self._groups_of = groups_of
        self._bags = list(embedding_bags(model).values())
        self._phases = phases
        self._stage = stage
        self._lock = threading.Lock()
        self._verify = verify
        self._live: dict[int, LiveBatch] = {}
        self._ends: deque[tuple[RowStats, dict[str, Any]]] = deque()  # ends of segments that were read
        self._stores: list[StepStore] = []
        self._stack = ExitStack()
        self._layouts = key_layouts(model)

    def __enter__(self) -> TrainingWork:
        for bags in self._bags:
            before = bags.store
            store = StepStore(before, bags.embedding_dim)
            bags.store = store
            self._stores.append(store)
            self._stack.callback(setattr, bags, "store", before)
        return self

    def __exit__(self, *error: object) -> None:
        for bags in self._bags:
            bags.drop_gradients()
        self._stack.close()

    def read(self, batch: int) -> tuple[int, int] | None:
        """See `Work`."""
        rows = self._batches.next_in_segment()
        row_stats, position = self._batches.take_row_stats(), self._batches.state_dict()
        if rows is None:
            self._ends.append((row_stats, position))
            return None
        if self._stage is not None:
            self._stage.arrived()
        groups = self._groups_of(self._batches.segment)
        self._live[batch] = LiveBatch(rows, rows.num_rows, row_stats, position, groups)
        return int(rows.nbytes), len(groups)

    def end_segment(self) -> tuple[RowStats, dict[str, Any]]:
        """Row statistics after the last batch of the trained segment, and the position at its end."""
        return self._ends.popleft()

    def features(self, operator: Operator) -> int:
        """See `Work`; computes the group's features for the rows of the part, and finds their unique keys."""
        live, (_, _, group, part) = self._live[operator.batch], operator
        begin_s, begin_cpu_s = perf_counter(), thread_time()
        assert live.rows is not None
        places, num_bytes = part.rows(live.num_rows), 0
        if len(places):
            rows = live.rows if part == WHOLE else live.rows.slice(places.start, len(places))
            batch = live.groups.of(group).plan.apply(rows).with_keys(self._layouts)
            live.features[group, part] = BatchFeatures(batch, self._prepare(batch))
            num_bytes = batch.num_bytes
        with self._lock:  # groups of a batch may be computed in parallel
            live.computed += Fraction(len(live.groups) if group == ALL_GROUPS else 1, part.of)
            live.features_cpu_s += thread_time() - begin_cpu_s
            live.features_s += perf_counter() - begin_s
            if live.computed == len(live.groups):
                self._end_features(live)
        return num_bytes

    def _end_features(self, live: LiveBatch) -> None:
        """Called when all features of a batch are computed."""
        rows, live.rows, live.computed_s = live.rows, None, perf_counter()
        if self._stage is not None and rows is not None:
            num_bytes = sum(features.batch.num_bytes for features in live.features.values() if features.batch)
            use = StageUse(live.features_cpu_s, live.features_s, live.num_rows, live.num_rows, num_bytes)
            self._stage.add(use, rows.nbytes)

    def _prepare(self, batch: Batch) -> list[PendingRead]:
        return [
            store.prepare(found.keys)
            for bags, store in zip(self._bags, self._stores, strict=True)
            for found in batch.unique_keys.get(bags.key_layout, ())
        ]

    def pull(self, operators: Sequence[Operator], after: int, defers: bool, done: Done) -> Sequence[int]:
        """See `Work`."""
        live = self._live[operators[0].batch]
        for operator in operators:
            if operator.part != WHOLE:
                live.count_in_batch(operator)
        selections = []
        for part, read in live.reads(operators):
            left = read.leave_out(self._touched(operators[0].batch - 1, read)) if defers else None
            selections.append((part, (read, left)))
        self._send(selections, after, done)
        if defers:
            reads = [read for _, (read, _) in selections]
            num_deferred = sum(len(read.deferred) for read in reads if read.deferred is not None)
            self.deferred_ratio = num_deferred / max(sum(len(read.keys) for read in reads), 1)
        return [live.num_bytes([operator]) for operator in operators]

    def _touched(self, batch: int, read: PendingRead) -> list[Keys]:
        """Keys that a batch's push updates in the store of a read; the batch may have different feature groups."""
        of_batch = (other for features in self._live[batch].features.values() for other in features.reads)
        return [other.keys for other in of_batch if other.store is read.store]

    def deferred_pull(self, operators: Sequence[Operator], after: int, done: Done) -> Sequence[int]:
        """See `Work`."""
        reads = self._live[operators[0].batch].reads(operators)
        self._send([(part, (read, read.deferred)) for part, read in reads], after, done)
        return [0 for _ in operators]  # already counted with the early pull

    def dense(self, operator: Operator) -> int:
        """See `Work`."""
        live = self._live[operator.batch]
        live.dense_s = live.dense_s or perf_counter()
        found = [live.features[place] for place in sorted(live.features) if place[1] == operator.part]
        if not found:
            return 0  # a part without rows
        for read in (read for features in found for read in features.reads):
            read.finish()
            if self._verify:
                read.verify()
        batch = Batch.join([features.batch for features in found if features.batch is not None])
        live.trained.append((batch, self._phases.forward_backward(batch, live.num_rows)))
        return 0

    def push(self, batch: int, done: Done) -> int:
        """See `Work`."""
        handed_in = [store.num_updates for store in self._stores]
        self._phases.push()
        updates = [
            store.updating
            for store, before in zip(self._stores, handed_in, strict=True)
            if store.num_updates > before and store.updating is not None
        ]
        finish = _Countdown(len(updates), done)
        for update in updates:
            update.add_done_callback(lambda updated: finish.one(updated.exception()))
        live = self._live[batch]
        return live.num_bytes([Operator(Kind.PULL, batch, group, part) for group, part in live.features])

    def update(self, batch: int) -> Trained:
        """See `Work`."""
        self._phases.update()
        live = self._live[batch]
        self._live.pop(batch - 1, None)  # this batch's keys are still compared with those of the next
        trained = Trained(tuple(live.trained), live.row_stats, live.position, live.computed_s, live.dense_s)
        live.trained = []
        for features in live.features.values():
            features.batch = None
            for read in features.reads:
                read.store.forget(read)
        return trained

    def _send(self, selections: Sequence[tuple[Part, Selection]], after: int, done: Done) -> None:
        """Send one request per store and part; the keys of a part may be those of another part.

        Tables in this process are read one request at a time, without joining keys.
        """
        requests: list[list[Selection]] = []
        for store in self._stores:
            by_part: dict[Part, list[Selection]] = {}
            for part, (read, where) in selections:
                if read.store is store and (where is None or len(where)):
                    by_part.setdefault(part, []).append((read, where))
            for request in by_part.values():
                requests += [[each] for each in request] if isinstance(store.store, LocalStore) else [request]
        finish = _Countdown(len(requests), done)
        for request in requests:
            request[0][0].store.send(request, after + 1, finish.one)


class _Countdown:
    """Calls `done` when several transfers have ended, or at once if there are none."""

    def __init__(self, count: int, done: Done) -> None:
        self._left = count
        self._done = done
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        if count == 0:
            done(None)

    def one(self, error: BaseException | None) -> None:
        with self._lock:
            self._left -= 1
            self._error = self._error or error
            last = self._left == 0
        if last:
            self._done(self._error)
