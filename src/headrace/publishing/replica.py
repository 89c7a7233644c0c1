"""`Replica`: follows publishers and other replicas, and has the last versions in memory for readers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.segments import Segment
from headrace.errors import CheckpointError, HeadraceError, TornCheckpoint
from headrace.files import writing
from headrace.publishing.download import Download, Source
from headrace.publishing.following import SourceState, choose_source, newest_known, patience_of
from headrace.publishing.freshness import Freshness
from headrace.publishing.guard import GuardLimits
from headrace.publishing.hold import Hold, read_hold
from headrace.publishing.parts import WHOLE, Part
from headrace.publishing.publications import Publication, PublicationFolder
from headrace.publishing.published_chains import PublishedChains
from headrace.publishing.selection import Selection
from headrace.publishing.served_tables import ServedTables, ServedVersion

__all__ = ["Replica"]

LONG_POLL_S = 20.0
BACK_OFF_S = (0.1, 1.0)
"""First and longest pause before a source that did not answer is asked again."""
FULL_DISK_S = 5.0
"""Pause after a version could not be written."""


class Replica:
    """A copy of a published model. `tables` may be read by any number of threads; `step` is for one thread.

    Args:
        folder: Where its versions are kept; nobody else writes there.
        sources: From whom it fetches versions: other replicas, and last the publisher.
        address: Its address, as other replicas know it.
        keep: Number of newest versions in memory.
        part: Which rows it has in memory; its files are those of all.
        patience_s: Seconds to wait for other replicas before the publisher is asked, see `choose_source`.
        limits: Limits of the guard; None for no guard.
        on_message: Called with a line for each event.
        clock: Seconds, ascending.

    Attributes:
        tables: The model.
        download: What was fetched.
    """

    def __init__(
        self,
        folder: PublicationFolder,
        sources: Sequence[Source],
        *,
        address: str,
        keep: int = 10,
        part: Part = WHOLE,
        patience_s: float = 1.0,
        limits: GuardLimits | None = None,
        on_message: Callable[[str], object] = print,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.address = folder, address
        self.tables = ServedTables(keep=keep, part=part)
        self.download = Download(folder)
        self._sources = {source.address: source for source in sources}
        last = sources[-1].address
        self._states = {each: SourceState(each, each == last, is_up=False) for each in self._sources}
        self._patience_s, self._clock, self._on_message = patience_s, clock, on_message
        self._freshness = Freshness()
        self._selection = Selection(self.tables, folder, limits, self._say)
        self._mine: Publication | None = None  # the newest version of the folder
        self._chains = PublishedChains(folder.segments, "auto")
        self._merger = ThreadPoolExecutor(1, thread_name_prefix="replica-merge")
        self._merging: Future[None] | None = None
        self._news = threading.Condition()  # of `_states`
        self._heard_at: float | None = None
        self._took_s = 0.0  # for the last version that was fetched
        self._said = ""

    def restore(self) -> None:
        """Serve the newest version of the folder that is not damaged, or the one it was rolled back to.

        Raises:
            CheckpointError: The folder cannot be read, or not be created.
        """
        with writing(self.folder.path, CheckpointError):
            self.folder.path.mkdir(parents=True, exist_ok=True)
        self.folder.sweep()
        hold = read_hold(self.folder.path)
        if hold is not None:
            self._restore_hold(hold)
        newest = self._restore_up_to(None) if self.hold is None else self.folder.newest()
        if newest is not None:
            self._mine = newest
            self._chains.follow(newest.chains)

    def _restore_hold(self, hold: Hold) -> None:
        self._restore_up_to(hold.good)
        if self.tables.served == hold.good:
            self._selection.resume(hold)
        else:
            self._say(f"version {hold.good}: is not in the folder any more; the newest one is served")
            self._selection.resume(None)

    def _restore_up_to(self, last: int | None) -> Publication | None:
        for version in reversed(self.folder.versions()):
            if last is not None and version > last:
                continue
            try:
                publication = self.folder.load(version)
                self._apply(publication)
                return publication
            except CheckpointError as error:
                self._say(f"version {version} is not used: {error}")
                self._drop_damaged(version)
        return None

    def note(self, address: str, newest: int | None) -> None:
        """Record the newest version of a source; None if it does not answer."""
        with self._news:
            state = self._states[address]
            is_up = newest is not None
            if state.is_up and not is_up:
                self._say(f"{address}: does not answer")
            self._states[address] = replace(state, is_up=is_up, newest=state.newest if newest is None else newest)
            self._news.notify_all()

    def step(self) -> float | None:
        """Fetch, apply and serve a version if there is a newer one.

        Returns:
            Seconds after which to call again if nothing is noted meanwhile; None if there is nothing to wait for.
        """
        with self._news:
            states = list(self._states.values())
        held = 0 if self._mine is None else self._mine.version
        if newest_known(states) <= held:
            self._heard_at = None
            return None if self._is_current() else self._catch_up()
        if self._heard_at is None:
            self._heard_at = self._clock()
        choice = choose_source(
            held,
            self.address,
            states,
            waited_s=self._clock() - self._heard_at,
            patience_s=patience_of(self._patience_s, self._took_s),
        )
        if choice.source is None:
            return choice.wait_s or None
        with self._news:
            for address in choice.missed:
                self._states[address] = replace(self._states[address], missed=choice.version)
        return self._fetch(choice.source, choice.version)

    def run(self, stop: threading.Event) -> None:
        """Follow the sources until stopped."""
        pollers = [threading.Thread(target=self._poll, args=(each, stop)) for each in self._sources.values()]
        for poller in pollers:
            poller.daemon = True  # it may be in a call that nobody answers
            poller.start()
        while not stop.is_set():
            with self._news:
                before = dict(self._states)
            pause_s = self.step()
            with self._news:
                if self._states == before and pause_s != 0.0:
                    self._news.wait(min(pause_s or 0.5, 0.5))

    def close(self) -> None:
        """Wait for a merge."""
        self._merger.shutdown()

    @property
    def hold(self) -> Hold | None:
        """The rollback that it stays at; None if it serves the newest version."""
        return self._selection.hold

    def rollback(self, to: int | Literal["newest"], reason: str) -> int:
        """Serve another version at once, and stay there; or `newest` again, and follow.

        Returns:
            The version that is served.

        Raises:
            HeadraceError: The version is not in memory.
        """
        version = self._selection.rollback(to, reason)
        self._wake()
        return version

    def feed_back(
        self, version: int, predictions: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.floating[Any]]
    ) -> None:
        """Give the guard labels [N] of predictions [N] that were made with a version; it may roll back."""
        self._selection.feed_back(version, predictions, labels)
        self._wake()

    def _wake(self) -> None:
        with self._news:
            self._news.notify_all()

    def status(self) -> dict[str, Any]:
        """JSON-able values: versions, freshness, rollback, and bytes fetched from each source."""
        view = self.tables.view if self.tables.served is not None else None
        return {
            "served": 0 if view is None else view.version,
            "step": None if view is None else view.about.step,
            "cut_at": None if view is None else view.about.cut_at,
            "newest": 0 if self._mine is None else self._mine.version,
            "in_memory": self.tables.versions,
            "num_bytes": self.tables.num_bytes,
            "part": str(self.tables.part),
            "held": None if self.hold is None else str(self.hold),
            "bytes_from": dict(self.download.num_bytes),
            **self._freshness.ages(),
        }

    def _poll(self, source: Source, stop: threading.Event) -> None:
        pause_s, newest = BACK_OFF_S[0], 0
        while not stop.is_set():
            try:
                newest = source.wait(newest, timeout_s=LONG_POLL_S if newest else 0.0).newest
                self.note(source.address, newest)
                pause_s = BACK_OFF_S[0]
                if not newest:
                    stop.wait(BACK_OFF_S[0])
            except HeadraceError:
                newest = 0
                self.note(source.address, None)
                stop.wait(pause_s)
                pause_s = min(2 * pause_s, BACK_OFF_S[1])

    def _fetch(self, address: str, version: int) -> float | None:
        start = self._clock()
        try:
            with self._chains.naming:
                added = self.download.fetch(self._sources[address], version, self._mine, self._chains.newest)
                self._chains.has_written(added.chains)
                self._mine = added
        except TornCheckpoint as error:
            self._say(f"refused: {error}")
            with self._news:
                state = self._states[address]
                self._states[address] = replace(state, bad=state.bad | {version})
            return 0.0
        except CheckpointError as error:
            self._say(f"version {version} was not stored, version {self.tables.served or 'none'} stays served: {error}")
            return FULL_DISK_S
        except HeadraceError:
            self.note(address, None)
            return 0.0
        self._heard_at, self._took_s = None, self._clock() - start
        if self._merging is None or self._merging.done():
            self._merging = self._merger.submit(self._merge)
        return self._catch_up()

    def _is_current(self) -> bool:
        """Whether the newest version of the folder is in memory, or must not be served."""
        if self._mine is None or self._mine.version <= max(self.tables.versions, default=0):
            return True
        return not self._selection.may_serve(self._mine.version)

    def _catch_up(self) -> float | None:
        """Apply the newest version of the folder, unless an earlier one was asked for."""
        if self._is_current():
            return None
        assert self._mine is not None
        try:
            self._apply(self._mine)
        except TornCheckpoint as error:
            self._say(f"fetched again, because it is damaged here: {error}")
            self._drop_damaged(self._mine.version)
            self._mine = None
        except CheckpointError as error:
            self._say(f"version {self.tables.served or 'none'} stays served: {error}")
            return FULL_DISK_S
        return 0.0

    def _apply(self, publication: Publication) -> None:
        changes = self.folder.changes(publication, max(self.tables.versions, default=0))
        about = ServedVersion(publication.version, publication.step, publication.cut_at, self.folder.dense(publication))
        self.tables.apply(about, publication.tables, changes.blocks, everything=changes.is_everything, serve=False)
        if self._selection.offer(publication.version):
            self._freshness.note(publication.cut_at, publication.rows_changed, time.time())

    def _drop_damaged(self, version: int) -> None:
        """Take out a version and its damaged segments, so that they are fetched again."""
        with suppress(CheckpointError):
            publication = self.folder.load(version, check_files=False)
            for name, parts in publication.chains.items():
                for entry in (entry for chain in parts for entry in chain):
                    try:
                        Segment(self.folder.segments.place(name), entry).check()
                    except TornCheckpoint:
                        (self.folder.segments.place(name) / entry.name).unlink(missing_ok=True)
        self.folder.remove(version)

    def _merge(self) -> None:
        """Merge segments until there are none to merge, as the publisher does: merged ones are not fetched."""
        while plan := self._chains.next_merge():
            name, merged, _ = plan
            try:
                self._chains.merge(name, merged)
            except CheckpointError as error:
                self._say(f"segments were not merged: {error}")
                return

    def _say(self, line: str) -> None:
        if line != self._said:
            self._said = line
            self._on_message(line)
