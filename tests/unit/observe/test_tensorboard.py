"""Scalars reach TensorBoard where it is installed, and nobody misses it where it is not."""

import sys
from pathlib import Path

import pytest

from headrace.observe.tensorboard import TensorBoard

RECORD = {"kind": "step", "step": 7, "rows": 700, "loss": 0.5, "ne": None, "seconds": {"wait": 0.25}, "window": "a"}


def test_records_become_scalars_over_the_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with TensorBoard(tmp_path / "events") as board:
        board.write(RECORD)
        board.write({"kind": "window", "window": "a", "auc": 0.75})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["step/loss", "step/seconds/wait", "window/auc"]
    assert [(event.step, event.value) for event in events.Scalars("window/auc")] == [(7, 0.75)]


def test_without_tensorboard_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with TensorBoard(tmp_path / "events") as board:
        board.write(RECORD)
        board.write(RECORD)
    assert not (tmp_path / "events").exists()
