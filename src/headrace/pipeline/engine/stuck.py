"""Messages about a function that does not return."""

from __future__ import annotations

import sys
import threading
import traceback

from headrace.errors import PipelineError
from headrace.logs.source import Source
from headrace.pipeline.engine.delivery import describe_element
from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.options import Group

__all__ = ["stack_of", "stuck_error"]


def stack_of(thread: threading.Thread) -> str:
    """Where a thread is now, in the form of a traceback."""
    frame = sys._current_frames().get(thread.ident or 0)
    return "" if frame is None else "".join(traceback.format_stack(frame))


def stuck_error(group: Group, element: Element, source: Source, stack: str) -> PipelineError:
    """The error for an element that takes longer than its stage may; the stack is a note to it and in the text."""
    stage = group.stages[0]
    label = f" ({stage.operation.label})" if stage.operation.label else ""
    last = stack.rstrip().rsplit("  File ", 1)[-1].replace("\n", " ").strip()
    error = PipelineError(
        f"stage {stage.name}{label}: no result within timeout_s={group.timeout_s:g} for "
        f"{describe_element(element, source)}; it is at {last}"
    )
    error.add_note(f"Stack of the worker:\n{stack.rstrip()}")
    return error
