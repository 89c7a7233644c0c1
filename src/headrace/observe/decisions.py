"""The decision log: what changed by itself in a run, who did it, why, and what it looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from headrace.observe.jsonl import JsonlWriter, read_jsonl
from headrace.resources import format_bytes

__all__ = ["Decision", "DecisionLog", "read_decisions"]


@dataclass(frozen=True)
class Decision:
    """One decision, also one to change nothing.

    Attributes:
        time_s: Seconds since the run began.
        who: The part that decided: "tuner", "memory watchdog".
        change: What changed: name -> (value before, value after); empty when nothing did.
        reason: One line for people: why, or why not.
        snapshot: The measurements it looked at.
    """

    time_s: float
    who: str
    change: Mapping[str, tuple[Any, Any]]
    reason: str
    snapshot: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.who}: {self.changes() or 'no change'}: {self.reason}"

    def changes(self, arrow: str = "->") -> str:
        """What changed, from what to what; bytes in a unit people read."""
        return ", ".join(
            f"{name} {_written(name, before)} {arrow} {_written(name, after)}"
            for name, (before, after) in self.change.items()
        )


def _written(name: str, value: Any) -> str:
    in_bytes = name in ("memory", "read_ahead") or name.endswith("bytes")
    return format_bytes(value) if in_bytes and isinstance(value, int) else str(value)


class DecisionLog:
    """Appends decisions to `decisions.jsonl`; any thread may record."""

    def __init__(self, path: str | Path, *, start_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Opens the log, keeping what it holds.

        Args:
            path: The file.
            start_s: Seconds that the run has lasted already, where it goes on from a checkpoint.
            clock: Seconds, monotonic.
        """
        self._writer = JsonlWriter(path)
        self._clock = clock
        self._start = clock() - start_s

    def record(
        self,
        who: str,
        change: Mapping[str, tuple[Any, Any]],
        reason: str,
        snapshot: Mapping[str, Any] | None = None,
    ) -> Decision:
        """Write one decision and return it; the arguments are the attributes of `Decision`."""
        decision = Decision(self._clock() - self._start, who, dict(change), reason, dict(snapshot or {}))
        self._writer.write(asdict(decision))
        return decision

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_decisions(path: str | Path) -> list[Decision]:
    """The decisions in a log, in order; an empty list if there is no file."""
    if not Path(path).is_file():
        return []
    return [
        Decision(
            time_s=float(record.get("time_s") or 0.0),
            who=str(record.get("who", "")),
            change={name: (values[0], values[1]) for name, values in (record.get("change") or {}).items()},
            reason=str(record.get("reason", "")),
            snapshot=record.get("snapshot") or {},
        )
        for record in read_jsonl(path)
    ]
