"""`Trace`: records when and where operators of the latest steps ran, for the report and for Chrome's trace viewer."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from headrace.files import write_text
from headrace.paths import local_path
from headrace.scheduling.graph import WHOLE, Kind, Lane, Operator, Part

__all__ = ["Span", "Trace", "chrome_trace", "write_chrome_trace"]

NUM_STEPS = 8
"""Number of steps kept: enough to show the steady state, few enough to cost nothing."""


class Span(NamedTuple):
    """The execution of one operator.

    Attributes:
        operator: The operator.
        lane: Where it ran: "trainer", "cpu 0", "reader", "network".
        start_s: Start time on the run's clock.
        end_s: End time on the run's clock.
        reason: Why it ran then.
        num_bytes: Bytes it produced or sent.
    """

    operator: Operator
    lane: str
    start_s: float
    end_s: float
    reason: str
    num_bytes: int


class Trace:
    """Keeps the spans of the latest steps. Thread-safe."""

    def __init__(self, num_steps: int = NUM_STEPS) -> None:
        """Keep the spans of the last `num_steps` steps."""
        self.num_steps = num_steps
        self._spans: deque[Span] = deque()
        self._lock = threading.Lock()
        self._last = -1

    def add(self, span: Span) -> None:
        """Add a span, and drop those of old steps."""
        with self._lock:
            self._spans.append(span)
            self._last = max(self._last, span.operator.batch if span.operator.kind is Kind.DENSE else -1)
            while self._spans and self._spans[0].operator.batch <= self._last - self.num_steps:
                self._spans.popleft()

    def spans(self) -> list[Span]:
        """The kept spans by start time; a step is complete once its push is applied."""
        with self._lock:
            kept = [span for span in self._spans if span.operator.batch > self._last - self.num_steps]
        return sorted(kept, key=lambda span: span.start_s)

    def to_dict(self, policy: str) -> dict[str, Any]:
        """JSON-able values for `headrace.observe`."""
        spans = self.spans()
        start = spans[0].start_s if spans else 0.0
        return {
            "policy": policy,
            "spans": [
                {
                    "kind": span.operator.kind.value,
                    "step": span.operator.batch,
                    "group": span.operator.group,
                    "part": _name_of(span.operator.part),
                    "lane": span.lane,
                    "start_s": round(span.start_s - start, 7),
                    "end_s": round(span.end_s - start, 7),
                    "num_bytes": span.num_bytes,
                    "reason": span.reason,
                }
                for span in spans
            ],
        }

    def write(self, path: Path, policy: str) -> None:
        """Write `to_dict` as a JSON file, atomically."""
        write_text(path, json.dumps(self.to_dict(policy)))


def _name_of(part: Part) -> str:
    return "" if part == WHOLE else f"{part.number + 1} of {part.of}"


def chrome_trace(spans: Iterable[dict[str, Any]], policy: str) -> dict[str, Any]:
    """Convert spans of `Trace.to_dict` to the JSON format of Chrome's `about:tracing` and Perfetto.

    Transfers may overlap, so each feature group has a separate network lane.
    """
    events: list[dict[str, Any]] = []
    numbers: dict[str, int] = {}
    for span in spans:
        lane = span["lane"]
        if lane == Lane.NETWORK.value:
            lane = f"network {'push' if span['kind'] == 'push' else 'pull ' + str(span['group'])}"
        number = numbers.setdefault(lane, len(numbers))
        group = f" {span['group']}" if span["group"] >= 0 else ""
        part = f", part {span['part']}" if span.get("part") else ""
        events.append(
            {
                "name": f"{span['kind']}{group} of step {span['step']}{part}",
                "cat": span["kind"],
                "ph": "X",
                "ts": span["start_s"] * 1e6,
                "dur": (span["end_s"] - span["start_s"]) * 1e6,
                "pid": 1,
                "tid": number,
                "args": {"reason": span["reason"], "bytes": span["num_bytes"]},
            }
        )
    names: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": f"scheduler {policy}"}}
    ]
    names += [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": lane}}
        for lane, number in numbers.items()
    ]
    return {"traceEvents": names + events, "displayTimeUnit": "ms"}


def write_chrome_trace(trace: dict[str, Any], path: str | Path) -> None:
    """Write a trace of `Trace.to_dict` in Chrome's format."""
    text = json.dumps(chrome_trace(trace["spans"], trace["policy"]))
    write_text(local_path(path, where="trace"), text)
