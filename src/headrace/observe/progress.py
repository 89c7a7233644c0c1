"""`Progress`: shows a job's progress, as a bar on a terminal or as periodic lines in a pipe."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Self, TypeVar

import rich.progress
from rich.console import Console
from rich.table import Column
from rich.text import Text

__all__ = ["Progress", "RateMeter", "format_count", "format_duration", "track_progress"]

T = TypeVar("T")

SHORT_S = 2.0
"""Shorter jobs print no lines in pipes unless asked to."""
LINE_EVERY_S = 10.0
"""Interval of lines: often enough to see that a job is alive, and only 360 lines per hour in a log file."""
REFRESH_S = 0.1
"""Minimum interval of drawing a bar, which takes about a millisecond."""
RATE_WINDOW_S = 10.0
MIN_BAR = 4
"""Characters of a bar beside a text that leaves no room for more."""


class RateMeter:
    """The rate of a count over the last seconds, which follows changes without jumping at each step."""

    def __init__(self, start_s: float, window_s: float = RATE_WINDOW_S) -> None:
        """Start at a count of 0 at time `start_s`, averaging over `window_s` seconds."""
        self._marks = deque([(start_s, 0.0)])
        self._window_s = window_s

    def update(self, now_s: float, count: float) -> float:
        """Update the count; returns the rate per second (0 until time has passed)."""
        self._marks.append((now_s, count))
        while len(self._marks) > 2 and self._marks[1][0] <= now_s - self._window_s:
            self._marks.popleft()
        first_s, first_count = self._marks[0]
        return (count - first_count) / (now_s - first_s) if now_s > first_s else 0.0


class Progress:
    """Shows the progress of a job.

    On a terminal it shows a bar with count, rate, time left and the job's own columns; otherwise a line every ten
    seconds and one at the end, each flushed. Both go to standard error, so results can be piped. It starts no thread:
    it draws inside `update`, at most ten times per second.

        with Progress("train", total=5_000_000) as progress:
            for batch in batches:
                ...
                progress.advance(len(batch), {"loss": loss, "auc": auc, "limiting": "read"})
    """

    def __init__(
        self,
        what: str,
        *,
        total: int | None = None,
        unit: str = "rows",
        always_ends: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Configure the display; nothing is drawn before entering the context.

        Args:
            what: Name of the job, at the start of the bar or line.
            total: Final count, or None if unknown.
            unit: Unit of the count.
            always_ends: Whether to print the final line even for short jobs, if anything was counted.
            console: Console to draw on; None for standard error.
            clock: Returns monotonic seconds.
        """
        self.what = what
        self.total = total
        self.unit = unit
        self.done = 0
        self._console = console or Console(stderr=True, soft_wrap=True)
        self._clock = clock
        self._start_s = clock()
        self._rate = RateMeter(self._start_s)
        self._rows_per_s = 0.0
        self._columns: dict[str, Any] = {}
        self._always_ends = always_ends
        self._end = "done"
        self._totals_s: float | None = None
        self._next_s = self._start_s + (0.0 if self._console.is_terminal else LINE_EVERY_S)
        self._bar: rich.progress.Progress | None = None
        self._task = rich.progress.TaskID(0)
        self._num_lines = 0

    def __enter__(self) -> Self:
        self._start_s = self._clock()
        self._rate = RateMeter(self._start_s)
        if self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("[bold]{task.description}", table_column=Column(no_wrap=True)),
                rich.progress.BarColumn(bar_width=20, table_column=Column(min_width=MIN_BAR)),
                rich.progress.TextColumn("{task.fields[status]}"),
                console=self._console,
                auto_refresh=False,
                get_time=self._clock,
            )
            self._task = self._bar.add_task(self.what, total=self.total, status=Text())
            self._bar.start()
        else:
            self._next_s = self._start_s + LINE_EVERY_S
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        now_s = self._clock()
        end = "stopped" if kind else self._end
        if self._bar is not None:
            self._draw(now_s, end)
            self._bar.stop()
            self._bar = None
        elif self._num_lines > 0 or now_s - self._start_s >= SHORT_S or (self._always_ends and self.done):
            self._print_line(now_s, end)

    def advance(self, count: int = 1, columns: Mapping[str, Any] | None = None) -> None:
        """Add to the count and refresh the display; see `update`."""
        self.update(self.done + count, columns)

    def update(self, done: int, columns: Mapping[str, Any] | None = None) -> None:
        """Set the count and refresh the display.

        Args:
            done: Count so far.
            columns: Name -> number or text to show after the count, in this order; a name keeps its last value.
        """
        self.done = done
        if columns:
            self._columns.update(columns)
        now_s = self._clock()
        if now_s < self._next_s:
            return
        if self._bar is not None:
            self._draw(now_s)
            self._next_s = now_s + REFRESH_S
        elif not self._console.is_terminal:
            self._print_line(now_s)
            self._next_s = now_s + LINE_EVERY_S

    def finish(self, done: int, seconds: float, columns: Mapping[str, Any]) -> None:
        """Set the final totals, which are drawn when the context ends.

        Args:
            done: Final count.
            seconds: Total seconds, from which the rate is computed.
            columns: Columns that replace all those shown so far.
        """
        self.done = done
        self._columns = dict(columns)
        self._totals_s = seconds

    def stop(self) -> None:
        """Mark the job as stopped early, which the final line shows."""
        self._end = "stopped"

    def print(self, text: str) -> None:
        """Print a line of text above the bar or between the lines."""
        self._console.print(Text(text))

    def _draw(self, now_s: float, end: str | None = None) -> None:
        if self._bar is not None:
            self._rows_per_s = self._rate.update(now_s, self.done)
            status = Text(self._fitting(self._parts(now_s, end)), no_wrap=True, overflow="ellipsis")
            completed = self.done if self._totals_s is None else self.total or self.done
            self._bar.update(self._task, completed=completed, total=self.total, status=status)
            self._bar.refresh()

    def _print_line(self, now_s: float, end: str | None = None) -> None:
        self._rows_per_s = self._rate.update(now_s, self.done)
        self._console.print(Text(f"{self.what}: " + "  ".join(self._parts(now_s, end))), soft_wrap=True)
        self._num_lines += 1

    def _fitting(self, parts: list[str]) -> str:
        """The text of a bar that fits on the terminal: without the last of the job's own columns if there are too many.
        The time left, or taken, stays at the end."""
        room = self._console.width - len(self.what) - MIN_BAR - 2  # a space on each side of the bar
        spare = len(self._column_parts())
        while spare and len("  ".join(parts)) > room:
            spare -= 1
            del parts[-2]
        return "  ".join(parts)

    def _parts(self, now_s: float, end: str | None) -> list[str]:
        if end == "done" and self._totals_s is not None:
            return self._totals(self._totals_s)
        elapsed_s = now_s - self._start_s
        count = format_count(self.done)
        if self.total:
            count += f" of {format_count(self.total)}"
        parts = [f"{count} {self.unit}"]
        if self.total:
            parts.append(f"{min(1.0, self.done / self.total):.0%}")
        rate = self._rows_per_s if end is None else self.done / elapsed_s if elapsed_s > 0 else 0.0
        if rate > 0:
            parts.append(f"{format_count(rate)} {self.unit}/s")
        parts += self._column_parts()
        if end is not None:
            parts.append(f"{end} in {format_duration(elapsed_s)}")
        elif self.total and rate > 0:
            parts.append(f"ETA {format_duration(max(0, self.total - self.done) / rate)}")
        return parts

    def _totals(self, seconds: float) -> list[str]:
        """The final totals as whole numbers, as in a table of results."""
        rate = self.done / seconds if seconds > 0 else 0.0
        parts = [f"{self.done:,} {self.unit}", f"{rate:,.0f} {self.unit}/s", *self._column_parts()]
        return [*parts, f"done in {format_duration(seconds)}"]

    def _column_parts(self) -> list[str]:
        return [f"{name} {_format_value(value)}" for name, value in self._columns.items() if value is not None]


def track_progress(
    items: Iterable[T],
    what: str,
    *,
    total: int | None = None,
    unit: str = "items",
    weigh: Callable[[T], int] | None = None,
    console: Console | None = None,
) -> Iterator[T]:
    """Yield items while showing progress.

    Args:
        items: Items to iterate over.
        what: Name of the job.
        total: Final count in `unit`; None if unknown (without `weigh`, the length of `items`, if any).
        unit: Unit of the count, such as "files", or with `weigh` "rows" or "bytes".
        weigh: Returns the count of an item; None for 1.
        console: Console to draw on; None for standard error.
    """
    if total is None and weigh is None and isinstance(items, Sized):
        total = len(items)
    with Progress(what, total=total, unit=unit, console=console) as progress:
        for item in items:
            weight = 1 if weigh is None else weigh(item)  # before the caller may change the item
            yield item
            progress.advance(weight)


def format_count(count: float) -> str:
    """Format a count: 950, 12,345, 1.25M, 3.1G."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if abs(count) >= size:
            return f"{count / size:.4g}{letter}"
    return f"{count:,.0f}" if count == int(count) or abs(count) >= 100 else f"{count:.3g}"


def format_duration(seconds: float) -> str:
    """Format seconds: 0.8 s, 42 s, 3:07, 1:02:03."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 100 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return format_count(value)
    return str(value)
