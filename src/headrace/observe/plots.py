"""Renders plots as SVG: lines, stacked areas and levels over rows or time. They need no script.

Each plot comes with a small JSON object with the pixels and texts of all points, from which the page's script shows a
crosshair and a tooltip. Colours are CSS classes, so the style sheet handles light and dark mode.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from headrace.messages import to_json
from headrace.observe.run_data import Floats
from headrace.observe.scales import FORMATS, Scale, bucket_means, nice_ticks, tick_writer

__all__ = ["Level", "Mark", "Plot", "Series", "render_plot"]

MAX_POINTS = 180
"""Maximum points of a line: one per three pixels, so that noise does not hide the trend and the page stays small."""

MIN_POINTS_TO_CLIP = 10
OUTLIER_REACH = 1.0
"""Points beyond the 5th and 95th percentiles by more than this multiple of their distance do not affect the scale."""

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 552, 20, 204


@dataclass(frozen=True)
class Series:
    """One value per x of the plot.

    Attributes:
        name: Name in legend and tooltip.
        values: float64, one per x; NaN leaves a gap.
        color: Colour class of the style sheet.
    """

    name: str
    values: Floats
    color: str


@dataclass(frozen=True)
class Level:
    """A value that is constant over ranges of x: a window's result, a bound, a baseline.

    Attributes:
        spans: (first x, last x, value) of each range.
        dashed: Whether to draw it dashed, for references rather than results.
    """

    name: str
    spans: tuple[tuple[float, float, float], ...]
    color: str
    dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line with a tooltip and a label, for the end of a window or a decision."""

    x: float
    text: str
    label: str = ""


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        title: Title.
        note: One line under the title.
        x: float64, non-decreasing.
        x_format: "count" (rows) or "time".
        series: Lines, or areas from the bottom up if stacked.
        levels: Values that are constant over ranges.
        marks: Vertical lines.
        y_format: Key of `FORMATS`.
        from_zero: Whether the y axis starts at 0.
    """

    title: str
    note: str
    x: Floats
    x_format: str
    series: tuple[Series, ...] = ()
    levels: tuple[Level, ...] = ()
    marks: tuple[Mark, ...] = field(default=(), kw_only=True)
    y_format: str = "number"
    from_zero: bool = False
    stacked: bool = False


def render_plot(plot: Plot) -> str:
    """Render the plot as an HTML figure with inline SVG and tooltip data; it needs no script to be visible."""
    x, _, _ = bucket_means(plot.x, MAX_POINTS)
    lines = [(series, *bucket_means(series.values, MAX_POINTS)) for series in plot.series]
    x_scale = _x_scale(plot, x)
    tops = _stack_tops([mean for _, mean, _, _ in lines]) if plot.stacked else [mean for _, mean, _, _ in lines]
    y_scale = _y_scale(plot, tops)
    x_px = x_scale(x)
    drawn = _stack(plot, x_px, tops, y_scale) if plot.stacked else _lines(lines, x_px, y_scale)
    drawn += [_level(level, x_scale, y_scale) for level in plot.levels]
    clip = f"clip-{zlib.crc32(plot.title.encode()):08x}"
    label = escape(f"{plot.title}: {plot.note}")
    body = "".join(
        [
            f'<clipPath id="{clip}"><rect x="{LEFT}" y="{TOP - 3}" width="{WIDTH - LEFT}" '
            f'height="{BOTTOM - TOP + 6}"/></clipPath>',
            _y_axis(plot, y_scale),
            _x_axis(plot, x_scale),
            _marks(plot, x_scale),
            f'<g clip-path="url(#{clip})">{"".join(drawn)}</g>',
            _clipped(plot, tops, y_scale),
            '<g class="hover"></g>',
        ]
    )
    data = to_json(_hover_data(plot, x, x_px, lines, tops, y_scale)).replace("<", "\\u003c")
    return (
        f'<figure class="plot" data-axis="{plot.x_format}"><figcaption><b>{escape(plot.title)}</b> '
        f"<span>{escape(plot.note)}</span></figcaption>{_legend(plot)}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>'
        f'<script type="application/json">{data}</script></figure>'
    )


def _x_scale(plot: Plot, x: Floats) -> Scale:
    ends = [*x.tolist(), *(end for level in plot.levels for span in level.spans for end in span[:2])]
    high = max([end for end in ends if math.isfinite(end)], default=1.0)
    return Scale(0.0, high if high > 0 else 1.0, LEFT, RIGHT)


def _y_scale(plot: Plot, tops: Sequence[Floats]) -> Scale:
    seen = np.concatenate([np.empty(0), *tops])
    seen = seen[np.isfinite(seen)]
    held = [value for level in plot.levels for _, _, value in level.spans if math.isfinite(value)]
    seen = _without_outliers(tops[-1][np.isfinite(tops[-1])] if plot.stacked and tops else seen)
    values = [*seen.tolist(), *held]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if plot.from_zero:
        low, high = 0.0, high if high > 0 else 1.0
    margin = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return Scale(0.0 if plot.from_zero else low - margin, high + margin, BOTTOM, TOP)


def _without_outliers(values: Floats) -> Floats:
    """Drop the few values that would flatten all others; they are clipped, and the plot shows their maximum."""
    if len(values) < MIN_POINTS_TO_CLIP:
        return values
    low, middle, high = np.percentile(values, [5, 50, 95])
    reach = OUTLIER_REACH * max(high - low, 0.02 * abs(middle))
    within: Floats = values[(values >= low - reach) & (values <= high + reach)]
    return within


def _clipped(plot: Plot, tops: Sequence[Floats], y_scale: Scale) -> str:
    """The maximum of values clipped at the top."""
    most = max((float(np.nanmax(top)) for top in tops if np.isfinite(top).any()), default=-math.inf)
    if most <= y_scale.high:
        return ""
    text = escape(f"up to {FORMATS[plot.y_format](most)}")
    return f'<text class="name" x="{RIGHT}" y="{TOP + 7}" text-anchor="end">\u2191 {text}</text>'


def _stack_tops(parts: Sequence[Floats]) -> list[Floats]:
    total = np.zeros(len(parts[0]) if parts else 0)
    tops = []
    for part in parts:
        total = total + np.nan_to_num(part)
        tops.append(total)
    return tops


def _points(x_px: Floats, y_px: Floats) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(x_px, y_px, strict=True))


def _path(x_px: Floats, y_px: Floats) -> str:
    parts, pen = [], "M"
    for x, y in zip(x_px.tolist(), y_px.tolist(), strict=True):
        if math.isfinite(y):
            parts.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def _lines(lines: Sequence[tuple[Series, Floats, Floats, Floats]], x_px: Floats, y_scale: Scale) -> list[str]:
    drawn = []
    for series, mean, low, high in lines:
        known = np.isfinite(mean)
        if len(lines) == 1 and low is not mean and known.any():  # draw the range of many records behind the line
            edge_x = np.concatenate([x_px[known], x_px[known][::-1]])
            edge_y = np.concatenate([y_scale(high)[known], y_scale(low)[known][::-1]])
            drawn.append(f'<polygon class="range {series.color}" points="{_points(edge_x, edge_y)}"/>')
    for series, mean, _, _ in lines:
        y_px = y_scale(mean)
        drawn.append(f'<path class="line {series.color}" d="{_path(x_px, y_px)}"/>')
        known = np.isfinite(y_px)
        alone = known & ~np.append(known[1:], False) & ~np.insert(known[:-1], 0, False)
        drawn += [
            f'<circle class="dot {series.color}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
            for x, y in zip(x_px[alone], y_px[alone], strict=True)
        ]
    return drawn


def _stack(plot: Plot, x_px: Floats, tops: Sequence[Floats], y_scale: Scale) -> list[str]:
    if not len(x_px):
        return []
    # The first record covers the time since the start, and a single one still has a width.
    x_px = np.insert(x_px, 0, LEFT)
    drawn, below = [], np.full(len(x_px), float(BOTTOM))
    for series, top in zip(plot.series, tops, strict=True):
        y_px = y_scale(top)
        y_px = np.insert(y_px, 0, y_px[0])
        edge = _points(np.concatenate([x_px, x_px[::-1]]), np.concatenate([y_px, below[::-1]]))
        drawn.append(f'<polygon class="area {series.color}" points="{edge}"/>')
        below = y_px
    return drawn


def _level(level: Level, x_scale: Scale, y_scale: Scale) -> str:
    path = "".join(
        f"M{float(x_scale(first)):.1f} {float(y_scale(value)):.1f}H{float(x_scale(last)):.1f}"
        for first, last, value in level.spans
        if math.isfinite(value)
    )
    return f'<path class="level {level.color}{" dashed" if level.dashed else ""}" d="{path}"/>'


def _y_axis(plot: Plot, y_scale: Scale) -> str:
    parts = []
    ticks = nice_ticks(y_scale.low, y_scale.high, 5, kind=plot.y_format)
    write = tick_writer(plot.y_format, ticks)
    for tick in ticks:
        y = float(y_scale(tick))
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{escape(write(tick))}</text>'
        )
    return "".join(parts)


def _x_axis(plot: Plot, x_scale: Scale) -> str:
    parts = [f'<line class="base" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>']
    ticks = nice_ticks(x_scale.low, x_scale.high, 6, kind=plot.x_format)
    write = tick_writer(plot.x_format, ticks)
    for tick in ticks:
        x = float(x_scale(tick))
        anchor = "end" if x > RIGHT - 16 else "middle"
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{BOTTOM + 17}" text-anchor="{anchor}">{escape(write(tick))}</text>'
        )
    return "".join(parts)


def _marks(plot: Plot, x_scale: Scale) -> str:
    parts, before = [], float(LEFT)
    kind = "mark many" if len(plot.marks) > 20 else "mark"
    for mark in plot.marks:
        x = float(x_scale(mark.x))
        parts.append(
            f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{BOTTOM}">'
            f"<title>{escape(mark.text)}</title></line>"
        )
        name = mark.label or (mark.text if plot.x_format == "count" else "")
        if name and x - before > 7 * len(name):  # the window's name or the decision's number, if there is room
            middle = x if mark.label else (before + x) / 2
            parts.append(
                f'<text class="name" x="{middle:.1f}" y="{TOP - 7}" text-anchor="middle">{escape(name)}</text>'
            )
            before = x
        elif not mark.label:
            before = x
    return "".join(parts)


def _legend(plot: Plot) -> str:
    keys = [(series.name, series.color, "area" if plot.stacked else "line") for series in plot.series]
    keys += [(level.name, level.color, "dashed" if level.dashed else "level") for level in plot.levels]
    items = "".join(f'<li><i class="{kind} {color}"></i>{escape(name)}</li>' for name, color, kind in keys)
    return f'<ul class="legend">{items}</ul>'


def _hover_data(
    plot: Plot,
    x: Floats,
    x_px: Floats,
    lines: Sequence[tuple[Series, Floats, Floats, Floats]],
    tops: Sequence[Floats],
    y_scale: Scale,
) -> dict[str, object]:
    write = FORMATS[plot.y_format]
    at = x if len(x) else np.array([last for level in plot.levels[:1] for _, last, _ in level.spans])
    if not len(x):
        x_px = _x_scale(plot, x)(at)

    def entry(name: str, color: str, values: Floats, y_px: Floats | None) -> dict[str, object]:
        pixels = [] if y_px is None else [round(y, 1) if TOP - 3 <= y <= BOTTOM + 3 else None for y in y_px.tolist()]
        texts = [write(value) if math.isfinite(value) else "" for value in values.tolist()]
        return {"n": name, "c": color, "v": texts, "y": pixels}

    entries = [
        entry(series.name, series.color, mean, None if plot.stacked else y_scale(top))
        for (series, mean, _, _), top in zip(lines, tops, strict=True)
    ]
    if plot.stacked:
        entries.reverse()  # in stacking order
    entries += [entry(level.name, level.color, _level_at(level, at), None) for level in plot.levels]
    places = [FORMATS[plot.x_format](value) + (" rows" if plot.x_format == "count" else "") for value in at.tolist()]
    return {"x": [round(px, 1) for px in x_px.tolist()], "t": places, "w": _mark_texts(plot, at), "s": entries}


def _mark_texts(plot: Plot, at: Floats) -> list[str]:
    """Text about marks at each point: over rows its window, over time the nearest decisions."""
    borders = np.array([mark.x for mark in plot.marks])
    if plot.x_format == "count":
        names = [*(mark.text for mark in plot.marks), ""]
        return [names[min(index, len(names) - 1)] for index in np.searchsorted(borders, at, side="left").tolist()]
    texts = [""] * len(at)
    for mark in plot.marks if len(at) else ():
        nearest = int(np.argmin(np.abs(at - mark.x)))
        texts[nearest] += ("; " if texts[nearest] else "") + mark.text
    return texts


def _level_at(level: Level, at: Floats) -> Floats:
    values = np.full(len(at), np.nan)
    for first, last, value in level.spans:
        values[(at > first) & (at <= last)] = value
    return values
