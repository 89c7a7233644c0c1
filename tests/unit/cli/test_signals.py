"""The first signal asks to stop, the second stops; afterwards everything is as before."""

import os
import pty
import signal
from collections.abc import Iterator

import pytest

from headrace.cli.signals import STOP_SIGNALS, leave_closed_terminal, stop_on_signals


@pytest.fixture(autouse=True)
def interrupts_are_heard() -> Iterator[None]:
    """A shell's background job ignores them, and so does what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_only_asks(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with stop_on_signals() as wish:
        assert not wish.asked
        signal.raise_signal(number)
        assert wish.asked
    assert "with a checkpoint" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_a_second_interrupt_stops_at_once() -> None:
    with stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_terminal_that_closes_may_say_so_twice() -> None:
    with stop_on_signals() as wish:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert wish.asked


def test_under_nohup_a_terminal_that_closes_changes_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as wish:
            signal.raise_signal(signal.SIGHUP)
            assert not wish.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_output_to_a_closed_terminal_is_dropped_without_an_error() -> None:
    kept = [os.dup(file) for file in (1, 2)]
    controller, terminal = pty.openpty()
    try:
        for file in (1, 2):
            os.dup2(terminal, file)
        leave_closed_terminal()
        assert os.isatty(1)
        os.close(controller)
        with pytest.raises(OSError, match="Input/output"):
            os.write(1, b"a line")
        leave_closed_terminal()
        os.write(1, b"a line")
        os.write(2, b"a line")
    finally:
        for file, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, file)
        for file in (terminal, *kept):
            os.close(file)
