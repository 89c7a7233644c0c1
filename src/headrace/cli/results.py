"""What `train` leaves behind however it ends: the table of windows, alarms, and the report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import typer

from headrace.cli.tables import WindowTable, window_table
from headrace.errors import HeadraceError
from headrace.training.results import WindowResult
from headrace.training.run_folder import RunFolder

__all__ = ["RunResults"]


class RunResults:
    """Prints what windows gave, and writes the report of their run.

    Where output is watched on a terminal, progress bars show windows as they end, and the table comes last. In pipes
    and log files each line of the table is printed as its window ends, so a run that is killed has printed what it
    finished.

    Args:
        run: Folder of the run.
        streams: Whether to print lines as windows end; None to ask the terminal.
        echo: Prints text, and flushes it.
    """

    def __init__(
        self, run: str | Path, *, streams: bool | None = None, echo: Callable[[str], None] = typer.echo
    ) -> None:
        self._run = RunFolder(run)
        self._echo = echo
        self._streams = not (sys.stdout.isatty() and sys.stderr.isatty()) if streams is None else streams
        self._windows: list[WindowResult] = []
        self._table = WindowTable()
        self._recorded = self._recorded_bytes()

    def add(self, window: WindowResult) -> None:
        """Take in a window that has ended."""
        self._windows.append(window)
        if self._streams:
            with suppress(OSError):  # nobody reads it; training goes on
                self._echo("\n".join(self._table.lines(window)))

    def finish(self, rest: str, *, stopped: bool) -> None:
        """Print the results of a run that ended by itself or was asked to stop, and write its report.

        Args:
            rest: One line on what is left to train on.
            stopped: Whether it was asked to.

        Raises:
            HeadraceError: The report cannot be written.
        """
        self._print_table()
        if self._recorded_bytes():
            self._print_alarms()
        self._echo(rest)
        if self._windows or stopped:
            self._echo(f"report: {self._write_report()}")

    def fail(self) -> None:
        """The same for a run that ends with an error, which stays the one that is reported."""
        with suppress(OSError, HeadraceError):
            self._print_table()
            if self._windows or self._recorded_bytes() > self._recorded:
                self._print_alarms()
                self._echo(f"report: {self._write_report()}")

    def _print_table(self) -> None:
        if not self._windows:
            return
        if not self._streams:
            self._echo(window_table(self._windows))
        elif total := self._table.total(self._windows[-1]):
            self._echo("\n".join(total))

    def _print_alarms(self) -> None:
        from headrace.observe.alarms import find_alarms
        from headrace.observe.run_data import RunData

        if self._windows:
            for alarm in find_alarms(RunData.read(self._run.path)):
                self._echo(str(alarm))

    def _write_report(self) -> Path:
        from headrace.observe.report import write_report

        return write_report(self._run.path)

    def _recorded_bytes(self) -> int:
        """Size of the run's metrics: it grows where a run has trained."""
        return self._run.metrics.stat().st_size if self._run.metrics.is_file() else 0
