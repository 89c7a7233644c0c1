"""TensorBoard scalars of a run: the numbers of its metrics records, where tensorboard is installed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

__all__ = ["TensorBoard"]

PLACES = ("time_s", "step", "rows")
"""Say where a record stands in the run; in a step record they are the axis, not a curve."""


class TensorBoard:
    """Writes records of `metrics.jsonl` also as TensorBoard scalars; does nothing without tensorboard.

    A step record's loss becomes the tag `step/loss`, its `seconds.wait` becomes `step/seconds/wait`, a window's AUC
    `window/auc`; all over the optimizer step.
    """

    def __init__(self, folder: str | Path) -> None:
        """Args: folder: Of the event files; made with the first record."""
        self._folder = Path(folder)
        self._writer: Any = None
        self._is_on = True
        self._last_step = 0

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the numbers of one record; what is no finite number is left out."""
        if self._is_on and self._writer is None:
            self._writer = _open_writer(self._folder)
            self._is_on = self._writer is not None
        if not self._is_on:
            return
        kind = str(record.get("kind", "step"))
        self._last_step = int(record.get("step") or self._last_step)
        for tag, value in _scalars(record, kind):
            if not (kind == "step" and tag.removeprefix("step/") in PLACES):
                self._writer.add_scalar(tag, value, global_step=self._last_step)

    def close(self) -> None:
        """Write out what is buffered and end the writer's thread; safe to call twice."""
        if self._writer is not None:
            self._writer.close()
        self._writer, self._is_on = None, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _open_writer(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing tensorboard warns of its own dependencies
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(log_dir=str(folder))


def _scalars(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}/{key}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}/{key}", float(value)
