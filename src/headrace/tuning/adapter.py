"""`Job`: the protocol through which a tuner drives any pipeline.

It is implemented for headrace's engine (`LiveJob`), the simulator (`SimulatedJob`), and for torch `DataLoader`,
`tf.data` and Ray Data (`headrace.tuning.adapters`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from headrace.tuning.observation import Observation
from headrace.tuning.space import Space

__all__ = ["Job"]


class Job(Protocol):
    """A job that can be tuned. The tuner calls it from its own thread."""

    @property
    def space(self) -> Space:
        """The knobs that may be changed."""
        ...

    def observe(self) -> Observation:
        """Measure the window since the last call."""
        ...

    def apply(self, values: Mapping[str, int]) -> None:
        """Set knobs by name. Returns immediately, even if a change takes effect later."""
        ...
