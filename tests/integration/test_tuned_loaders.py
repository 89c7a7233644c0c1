"""The tuner on other libraries' loaders: every batch once and in order through changes of their workers."""

import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from headrace.errors import ConfigError
from headrace.tuning import Observation, Proposal, Space, TunedDataLoader, TunedRayData, TunedRebuilt, Tuner
from headrace.tuning.space import workers_of


class Squares(Dataset[int]):
    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, index: int) -> int:
        return index * index


class Script:
    """A policy that sets the workers to one value after the other; a test may wait for that."""

    def __init__(self, *workers: int) -> None:
        self.workers, self.num_set = iter(workers), 0
        self._set = threading.Condition()

    def start(self, space: Space, observation: Observation) -> Proposal:
        (self.name,) = (knob.name for knob in space.knobs)
        return Proposal(reason="this is the start")

    def decide(self, observation: Observation) -> Proposal:
        workers = next(self.workers, observation.values[self.name])
        with self._set:
            self.num_set += 1
            self._set.notify_all()
        return Proposal({self.name: workers}, "as written")

    def wait_for(self, num_set: int) -> None:
        """Until it has said so many times how many workers there are to be."""
        with self._set:
            self._set.wait_for(lambda: self.num_set >= num_set)


def between_changes(loader: Any, policy: Script, every: int) -> Iterator[Any]:
    """All batches, with a word of the policy in every so many."""
    for number, batch in enumerate(loader):
        yield batch
        if number % every == 0:
            policy.wait_for(number // every + 1)


class AfterSome:
    """A policy that sets the workers once, after some batches."""

    def __init__(self, num_batches: int, workers: int) -> None:
        self.num_batches, self.workers = num_batches, workers

    def start(self, space: Space, observation: Observation) -> Proposal:
        (self.name,) = (knob.name for knob in space.knobs)
        return Proposal(reason="this is the start")

    def decide(self, observation: Observation) -> Proposal:
        self.num_batches -= observation.delivered
        return Proposal({self.name: self.workers} if self.num_batches <= 0 else {}, "as written")


def taken(loader: Any, change: Callable[[int], int | None], stage: str) -> list[Any]:
    """All batches, with the workers changed behind some of them."""
    batches = []
    for number, batch in enumerate(loader):
        batches.append(batch)
        workers = change(number)
        if workers is not None:
            loader.apply({workers_of(stage): workers})
    return batches


@pytest.mark.parametrize(("shuffle", "drop_last"), [(False, True), (True, False)])
def test_a_dataloader_gives_the_same_batches_through_changes_of_its_workers(shuffle: bool, drop_last: bool) -> None:
    def make() -> DataLoader[Any]:
        seeded = torch.Generator().manual_seed(5)
        return DataLoader(Squares(103), batch_size=5, shuffle=shuffle, drop_last=drop_last, generator=seeded)

    plain = [batch.tolist() for batch in make()]
    changes = {2: 2, 3: 1, 9: 3, 19: 2}
    tuned = [batch.tolist() for batch in taken(TunedDataLoader(make()), changes.get, "load")]
    assert tuned == plain
    assert len(TunedDataLoader(make())) == len(plain)


def test_a_dataloader_without_batches_keeps_its_items() -> None:
    loader = TunedDataLoader(DataLoader(Squares(20), batch_size=None))
    assert [int(item) for item in taken(loader, {5: 2}.get, "load")] == [n * n for n in range(20)]


def test_a_tuner_in_a_thread_changes_the_workers_of_a_running_dataloader() -> None:
    loader, policy = TunedDataLoader(DataLoader(Squares(120), batch_size=4), max_workers=8), Script(2, 1, 3)
    with Tuner(loader, policy, window_s=0.02) as tuner:
        items = [int(item) for batch in between_changes(loader, policy, every=8) for item in batch]
        assert tuner.failure is None
    assert items == [n * n for n in range(120)]
    assert loader.workers == 3
    assert loader.totals.services == loader.totals.delivered == 30


def test_a_stream_that_workers_cut_by_their_number_is_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    with pytest.raises(ConfigError, match="IterableDataset Stream, whose workers split the stream by worker number"):
        TunedDataLoader(DataLoader(Stream()))


def test_a_rebuilt_loader_gives_every_batch_once_and_in_order() -> None:
    made = []

    def make(workers: int, start: int) -> Iterator[int]:
        made.append((workers, start))
        return iter(range(start, 500))

    loader = TunedRebuilt(make, max_workers=8)
    assert taken(loader, {50: 4, 60: 2, 300: 8, 499: 3}.get, "dataset") == list(range(500))
    assert [workers for workers, _ in made][:1] == [1]
    assert len(made) >= 2


def test_a_loader_that_cannot_be_rebuilt_fails_at_the_batch_where_it_would_begin() -> None:
    def make(workers: int, start: int) -> Iterator[int]:
        if start:
            raise OSError("no such batch")
        return iter(range(500))

    loader = TunedRebuilt(make, max_workers=8)
    with pytest.raises(OSError, match="no such batch"):
        taken(loader, {0: 4}.get, "dataset")


tensorflow = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")


@tensorflow
def test_the_tuner_drives_a_tf_data_pipeline() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    made = []

    def make(workers: int, start: int) -> Any:
        made.append(workers)
        values = tf.data.Dataset.range(start, 300)
        return values.map(lambda x: tf.py_function(lambda y: y, [x], tf.int64), num_parallel_calls=workers).prefetch(2)

    loader, policy = TunedRebuilt(make, max_workers=8), Script(4, 4, 2, 8)
    with Tuner(loader, policy, window_s=0.02) as tuner:
        values = [int(value) for value in between_changes(loader, policy, every=70)]
    assert tuner.failure is None
    assert values == list(range(300))
    assert {4, 2} <= set(made)


ray_data = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or importlib.util.find_spec("pandas") is None,
    reason="Ray Data is not installed",
)


def at_once(spans: list[tuple[float, float]]) -> int:
    """Most tasks that ran at the same time."""
    return max(sum(began <= moment < ended for began, ended in spans) for moment, _ in spans)


@ray_data
@pytest.mark.filterwarnings("ignore")
def test_the_tuner_changes_the_concurrency_of_a_running_ray_dataset() -> None:
    import ray
    import ray.data
    from ray.data._internal.execution.resource_manager import ResourceManager

    interval_s, ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S, 0.5
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False

        def slow(rows: Any) -> Any:
            began = time.monotonic()
            time.sleep(0.3)
            return rows | {"began": np.array([began]), "ended": np.array([time.monotonic()])}

        dataset = ray.data.range(60, override_num_blocks=60).map_batches(slow, batch_size=None)
        dataset.context.execution_options.preserve_order = True
        loader = TunedRayData(dataset, batch_size=None, prefetch_batches=0)
        ids, spans = [], []
        with Tuner(loader, AfterSome(15, 4), window_s=0.5) as tuner:
            for batch in loader:
                ids += np.asarray(batch["id"]).tolist()
                spans.append((batch["began"][0], batch["ended"][0]))
        assert tuner.failure is None
        assert ids == list(range(60))
        assert at_once(spans[:10]) == 1
        assert at_once(spans[10:]) > 1
    finally:
        ray.shutdown()
        ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = interval_s
