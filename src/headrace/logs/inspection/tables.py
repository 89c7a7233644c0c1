"""Prints an inspection as tables, for terminals of 100 to 120 columns and for pipes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pyarrow.types as pt
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.logs.casting import TICKS_PER_S
from headrace.logs.inspection.budget_sizes import budget_sizes
from headrace.logs.inspection.guesses import Guess, Part
from headrace.logs.inspection.inspection import LARGE_ROW_GROUP_BYTES, Inspection
from headrace.logs.inspection.profiles import ColumnProfile
from headrace.logs.inspection.session_tracker import SessionTracker
from headrace.messages import count_of, one_line, shorten_list
from headrace.observe.progress import format_count
from headrace.resources import format_bytes

__all__ = ["print_budget_sizes", "print_inspection"]

MAX_LINES = 12
"""Maximum lines of each list of warnings; the number of further ones is shown."""

MAX_GROUPS = 24
MAX_NAMES = 6
"""Maximum groups to print, and names per group."""


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Print an inspection: columns, labels, sessions, row groups, bad rows, and the reasons of the guesses."""
    for part in _parts(inspection, is_terminal=console.is_terminal):
        console.print(part)
        console.print()


def _parts(inspection: Inspection, *, is_terminal: bool) -> Iterator[RenderableType]:
    style = box.SIMPLE_HEAD if is_terminal else box.ASCII2
    yield _summary(inspection)
    yield _columns_table(inspection, style)
    labels = [p for p, g in zip(inspection.profiles, inspection.guesses, strict=True) if g.part == "label"]
    schema = inspection.schema
    numbers = {label.name for label in schema.labels if label.is_regression} if schema is not None else set()
    lines = [
        f"label {one_line(p.name)}: {'mean' if p.name in numbers else 'rate'} {p.mean:.4f} of {p.num_values:,} rows"
        for p in labels
        if p.mean is not None
    ]
    if inspection.sessions is not None:
        lines += _session_lines(inspection.sessions, inspection.schema.session_id if inspection.schema else None)
    times = [p for p, g in zip(inspection.profiles, inspection.guesses, strict=True) if g.part == "timestamp"]
    lines += [_order_line(profile) for profile in times if profile.min is not None]
    if lines:
        yield Group(*(Text(line) for line in lines))
    yield _row_group_lines(inspection)
    yield from _groups(inspection, style)
    yield from _overlaps(inspection, style)
    yield from _bad_rows(inspection, style)
    yield _reasons_table(inspection.guesses, style)
    if inspection.schema is None:
        yield Text("no column looks like a label, so there is no schema and rows were not checked", style="yellow")


def print_budget_sizes(inspection: Inspection, console: Console) -> None:
    """Print which part of the ids of a log tables under a budget would hold, for several sizes."""
    found = [
        profile
        for profile, guess in zip(inspection.profiles, inspection.guesses, strict=True)
        if guess.part in ("id", "id_list") and profile.ids.num_values
    ]
    if not found:
        console.print("no columns of ids, so there is nothing to limit")
        return
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2, pad_edge=False, padding=(0, 1))
    for title in ("budget", "smaller", "ids with a row", "of all occurrences", "least covered"):
        table.add_column(title, justify="right", no_wrap=True)
    for size in budget_sizes([profile.ids for profile in found]):
        least = min(range(len(found)), key=lambda number: size.shares[number])
        table.add_row(
            f"{100 / size.times_smaller:g}%",
            f"{size.times_smaller}x",
            f"{size.num_rows:,}",
            _percent(size.share),
            f"{one_line(found[least].name)} {_percent(size.shares[least])}",
        )
    console.print(table)
    console.print("embeddings.budget takes the first column, with num_embeddings of each table its distinct ids.")


def _summary(inspection: Inspection) -> Text:
    files = count_of(inspection.num_files, "file")
    text = f"{inspection.location}: {inspection.num_rows:,} rows, {files}, {format_bytes(inspection.size_bytes)}"
    if inspection.partitions:
        text += f", in folders by {shorten_list(inspection.partitions)}"
    return Text(text, style="bold")


def _columns_table(inspection: Inspection, style: box.Box) -> Table:
    table = Table(box=style, pad_edge=False, padding=(0, 1))
    table.add_column("column", overflow="fold", min_width=8)
    table.add_column("role", no_wrap=True)
    table.add_column("type", overflow="fold", min_width=6)
    for title in ("null", "distinct", "top 1 %"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("values", overflow="fold", min_width=16)
    if inspection.duplication:
        table.add_column("repeats", justify="right", no_wrap=True)
    for profile, guess in zip(inspection.profiles, inspection.guesses, strict=True):
        distinct = profile.ids.num_distinct()
        cells = [
            one_line(profile.name),
            guess.part if guess.part != "ignored" else "-",
            _short_type(profile),
            _percent(profile.null_ratio) if profile.num_nulls else "0",
            _count(distinct, is_exact=profile.ids.is_exact),
            _percent(profile.ids.top_share()) if profile.ids.num_values and guess.part != "label" else "-",
            _times(profile, inspection) if guess.part == "timestamp" else _values(profile, guess.part),
        ]
        if inspection.duplication:
            share = inspection.duplication.get(profile.name)
            cells.append("-" if share is None else _percent(share))
        table.add_row(*map(Text, cells), style="dim" if guess.part == "ignored" else None)
    return table


def _short_type(profile: ColumnProfile) -> str:
    names = [str(kind).replace("item: ", "").replace("element: ", "").replace("not null", "") for kind in profile.types]
    if profile.is_dictionary:
        names = [f"{profile.kind} codes"]
    return " / ".join(names)


def _values(profile: ColumnProfile, part: Part) -> str:
    if profile.is_list:
        p50, p99 = profile.percentile_length(50), profile.percentile_length(99)
        return f"length mean {profile.mean_length:.3g}, p50 {p50}, p99 {p99}, max {profile.max_length}"
    if profile.min is None or profile.max is None:
        return ""
    text = f"{_number(profile.min)} to {_number(profile.max)}"
    if part not in ("id", "session_id", "row_id"):  # the mean of ids is meaningless
        text += f", mean {_number(profile.mean or 0.0)}"
    return text + (f", {profile.num_not_finite:,} not finite" if profile.num_not_finite else "")


def _times(profile: ColumnProfile, inspection: Inspection) -> str:
    clock = inspection.schema.timestamp if inspection.schema is not None else None
    unit = "ms" if pt.is_date(profile.type) else getattr(profile.type, "unit", clock.unit if clock else "ms")
    if profile.min is None or profile.max is None or unit not in TICKS_PER_S:
        return ""
    try:
        ends = [datetime.fromtimestamp(end / TICKS_PER_S[unit], UTC) for end in (profile.min, profile.max)]
    except (ValueError, OverflowError, OSError):  # bad rows may have any value
        return f"{profile.min} to {profile.max}"
    return f"{ends[0]:%Y-%m-%d %H:%M:%S} to {ends[1]:%Y-%m-%d %H:%M:%S} UTC"


def _number(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**7 else f"{value:.4g}"


def _count(count: float, *, is_exact: bool) -> str:
    return f"{count:,.0f}" if is_exact else f"~{format_count(float(f'{count:.3g}'))}"


def _percent(ratio: float) -> str:
    if 0 < ratio < 0.0005:
        return "<0.1 %"
    return f"{100 * ratio:.1f} %"


def _session_lines(sessions: SessionTracker, name: str | None) -> list[str]:
    count = sessions.num_sessions
    lines = [
        f"session {name}: {_count(count, is_exact=sessions.is_exact)} sessions, rows per session: "
        f"mean {sessions.mean_rows():.2f}, p50 {sessions.percentile_rows(50)}, p99 {sessions.percentile_rows(99)}, "
        f"max {sessions.max_rows():,}",
        "repeats: share of rows with the same value as the previous row of their session "
        f"(of {sessions.num_following:,} rows that have one)",
    ]
    if sessions.num_returns == 0:
        lines.append("the rows of each session are adjacent")
    else:
        share = sessions.num_returns / max(1, sessions.num_following)
        lines.append(f"sessions are interleaved: {_percent(share)} of these rows come after rows of other sessions")
    if sessions.num_split > 0.01 * count:
        lines.append(
            f"about {sessions.num_split:,} sessions returned too late to be recognised, and were counted again"
        )
    return lines


def _order_line(profile: ColumnProfile) -> str:
    if profile.num_backward == 0:
        return f"timestamp {profile.name}: in order"
    share = profile.num_backward / max(1, profile.num_values)
    return f"timestamp {profile.name}: not in order, {_percent(share)} of the rows are earlier than the previous row"


def _row_group_lines(inspection: Inspection) -> RenderableType:
    groups = inspection.row_groups
    rows = np.array([group.num_rows for group in groups] or [0])
    sizes = np.array([group.num_bytes for group in groups] or [0])
    lines = [
        Text(
            f"row groups: {len(groups):,}; rows: median {np.median(rows):,.0f}, max {rows.max():,}; "
            f"uncompressed: median {format_bytes(float(np.median(sizes)))}, max {format_bytes(float(sizes.max()))}"
        )
    ]
    large = inspection.large_row_groups
    for group in large[:MAX_LINES]:
        where = f"{group.file}, row group {group.number}"
        text = f"warning: {where}: {format_bytes(group.num_bytes)} uncompressed, above "
        lines.append(Text(f"{text}{format_bytes(LARGE_ROW_GROUP_BYTES)}; write smaller row groups", style="yellow"))
    if len(large) > MAX_LINES:
        lines.append(Text(f"... and {len(large) - MAX_LINES:,} more", style="yellow"))
    return Group(*lines)


def _groups(inspection: Inspection, style: box.Box) -> Iterator[RenderableType]:
    if inspection.layout is not None:
        clustered = {"clustered": "rows of a session are adjacent", "nested": "one row per session"}
        yield Text(f"layout: {inspection.layout.kind}, {clustered[inspection.layout.kind]}")
    if not inspection.groups:
        return
    share = inspection.duplicate_bytes_ratio
    in_batch = inspection.batch_rows_per_session
    title = "columns that change together within sessions"
    table = Table(box=style, pad_edge=False, padding=(0, 1), title=title, title_justify="left")
    table.add_column("columns", overflow="fold", min_width=16)
    for name in ("repeats", "bytes/row", "rows per value", "in a batch", "saved/row", "group"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in inspection.groups[:MAX_GROUPS]:
        table.add_row(
            Text(_some_names(group.columns)),
            _percent(group.duplication),
            f"{group.row_bytes:,.0f}",
            f"{group.factor:.2f}",
            f"{group.batch_factor:.2f}",
            f"{group.saved_bytes:,.0f} B",
            "yes" if group.pays else "no",
        )
    if len(inspection.groups) > MAX_GROUPS:
        table.add_row(f"... and {len(inspection.groups) - MAX_GROUPS:,} more groups", *[""] * 6)
    yield table
    if share is not None:
        yield Text(f"{_percent(share)} of all bytes in memory repeat the previous row of the session")
    if in_batch is not None:
        yield Text(f"rows per session in a batch of 4,096 in log order: {in_batch:.3g}")
    yield Text(f"predicted for headrace cluster: {inspection.clustering_gain:.2f}x fewer bytes in memory")


def _overlaps(inspection: Inspection, style: box.Box) -> Iterator[RenderableType]:
    same = [overlap for overlap in inspection.overlaps if overlap.evidence is not None]
    others = len(inspection.overlaps) - len(same)
    if same:
        table = Table(box=style, pad_edge=False, padding=(0, 1), title="columns of the same ids", title_justify="left")
        for name in ("ids of", "found in"):
            table.add_column(name, overflow="fold", min_width=8)
        for name in ("ids", "share", "nearby ids"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("because", overflow="fold")
        for overlap in same[:MAX_GROUPS]:
            table.add_row(
                *(Text(one_line(name)) for name in overlap.columns),
                f"{overlap.num_ids:,}",
                _percent(overlap.ratio),
                "-" if overlap.chance is None else _percent(overlap.chance),
                Text(overlap.reason),
            )
        if len(same) > MAX_GROUPS:
            table.add_row(f"... and {len(same) - MAX_GROUPS:,} more pairs", *[""] * 5)
        yield table
    for columns in inspection.shared_tables:
        yield Text(f"one embedding table for {_some_names(columns)} (headrace init writes it to the job file)")
    if others:
        pairs = "1 pair of columns overlaps" if others == 1 else f"{others:,} pairs of columns overlap"
        yield Text(f"{pairs} by chance, as ids numbered from 0 do: no shared table (--json lists them)")


def _some_names(names: tuple[str, ...]) -> str:
    rest = len(names) - MAX_NAMES
    return ", ".join(map(one_line, names[:MAX_NAMES])) + (f" and {rest} more" if rest > 0 else "")


def _bad_rows(inspection: Inspection, style: box.Box) -> Iterator[RenderableType]:
    for reason in list(inspection.left_out.values())[:MAX_LINES]:
        yield Text(f"left out: {reason}", style="yellow")
    if len(inspection.left_out) > MAX_LINES:
        yield Text(f"... and {len(inspection.left_out) - MAX_LINES:,} more columns left out", style="yellow")
    for damage in inspection.damaged[:MAX_LINES]:
        yield Text(damage, style="red")
    if len(inspection.damaged) > MAX_LINES:
        yield Text(f"... and {len(inspection.damaged) - MAX_LINES:,} more damaged row groups", style="red")
    if inspection.schema is None:
        return
    if not inspection.bad_rows:
        yield Text(f"bad rows: none of {inspection.num_rows:,}", style="green")
        return
    share = _percent(inspection.num_bad / max(1, inspection.num_rows))
    table = Table(
        box=style,
        pad_edge=False,
        title=f"bad rows: {inspection.num_bad:,} of {inspection.num_rows:,} ({share})",
        title_justify="left",
        title_style="red",
    )
    table.add_column("column", overflow="fold")
    table.add_column("reason", overflow="fold")
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("first occurrence: file, row group, row", overflow="fold")
    table.add_column("given", overflow="fold", max_width=24)
    for bad in inspection.bad_rows:
        place = f"{bad.file}, {bad.row_group}, {bad.row:,}"
        cells = (one_line(bad.column), bad.reason, f"{bad.count:,}", place, bad.given)
        table.add_row(*map(Text, cells))
    yield table


def _reasons_table(guesses: tuple[Guess, ...], style: box.Box) -> RenderableType:
    table = Table(box=style, pad_edge=False, title="reasons for these roles", title_justify="left")
    for title in ("role", "reason", "columns"):
        table.add_column(title, overflow="fold", no_wrap=title == "role")
    together: dict[tuple[str, str], list[str]] = {}
    for guess in guesses:
        together.setdefault((guess.part, guess.reason), []).append(guess.name)
    for (part, reason), names in together.items():
        table.add_row(part, Text(reason), Text(", ".join(map(one_line, names))))
    return table
