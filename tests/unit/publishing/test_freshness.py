"""Ages of rows follow from cut times, and metrics from what a replica answers."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.publishing.client import ServerStatus
from headrace.publishing.freshness import FRESHNESS, Freshness, SeenVersion, freshness_of, prometheus_text, row_ages
from headrace.publishing.publications import PublicationFolder
from headrace.publishing.replica import Replica
from headrace.testing.publications import RowPublisher

STATUS = {"served": 7, "newest": 8, "cut_at": 100.0, "held": None, "bytes_from": {"a:1": 5, "b:2": 7}}


def test_rows_of_a_version_were_changed_between_its_cut_and_the_one_before() -> None:
    seen = [SeenVersion(since=10.0, cut_at=12.0, seen_at=12.5, rows=100)]
    ages = row_ages(seen, (0, 50, 100))
    assert ages == pytest.approx([0.5, 1.5, 2.5], abs=1 / 16)


def test_ages_are_weighted_by_rows() -> None:
    slow = SeenVersion(since=10.0, cut_at=10.0, seen_at=20.0, rows=2)
    fast = SeenVersion(since=10.0, cut_at=10.0, seen_at=11.0, rows=98)
    assert row_ages([slow, fast], (50, 97.9, 98.1, 99)) == pytest.approx([1.0, 1.0, 10.0, 10.0])


def test_without_changed_rows_there_are_no_ages() -> None:
    assert row_ages([], (50,)) is None
    assert row_ages([SeenVersion(0.0, 1.0, 2.0, 0)], (50,)) is None
    freshness = Freshness()
    freshness.note(cut_at=1.0, rows=10**6, seen_at=50.0)  # the first version, which a replica may have fetched late
    assert freshness.ages() == {"row_age_p50_s": None, "row_age_p99_s": None}


def test_versions_that_were_left_out_make_rows_older() -> None:
    freshness = Freshness()
    for cut_at in (1.0, 2.0, 5.0):
        freshness.note(cut_at, rows=10, seen_at=cut_at + 0.1)
    ages = freshness.ages()
    assert ages["row_age_p99_s"] == pytest.approx(3.1, abs=0.1)


def test_a_version_served_again_after_a_rollback_is_not_a_new_one() -> None:
    freshness = Freshness()
    for cut_at in (1.0, 2.0, 1.0):
        freshness.note(cut_at, rows=10, seen_at=2.5)
    assert len(freshness._seen) == 1


def test_metrics_follow_from_the_status() -> None:
    metrics = freshness_of(STATUS | {"row_age_p50_s": 0.5, "row_age_p99_s": 1.5}, now=103.0)
    assert list(metrics) == [metric.name for metric in FRESHNESS]
    assert list(metrics.values()) == [7, 8, 3.0, 0.5, 1.5, 12, 0.0]
    assert freshness_of({"served": 0, "newest": 0, "cut_at": None}, now=1.0)["replica.seconds_behind"] is None
    assert freshness_of(STATUS | {"held": "rolled back"}, now=1.0)["replica.is_held"] == 1.0


def test_prometheus_reads_declared_metrics() -> None:
    text = prometheus_text(FRESHNESS, {"a:1": freshness_of(STATUS, now=103.0), "b:2": freshness_of(STATUS, now=104.0)})
    assert "# TYPE headrace_replica_seconds_behind gauge\n" in text
    assert 'headrace_replica_seconds_behind{replica="a:1"} 3.0\n' in text
    assert 'headrace_replica_seconds_behind{replica="b:2"} 4.0\n' in text
    assert "# TYPE headrace_replica_fetched_bytes counter\n" in text
    assert "row_age" not in text


def test_the_documentation_has_the_declarations() -> None:
    text = (Path(__file__).parents[3] / "docs" / "publishing.md").read_text(encoding="utf-8")
    assert FRESHNESS.to_markdown() in text


class FolderSource:
    """A folder as a source, without a network."""

    address = "publisher:1"

    def __init__(self, folder: PublicationFolder) -> None:
        self._folder = folder

    def wait(self, after: int, *, timeout_s: float = 0.0) -> ServerStatus:
        versions = self._folder.versions()
        return ServerStatus(versions[-1], tuple(versions))

    def manifest(self, version: int) -> bytes:
        return (self._folder.place(version) / "manifest.json").read_bytes()

    def read(self, file: str, offset: int = 0) -> Iterator[bytes]:
        yield (self._folder.path / file).read_bytes()[offset:]


def test_a_replica_reports_ages_of_rows_from_its_second_version_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = RowPublisher(tmp_path / "publisher")
    source = FolderSource(publisher.folder)
    lines: list[str] = []
    replica = Replica(PublicationFolder(tmp_path / "r"), [source], address="me:1", on_message=lines.append)
    for cut_at in (100.0, 101.0, 102.0):
        publisher.publish({(0, each): cut_at for each in range(10)}, cut_at=cut_at)
        monkeypatch.setattr(time, "time", lambda: cut_at + 0.25)  # noqa: B023
        replica.note(source.address, publisher.version)
        replica.step()
        if cut_at == 100.0:
            assert replica.status()["row_age_p99_s"] is None
    monkeypatch.undo()
    replica.close()
    status = replica.status()
    assert (status["served"], status["cut_at"]) == (3, 102.0), lines
    assert status["row_age_p50_s"] == pytest.approx(0.75, abs=1 / 16)
    assert status["row_age_p99_s"] == pytest.approx(1.25, abs=1 / 16)
