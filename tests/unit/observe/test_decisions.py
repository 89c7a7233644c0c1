"""Decisions are kept with their reason."""

from pathlib import Path

from headrace.observe.decisions import Decision, DecisionLog, read_decisions


def test_decisions_are_read_back_as_they_were_recorded(tmp_path: Path) -> None:
    times = iter([100.0, 102.5, 104.0])
    path = tmp_path / "decisions.jsonl"
    with DecisionLog(path, clock=lambda: next(times)) as log:
        first = log.record("tuner", {"read.workers": (1, 2)}, "read is busy 97 % of the time", {"busy_ratio": 0.97})
        second = log.record("tuner", {}, "no stage waits")
    assert read_decisions(path) == [first, second]
    assert (first.time_s, second.time_s) == (2.5, 4.0)


def test_a_run_that_goes_on_counts_its_time_on(tmp_path: Path) -> None:
    times = iter([100.0, 101.0])
    with DecisionLog(tmp_path / "decisions.jsonl", start_s=60.0, clock=lambda: next(times)) as log:
        assert log.record("training", {}, "going on").time_s == 61.0


def test_a_missing_log_has_no_decisions(tmp_path: Path) -> None:
    assert read_decisions(tmp_path / "decisions.jsonl") == []


def test_a_decision_reads_as_one_line() -> None:
    change = {"read.workers": (1, 2)}
    assert str(Decision(0.0, "tuner", change, "it waits")) == "tuner: read.workers 1 -> 2: it waits"
    assert str(Decision(0.0, "tuner", {}, "all is well")) == "tuner: no change: all is well"
