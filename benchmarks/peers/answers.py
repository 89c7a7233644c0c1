"""The side of an arm in the conversation with `Process`: JSON lines on standard output, which libraries cannot use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

__all__ = ["open_answers"]


def open_answers() -> Callable[[Any], None]:
    """Keep standard output for answers, and send all else that is printed to standard error.

    Returns:
        A function that writes a value as one line of JSON.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        out.write(json.dumps(value) + "\n")
        out.flush()

    return answer
