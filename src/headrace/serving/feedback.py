"""`Feedback`: remembers what was predicted until labels come, and tells how good each model is."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.messages import shorten_list
from headrace.publishing.guard import Window
from headrace.serving.requests import BadRequest

__all__ = ["Feedback", "Predicted"]

Float32s = npt.NDArray[np.float32]


class Predicted(NamedTuple):
    """What a model predicted for a request.

    Attributes:
        model: Name of the model.
        version: Its version.
        labels: Names of its L labels; None for those that are numbers, which are not judged.
        data: float32 [N, L] as bytes.
    """

    model: str
    version: int
    labels: tuple[str | None, ...]
    data: bytes

    @property
    def num_rows(self) -> int:
        """Number of rows N."""
        return len(self.data) // (4 * len(self.labels))

    @property
    def scores(self) -> Float32s:
        """float32 [N, L]."""
        return np.frombuffer(self.data, np.float32).reshape(-1, len(self.labels))


class Feedback:
    """Joins predictions with labels that come later, by the id of the request. Thread-safe.

    Args:
        most_rows: Rows that are remembered; the oldest requests are forgotten first.
        on_labels: Called for each model that scored a request, with its name, version, predictions [N] and labels [N]
            of the first binary label.
    """

    def __init__(
        self,
        most_rows: int = 200_000,
        on_labels: Callable[[str, int, Float32s, Float32s], object] = lambda *_: None,
    ) -> None:
        self._most_rows, self._on_labels = most_rows, on_labels
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, tuple[Any, ...]] = OrderedDict()  # see `remember`
        self._num_rows = 0
        self._windows: dict[tuple[str, str], Window] = {}

    def remember(self, request: str, predicted: Predicted) -> None:
        """Remember what a model predicted for a request.

        Plain tuples of numbers, text and bytes are the only containers that Python's garbage collector does not track;
        it would look through hundreds of thousands of others again and again.
        """
        with self._lock:
            self._waiting[request] = (*self._waiting.get(request, ()), tuple(predicted))
            self._num_rows += predicted.num_rows
            while self._num_rows > self._most_rows and len(self._waiting) > 1:
                _, forgotten = self._waiting.popitem(last=False)
                self._num_rows -= sum(Predicted(*each).num_rows for each in forgotten)

    def add(self, request: str, labels: Mapping[str, Any]) -> int:
        """Add the labels of a request, a list of N numbers or nulls for each label that is known.

        Labels of a request count once; a request that was forgotten, or that has its labels, counts for nothing.

        Returns:
            Rows that were joined.

        Raises:
            BadRequest: A label is unknown, or its numbers do not fit.
        """
        with self._lock:
            predicted = [Predicted(*each) for each in self._waiting.get(request, ())]
            if not predicted:
                return 0
            num_rows = predicted[0].num_rows
            known = {name for each in predicted for name in each.labels if name is not None}
            unknown = set(labels) - known
            if unknown:
                expected = shorten_list(sorted(known))
                raise BadRequest(f"labels: given {min(unknown)[:100]!r}, expected some of: {expected}", 422)
            values = {name: _numbers(name, given, num_rows) for name, given in labels.items()}
            del self._waiting[request]
            self._num_rows -= sum(each.num_rows for each in predicted)
            for each in predicted:
                self._count(each, values)
        self._tell(predicted, values)
        return num_rows

    def quality(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """By model and label: rows, normalized entropy and calibration over all labels so far."""
        with self._lock:
            windows = dict(self._windows)
        found: dict[str, dict[str, dict[str, float | None]]] = {}
        for (model, label), window in sorted(windows.items()):
            found.setdefault(model, {})[label] = {
                "rows": window.rows,
                "ne": window.ne,
                "calibration": window.calibration,
            }
        return found

    def _count(self, predicted: Predicted, values: Mapping[str, Float32s]) -> None:
        for place, name in enumerate(predicted.labels):
            if name is not None and name in values:
                known = ~np.isnan(values[name])
                key = predicted.model, name
                window = self._windows.get(key, Window())
                self._windows[key] = window.add(predicted.scores[known, place], values[name][known])

    def _tell(self, predicted: Sequence[Predicted], values: Mapping[str, Float32s]) -> None:
        for each in predicted:
            place, name = next(((place, name) for place, name in enumerate(each.labels) if name is not None), (0, ""))
            if name in values:
                known = ~np.isnan(values[name])
                self._on_labels(each.model, each.version, each.scores[known, place], values[name][known])


def _numbers(name: str, given: Any, num_rows: int) -> Float32s:
    """float32 [N], NaN for null."""
    is_list = isinstance(given, list) and all(
        value is None or (isinstance(value, int | float) and 0 <= value <= 1) for value in given
    )
    if not is_list or len(given) != num_rows:
        raise BadRequest(f"labels: {name}: expected {num_rows} numbers from 0 to 1, or null", 422)
    return np.array([np.nan if value is None else value for value in given], np.float32)
