"""`Job`: the adapter protocol: the few calls through which a tuner drives a pipeline, whoever runs it.

Our engine (`LiveJob`), the simulator (`SimulatedJob`), a torch `DataLoader`, a `tf.data` pipeline and a Ray Data
pipeline (`headrace.tuning.adapters`) are all driven through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from headrace.tuning.observation import Observation
from headrace.tuning.space import Space

__all__ = ["Job"]


class Job(Protocol):
    """What a tuner drives, from a thread of its own."""

    @property
    def space(self) -> Space:
        """What may be changed."""
        ...

    def observe(self) -> Observation:
        """The window since the last call."""
        ...

    def apply(self, values: Mapping[str, int]) -> None:
        """Set knobs, by name; returns at once, whenever the change takes effect."""
        ...
