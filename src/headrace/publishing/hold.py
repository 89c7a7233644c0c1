"""`Hold`: a rollback, which a replica remembers over a restart."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from headrace.errors import CheckpointError
from headrace.files import write_text
from headrace.publishing.probation import Probation

__all__ = ["Hold", "read_hold", "save_hold"]

NAME = "rollback.json"


@dataclass(frozen=True)
class Hold:
    """A rollback.

    Attributes:
        version: The version that stays served.
        before: The version that was served before.
        reason: Why.
        at: When, in seconds since 1970.
        probation: Which versions are tried next, if a guard rolled back; None if it was done by hand.
    """

    version: int
    before: int
    reason: str
    at: float
    probation: Probation | None = None

    @property
    def good(self) -> int:
        """The version that was rolled back to."""
        return self.version if self.probation is None else self.probation.good

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.at))
        text = f"rolled back from version {self.before} to {self.good} at {when}: {self.reason}"
        return text if self.probation is None else f"{text}; {self.probation}"


def read_hold(folder: Path) -> Hold | None:
    """The rollback of a replica with a folder; None if it is not rolled back.

    Raises:
        CheckpointError: It cannot be read.
    """
    path = folder / NAME
    try:
        return TypeAdapter(Hold).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{path}: cannot be read, delete it to serve the newest version: {error}") from error


def save_hold(folder: Path, hold: Hold | None) -> None:
    """Record that a replica is rolled back, or that it is not any more.

    Raises:
        CheckpointError: It cannot be written.
    """
    path = folder / NAME
    if hold is None:
        with suppress(FileNotFoundError):
            path.unlink()
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(hold)), CheckpointError)
