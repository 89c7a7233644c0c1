"""`LiveEpisodes`: runs a real pipeline in each episode of `TuningEnv`, consumed by a thread."""

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
    """A pipeline whose batches a thread consumes, restarting from the beginning when they end."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        consumer_s: float = 0.0,
        resources: Callable[[], Resources] = effective_resources,
        **options: Any,
    ) -> None:
        """Open a pipeline and start consuming batches.

        Args:
            pipeline: The pipeline to tune.
            consumer_s: Seconds that the consumer works on each batch.
            resources: Returns the CPUs and memory of the episode.
            options: Arguments of `Pipeline.open`.
        """
        self._opened: BatchIterator = pipeline.open(tuner="none", **options)
        super().__init__(self._opened, resources=resources, measures_machine=True)
        # As in the simulator, workers belong to stages, so the shared workers must not limit them.
        self.apply({THREADS: self._opened.tunables[THREADS].max})
        self.failure: Exception | None = None
        self._consumer_s, self._start = consumer_s, self._opened.state_dict()
        self._stop, self._reopening = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._consume, name="headrace-consumer", daemon=True)
        self._thread.start()

    def run(self, duration_s: float) -> None:
        """Sleep for some seconds.

        Raises:
            Exception: The pipeline raised it.
        """
        time.sleep(duration_s)
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Stop consuming batches and close the pipeline."""
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
    """Creates the job of each episode of a `TuningEnv`."""

    def __init__(self, pipeline: Pipeline, target_per_s: float, **options: Any) -> None:
        """Configure the episodes.

        Args:
            pipeline: The pipeline, opened anew for each episode with one worker per stage.
            target_per_s: Batches per second that earn the full reward.
            options: Arguments of `ConsumedJob`.
        """
        self._pipeline, self._target_per_s = pipeline, target_per_s
        self._options = {"workers": {"source": 1, **{stage.name: 1 for stage in pipeline.plan.stages}}, **options}

    @property
    def num_stages(self) -> int:
        """Number of stages with adjustable workers, including the source."""
        return 1 + len(self._pipeline.plan.stages)

    def __call__(self, random: np.random.Generator) -> tuple[ConsumedJob, float]:
        """Start the next episode, always with the same pipeline."""
        return ConsumedJob(self._pipeline, **self._options), self._target_per_s
