"""Writes a run's metrics as TensorBoard scalars, if tensorboard is installed."""

from __future__ import annotations

import math
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from headrace.files import writing

__all__ = ["TensorBoard"]

PLACES = ("time_s", "step", "rows")
"""Keys that position a record within the run; in step records they are the axis, not a curve."""


class TensorBoard:
    """Writes records of `metrics.jsonl` as TensorBoard scalars; does nothing without tensorboard.

    A step record's loss has the tag `step/loss`, its `seconds.wait` has `step/seconds/wait`, and a window's AUC has
    `window/auc`; all are plotted over the optimizer step.
    """

    def __init__(self, folder: str | Path) -> None:
        """Write event files to `folder`, which is created with the first record."""
        self._folder = Path(folder)
        self._writer: _EventFile | None = None
        self._is_on = True
        self._last_step = 0

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the finite numbers of one record.

        Raises:
            StorageError: The disk is full or not writable.
        """
        if self._is_on and self._writer is None:
            self._writer = _EventFile.open(self._folder)
            self._is_on = self._writer is not None
        if self._writer is None:
            return
        kind = str(record.get("kind", "step"))
        self._last_step = int(record.get("step") or self._last_step)
        scalars = dict(_scalars(record, kind))
        if kind == "step":
            scalars = {tag: value for tag, value in scalars.items() if tag.removeprefix("step/") not in PLACES}
        self._writer.write(scalars, self._last_step)

    def close(self) -> None:
        """Close the event file. Idempotent."""
        if self._writer is not None:
            self._writer.close()
        self._writer, self._is_on = None, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _EventFile:
    """A TensorBoard event file, written synchronously: the thread of `SummaryWriter` dies if the disk is full."""

    def __init__(self, folder: Path, events: Any, record_writer: Any) -> None:
        started = time.time_ns()
        name = f"events.out.tfevents.{started // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.{started % 10**9:09d}"
        self._path = folder / name
        self._event = events.Event
        with writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb", buffering=0)
        self._records = record_writer(SimpleNamespace(write=self._write_all))
        try:
            self._append(events.Event(wall_time=time.time(), file_version="brain.Event:2"))
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, folder: Path) -> Self | None:
        """Create a file in a folder; returns None without tensorboard."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing tensorboard warns about its own dependencies
            try:
                from tensorboard.compat.proto import event_pb2
                from tensorboard.summary.writer.record_writer import RecordWriter
            except ImportError:
                return None
        return cls(folder, event_pb2, RecordWriter)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Append the scalars of a step."""
        if scalars:
            event = self._event(wall_time=time.time(), step=step)
            for tag, value in scalars.items():
                event.summary.value.add(tag=tag, simple_value=value)
            self._append(event)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write_all(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _append(self, event: Any) -> None:
        with writing(self._path):
            end = self._file.seek(0, os.SEEK_END)
            try:
                self._records.write(event.SerializeToString())
            except OSError:
                self._file.truncate(end)
                raise


def _scalars(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}/{key}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}/{key}", float(value)
