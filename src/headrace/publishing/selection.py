"""`Selection`: which of the versions in memory a replica serves: the newest, one by hand, or as a guard decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headrace.errors import CheckpointError
from headrace.publishing.guard import Guard, GuardLimits
from headrace.publishing.hold import Hold, save_hold
from headrace.publishing.probation import Probation
from headrace.publishing.publications import PublicationFolder
from headrace.publishing.served_tables import ServedTables

__all__ = ["Selection"]


class Selection:
    """Chooses the served version. Thread-safe.

    Args:
        tables: The versions in memory.
        folder: Folder of the replica, which remembers a rollback, and keeps the version that is rolled back to.
        limits: Limits of the guard; None for no guard.
        on_message: Called with a line for each event.

    Attributes:
        hold: The rollback; None while the newest version is served.
    """

    def __init__(
        self,
        tables: ServedTables,
        folder: PublicationFolder,
        limits: GuardLimits | None,
        on_message: Callable[[str], object],
    ) -> None:
        self.hold: Hold | None = None
        self._tables, self._folder, self._say = tables, folder, on_message
        self._guard = None if limits is None else Guard(limits)
        self._changing = threading.RLock()

    def resume(self, hold: Hold | None) -> None:
        """Go on after a restart; a version that was on trial is tried again, from the good one."""
        with self._changing:
            if hold is not None and hold.probation is not None:
                hold = replace(hold, version=hold.good, probation=hold.probation.stopped())
            self._set(hold)
            if hold is not None:
                self._say(str(hold))

    def may_serve(self, version: int) -> bool:
        """Whether `offer` would serve a version that is newer than all in memory."""
        hold = self.hold
        return hold is None or (hold.probation is not None and hold.probation.can_try(version))

    def offer(self, version: int) -> bool:
        """Serve a new version that is in memory now, unless the replica stays at an earlier one; returns whether it
        is served."""
        with self._changing:
            if not self.may_serve(version):
                return False
            if self.hold is None or self.hold.probation is None:
                self._tables.serve(version)
                return True
            self._serve(version, replace(self.hold, version=version, probation=self.hold.probation.trying(version)))
            self._say(str(self.hold))
            return True

    def rollback(self, to: int | Literal["newest"], reason: str) -> int:
        """See `Replica.rollback`."""
        with self._changing:
            before = self._tables.view.version
            hold = None if to == "newest" else Hold(int(to), before, reason, time.time())
            version = max(self._tables.versions) if hold is None else hold.version
            self._serve(version, hold)
            self._say(str(hold) if hold else f"serves the newest version again, {version}: {reason}")
        return version

    def feed_back(
        self, version: int, predictions: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.floating[Any]]
    ) -> None:
        """See `Replica.feed_back`; labels of versions that are not served are ignored."""
        with self._changing:
            if self._guard is None or version != self._tables.served:
                return
            for judgement in self._guard.add(version, predictions, labels):
                if judgement.verdict == "bad":
                    self._leave(version, judgement.reason, self._guard.good)
                elif judgement.verdict == "good":
                    self._pass(version)
                if version != self._tables.served:
                    return

    def _leave(self, version: int, reason: str, good: int | None) -> None:
        """Roll back from a version that is bad."""
        hold = self.hold
        if hold is None:
            earlier = [each for each in self._tables.versions if each < version]
            if not earlier:
                self._say(f"version {version} is bad, but there is no earlier one: {reason}")
                return
            probation = Probation(good if good in earlier else earlier[-1], version)
        elif hold.probation is not None and hold.probation.on_trial == version:
            probation = hold.probation.after_bad()
        else:
            self._say(f"version {version} is bad, but stays, because it was rolled back to: {reason}")
            return
        self._serve(probation.good, Hold(probation.good, version, f"guard: {reason}", time.time(), probation))
        self._say(str(self.hold))

    def _pass(self, version: int) -> None:
        """Follow again, if a version on trial is good."""
        if self.hold is not None and self.hold.probation is not None and self.hold.probation.on_trial == version:
            self._set(None)
            self._say(f"version {version} is good; newer ones are served again")

    def _serve(self, version: int, hold: Hold | None) -> None:
        self._tables.serve(version)
        if self._guard is not None:
            self._guard.start_at(version)
        self._set(hold)

    def _set(self, hold: Hold | None) -> None:
        self.hold = hold
        self._folder.pinned = frozenset() if hold is None else frozenset({hold.good, hold.version})
        try:
            save_hold(self._folder.path, hold)
        except CheckpointError as error:
            self._say(f"a restart will not remember the rollback: {error}")
