"""The decision log: automatic changes in a run, with the component, the reason and the measurements."""

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
    """One automatic decision, including decisions to change nothing.

    Attributes:
        time_s: Seconds since the run started.
        who: The component that decided: "tuner", "memory watchdog".
        change: The changes: name -> (old value, new value); empty if nothing changed.
        reason: The reason, in one line.
        snapshot: The measurements behind the decision.
    """

    time_s: float
    who: str
    change: Mapping[str, tuple[Any, Any]]
    reason: str
    snapshot: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.who}: {self.changes() or 'no change'}: {self.reason}"

    def changes(self, arrow: str = "->") -> str:
        """The changes as text, with bytes in readable units."""
        return ", ".join(
            f"{name} {_written(name, before)} {arrow} {_written(name, after)}"
            for name, (before, after) in self.change.items()
        )


def _written(name: str, value: Any) -> str:
    in_bytes = name in ("memory", "read_ahead") or name.endswith("bytes")
    return format_bytes(value) if in_bytes and isinstance(value, int) else str(value)


class DecisionLog:
    """Appends decisions to `decisions.jsonl`. Thread-safe."""

    def __init__(self, path: str | Path, *, start_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Open the log, keeping existing records.

        Args:
            path: The file.
            start_s: Seconds that the run had lasted at the checkpoint it resumes from.
            clock: Returns monotonic seconds.
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
        """Write a decision and return it; the arguments are the attributes of `Decision`."""
        decision = Decision(self._clock() - self._start, who, dict(change), reason, dict(snapshot or {}))
        self._writer.write(asdict(decision))
        return decision

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_decisions(path: str | Path) -> list[Decision]:
    """Read the decisions in a log, in order; an empty list if the file does not exist."""
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
