"""Helpers for messages: short lists, single-line names, counts with nouns, valid JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["MAX_CHARACTERS", "count_of", "one_line", "shorten", "shorten_list", "to_json"]

MAX_CHARACTERS = 400
"""Approximate maximum length of a list in a message: about forty column names."""

MAX_NAME = 120
"""Maximum characters of a name or value."""


def one_line(name: str) -> str:
    """Format a name for a message: unchanged, or as a JSON string if it is empty or has control characters."""
    text = name if name and name.isprintable() else json.dumps(name)
    return shorten(text)


def shorten(text: str, limit: int = MAX_NAME) -> str:
    """Truncate a text to `limit` characters, ending with three dots."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def shorten_list(names: Iterable[object], *, limit: int = MAX_CHARACTERS) -> str:
    """Join names with commas; names beyond `limit` characters are only counted.

    Args:
        names: Names to list.
        limit: Maximum characters of the list; the first name is always shown.
    """
    words = [one_line(str(name)) for name in names]
    length = 0
    for shown, word in enumerate(words):
        length += len(word) + 2
        if shown and length > limit:
            return f"{', '.join(words[:shown])} and {len(words) - shown:,} more"
    return ", ".join(words)


def count_of(count: int, noun: str) -> str:
    """ "1 file", "1,234 files"; the plural ends with s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def to_json(values: Any, *, indent: int | None = None) -> str:
    """Serialise values as valid JSON, with null for NaN and infinities.

    Args:
        values: Dicts, lists, numbers, strings, and arrays and scalars of NumPy and torch; other objects become strings.
        indent: Spaces per level; None for a single line without spaces.
    """
    separators = (",", ":") if indent is None else None
    return json.dumps(_plain(values), indent=indent, separators=separators, allow_nan=False)


def _plain(value: Any) -> Any:
    """Convert a value to Python numbers, strings, lists and dicts."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and torch
        return _plain(value.tolist())
    return str(value)
