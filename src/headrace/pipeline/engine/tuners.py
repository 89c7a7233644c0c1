"""Changing a pipeline while it runs: `Tunable` numbers, and tuners that set them.

`LateTuner` opens a tuner once the pipeline has run for a while.
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
"""Seconds after the first request for a batch at which `auto` begins: it would change nothing sooner, for it decides
from windows of a second; and a job that is over by then pays for one idle thread."""


class Tunable:
    """A number with limits that takes effect as soon as it is set, from any thread.

    Attributes:
        name: For instance "transform.workers".
        min: Smallest value.
        max: Largest value.
        unit: "workers", "elements" or "bytes".
    """

    def __init__(
        self, name: str, *, min: int, max: int, unit: str, get: Callable[[], int], set: Callable[[int], None]
    ) -> None:
        """Describe a number that is kept elsewhere: `get` reads it, `set` changes it."""
        self.name = name
        self.min = min
        self.max = max
        self.unit = unit
        self._get = get
        self._set = set

    @property
    def value(self) -> int:
        """The value now."""
        return self._get()

    def set(self, value: int) -> None:
        """Change it.

        Raises:
            ConfigError: The value is not a whole number within the limits.
        """
        if isinstance(value, bool) or int(value) != value or not self.min <= value <= self.max:
            raise ConfigError(f"{self.name}: given {value!r}, expected a whole number from {self.min} to {self.max}")
        self._set(int(value))

    def __repr__(self) -> str:
        return f"Tunable({self.name} = {self.value} {self.unit}, {self.min}..{self.max})"


class Tunables(Protocol):
    """What a tuner is given: numbers it may change, and counters that show what came of it."""

    @property
    def tunables(self) -> Mapping[str, Tunable]:
        """What may be changed, by name."""
        ...

    def counters(self, window_s: float) -> PipelineCounters:
        """What the stages did over about the last seconds."""
        ...


class Tuner(Protocol):
    """What a pipeline expects of a tuner, beside that it begins at once and works in a thread of its own."""

    def explain(self) -> Explanation:
        """What limits the pipeline, and what the tuner did.

        Raises:
            ConfigError: Too little has happened yet.
        """
        ...

    def close(self) -> None:
        """Stop tuning; the last setting stays. Safe to call twice, and from any thread."""
        ...


def open_tuner(policy: Any, pipeline: Tunables, decisions: DecisionRecorder | None) -> Tuner:
    """Begin to tune a pipeline.

    Args:
        policy: A name such as "auto", "none" for a tuner that only explains, or an object with `start` and `decide`.
        pipeline: What is tuned.
        decisions: Gets every change with its reason.

    Raises:
        ConfigError: There is no policy of that name.
    """
    tuner: Tuner = provider("tuner")(policy, pipeline, decisions)
    return tuner


class LateTuner:
    """Becomes a tuner some time after `begin`, or when something is asked of it."""

    def __init__(self, policy: Any, pipeline: Tunables, decisions: DecisionRecorder | None) -> None:
        """Prepare: nothing is started yet, and nothing imported; the arguments are those of `open_tuner`."""
        self._arguments = (pipeline, decisions)
        self._policy = policy
        self._after_s = AFTER_S if policy == "auto" else 0.0
        self._lock = threading.RLock()  # garbage collection may call close() in a thread that holds it
        self._closed = threading.Event()
        self._tuner: Tuner | None = None
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start waiting, the first time this is called."""
        if self._thread is None and self._policy != "none":
            self._thread = threading.Thread(target=self._wait, name="headrace-tuner-start", daemon=True)
            self._thread.start()

    def explain(self) -> Explanation:
        """See `Tuner.explain`; before the tuner has begun, from the pipeline's counters alone."""
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
