"""`Space`: the tunable settings (knobs) of a pipeline and their limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

__all__ = ["PREFETCH", "THREADS", "Knob", "Space", "workers_of"]

PREFETCH = "prefetch"
"""Name of the knob for elements prefetched for the consumer."""
THREADS = "workers"
"""Name of the knob for workers shared by all stages."""
_WORKERS = ".workers"


class _TunableLike(Protocol):
    """The attributes used of `headrace.pipeline.Tunable`."""

    name: str
    min: int
    max: int
    unit: str


@dataclass(frozen=True)
class Knob:
    """A tunable integer: `name`, limits `min` and `max`, and `unit` ("workers", "elements", "bytes")."""

    name: str
    min: int
    max: int
    unit: str

    @property
    def stage(self) -> str | None:
        """The stage whose workers this knob sets, or None."""
        return self.name.removesuffix(_WORKERS) if self.name.endswith(_WORKERS) else None

    def clip(self, value: float) -> int:
        """The nearest allowed value."""
        return int(min(max(round(value), self.min), self.max))


@dataclass(frozen=True)
class Space:
    """The knobs of a pipeline, in the order of its stages."""

    knobs: tuple[Knob, ...]

    @classmethod
    def from_tunables(cls, tunables: Iterable[_TunableLike]) -> Self:
        """Create the space of a pipeline's tunables."""
        return cls(tuple(Knob(each.name, each.min, each.max, each.unit) for each in tunables))

    def __contains__(self, name: object) -> bool:
        return any(knob.name == name for knob in self.knobs)

    def __getitem__(self, name: str) -> Knob:
        for knob in self.knobs:
            if knob.name == name:
                return knob
        raise KeyError(f"{name}: unknown knob, expected one of {', '.join(knob.name for knob in self.knobs)}")

    def worker_knobs(self) -> Iterator[tuple[str, Knob]]:
        """Yield (stage, knob) for every stage with adjustable workers."""
        for knob in self.knobs:
            if knob.stage is not None:
                yield knob.stage, knob

    def clip(self, values: Mapping[str, float]) -> dict[str, int]:
        """Clip values to the limits of the knobs; unknown knobs are dropped."""
        return {name: self[name].clip(value) for name, value in values.items() if name in self}


def workers_of(stage: str) -> str:
    """Name of the knob for a stage's workers."""
    return stage + _WORKERS
