"""Clustering a log: the same rows, sessions side by side, windows kept, again on what is new, nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from session_logs import SCHEMA, session_rows, write_log

from headrace.errors import ConfigError, DataError
from headrace.logs import Cursor, ParquetSource, Schema, WindowConfig, find_windows, list_files, select_files
from headrace.logs.clustering import ClusterConfig, cluster_log
from headrace.logs.clustering import output as output_module
from headrace.logs.footers import iter_plain, open_parquet, read_footer
from headrace.logs.groups import expand

pytest.importorskip("duckdb")

SMALL = {"rows_per_group": 50, "max_session_rows": 20}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    parts = {
        "hour=1/a.parquet": session_rows(150, 1),
        "hour=1/b.parquet": session_rows(90, 2),
        "hour=2/a.parquet": session_rows(120, 3),
    }
    return write_log(tmp_path / "log", parts)


def rows_of(path: Path) -> pa.Table:
    footer = read_footer(next(file for file in list_files(path)))
    batches = []
    with open_parquet(footer) as parquet:
        for group in range(footer.metadata.num_row_groups):
            batches += iter_plain(footer, parquet, group, footer.schema.names, 1000)
    return pa.Table.from_batches(batches)


def multiset(table: pa.Table) -> list[str]:
    return sorted(repr(row) for row in table.to_pylist())


@pytest.mark.parametrize("layout", ["clustered", "nested"])
def test_rows_are_the_same_with_sessions_side_by_side_in_order_of_time(log: Path, tmp_path: Path, layout: str) -> None:
    out = tmp_path / "out"
    done = cluster_log(log, out, SCHEMA, ClusterConfig(layout=layout, **SMALL))
    assert [window.name for window in done.windows] == ["hour=1", "hour=2"]
    for window in done.windows:
        files = list_files(log / window.name)
        before = pa.concat_tables([pq.read_table(file.path, partitioning=None) for file in files])
        after = rows_of(window.path)
        assert multiset(after.drop_columns(["original_row"])) == multiset(before)
        sessions, times = after["session"].to_numpy(), after["time"].to_numpy()
        assert (np.diff(sessions) != 0).sum() + 1 == len(np.unique(sessions)) == window.num_sessions
        assert (np.diff(times)[np.diff(sessions) == 0] >= 0).all()
        assert window.before.checksum == window.after.checksum
        assert window.after.label_sums == {"click": before["click"].to_numpy().sum()}
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("layout", ["clustered", "nested"])
def test_a_reader_delivers_the_rows_and_ids_of_the_log(log: Path, tmp_path: Path, layout: str) -> None:
    def by_id(path: Path, schema: Schema) -> dict[int, dict[str, object]]:
        source = ParquetSource(select_files(list_files(path)), schema, max_rows_per_batch=17)
        batches = [batch.rows for split in range(len(source)) for batch in source.read(split)]
        assert max(batch.num_rows for batch in batches) <= 17
        columns = [*SCHEMA.columns, "__row_id"]
        return {row["__row_id"]: row for batch in batches for row in expand(batch, columns).to_pylist()}

    cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(layout=layout, **SMALL))
    schema = Schema.from_yaml(tmp_path / "out" / "schema.yaml")
    expected = by_id(log, SCHEMA)
    named = schema.model_copy(update={"row_id": "original_row"})  # the column may also be named, for either layout
    for schema_of_reader in (SCHEMA, schema, named):
        assert by_id(tmp_path / "out", schema_of_reader) == by_id(log, schema_of_reader) == expected


@pytest.mark.parametrize("layout", ["clustered", "nested"])
def test_a_reader_tells_the_bytes_it_read_and_those_of_the_log_before(log: Path, tmp_path: Path, layout: str) -> None:
    def read(path: Path, schema: Schema) -> ParquetSource:
        source = ParquetSource(select_files(list_files(path)), schema, columns=SCHEMA.columns)
        assert source.bytes_read.num_bytes == 0
        for split in range(len(source)):
            list(source.read(split))
        return source

    def stored(path: Path, names: tuple[str, ...]) -> float:
        footers = [read_footer(file) for file in list_files(path)]
        groups = [(footer, group) for footer in footers for group in range(footer.metadata.num_row_groups)]
        return sum(footer.compressed_bytes([group])[name] for footer, group in groups for name in names)

    plain = read(log, SCHEMA).bytes_read
    assert plain.num_bytes == plain.num_plain_bytes == pytest.approx(stored(log, SCHEMA.columns))
    cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(layout=layout))
    found = read(tmp_path / "out", Schema.from_yaml(tmp_path / "out" / "schema.yaml")).bytes_read
    ids = stored(tmp_path / "out", ("original_row",))  # a column that the log before has not
    assert found.num_bytes == pytest.approx(stored(tmp_path / "out", SCHEMA.columns) + ids)
    assert found.num_plain_bytes == pytest.approx(plain.num_bytes + ids, rel=1e-4)
    assert found.num_bytes != pytest.approx(found.num_plain_bytes, rel=1e-2)


def test_windows_count_impressions_and_are_those_of_the_log(log: Path, tmp_path: Path) -> None:
    cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL))
    for config in (WindowConfig(), WindowConfig(kind="rows", num_rows=70, include_incomplete=True),
                   WindowConfig(kind="time", every_s=600, include_incomplete=True)):  # fmt: skip
        plain = find_windows(log, SCHEMA, Cursor(), config).windows
        nested = find_windows(tmp_path / "out", SCHEMA, Cursor(), config).windows
        assert [(w.name, w.num_rows) for w in nested] == [(w.name, w.num_rows) for w in plain]
        for window in nested:
            source = ParquetSource(window.selections, SCHEMA, max_rows_per_batch=13)
            read = [batch.rows.num_rows for split in range(len(source)) for batch in source.read(split)]
            assert sum(read) == window.num_rows


def test_a_second_run_adds_what_is_new_and_leaves_the_rest_alone(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = cluster_log(log, out, SCHEMA, ClusterConfig(**SMALL))
    stamps = {window.path: window.path.stat().st_mtime_ns for window in first.windows}
    write_log(log, {"hour=1/c.parquet": session_rows(60, 9), "hour=3/a.parquet": session_rows(40, 8)})
    again = cluster_log(log, out, SCHEMA, ClusterConfig(**SMALL))
    assert again.num_kept == 3
    assert [str(window.path.relative_to(out)) for window in again.windows] == [
        "hour=1/part-00001.parquet",
        "hour=3/part-00000.parquet",
    ]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert cluster_log(log, out, SCHEMA, ClusterConfig(**SMALL)).windows == ()
    ids = [i for file in list_files(out) for i in rows_of(Path(file.path))["original_row"].to_pylist()]
    assert len(set(ids)) == len(ids) == 460


def test_a_file_that_changed_is_refused_with_both_sides(log: Path, tmp_path: Path) -> None:
    cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL))
    write_log(log, {"hour=2/a.parquet": session_rows(121, 5)})
    with pytest.raises(DataError, match=r"hour=2/a.parquet: changed .* had 120 rows .* has 121"):
        cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL))


def test_other_settings_are_refused_by_name(log: Path, tmp_path: Path) -> None:
    cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL))
    with pytest.raises(ConfigError, match="layout: nested then, clustered now"):
        cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(layout="clustered", **SMALL))
    other = write_log(tmp_path / "other", {"a.parquet": session_rows(20, 4)})
    with pytest.raises(ConfigError, match="not written by cluster"):
        cluster_log(log, other, SCHEMA, ClusterConfig(**SMALL))


def test_sessions_are_not_moved_across_slots_of_time_or_files(log: Path, tmp_path: Path) -> None:
    by_time = ClusterConfig(window="time", every_s=600, layout="clustered", **SMALL)
    for window in cluster_log(log, tmp_path / "time", SCHEMA, by_time).windows:
        slots = rows_of(window.path)["time"].to_numpy() // 600_000
        assert (np.diff(slots) >= 0).all()
    by_file = cluster_log(log, tmp_path / "file", SCHEMA, ClusterConfig(window="file", **SMALL))
    for window in by_file.windows:
        before = pq.read_table(log / window.name, partitioning=None)
        assert multiset(rows_of(window.path).drop_columns(["original_row"])) == multiset(before)


def test_a_sample_has_whole_sessions_and_the_same_ones_in_every_window(log: Path, tmp_path: Path) -> None:
    done = cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(sample=0.4, **SMALL))
    kept: dict[int, bool] = {}
    for window in done.windows:
        sampled = {}
        for value in rows_of(window.path)["session"].to_pylist():
            sampled[value] = sampled.get(value, 0) + 1
        files = list_files(log / window.name)
        whole = pa.concat_tables([pq.read_table(file.path, partitioning=None) for file in files])["session"].to_pylist()
        for session in set(whole):
            assert sampled.get(session, 0) in (0, whole.count(session))
            assert kept.setdefault(session, session in sampled) == (session in sampled)
    assert 0.2 < np.mean(list(kept.values())) < 0.6


def test_sessions_are_found_by_pauses_of_users(tmp_path: Path) -> None:
    minutes = [0, 10, 50, 60, 5, 300]
    table = pa.table(
        {
            "user": [1, 1, 1, 1, 2, 1],
            "time": [m * 60_000 for m in minutes],
            "click": [0, 1, 0, 1, 0, 1],
        }
    )
    schema = Schema.from_dict({"labels": ["click"], "ids": ["user"], "timestamp": "time"}, where="test")
    log = write_log(tmp_path / "log", {"a.parquet": table})
    (window,) = cluster_log(log, tmp_path / "out", schema, ClusterConfig(user="user", gap_s=1800)).windows
    rows = rows_of(window.path)
    assert rows["time"].to_numpy().tolist() == [m * 60_000 for m in (0, 10, 5, 50, 60, 300)]
    assert rows["session"].to_pylist() == [0, 0, 4, 2, 2, 5]
    assert Schema.from_yaml(tmp_path / "out" / "schema.yaml").session_id == "session"


def test_rows_without_a_session_are_sessions_of_one_row(tmp_path: Path) -> None:
    table = session_rows(60, 5)
    sessions = [None if i % 3 == 0 else value for i, value in enumerate(table["session"].to_pylist())]
    table = table.set_column(0, "session", pa.array(sessions, pa.int64()))
    log = write_log(tmp_path / "log", {"a.parquet": table})
    (window,) = cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL)).windows
    assert window.num_sessions == 20 + len({s for s in sessions if s is not None})


def test_one_session_with_most_of_the_rows_is_continued_from_row_to_row(tmp_path: Path) -> None:
    table = session_rows(400, 5, rows_per_session=1.0)
    skewed = np.where(np.arange(400) % 10 < 6, 3, table["session"].to_numpy())
    table = table.set_column(0, "session", pa.array(skewed))
    log = write_log(tmp_path / "log", {"a.parquet": table})
    (window,) = cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL)).windows
    assert multiset(rows_of(window.path).drop_columns(["original_row"])) == multiset(table)
    footer = read_footer(list_files(window.path)[0])
    groups = [footer.group_rows(group) for group in range(footer.metadata.num_row_groups)]
    assert max(groups) <= 50
    lengths = [len(row["impressions"]) for row in pq.read_table(window.path, columns=["impressions"]).to_pylist()]
    assert max(lengths) <= 20


def test_what_is_written_wrongly_is_found_and_thrown_away(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = output_module.build_nested

    def lose_a_value(rows: pa.RecordBatch, *rest: object) -> pa.RecordBatch:
        prices = rows.column("price").to_numpy().copy()
        prices[len(prices) // 2] += 1e-9
        return build(rows.set_column(rows.schema.get_field_index("price"), "price", pa.array(prices)), *rest)

    monkeypatch.setattr(output_module, "build_nested", lose_a_value)
    with pytest.raises(DataError, match="verification failed: read 240 rows, checksum"):
        cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL))
    assert not list((tmp_path / "out").rglob("*.parquet*"))


def test_a_log_without_sessions_says_how_to_name_them(tmp_path: Path) -> None:
    schema = SCHEMA.model_copy(update={"session_id": None})
    log = write_log(tmp_path / "log", {"a.parquet": session_rows(20, 1)})
    with pytest.raises(ConfigError, match="give --session COLUMN, or --user COLUMN and --gap"):
        cluster_log(log, tmp_path / "out", schema)
    with pytest.raises(ConfigError, match=r"no column visit; the file has session, time"):
        cluster_log(log, tmp_path / "out", schema, ClusterConfig(session="visit"))


def test_columns_of_any_type_are_kept(tmp_path: Path) -> None:
    table = session_rows(40, 1)
    extra = {
        "bits": pa.array(np.arange(40, dtype=np.uint64) + 2**63),
        "words": pa.array([f"w{i % 3}" for i in range(40)]).dictionary_encode(),
        "when": pa.array(np.arange(40)).cast(pa.timestamp("us", "UTC")),
        "pair": pa.array([{"a": i % 2, "b": [i]} for i in range(40)]),
        "pairs": pa.array([[(i, "x")] for i in range(40)], pa.map_(pa.int64(), pa.string())),
        "flag": pa.array([i % 7 == 0 for i in range(40)]),
        "blob": pa.array([bytes([i]) for i in range(40)]),
        "fixed": pa.array([[i, i] for i in range(40)], pa.list_(pa.int16(), 2)),
    }
    for name, values in extra.items():
        table = table.append_column(name, values)
    log = write_log(tmp_path / "log", {"a.parquet": table})
    for layout in ("clustered", "nested"):
        (window,) = cluster_log(log, tmp_path / layout, SCHEMA, ClusterConfig(layout=layout, **SMALL)).windows
        assert multiset(rows_of(window.path).drop_columns(["original_row"])) == multiset(table)


def test_a_session_that_goes_on_in_the_next_slot_is_another_row_there(tmp_path: Path) -> None:
    table = pa.table({"session": [1] * 6, "time": [0, 1000, 599_000, 600_000, 601_000, 1_200_000], "click": [0] * 6})
    schema = Schema.from_dict({"labels": ["click"], "timestamp": "time", "session_id": "session"}, where="test")
    log = write_log(tmp_path / "log", {"a.parquet": table})
    (window,) = cluster_log(log, tmp_path / "out", schema, ClusterConfig(window="time", every_s=600)).windows
    sessions = pq.read_table(window.path)["impressions"].to_pylist()
    assert [len(impressions) for impressions in sessions] == [3, 2, 1]
    assert window.num_sessions == 3


def test_row_groups_end_where_sessions_end(log: Path, tmp_path: Path) -> None:
    for window in cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(layout="clustered", **SMALL)).windows:
        footer = read_footer(list_files(window.path)[0])
        sessions = rows_of(window.path)["session"].to_pylist()
        ends = np.cumsum([footer.group_rows(group) for group in range(footer.metadata.num_row_groups)])[:-1]
        assert len(ends)
        assert all(sessions[end - 1] != sessions[end] for end in ends)


def test_files_that_differ_only_in_their_ending_keep_a_copy_each(tmp_path: Path) -> None:
    parts = ("clicks.2024-01-01", "clicks.2024-01-02", "a.parquet", "a.pq", "a", "_b.bin")
    log = write_log(tmp_path / "log", {name: session_rows(40, number) for number, name in enumerate(parts)})
    config = ClusterConfig(window="file", **SMALL)
    cluster_log(f"{log}/clicks.*", tmp_path / "out", SCHEMA, config)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.parquet")) == [f"{name}.parquet" for name in parts[:2]]
    for name in ("a*", "_b.bin"):
        cluster_log(f"{log}/{name}", tmp_path / "out", SCHEMA, config)
    files = list_files(tmp_path / "out")
    assert sum(read_footer(file).num_rows for file in files) == 40 * len(parts)
    assert {file.name for file in files} >= {"a.parquet", "a-1.parquet", "a-2.parquet", "b.bin.parquet"}


def test_a_copy_within_the_log_or_beside_other_files_is_refused(log: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"folder of the copy: .*clustered is part of the logs at"):
        cluster_log(log, log / "clustered", SCHEMA, ClusterConfig(**SMALL))
    assert not (log / "clustered").exists()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/schema.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"contains schema\.yaml, not written by cluster"):
        cluster_log(log, tmp_path / "other", SCHEMA, ClusterConfig(**SMALL))
    with pytest.raises(ConfigError, match="given a file, expected an output folder"):
        cluster_log(log, tmp_path / "notes.txt", SCHEMA, ClusterConfig(**SMALL))
    assert (tmp_path / "other/schema.yaml").read_text() == "mine"


def test_copies_of_files_are_named_and_not_clustered_again(log: Path, tmp_path: Path) -> None:
    shutil.copy(log / "hour=1/a.parquet", log / "hour=2/z.parquet")
    for num_kept in (0, 3):
        said: list[str] = []
        done = cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL), on_message=said.append)
        assert said == ["duplicates of other files, not clustered again: hour=2/z.parquet (as hour=1/a.parquet)"]
        assert (sum(window.num_rows_read for window in done.windows), done.num_kept) == (
            0 if num_kept else 360,
            num_kept,
        )
