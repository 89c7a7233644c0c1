"""`RunResults`: prints the table of windows, alarms and the path of the report when `train` ends, however it ends."""

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
    """Prints the results of windows, and writes the report of their run.

    On a terminal, progress bars show finished windows, and the table is printed at the end. In pipes and log files,
    each line of the table is printed as its window ends, so that a killed run has printed its finished windows.

    Args:
        run: Folder of the run.
        streams: Whether to print lines as windows end; None to do so unless the output is a terminal.
        echo: Prints and flushes text.
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
        """Add the result of a finished window."""
        self._windows.append(window)
        if self._streams:
            with suppress(OSError):  # nobody reads the output any more; training continues
                self._echo("\n".join(self._table.lines(window)))

    def finish(self, rest: str, *, stopped: bool) -> None:
        """Print the results of a run that finished or was asked to stop, and write its report.

        Args:
            rest: One line about the data left to train on.
            stopped: Whether the run was asked to stop.

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
        """Print results and write the report after an error, which remains the reported one."""
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
        """Size of the run's metrics file, which grows if the run has trained."""
        return self._run.metrics.stat().st_size if self._run.metrics.is_file() else 0
