"""Graceful shutdown: the first Ctrl-C, SIGTERM or SIGHUP requests a stop; a second one stops immediately."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import typer

__all__ = ["StopWish", "stop_on_signals"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class StopWish:
    """Whether a signal requested a stop."""

    asked: bool = False


@contextmanager
def stop_on_signals(what: str = "after this step, with a checkpoint") -> Iterator[StopWish]:
    """Within this context the first SIGINT, SIGTERM or SIGHUP only sets `asked`; the next one acts as usual.

    It also prints `what` the command does before it stops.

    A closing terminal may send SIGHUP several times, so further ones are ignored. Under `nohup` all are ignored.
    """
    wish = StopWish()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]

    def ask(number: int, frame: FrameType | None) -> None:
        wish.asked = True
        for name, handler in before.items():
            signal.signal(name, signal.SIG_IGN if name == signal.SIGHUP else handler)
        if number == signal.SIGHUP:
            leave_closed_terminal()
        with suppress(OSError):  # nobody reads the output any more
            typer.echo(f"stopping {what}; press Ctrl-C again to stop immediately", err=True)

    for number in before:
        signal.signal(number, ask)
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_closed_terminal() -> None:
    """Redirect output to nowhere after the terminal is gone, because each line would raise an error."""
    for file in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(file).st_mode) and not os.isatty(file):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, file)
                os.close(nowhere)
