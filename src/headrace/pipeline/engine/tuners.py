"""Adjusting a pipeline while it runs: `Tunable` settings, and tuners that set them.

`LateTuner` starts a tuner only after the pipeline has run for a while.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from headrace.errors import ConfigError
from headrace.pipeline.engine.counters import PipelineCounters
from headrace.pipeline.engine.decisions import DecisionRecorder
from headrace.pipeline.engine.explanation import Explanation
from headrace.registry import provider

__all__ = ["AFTER_S", "LateTuner", "Tunable", "Tunables", "Tuner", "open_tuner"]

AFTER_S = 1.0
"""Seconds after the first request for a batch at which `auto` starts. It decides from windows of a second, so it would
change nothing earlier, and a shorter job pays only for one idle thread."""


class Tunable:
    """A bounded integer setting that takes effect as soon as it is set. Thread-safe.

    Attributes:
        name: Name, for instance "transform.workers".
        min: Minimum.
        max: Maximum.
        unit: Unit: "workers", "elements" or "bytes".
    """

    def __init__(
        self, name: str, *, min: int, max: int, unit: str, get: Callable[[], int], set: Callable[[int], None]
    ) -> None:
        """Describe a setting that is stored elsewhere: `get` reads it, `set` changes it."""
        self.name = name
        self.min = min
        self.max = max
        self.unit = unit
        self._get = get
        self._set = set

    @property
    def value(self) -> int:
        """The current value."""
        return self._get()

    def set(self, value: int) -> None:
        """Change the value.

        Raises:
            ConfigError: The value is not an integer within the limits.
        """
        if isinstance(value, bool) or int(value) != value or not self.min <= value <= self.max:
            raise ConfigError(f"{self.name}: given {value!r}, expected a whole number from {self.min} to {self.max}")
        self._set(int(value))

    def __repr__(self) -> str:
        return f"Tunable({self.name} = {self.value} {self.unit}, {self.min}..{self.max})"


class Tunables(Protocol):
    """A tunable pipeline: settings that a tuner may change, and counters that show the effect."""

    @property
    def tunables(self) -> Mapping[str, Tunable]:
        """The settings that may change, by name."""
        ...

    def counters(self, window_s: float) -> PipelineCounters:
        """Counters of the stages over about the last `window_s` seconds."""
        ...


class Tuner(Protocol):
    """Interface of a tuner. It starts at once and runs in its own thread."""

    def explain(self) -> Explanation:
        """Explain the bottleneck of the pipeline, and the tuner's actions.

        Raises:
            ConfigError: There is too little data yet.
        """
        ...

    def close(self) -> None:
        """Stop tuning and keep the current settings. Idempotent and thread-safe."""
        ...


def open_tuner(policy: Any, pipeline: Tunables, decisions: DecisionRecorder | None) -> Tuner:
    """Start tuning a pipeline.

    Args:
        policy: A name such as "auto", "none" for a tuner that only explains, or an object with `start` and `decide`.
        pipeline: The pipeline to tune.
        decisions: Records every change and its reason.

    Raises:
        ConfigError: There is no policy with that name.
    """
    tuner: Tuner = provider("tuner")(policy, pipeline, decisions)
    return tuner


class LateTuner:
    """Starts a tuner some time after `begin`, or when it is first needed."""

    def __init__(self, policy: Any, pipeline: Tunables, decisions: DecisionRecorder | None) -> None:
        """Store the arguments of `open_tuner`; nothing is started or imported yet."""
        self._arguments = (pipeline, decisions)
        self._policy = policy
        self._after_s = AFTER_S if policy == "auto" else 0.0
        self._lock = threading.RLock()  # garbage collection may call close() in a thread that holds it
        self._closed = threading.Event()
        self._tuner: Tuner | None = None
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start the delay; only the first call has an effect."""
        if self._thread is None and self._policy != "none":
            self._thread = threading.Thread(target=self._wait, name="headrace-tuner-start", daemon=True)
            self._thread.start()

    def explain(self) -> Explanation:
        """See `Tuner.explain`; before the tuner starts, uses the pipeline's counters alone."""
        with self._lock:
            tuner = self._tuner
        return (tuner or open_tuner("none", *self._arguments)).explain()

    def close(self) -> None:
        """See `Tuner.close`."""
        self._closed.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._lock:
            tuner = self._tuner
        if tuner is not None:
            tuner.close()

    def _wait(self) -> None:
        if self._closed.wait(self._after_s):
            return
        tuner = open_tuner(self._policy, *self._arguments)
        with self._lock:
            self._tuner = tuner
        if self._closed.is_set():
            tuner.close()
