"""A pipeline's automatic decisions and their reasons, kept in memory and passed on to a run's decision log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from headrace.observe.decisions import Decision

__all__ = ["DecisionRecorder", "Decisions"]

NUM_KEPT = 1000


class DecisionRecorder(Protocol):
    """Receiver of decisions, for instance a `headrace.observe.DecisionLog`."""

    def record(
        self,
        who: str,
        change: Mapping[str, tuple[Any, Any]],
        reason: str,
        snapshot: Mapping[str, Any] | None = None,
    ) -> Any:
        """Record one decision; the arguments are the attributes of `Decision`."""
        ...


class Decisions:
    """The latest decisions. Thread-safe."""

    def __init__(self, log: DecisionRecorder | None = None) -> None:
        """Keep decisions, and pass them on to `log` if given."""
        self._log = log
        self._start = time.monotonic()
        self._kept: deque[Decision] = deque(maxlen=NUM_KEPT)

    def record(
        self,
        who: str,
        change: Mapping[str, tuple[Any, Any]],
        reason: str,
        snapshot: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a decision, unless it repeats the last one."""
        decision = Decision(time.monotonic() - self._start, who, dict(change), reason, dict(snapshot or {}))
        last = self._kept[-1] if self._kept else None
        if last is not None and (last.who, last.change, last.reason) == (who, decision.change, reason):
            return
        self._kept.append(decision)
        if self._log is not None:
            self._log.record(who, change, reason, snapshot)

    def list(self) -> list[Decision]:
        """The decisions kept, oldest first."""
        return list(self._kept)
