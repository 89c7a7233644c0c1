"""Ctrl-C and SIGTERM as a wish to stop, once; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import typer

__all__ = ["StopWish", "stop_on_signals"]


@dataclass
class StopWish:
    """Whether a signal asked to stop."""

    asked: bool = False


@contextmanager
def stop_on_signals() -> Iterator[StopWish]:
    """While inside, the first SIGINT or SIGTERM only sets `asked`; the next does what it did before."""
    wish = StopWish()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        wish.asked = True
        for name, handler in before.items():
            signal.signal(name, handler)
        typer.echo("stopping after this step, with a checkpoint; Ctrl-C again stops at once", err=True)

    for number in before:
        signal.signal(number, ask)
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
