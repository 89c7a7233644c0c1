"""Draws the timeline of the latest scheduled steps, with operators in lanes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

__all__ = ["SCHEDULE_FILE", "draw_timeline", "read_schedule", "timeline_lead"]

SCHEDULE_FILE = "schedule.json"
"""File name in the run folder."""

NUM_STEPS = 4
"""Maximum steps drawn; more would be too narrow to read."""

WIDTH, LEFT, LANE, BAR = 1080, 96, 26, 18
COLORS = {
    "read": "#9a9a9a",
    "features": "#2a9d8f",
    "pull": "#457b9d",
    "deferred_pull": "#a8c5da",
    "dense": "#e76f51",
    "update": "#f4a261",
    "push": "#8d5a97",
}
MEANINGS = {
    "read": "rows from the pipeline",
    "features": "feature computation, of one group if numbered",
    "pull": "rows from the store",
    "deferred_pull": "rows that an early pull skipped",
    "dense": "forward and backward",
    "update": "dense optimizer",
    "push": "gradients to the store",
}


def read_schedule(folder: str | Path) -> dict[str, Any] | None:
    """Read the trace of a run's latest scheduled steps (`Trace.to_dict` in `headrace.scheduling`), or None."""
    path = Path(folder) / SCHEDULE_FILE
    if not path.is_file():
        return None
    schedule: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for span in schedule["spans"]:
        span["kind"] = "deferred_pull" if span["kind"] == "held" else span["kind"]  # the name in older runs
    return schedule


def timeline_lead(schedule: Mapping[str, Any]) -> str:
    """Summary line above the drawing."""
    spans = _latest(schedule["spans"])
    if not spans:
        return ""
    start, end = _range(spans)
    network = _covered([span for span in spans if span["lane"] == "network"])
    both = network + _covered(_cpu(spans)) - _covered([span for span in spans if span["lane"] != "reader"])
    steps = len({span["step"] for span in spans if span["kind"] == "dense"})
    hidden = f", {both / network:.0%} of it overlapped with other work" if network else ""
    return (
        f"The latest {steps} steps under {schedule['policy']}, {1e3 * (end - start):.1f} ms; transfers took "
        f"{1e3 * network:.1f} ms{hidden}."
    )


def draw_timeline(schedule: Mapping[str, Any]) -> str:
    """Draw lanes from top to bottom: trainer, feature threads, reading, network; tooltips explain each operator."""
    spans = _latest(schedule["spans"])
    if not spans:
        return ""
    start, end = _range(spans)
    scale = (WIDTH - LEFT - 8) / max(end - start, 1e-9)
    lanes = _lanes(spans)
    height = LANE * len(lanes) + 22
    parts = []
    for row, (name, members) in enumerate(lanes):
        top = row * LANE
        parts.append(f'<text x="{LEFT - 8}" y="{top + 16}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<path d="M{LEFT} {top + LANE - 2}H{WIDTH}" stroke="currentColor" opacity=".12"/>')
        parts += [_bar(span, LEFT + scale * (span["start_s"] - start), top + 3, scale) for span in members]
    parts += _axis(start, end, scale, height)
    legend = "".join(
        f'<li><i class="area" style="background:{COLORS[kind]}"></i>{kind}: {MEANINGS[kind]}</li>'
        for kind in COLORS
        if any(span["kind"] == kind for span in spans)
    )
    return (
        f'<div class="card scroll"><svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="Timeline of steps" font-size="11" fill="currentColor">{"".join(parts)}</svg>'
        f'<ul class="legend">{legend}</ul></div>'
    )


def _bar(span: Mapping[str, Any], left: float, top: float, scale: float) -> str:
    width = max(0.8, scale * (span["end_s"] - span["start_s"]))
    group = f" {span['group']}" if span["group"] >= 0 else ""
    part = f", part {span['part']}" if span.get("part") else ""
    size = f", {span['num_bytes'] / 1e3:,.0f} kB" if span["num_bytes"] else ""
    title = (
        f"{span['kind']}{group} of step {span['step']}{part}, {1e3 * (span['end_s'] - span['start_s']):.2f} ms{size}: "
        f"{span['reason']}"
    )
    opacity = 1.0 if span["step"] % 2 == 0 else 0.66  # to distinguish neighbouring steps
    label = f'<text x="{left + 3:.1f}" y="{top + 13}" fill="#fff">{span["step"]}</text>' if width > 26 else ""
    return (
        f'<g><title>{escape(title)}</title><rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BAR}" rx="2" '
        f'fill="{COLORS[span["kind"]]}" opacity="{opacity}"/>{label}</g>'
    )


def _axis(start: float, end: float, scale: float, height: float) -> list[str]:
    total_ms = 1e3 * (end - start)
    sizes = (digit * 10.0**power for power in range(-2, 9) for digit in (1, 2, 5))
    step = next(size for size in sizes if total_ms / size < 12)
    marks = [number * step for number in range(int(total_ms / step) + 1)]
    return [
        f'<text x="{LEFT + scale * mark / 1e3:.1f}" y="{height - 6}" text-anchor="middle" opacity=".7">'
        f"{mark:g} ms</text>"
        for mark in marks
    ]


def _latest(spans: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Spans of the last complete steps."""
    steps = sorted({span["step"] for span in spans if span["kind"] == "push"})[-NUM_STEPS:]
    dense = [span for span in spans if span["kind"] == "dense" and span["step"] in steps]
    if not dense:
        return []
    begin = min(span["start_s"] for span in dense)
    end = max(span["end_s"] for span in spans if span["step"] in steps)
    return [span for span in spans if span["end_s"] > begin and span["start_s"] < end]


def _range(spans: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    return min(span["start_s"] for span in spans), max(span["end_s"] for span in spans)


def _cpu(spans: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [span for span in spans if span["lane"] not in ("network", "reader")]


def _covered(spans: Sequence[Mapping[str, Any]]) -> float:
    """Seconds during which at least one span ran."""
    total, reached = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span["start_s"]):
        total += max(0.0, span["end_s"] - max(span["start_s"], reached))
        reached = max(reached, span["end_s"])
    return total


def _lanes(spans: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """One lane per thread; transfers, which overlap, in as many lanes as they need."""
    threads = sorted({span["lane"] for span in _cpu(spans)} - {"trainer"})
    lanes = [(name, [span for span in spans if span["lane"] == name]) for name in ("trainer", *threads, "reader")]
    for kinds, name in ((("pull", "deferred_pull"), "pulls"), (("push",), "pushes")):
        rows: list[list[Mapping[str, Any]]] = []
        for span in sorted((span for span in spans if span["kind"] in kinds), key=lambda span: span["start_s"]):
            free = next((row for row in rows if row[-1]["end_s"] <= span["start_s"]), None)
            if free is None:
                rows.append([span])
            else:
                free.append(span)
        lanes += [(name if number == 0 else "", row) for number, row in enumerate(rows)]
    return [(name, members) for name, members in lanes if members]
