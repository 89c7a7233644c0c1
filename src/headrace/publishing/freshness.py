"""How old what a replica serves is: seconds behind, and ages of changed rows when readers first see them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.observe.metrics import Kind, Metric, MetricRegistry

__all__ = ["FRESHNESS", "Freshness", "SeenVersion", "freshness_of", "prometheus_text", "row_ages"]

WINDOW = 600
"""Versions over which ages are taken: ten minutes with one per second."""
SHARES = 32
"""Points in time between two cuts for which the rows of a version stand; p99 of ages is within 1/32 of a period."""

FRESHNESS = MetricRegistry()
"""Metrics of a replica, see `headrace freshness`."""

for _name, _unit, _kind, _description in (
    ("replica.served_version", "", Kind.GAUGE, "Version that readers get."),
    ("replica.newest_version", "", Kind.GAUGE, "Newest version in the replica's folder."),
    ("replica.seconds_behind", "s", Kind.GAUGE, "Time since the rows of the served version were copied."),
    ("replica.row_age_p50_s", "s", Kind.GAUGE, "Median age of a changed row when readers first saw the change."),
    ("replica.row_age_p99_s", "s", Kind.GAUGE, "99th percentile of these ages."),
    ("replica.fetched_bytes", "bytes", Kind.COUNTER, "Bytes fetched from publishers and other replicas."),
    ("replica.is_held", "", Kind.GAUGE, "1 if the replica was rolled back and stays at a version, otherwise 0."),
):
    FRESHNESS.declare(_name, unit=_unit, kind=_kind, description=_description)


@dataclass(frozen=True)
class SeenVersion:
    """A version when it became visible to readers.

    Attributes:
        since: When the rows of the version before were copied, in seconds since 1970.
        cut_at: When its own rows were copied.
        seen_at: When readers saw it.
        rows: Its changed rows.
    """

    since: float
    cut_at: float
    seen_at: float
    rows: int


def row_ages(seen: Sequence[SeenVersion], percentiles: Sequence[float]) -> list[float] | None:
    """Ages of changed rows when their version became visible, in seconds; None without a changed row.

    A row of a version was changed at some time between its copy and the copy before, taken as uniform.

    Args:
        seen: Versions.
        percentiles: Percentiles, 0 to 100.
    """
    weights = np.array([version.rows for version in seen], dtype=np.float64)
    if not weights.sum():
        return None
    cuts, since, times = (np.array([getattr(each, name) for each in seen]) for name in ("cut_at", "since", "seen_at"))
    shares = (np.arange(SHARES) + 0.5) / SHARES
    ages = (times - cuts)[:, None] + (cuts - since)[:, None] * shares
    order = np.argsort(ages, axis=None)
    total = np.cumsum(np.repeat(weights, SHARES)[order])
    places = np.searchsorted(total, np.asarray(percentiles) / 100 * total[-1])
    found: list[float] = ages.ravel()[order][np.minimum(places, ages.size - 1)].tolist()
    return found


class Freshness:
    """Records when versions became visible."""

    def __init__(self) -> None:
        self._seen: deque[SeenVersion] = deque(maxlen=WINDOW)
        self._cut_at: float | None = None

    def note(self, cut_at: float, rows: int, seen_at: float) -> None:
        """Record that a version became visible. The first one has no time before it, and counts for nothing.

        Args:
            cut_at: When its rows were copied, in seconds since 1970.
            rows: Its changed rows.
            seen_at: Now.
        """
        if self._cut_at is not None and cut_at > self._cut_at:
            self._seen.append(SeenVersion(self._cut_at, cut_at, seen_at, rows))
        self._cut_at = cut_at

    def ages(self) -> dict[str, float | None]:
        """`row_age_p50_s` and `row_age_p99_s`, as in `FRESHNESS`; None before the second version."""
        p50, p99 = row_ages(list(self._seen), (50, 99)) or (None, None)
        return {"row_age_p50_s": p50, "row_age_p99_s": p99}


def freshness_of(status: Mapping[str, Any], now: float) -> dict[str, float | None]:
    """The metrics of `FRESHNESS` by name, from the status of a replica; None for those that are not known.

    Args:
        status: What the replica answers to the action `replica`, see `Replica.status`.
        now: Seconds since 1970, by the clock of the publisher's machine.
    """
    cut_at, fetched = status.get("cut_at"), status.get("bytes_from") or {}
    return {
        "replica.served_version": status.get("served"),
        "replica.newest_version": status.get("newest"),
        "replica.seconds_behind": None if cut_at is None else max(0.0, now - cut_at),
        "replica.row_age_p50_s": status.get("row_age_p50_s"),
        "replica.row_age_p99_s": status.get("row_age_p99_s"),
        "replica.fetched_bytes": sum(fetched.values()),
        "replica.is_held": float(status.get("held") is not None),
    }


def prometheus_text(metrics: Iterable[Metric], values: Mapping[str, Mapping[str, float | None]]) -> str:
    """Metrics in the text format of Prometheus (version 0.0.4).

    Args:
        metrics: Their declarations.
        values: For each replica, values by name of the metric; those that are None are left out.
    """
    lines = []
    for metric in metrics:
        name = f"headrace_{metric.name.replace('.', '_')}"
        samples = [
            f'{name}{{replica="{replica}"}} {of_replica[metric.name]!r}'
            for replica, of_replica in values.items()
            if of_replica.get(metric.name) is not None
        ]
        if samples:
            kind = "counter" if metric.kind is Kind.COUNTER else "gauge"
            lines += [f"# HELP {name} {metric.description}", f"# TYPE {name} {kind}", *samples]
    return "".join(f"{line}\n" for line in lines)
