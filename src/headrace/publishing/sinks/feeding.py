"""Feeds sinks: whichever version a sink has, the newest one is next."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

from headrace.errors import ConfigError, StorageError, TornCheckpoint
from headrace.paths import local_path
from headrace.publishing.publications import Publication, PublicationFolder
from headrace.publishing.sinks.parquet_sink import ParquetSink
from headrace.publishing.sinks.redis_sink import RedisSink
from headrace.publishing.sinks.sink import Cursor, Sink

__all__ = ["Feeder", "NextWrite", "feeding", "next_write", "open_sink"]

POLL_S = 0.1
"""Seconds between looks at the folder of publications, which is local."""
IDLE_LOOKS = 50
"""Looks without a new version after which the sink is asked for its version: it may have lost it."""
MAX_PAUSES = 64
"""Most pauses of `POLL_S` after failures, which begin with two and double."""


def open_sink(target: str) -> Sink:
    """The sink of a URL or a folder.

    Raises:
        ConfigError: It is neither.
        MissingExtra: A library is not installed.
    """
    if re.match(r"(rediss?|unix)://", target):
        return RedisSink(target)
    if "://" in target and not target.startswith(("file://", "local://")):
        raise ConfigError(f"--to: given {target}, expected redis://HOST:PORT/DB or a folder")
    return ParquetSink(local_path(target, where="--to"))


@dataclass(frozen=True)
class NextWrite:
    """Whether the newest version is written to a sink now, and why."""

    is_due: bool
    reason: str


def next_write(cursor: Cursor | None, newest: Publication | None) -> NextWrite:
    """Decide whether to write the newest version to a sink.

    Args:
        cursor: What the sink has.
        newest: The newest version.

    Raises:
        ConfigError: The sink has versions of another run.
    """
    if newest is None:
        return NextWrite(False, "no version yet")
    if cursor is None:
        return NextWrite(True, "it has nothing")
    if cursor.lineage != newest.lineage:
        raise ConfigError(
            f"it has versions of another run (lineage {cursor.lineage[:8]}, expected {newest.lineage[:8]}); "
            "choose another prefix or folder, or delete them"
        )
    if cursor.version > newest.version:
        return NextWrite(False, f"it has version {cursor.version}, later than {newest.version}, the newest one here")
    if cursor.version == newest.version:
        return NextWrite(False, "it has the newest version")
    return NextWrite(True, f"it has version {cursor.version}")


class Feeder:
    """Writes versions of a folder to a sink, which may go away and come back.

    Args:
        folder: The publications; others write them.
        sink: The sink.
        on_message: Receives lines for the user.

    Attributes:
        num_written: Versions written by this object.
    """

    def __init__(self, folder: PublicationFolder, sink: Sink, on_message: Callable[[str], None]) -> None:
        self._folder, self._sink, self._say = folder, sink, on_message
        self._seen = 0  # newest version that the sink has, or that it need not have
        self._problem = ""
        self._num_idle = 0
        self.num_written = 0

    def feed(self) -> bool:
        """Write the newest version, if the sink lacks it. A sink or a version that cannot be used now is said once.

        Returns:
            Whether the sink was in order.

        Raises:
            ConfigError: The sink has something else.
        """
        versions = self._folder.versions()
        self._num_idle += 1
        has_news = bool(versions) and versions[-1] > self._seen
        if not has_news and not self._problem and self._num_idle < IDLE_LOOKS:
            return True
        self._num_idle = 0
        try:
            self._write_newest()
        except (StorageError, TornCheckpoint, FileNotFoundError) as error:  # missing: deleted, as a newer one is there
            if str(error) != self._problem:
                self._say(f"not written to {self._sink.name}, trying again: {error}")
            self._problem = str(error)
            return False
        if self._problem:
            self._say(f"{self._sink.name}: works again")
            self._problem = ""
        return True

    def _write_newest(self) -> None:
        newest, cursor = self._folder.newest(), self._sink.cursor()
        try:
            decision = next_write(cursor, newest)
        except ConfigError as error:
            raise ConfigError(f"{self._sink.name}: {error}") from None
        if newest is None:
            return
        if decision.is_due:
            self._sink.write(self._folder, newest, cursor)
            self.num_written += 1
            self._say(f"{self._sink.name}: version {newest.version} of step {newest.step}")
        elif cursor is not None and cursor.version > newest.version:
            self._say(f"{self._sink.name}: {decision.reason}")
        self._seen = newest.version

    def run(self, should_stop: Callable[[], bool], sleep: Callable[[float], None] = time.sleep) -> None:
        """Feed the sink until told to stop."""
        num_pauses = 1
        while not should_stop():
            num_pauses = 1 if self.feed() else min(2 * num_pauses, MAX_PAUSES)
            for _ in range(num_pauses):
                if should_stop():
                    break
                sleep(POLL_S)


@contextmanager
def feeding(feeders: Sequence[Feeder]) -> Iterator[Callable[[float], None]]:
    """Feed sinks, each in a thread, so that a slow one holds up nobody; they stop at the end.

    Yields:
        Waits for some seconds, and raises what a sink has failed with.
    """
    is_over = threading.Event()
    with ThreadPoolExecutor(max(1, len(feeders)), thread_name_prefix="sink") as threads:
        running = [threads.submit(feeder.run, is_over.is_set) for feeder in feeders]

        def pause(seconds: float) -> None:
            if not running:
                time.sleep(seconds)
            for each in wait(running, seconds, FIRST_EXCEPTION).done:
                each.result()

        try:
            yield pause
        finally:
            is_over.set()
