"""Measures parts of a training process: steps of a window, the return of rows, and the planner of placement."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from headrace.placement.residency import Residency
from headrace.placement.resident_store import ResidentStore
from headrace.training.trainer import Trainer

__all__ = ["Meter", "Meters"]

PLANNER = ("announce", "place", "rows_of", "keys_of", "adopt", "finish", "unused_until", "located", "resident", "find")
"""Methods of `Residency` that decide which rows are kept. They do not call each other."""


class Meter:
    """Wall time and processor time of all calls of some methods of a class, in seconds."""

    def __init__(self, owner: type, *methods: str, cpu: Callable[[], float] = time.process_time) -> None:
        self.wall_s = self.cpu_s = 0.0
        self._cpu, self._depth = cpu, 0
        for method in methods:
            setattr(owner, method, self._measured(getattr(owner, method)))

    def _measured(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def measured(*arguments: Any, **options: Any) -> Any:
            if self._depth:
                return call(*arguments, **options)
            self._depth += 1
            wall_s, cpu_s = time.perf_counter(), self._cpu()
            try:
                return call(*arguments, **options)
            finally:
                self._depth -= 1
                self.wall_s += time.perf_counter() - wall_s
                self.cpu_s += self._cpu() - cpu_s

        return measured


class Meters:
    """Meters of this process; make them once, before training.

    Attributes:
        steps: All steps of a window, with the threads that prepare batches.
        returns: Waiting until changed rows are back in their shards.
        planner: The planner, with the processor time of its own thread.
    """

    def __init__(self) -> None:
        self.steps = Meter(Trainer, "_train_on")
        self.returns = Meter(ResidentStore, "flush")
        self.planner = Meter(Residency, *PLANNER, cpu=time.thread_time)
