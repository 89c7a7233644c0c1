"""`LiveEpisodes`: real pipelines as episodes of `TuningEnv`: each is opened, consumed by a thread, and closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from headrace.pipeline import BatchIterator, Pipeline
from headrace.resources import Resources, effective_resources
from headrace.tuning.live import LiveJob
from headrace.tuning.space import THREADS

__all__ = ["ConsumedJob", "LiveEpisodes"]


class ConsumedJob(LiveJob):
    """A pipeline whose batches a thread takes, from the beginning again whenever they end."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        consumer_s: float = 0.0,
        resources: Callable[[], Resources] = effective_resources,
        **options: Any,
    ) -> None:
        """Open a pipeline and begin to take batches.

        Args:
            pipeline: What is tuned.
            consumer_s: Seconds the consumer works on each batch.
            resources: Gives the CPUs and memory of the episode.
            options: Those of `Pipeline.open`.
        """
        self._opened: BatchIterator = pipeline.open(tuner="none", **options)
        super().__init__(self._opened, resources=resources, measures_machine=True)
        # As in the simulator, workers belong to their stages: those that all share must not limit them.
        self.apply({THREADS: self._opened.tunables[THREADS].max})
        self.failure: Exception | None = None
        self._consumer_s, self._start = consumer_s, self._opened.state_dict()
        self._stop, self._reopening = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._consume, name="headrace-consumer", daemon=True)
        self._thread.start()

    def run(self, duration_s: float) -> None:
        """Let time pass.

        Raises:
            Exception: What the pipeline raised.
        """
        time.sleep(duration_s)
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Stop taking batches, and close the pipeline."""
        self._stop.set()
        with self._reopening:
            self._opened.close()
        self._thread.join()

    def _consume(self) -> None:
        try:
            while not self._stop.is_set():
                for _ in self._opened:
                    if self._stop.wait(self._consumer_s) if self._consumer_s else self._stop.is_set():
                        return
                with self._reopening:
                    if self._stop.is_set():
                        return
                    values = {name: tunable.value for name, tunable in self._opened.tunables.items()}
                    self._opened.load_state_dict(self._start)
                    self.apply(values)
        except Exception as error:
            self.failure = error


class LiveEpisodes:
    """Makes the job of each episode of a `TuningEnv`."""

    def __init__(self, pipeline: Pipeline, target_per_s: float, **options: Any) -> None:
        """Describe the episodes.

        Args:
            pipeline: Opened anew for each, with one worker a stage.
            target_per_s: Batches a second that count as full reward.
            options: Of `ConsumedJob`.
        """
        self._pipeline, self._target_per_s = pipeline, target_per_s
        self._options = {"workers": {"source": 1, **{stage.name: 1 for stage in pipeline.plan.stages}}, **options}

    @property
    def num_stages(self) -> int:
        """Stages with adjustable workers, the source among them."""
        return 1 + len(self._pipeline.plan.stages)

    def __call__(self, random: np.random.Generator) -> tuple[ConsumedJob, float]:
        """The next episode; the same pipeline each time."""
        return ConsumedJob(self._pipeline, **self._options), self._target_per_s
