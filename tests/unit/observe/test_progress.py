"""Progress on a terminal and in a pipe, on a clock the test moves."""

import io

import pytest
from rich.console import Console

from headrace.observe.progress import Progress, RateMeter, format_count, format_duration, track_progress


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def pipe() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def run(console: Console, clock: FakeClock, *, seconds: int, total: int | None) -> list[str]:
    with Progress("train", total=total, console=console, clock=clock) as progress:
        for second in range(1, seconds + 1):
            clock.now_s = float(second)
            progress.update(second * 1000, {"loss": 0.5, "limiting": "read"})
    return text_of(console).splitlines()


def test_piped_progress_prints_whole_lines_at_a_steady_interval() -> None:
    lines = run(pipe(), FakeClock(), seconds=35, total=100_000)
    assert lines == [
        "train: 10,000 of 100,000 rows  10%  1,000 rows/s  loss 0.5000  limiting read  ETA 1:30",
        "train: 20,000 of 100,000 rows  20%  1,000 rows/s  loss 0.5000  limiting read  ETA 1:20",
        "train: 30,000 of 100,000 rows  30%  1,000 rows/s  loss 0.5000  limiting read  ETA 1:10",
        "train: 35,000 of 100,000 rows  35%  1,000 rows/s  loss 0.5000  limiting read  done in 35 s",
    ]


def test_piped_progress_is_silent_about_short_jobs() -> None:
    assert run(pipe(), FakeClock(), seconds=1, total=None) == []


def test_short_jobs_that_always_end_print_one_line_each_and_flush_it() -> None:
    written: list[str] = []

    class LogFile(io.StringIO):
        def flush(self) -> None:
            written.append(self.getvalue())

    console, clock = Console(file=LogFile(), force_terminal=False, width=40), FakeClock()
    for window in ("hour=1", "hour=2"):
        with Progress(f"train {window}", total=500, always_ends=True, console=console, clock=clock) as progress:
            clock.now_s += 0.5
            progress.update(500)
        assert written[-1].splitlines()[-1] == f"train {window}: 500 of 500 rows  100%  1,000 rows/s  done in 0.5 s"
    assert len(written[-1].splitlines()) == 2


def test_a_job_that_fails_before_it_counts_anything_prints_nothing() -> None:
    console = pipe()
    with pytest.raises(KeyError), Progress("train", always_ends=True, console=console, clock=FakeClock()):
        raise KeyError
    assert text_of(console) == ""


@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_last_line_has_the_totals_of_the_job_and_not_those_of_the_clock(is_terminal: bool) -> None:
    clock = FakeClock()
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=140)
    with Progress("train", total=1_250_000, console=console, clock=clock) as progress:
        clock.now_s = 50.0
        progress.update(1_250_000, {"loss": 0.9, "AUC": 0.5, "limited by": "wait"})
        progress.finish(1_249_990, 100.0, {"bad": 10, "loss": 0.512345, "AUC": 0.7, "NE": 0.81})
    last = text_of(console).replace("\r", "\n").rstrip().splitlines()[-2 if is_terminal else -1]
    assert "1,249,990 rows  12,500 rows/s  bad 10  loss 0.5123  AUC 0.7000  NE 0.8100  done in 1:40" in last
    assert "limited by" not in last


def test_a_job_that_was_asked_to_stop_says_so() -> None:
    console, clock = pipe(), FakeClock()
    with Progress("train", always_ends=True, console=console, clock=clock) as progress:
        clock.now_s = 1.0
        progress.update(10)
        progress.stop()
    assert text_of(console) == "train: 10 rows  10 rows/s  stopped in 1.0 s\n"


def test_a_long_job_prints_six_lines_a_minute() -> None:
    assert len(run(pipe(), FakeClock(), seconds=3600, total=None)) == 361


def test_an_error_inside_ends_with_the_word_stopped() -> None:
    clock, console = FakeClock(), pipe()
    with pytest.raises(KeyboardInterrupt), Progress("train", console=console, clock=clock) as progress:  # noqa: PT012
        clock.now_s = 5.0
        progress.update(10)
        raise KeyboardInterrupt
    assert text_of(console).splitlines()[-1] == "train: 10 rows  2 rows/s  stopped in 5.0 s"


def test_on_a_terminal_a_bar_is_drawn_with_the_columns() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=110)
    run(console, FakeClock(), seconds=30, total=30_000)
    output = text_of(console)
    assert "━" in output
    last = output.replace("\r", "\n").rstrip().splitlines()[-2]
    assert "30,000 of 30,000 rows  100%  1,000 rows/s  loss 0.5000  limiting read  done in 30 s" in last


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (92, "4,550 rows  10,000 rows/s  loss 0.4726  AUC 0.6696  NE 0.9445  done in 0.5 s"),
        (80, "4,550 rows  10,000 rows/s  loss 0.4726  AUC 0.6696  done in 0.5 s"),
        (60, "4,550 rows  10,000 rows/s  done in 0.5 s"),
    ],
)
def test_a_bar_leaves_out_columns_that_do_not_fit_and_never_its_end(width: int, text: str) -> None:
    console, clock = Console(file=io.StringIO(), force_terminal=True, width=width), FakeClock()
    with Progress("train h=1", total=4_550, console=console, clock=clock) as progress:
        clock.now_s = 0.2
        progress.update(4_000, {"loss": 0.5, "AUC": 0.6, "limited by": "wait"})
        progress.finish(4_550, 0.455, {"loss": 0.4726, "AUC": 0.6696, "NE": 0.9445})
    lines = text_of(console).replace("\r", "\n").rstrip().splitlines()
    assert text in lines[-2]
    assert any(line.rstrip("\x1b[0m ").endswith("ETA 0.0 s") for line in lines)


def test_the_bar_is_drawn_at_most_ten_times_a_second() -> None:
    console, clock = Console(file=io.StringIO(), force_terminal=True, width=110), FakeClock()
    with Progress("train", console=console, clock=clock) as progress:
        for step in range(1000):
            clock.now_s = step / 1000
            progress.advance()
    assert text_of(console).count("rows/s") <= 12


def test_track_progress_yields_every_item_and_adds_up_their_weights() -> None:
    console = pipe()
    items = track_progress([3, 4, 5], "import", unit="rows", total=12, weigh=lambda item: item, console=console)
    assert list(items) == [3, 4, 5]
    assert text_of(console) == ""


def test_track_progress_knows_the_length_of_what_has_one() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=110)
    assert list(track_progress(["a", "b"], "import", unit="files", console=console)) == ["a", "b"]
    assert "2 of 2 files  100%" in text_of(console)


def test_progress_starts_no_thread() -> None:
    import threading

    before = threading.active_count()
    with Progress("train", console=Console(file=io.StringIO(), force_terminal=True)):
        assert threading.active_count() == before


def test_rate_follows_the_last_ten_seconds() -> None:
    meter = RateMeter(0.0)
    assert meter.update(0.0, 0) == 0.0
    for second in range(1, 21):
        meter.update(float(second), 100.0 * second)
    for second in range(21, 41):
        rate = meter.update(float(second), 2000 + 10.0 * (second - 20))
    assert rate == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (950, "950"), (12345, "12,345"), (1_250_000, "1.25M"), (3.1e9, "3.1G"), (0.5, "0.5")]
)
def test_counts_are_written_for_people(count: float, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.83, "0.8 s"), (42.4, "42 s"), (59.7, "1:00"), (187, "3:07"), (3723, "1:02:03")]
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
