"""Replicas: they converge to the trainer's rows over sources that die or are damaged, and can be rolled back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from headrace.errors import CheckpointError, HeadraceError
from headrace.publishing.client import ServerStatus
from headrace.publishing.guard import GuardLimits
from headrace.publishing.publications import PublicationFolder
from headrace.publishing.replica import Replica
from headrace.testing.published_table import GROUP, PublishedTable, every_key


class FolderSource:
    """Serves a folder, and fails as told: `is_up`, bytes until it dies, and a change of what it sends."""

    def __init__(self, folder: PublicationFolder, address: str) -> None:
        self.folder, self.address = folder, address
        self.is_up, self.bytes_left = True, 1 << 40
        self.change: Callable[[str, bytes], bytes] = lambda name, data: data
        self.read_names: list[str] = []

    def wait(self, after: int, *, timeout_s: float = 0.0) -> ServerStatus:
        self._check()
        versions = self.folder.versions()
        return ServerStatus(max(versions, default=0), tuple(versions))

    def manifest(self, version: int) -> bytes:
        self._check()
        try:
            return (self.folder.place(version) / "manifest.json").read_bytes()
        except FileNotFoundError as error:
            raise HeadraceError(f"version {version}: is not here") from error

    def read(self, file: str, offset: int = 0) -> Iterator[bytes]:
        self.read_names.append(file)
        data = self.change(file, (self.folder.path / file).read_bytes())[offset:]
        for first in range(0, len(data), 100):
            self._check()
            part = data[first : first + 100]
            self.bytes_left -= len(part)
            yield part

    def _check(self) -> None:
        if self.bytes_left < 0:
            self.is_up = False
        if not self.is_up:
            raise HeadraceError(f"{self.address}: does not answer")


def damaged(segment: bytes) -> bytes:
    """A segment with a changed byte in each of its first columns."""
    data = bytearray(segment)
    for at in range(64, 400, 64):
        data[at] ^= 1
    return bytes(data)


class Follower:
    """A replica and its sources, without threads."""

    opened: ClassVar[list[Replica]] = []

    def __init__(self, path: Path, sources: list[FolderSource], address: str = "me:1", **options: Any) -> None:
        self.now, self.lines = 0.0, list[str]()
        self.sources = {source.address: source for source in sources}
        folder = PublicationFolder(path, keep=options.pop("keep_on_disk", 100))
        self.replica = Replica(
            folder, sources, address=address, on_message=self.lines.append, clock=lambda: self.now, **options
        )
        self.opened.append(self.replica)
        self.replica.restore()

    def follow(self, turns: int = 10) -> None:
        for _ in range(turns):
            for address, source in self.sources.items():
                try:
                    newest = source.wait(0).newest
                except HeadraceError:
                    newest = None
                self.replica.note(address, newest)
            pause_s = self.replica.step()
            self.now += pause_s or 0.0

    def read(self) -> Any:
        return self.replica.tables.read(GROUP, every_key())

    def check(self, publisher: PublishedTable, version: int) -> None:
        assert self.replica.tables.served == version, self.lines
        np.testing.assert_array_equal(self.read(), publisher.expected[version])
        assert self.replica.tables.view.dense["bias"][0] == version


@pytest.fixture(autouse=True)
def _close_replicas() -> Iterator[None]:
    yield
    while Follower.opened:
        Follower.opened.pop().close()


@pytest.fixture
def publisher(tmp_path: Path) -> PublishedTable:
    return PublishedTable(tmp_path / "publisher")


def test_a_replica_has_the_rows_of_each_version_with_deletes(publisher: PublishedTable, tmp_path: Path) -> None:
    source = FolderSource(publisher.folder, "p:1")
    follower = Follower(tmp_path / "replica", [source])
    for count in (1, 1, 3, 1, 1, 6, 1, 20, 1, 1):
        publisher.publish(count)
        follower.follow(3)
        follower.check(publisher, publisher.version)
    segments = [name for name in source.read_names if name.startswith("segments/")]
    assert len(segments) == len(set(segments))


def test_merged_segments_whose_parts_are_there_are_not_fetched(publisher: PublishedTable, tmp_path: Path) -> None:
    source = FolderSource(publisher.folder, "p:1")
    follower = Follower(tmp_path / "replica", [source])
    for _ in range(12):
        publisher.publish()
        follower.follow(2)
    segments = [name for name in source.read_names if name.startswith("segments/")]
    assert len(segments) == 12


def test_a_replica_that_is_behind_fetches_no_rows_that_it_has(tmp_path: Path) -> None:
    publisher = PublishedTable(tmp_path / "publisher", dim=256, base_every=100)
    source = FolderSource(publisher.folder, "p:1")
    follower = Follower(tmp_path / "replica", [source])
    publisher.publish(6)
    follower.follow(2)
    for count in (1, 2, 2, 2, 1, 2, 2, 2, 2):
        held, before = publisher.version, follower.replica.download.num_bytes["p:1"]
        publisher.publish(count)
        follower.follow(2)
        follower.check(publisher, publisher.version)
        singles = [
            path.stat().st_size
            for path in (tmp_path / "publisher" / "segments" / GROUP).iterdir()
            if int(path.name[:8]) == int(path.name[9:17]) > held
        ]
        others = sum(
            path.stat().st_size
            for path in publisher.folder.place(publisher.version).iterdir()
            if path.name != "manifest.json"
        )
        assert len(singles) == count
        assert follower.replica.download.num_bytes["p:1"] - before <= sum(singles) + others


def test_a_restart_needs_no_source(publisher: PublishedTable, tmp_path: Path) -> None:
    publisher.publish(6)
    follower = Follower(tmp_path / "replica", [FolderSource(publisher.folder, "p:1")])
    follower.follow()
    follower.replica.close()
    dead = FolderSource(publisher.folder, "p:1")
    dead.is_up = False
    Follower(tmp_path / "replica", [dead]).check(publisher, 6)


def test_a_folder_that_cannot_be_created_is_refused_at_the_start(publisher: PublishedTable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/replica: cannot be written: Not a directory"):
        Follower(tmp_path / "file" / "replica", [FolderSource(publisher.folder, "p:1")])


def test_a_file_that_was_cut_off_is_resumed_from_another_source(publisher: PublishedTable, tmp_path: Path) -> None:
    publisher.publish(3)
    first, second = FolderSource(publisher.folder, "q:1"), FolderSource(publisher.folder, "p:1")
    first.bytes_left = 700
    follower = Follower(tmp_path / "replica", [first, second])
    follower.follow()
    follower.check(publisher, 3)
    fetched = follower.replica.download.num_bytes
    once = Follower(tmp_path / "other", [FolderSource(publisher.folder, "p:1")])
    once.follow()
    assert min(fetched.values()) > 0
    assert sum(fetched.values()) == sum(once.replica.download.num_bytes.values())


def test_a_damaged_file_is_refused_with_its_place_and_fetched_elsewhere(
    publisher: PublishedTable, tmp_path: Path
) -> None:
    publisher.publish(3)
    peer, source = FolderSource(publisher.folder, "q:1"), FolderSource(publisher.folder, "p:1")
    peer.change = lambda name, data: damaged(data) if ".rows" in name else data
    follower = Follower(tmp_path / "replica", [peer, source])
    follower.follow()
    follower.check(publisher, 3)
    assert any(line.startswith("refused: q:1: ") and "has CRC-32" in line for line in follower.lines)


def test_versions_of_another_run_are_refused(publisher: PublishedTable, tmp_path: Path) -> None:
    publisher.publish(2)
    source = FolderSource(publisher.folder, "p:1")
    follower = Follower(tmp_path / "replica", [source])
    follower.follow()
    other = PublishedTable(tmp_path / "other", lineage="b")
    other.publish(5)
    source.folder = other.folder
    follower.follow()
    follower.check(publisher, 2)
    assert "has versions of run b, expected a; use a new folder" in follower.lines[-1]


def test_a_replica_that_was_away_for_long_takes_what_there_is(tmp_path: Path) -> None:
    publisher = PublishedTable(tmp_path / "publisher", keep=2)
    publisher.publish(2)
    source = FolderSource(publisher.folder, "p:1")
    follower = Follower(tmp_path / "replica", [source])
    follower.follow()
    source.is_up = False
    follower.follow(2)
    publisher.publish(40)
    source.is_up = True
    follower.follow()
    follower.check(publisher, 42)


def test_the_publisher_sends_each_file_to_one_of_several_replicas(publisher: PublishedTable, tmp_path: Path) -> None:
    folders = {f"r{i}:1": PublicationFolder(tmp_path / f"r{i}") for i in range(3)}
    sources = {me: FolderSource(publisher.folder, "p:1") for me in folders}
    followers = [
        Follower(
            tmp_path / me[:2], [*(FolderSource(folder, a) for a, folder in folders.items() if a != me), sources[me]], me
        )
        for me in folders
    ]
    for _ in range(6):
        publisher.publish()
        for _ in range(2):
            for follower in followers:
                follower.follow(1)
                follower.now -= 100.0  # nobody runs out of patience
    for follower in followers:
        follower.follow(4)
        follower.check(publisher, 6)
    names = [name for source in sources.values() for name in source.read_names]
    assert len(names) == len(set(names))


def test_a_rollback_stays_also_after_a_restart_until_the_newest_is_asked_for(
    publisher: PublishedTable, tmp_path: Path
) -> None:
    source = FolderSource(publisher.folder, "p:1")
    follower = Follower(tmp_path / "replica", [source])
    for _ in range(4):
        publisher.publish()
        follower.follow(2)
    assert follower.replica.rollback(2, "bad labels") == 2
    follower.check(publisher, 2)
    publisher.publish(2)
    follower.follow()
    follower.check(publisher, 2)
    assert follower.replica.status()["newest"] == 6
    follower.replica.close()
    again = Follower(tmp_path / "replica", [source])
    again.check(publisher, 2)
    assert "rolled back from version 4 to 2" in str(again.replica.status()["held"])
    assert str(again.replica.status()["held"]).endswith("UTC: bad labels")
    with pytest.raises(HeadraceError, match="version 1: is not in memory, expected one of 2"):
        again.replica.rollback(1, "why not")
    again.replica.rollback("newest", "fixed")
    again.follow()
    again.check(publisher, 6)
    again.replica.close()
    assert Follower(tmp_path / "replica", [source]).replica.hold is None


LIMITS = GuardLimits(max_ne=0.9, rows=100, windows=2)
LABELS = np.tile(np.array([1, 0], np.float32), 50)
GOOD, BAD = 0.1 + 0.8 * LABELS, np.full(100, 0.5, np.float32)


def guarded(publisher: PublishedTable, path: Path, **options: Any) -> Follower:
    return Follower(path / "replica", [FolderSource(publisher.folder, "p:1")], limits=LIMITS, **options)


def served_after(follower: Follower, publisher: PublishedTable, bad: set[int], num_versions: int) -> list[int]:
    """The version that is served when each of some versions is there, all of whose windows are labelled then."""
    served = []
    for _ in range(num_versions):
        publisher.publish()
        follower.follow(3)
        version = follower.replica.tables.served or 0
        served.append(version)
        for _ in range(2):
            follower.replica.feed_back(version, BAD if version in bad else GOOD, LABELS)
        follower.check(publisher, follower.replica.tables.served or 0)
    return served


def test_the_guard_rolls_back_to_the_last_good_version_and_says_why(publisher: PublishedTable, tmp_path: Path) -> None:
    follower = guarded(publisher, tmp_path)
    for version, predictions in ((1, GOOD), (2, GOOD), (3, BAD), (4, BAD)):
        publisher.publish()
        follower.follow(2)
        follower.replica.feed_back(version, predictions, LABELS)
    follower.check(publisher, 4)
    follower.replica.feed_back(4, BAD, LABELS)
    follower.check(publisher, 2)
    assert follower.replica.hold is not None
    assert follower.replica.hold.reason == (
        "guard: normalized entropy 1.0000 above 0.9, in 2 windows of 100 labels in a row"
    )
    assert str(follower.replica.hold).endswith("; version 5 or later is tried next; bad versions in a row: 1")
    follower.replica.feed_back(4, BAD, LABELS)
    follower.follow()
    follower.check(publisher, 2)


def test_the_version_after_a_bad_one_is_on_trial_until_it_is_judged(publisher: PublishedTable, tmp_path: Path) -> None:
    follower = guarded(publisher, tmp_path)
    assert served_after(follower, publisher, {3}, 3) == [1, 2, 3]
    follower.check(publisher, 2)
    publisher.publish()
    follower.follow()
    follower.check(publisher, 4)
    assert "version 4 is on trial" in str(follower.replica.status()["held"])
    publisher.publish(2)
    follower.follow()
    follower.check(publisher, 4)  # newer ones wait for its window
    follower.replica.feed_back(4, GOOD, LABELS)
    follower.follow()
    follower.check(publisher, 6)
    assert follower.replica.hold is None
    assert "version 4 is good; newer ones are served again" in follower.lines


def test_of_many_bad_versions_ever_fewer_are_served(publisher: PublishedTable, tmp_path: Path) -> None:
    follower = guarded(publisher, tmp_path, keep=3)
    served = served_after(follower, publisher, set(range(3, 40)), 25)
    tried = [version for version in served if version > 2]
    assert tried == [3, 4, 6, 10, 18]
    follower.check(publisher, 2)
    assert served_after(follower, publisher, set(), 12)[-5:] == [2, 34, 35, 36, 37]


def test_a_trial_begins_again_after_a_restart_from_the_good_version(publisher: PublishedTable, tmp_path: Path) -> None:
    follower = guarded(publisher, tmp_path, keep_on_disk=2)
    served_after(follower, publisher, {3, 4}, 4)
    publisher.publish(1)
    follower.follow()
    publisher.publish(1)
    follower.follow()
    follower.check(publisher, 6)  # after 3, which was bad, 4, and after that 6
    publisher.publish(8)
    follower.follow()
    follower.replica.close()
    again = guarded(publisher, tmp_path, keep_on_disk=2)
    again.check(publisher, 2)  # kept on disk, although it is older than the two newest ones
    again.follow()
    again.check(publisher, 14)
    assert again.replica.hold is not None
    again.replica.feed_back(14, GOOD, LABELS)
    assert again.replica.hold is None


def test_the_guard_leaves_a_rollback_by_hand_alone(publisher: PublishedTable, tmp_path: Path) -> None:
    follower = guarded(publisher, tmp_path)
    served_after(follower, publisher, set(), 3)
    follower.replica.rollback(2, "by hand")
    for _ in range(4):
        follower.replica.feed_back(2, BAD, LABELS)
    follower.check(publisher, 2)
    assert "version 2 is bad, but stays, because it was rolled back to: " in follower.lines[-1]
    follower.replica.feed_back(2, GOOD, LABELS)
    publisher.publish(5)
    follower.follow()
    follower.check(publisher, 2)


def test_a_disk_that_is_full_keeps_the_served_version(
    publisher: PublishedTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.publish(2)
    follower = Follower(tmp_path / "replica", [FolderSource(publisher.folder, "p:1")])
    follower.follow()
    publisher.publish()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "No space left")))
        follower.follow(2)
    follower.check(publisher, 2)
    assert "version 3 was not stored, version 2 stays served: " in follower.lines[-1]
    assert "No space left on device" in follower.lines[-1]
    follower.follow()
    follower.check(publisher, 3)


def test_a_segment_that_is_damaged_on_disk_is_fetched_again(publisher: PublishedTable, tmp_path: Path) -> None:
    publisher.publish(3)
    follower = Follower(tmp_path / "replica", [FolderSource(publisher.folder, "p:1")])
    follower.follow()
    follower.replica.close()
    for path in (tmp_path / "replica" / "segments").glob("*/*.rows"):
        path.write_bytes(damaged(path.read_bytes()))
    again = Follower(tmp_path / "replica", [FolderSource(publisher.folder, "p:1")])
    assert again.replica.tables.served is None
    again.follow()
    again.check(publisher, 3)
