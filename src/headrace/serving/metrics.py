"""Counts of a serving process, and their text for Prometheus."""

from __future__ import annotations

import bisect
import math
import threading
from collections import Counter
from collections.abc import Mapping

from headrace.observe.metrics import Kind, MetricRegistry

__all__ = ["SERVING", "ServingCounters", "gauges", "quality_lines"]

SERVING = MetricRegistry()
"""Metrics of `headrace serve`."""

for _name, _unit, _kind, _description in (
    ("serve.requests", "", Kind.COUNTER, "Requests, by route and HTTP status."),
    ("serve.request_s", "s", Kind.COUNTER, "Time from a request to its answer, as a histogram by route."),
    ("serve.rows", "", Kind.COUNTER, "Rows that were scored."),
    ("serve.batches", "", Kind.COUNTER, "Batches that were scored."),
    ("serve.batch_rows_limit", "", Kind.GAUGE, "Maximum rows of a batch, which the time promised allows."),
    ("serve.waiting_rows", "", Kind.GAUGE, "Rows of requests that wait."),
    ("serve.shed_requests", "", Kind.COUNTER, "Requests refused because they could not be answered in time."),
    ("serve.shadow_errors", "", Kind.COUNTER, "Requests that a shadow should have scored, and did not."),
    ("serve.swaps", "", Kind.COUNTER, "Versions taken into use, also earlier ones again."),
    ("serve.version", "", Kind.GAUGE, "Version that answers."),
    ("serve.seconds_behind", "s", Kind.GAUGE, "Time since the rows of that version were copied."),
    ("serve.labels_rows", "", Kind.COUNTER, "Labels that were joined with predictions."),
    ("serve.labels_ne", "", Kind.GAUGE, "Normalized entropy of predictions on these labels."),
    ("serve.labels_calibration", "", Kind.GAUGE, "Mean prediction, divided by the mean of these labels."),
):
    SERVING.declare(_name, unit=_unit, kind=_kind, description=_description)

BOUNDS_S = tuple(1e-4 * 2 ** (step / 2) for step in range(37))
"""Upper bounds of the histogram of times: from 0.1 ms to 26 s, a factor of 1.4 apart."""


class ServingCounters:
    """Counts requests by route and status, with a histogram of their times. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._times: dict[str, list[int]] = {}
        self._seconds: Counter[str] = Counter()

    def add(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        with self._lock:
            self._requests[route, status] += 1
            self._times.setdefault(route, [0] * (len(BOUNDS_S) + 1))[bisect.bisect_left(BOUNDS_S, seconds)] += 1
            self._seconds[route] += seconds  # type: ignore[assignment]

    def percentile_s(self, route: str, percent: float) -> float | None:
        """An upper bound of a percentile of times in seconds, at most 1.4 times too high; None without requests."""
        with self._lock:
            counts = list(self._times.get(route, ()))
        wanted, seen = math.ceil(sum(counts) * percent / 100), 0
        for bound, count in zip((*BOUNDS_S, math.inf), counts, strict=False):
            seen += count
            if count and seen >= wanted:
                return bound
        return None

    def to_prometheus(self) -> list[str]:
        """The lines of the requests and their times."""
        with self._lock:
            requests = sorted(self._requests.items())
            times = {route: list(counts) for route, counts in self._times.items()}
            seconds = dict(self._seconds)
        lines = ["# TYPE headrace_serve_requests counter"]
        lines += [
            f'headrace_serve_requests{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in requests
        ]
        lines += ["# TYPE headrace_serve_request_s histogram"]
        for route, counts in times.items():
            total = 0
            for bound, count in zip((*BOUNDS_S, math.inf), counts, strict=True):
                total += count
                name = "+Inf" if bound == math.inf else f"{bound:.6g}"
                lines.append(f'headrace_serve_request_s_bucket{{route="{route}",le="{name}"}} {total}')
            lines.append(f'headrace_serve_request_s_sum{{route="{route}"}} {seconds[route]:.6f}')
            lines.append(f'headrace_serve_request_s_count{{route="{route}"}} {total}')
        return lines


def gauges(values: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The lines of the metrics of models, by name of the model and names of `SERVING`."""
    lines = []
    for metric in SERVING:
        written = f"headrace_{metric.name.replace('.', '_')}"
        samples = [
            f'{written}{{model="{model}"}} {of_model[metric.name]!r}'
            for model, of_model in values.items()
            if metric.name in of_model
        ]
        if samples:
            kind = "counter" if metric.kind is Kind.COUNTER else "gauge"
            lines += [f"# HELP {written} {metric.description}", f"# TYPE {written} {kind}", *samples]
    return lines


def quality_lines(quality: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> list[str]:
    """The lines of what labels say of models, see `Feedback.quality`."""
    lines = []
    for name in ("ne", "calibration", "rows"):
        metric = SERVING[f"serve.labels_{name}"]
        written = f"headrace_{metric.name.replace('.', '_')}"
        samples = [
            f'{written}{{model="{model}",label="{label}"}} {found[name]!r}'
            for model, of_model in quality.items()
            for label, found in of_model.items()
            if found[name] is not None
        ]
        if samples:
            kind = "counter" if metric.kind is Kind.COUNTER else "gauge"
            lines += [f"# HELP {written} {metric.description}", f"# TYPE {written} {kind}", *samples]
    return lines
