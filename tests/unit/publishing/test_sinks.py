"""Sinks follow the newest version, once each; Parquet deltas lead to the rows of every version."""

from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from headrace.errors import ConfigError, MissingExtra, StorageError
from headrace.publishing.publications import Publication, PublicationFolder
from headrace.publishing.sinks import parquet_sink
from headrace.publishing.sinks.feeding import IDLE_LOOKS, Feeder, feeding, next_write, open_sink
from headrace.publishing.sinks.parquet_sink import ParquetSink
from headrace.publishing.sinks.sink import Cursor
from headrace.testing.publications import RowPublisher

NAMES = ("items", "users")


def rows_of(publisher: RowPublisher) -> dict[tuple[str, int], list[float]]:
    return {(NAMES[table], each): row.tolist() for (table, each), row in publisher.rows.items()}


def rows_in(folder: Path, base: int = 1) -> dict[tuple[str, int], list[float]]:
    """The rows of the newest version, by the query of the documentation."""
    text = (Path(__file__).parents[3] / "docs" / "publishing.md").read_text(encoding="utf-8")
    query = text.split("```sql\n")[1].split("```")[0]
    query = query.replace("/data/news-rows", str(folder)).replace("version >= 1", f"version >= {base}")
    with duckdb.connect() as connection:
        return {(table, each): list(weights) for table, each, weights in connection.execute(query).fetchall()}


@pytest.fixture
def publisher(tmp_path: Path) -> RowPublisher:
    return RowPublisher(tmp_path / "publications")


def feeder_of(publisher: RowPublisher, path: Path) -> Feeder:
    return Feeder(publisher.folder, ParquetSink(path), lambda line: None)


def test_parquet_deltas_lead_to_the_rows_of_each_version(publisher: RowPublisher, tmp_path: Path) -> None:
    feeder, path = feeder_of(publisher, tmp_path / "out"), tmp_path / "out"
    publisher.publish({(0, 1): 1.0, (0, 2): 2.0, (1, -5): 3.0})
    assert feeder.feed()
    assert rows_in(path) == rows_of(publisher)
    publisher.publish({(0, 2): 5.0, (1, 2**62): 6.0}, removed=[(0, 1)])
    assert feeder.feed()
    assert rows_in(path) == rows_of(publisher)
    publisher.publish({(0, 1): 7.0}, removed=[(1, -5)])
    publisher.publish({(0, 2): 8.0})  # two versions in one folder
    assert feeder.feed()
    assert rows_in(path) == rows_of(publisher)
    assert sorted(each.name for each in path.iterdir()) == ["00000001", "00000002", "00000004"]
    assert load_file(path / "00000004" / "dense.safetensors")["bias"] == np.float32(4)
    last = pq.read_table(path / "00000004" / "rows.embeddings.parquet")
    assert last.schema.field("weights").type == pa.list_(pa.float32(), 4)
    assert last.select(["table", "id", "version"]).to_pylist() == [
        {"table": "items", "id": 1, "version": 4},
        {"table": "items", "id": 2, "version": 4},
    ]


def test_int8_rows_reach_a_sink_as_the_numbers_that_replicas_read(tmp_path: Path) -> None:
    publisher = RowPublisher(tmp_path / "publications", as_int8=True)
    publisher.publish({(0, 1): 126.0, (1, 1): 0.0})
    assert feeder_of(publisher, tmp_path / "out").feed()
    found = rows_in(tmp_path / "out")
    for key, row in rows_of(publisher).items():
        assert np.abs(np.subtract(found[key], row)).max() <= max(row) / 252


def test_a_new_base_replaces_everything(publisher: RowPublisher, tmp_path: Path) -> None:
    feeder = feeder_of(publisher, tmp_path / "out")
    publisher.publish({(0, 1): 1.0})
    feeder.feed()
    publisher.publish({(0, 3): 3.0}, removed=[(0, 1)], is_base=True)
    feeder.feed()
    manifest = (tmp_path / "out" / "00000002" / "manifest.json").read_text()
    assert '"is_everything": true' in manifest
    assert '"since": 0' in manifest
    rows = pq.read_table(tmp_path / "out" / "00000002" / "rows.embeddings.parquet")
    assert rows["id"].to_pylist() == [3]
    assert rows_in(tmp_path / "out", base=2) == rows_of(publisher)


def test_a_kill_while_a_folder_is_written_leaves_the_version_before(
    publisher: RowPublisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    publisher.publish({(0, 1): 1.0})
    feeder_of(publisher, path).feed()
    before = rows_of(publisher)
    publisher.publish({(0, 1): 2.0})

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(parquet_sink.Manifest, "write", kill)
        patched.setattr("headrace.files.shutil.rmtree", lambda *_, **__: None)  # a killed process tidies nothing
        with pytest.raises(Killed):
            feeder_of(publisher, path).feed()
    assert rows_in(path) == before
    (leftover,) = (each for each in path.iterdir() if each.name.startswith("."))
    leftover.rename(path / ".00000002.1.partial")  # of another process
    assert feeder_of(publisher, path).feed()
    assert rows_in(path) == rows_of(publisher)
    assert sorted(each.name for each in path.iterdir()) == ["00000001", "00000002"]


def test_the_next_write_follows_from_what_a_sink_has(publisher: RowPublisher) -> None:
    assert not next_write(None, None).is_due
    newest = publisher.publish({(0, 1): 1.0})
    assert next_write(None, newest).is_due
    assert not next_write(Cursor("a", 1), newest).is_due
    assert next_write(Cursor("a", 1), replace(newest, version=3)).reason == "it has version 1"
    ahead = next_write(Cursor("a", 4), newest)
    assert (ahead.is_due, ahead.reason) == (False, "it has version 4, later than 1, the newest one here")
    with pytest.raises(ConfigError, match="of another run"):
        next_write(Cursor("b", 1), newest)


class FlakySink:
    """A sink in memory that may be away, and may lose what it has."""

    name = "flaky"

    def __init__(self) -> None:
        self.has: Cursor | None = None
        self.is_away = False
        self.written: list[int] = []

    def cursor(self) -> Cursor | None:
        if self.is_away:
            raise StorageError("flaky: is away")
        return self.has

    def write(self, folder: PublicationFolder, publication: Publication, after: Cursor | None) -> None:
        assert after == self.has
        self.has = Cursor(publication.lineage, publication.version)
        self.written.append(publication.version)

    def close(self) -> None:
        pass


def test_a_sink_that_is_away_gets_the_newest_version_when_it_is_back(publisher: RowPublisher) -> None:
    sink, lines = FlakySink(), []
    feeder = Feeder(publisher.folder, sink, lines.append)
    assert feeder.feed()
    publisher.publish({(0, 1): 1.0})
    sink.is_away = True
    assert not feeder.feed()
    publisher.publish({(0, 1): 2.0})
    assert not feeder.feed()
    sink.is_away = False
    assert feeder.feed()
    assert feeder.feed()
    assert sink.written == [2]
    assert lines == [
        "not written to flaky, trying again: flaky: is away",
        "flaky: version 2 of step 20",
        "flaky: works again",
    ]


def test_a_sink_that_lost_its_data_gets_the_version_again(publisher: RowPublisher) -> None:
    sink = FlakySink()
    feeder = Feeder(publisher.folder, sink, lambda line: None)
    publisher.publish({(0, 1): 1.0})
    feeder.feed()
    sink.has = None
    for _ in range(IDLE_LOOKS):
        feeder.feed()
    assert sink.written == [1, 1]


def test_pauses_after_failures_grow_and_stop_when_told_to(publisher: RowPublisher) -> None:
    sink, slept = FlakySink(), []
    sink.is_away = True
    publisher.publish({(0, 1): 1.0})
    feeder = Feeder(publisher.folder, sink, lambda line: None)
    looks: list[int] = []
    feed = feeder.feed

    def counted() -> bool:
        looks.append(len(slept))
        return feed()

    feeder.feed = counted  # type: ignore[method-assign]
    feeder.run(lambda: len(slept) > 100, slept.append)
    gaps = np.diff(looks).tolist()
    assert gaps == [2, 4, 8, 16, 32]


def test_another_run_is_refused_in_one_line(publisher: RowPublisher, tmp_path: Path) -> None:
    publisher.publish({(0, 1): 1.0})
    feeder_of(publisher, tmp_path / "out").feed()
    other = RowPublisher(tmp_path / "other", lineage="b")
    other.publish({(0, 1): 1.0})
    with pytest.raises(ConfigError, match=r"out: it has versions of another run \(lineage a, expected b\)"):
        feeder_of(other, tmp_path / "out").feed()


@pytest.mark.parametrize("target", ["s3://bucket/rows", "http://host/"])
def test_other_targets_are_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="expected redis://HOST:PORT/DB or a folder"):
        open_sink(target)


def test_an_invalid_address_of_redis_is_refused_without_its_password() -> None:
    try:
        with pytest.raises(ConfigError, match="expected redis://HOST:PORT/DB") as refused:
            open_sink("redis://:secret@host:port/0")
    except MissingExtra:
        pytest.skip("needs the extra publish: redis")
    assert "secret" not in str(refused.value)


def test_what_a_sink_fails_with_is_raised_where_it_was_started(publisher: RowPublisher) -> None:
    sink = FlakySink()
    sink.has = Cursor("another run", 1)
    publisher.publish({(0, 1): 1.0})
    with (
        pytest.raises(ConfigError, match="flaky: it has versions of another run"),
        feeding([Feeder(publisher.folder, sink, lambda line: None)]) as pause,
    ):
        pause(60)
