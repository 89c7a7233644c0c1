"""Reads the best score that any model can reach on a generated log."""

from __future__ import annotations

import json
from pathlib import Path

from headrace.errors import DataError
from headrace.logs.generate.writer import TEACHER_NAME

__all__ = ["read_bounds"]


def read_bounds(location: str | Path) -> dict[str, float]:
    """The best reachable normalised entropy by window ("window=000"); empty for logs that were not generated.

    Args:
        location: The folder of the log, as given to `list_files`.

    Raises:
        DataError: The file with the bounds is damaged.
    """
    path = Path(location) / TEACHER_NAME
    if "://" in str(location) or not path.is_file():
        return {}
    try:
        windows = json.loads(path.read_text(encoding="utf-8"))["windows"]
        return {f"window={bound['window']:03d}": float(bound["best_normalized_entropy"]) for bound in windows}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path}: damaged, and can be deleted: {error!r}") from error
