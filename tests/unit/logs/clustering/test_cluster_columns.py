"""Clustering logs with columns of any type and name, types that change from file to file, and refusals before work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arrow_types import NUM_ROWS, every_column
from session_logs import SCHEMA, session_rows, write_log

from headrace.errors import ConfigError, DataError
from headrace.logs import ParquetSource, Schema, list_files, select_files
from headrace.logs.clustering import ClusterConfig, cluster_log
from headrace.logs.footers import iter_plain, open_parquet, read_footer
from headrace.logs.groups import expand

pytest.importorskip("duckdb")

SMALL = {"rows_per_group": 50, "max_session_rows": 20}
LAYOUTS = ["clustered", "nested"]


def rows_of(path: Path) -> pa.Table:
    batches = []
    for file in list_files(path):
        footer = read_footer(file)
        with open_parquet(footer) as parquet:
            for group in range(footer.metadata.num_row_groups):
                batches += iter_plain(footer, parquet, group, footer.schema.names, 1000)
    return pa.Table.from_batches(batches).sort_by("original_row").drop_columns(["original_row"])


def trained_rows(path: Path, schema: Schema) -> list[dict[str, object]]:
    source = ParquetSource(select_files(list_files(path)), schema)
    batches = [batch.rows for split in range(len(source)) for batch in source.read(split)]
    rows = [row for batch in batches for row in expand(batch, SCHEMA.columns).to_pylist()]
    return sorted(rows, key=repr)


def replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_column_of_any_type_is_copied_as_it_is(tmp_path: Path, layout: str) -> None:
    table = session_rows(NUM_ROWS, 1)
    for name, values in every_column().items():
        table = table.append_column(name, values)
    log = write_log(tmp_path / "log", {"a.parquet": table})
    notes: list[str] = []
    cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(layout=layout, **SMALL), on_message=notes.append)
    assert notes == []
    before, after = pq.read_table(log / "a.parquet"), rows_of(tmp_path / "out")
    for name in before.column_names:
        assert after[name].to_pylist() == before[name].to_pylist(), name
    kinds = {field.name: field.type for field in after.schema}
    assert [kind for name, kind in kinds.items() if name.endswith(" extension<arrow.uuid>")] == [pa.uuid()]


CHANGES = {
    "label from int8 to double": ("click", pa.int8(), pa.float64()),
    "label from bool to int8": ("click", pa.bool_(), pa.int8()),
    "label from text to int8": ("click", pa.string(), pa.int8()),
    "price from int to double": ("price", pa.int64(), pa.float64()),
    "id from int32 to int64": ("item", pa.int32(), pa.int64()),
    "id from int to double": ("item", pa.int64(), pa.float64()),
    "id from int to text": ("item", pa.int64(), pa.string()),
    "id from decimal to int": ("user", pa.decimal128(38, 0), pa.int64()),
    "session from int to text": ("session", pa.int64(), pa.string()),
    "session from int to double": ("session", pa.int64(), pa.float64()),
    "time from int to decimal": ("time", pa.int64(), pa.decimal128(20, 0)),
    "a list of floats, then of large ints": ("history", pa.list_(pa.float64()), pa.large_list(pa.int64())),
    "an unnamed column from int to time": ("note", pa.int64(), pa.timestamp("us")),
}


@pytest.mark.parametrize("folders", [("day=1", "day=1"), ("day=1", "day=2")])
@pytest.mark.parametrize("change", CHANGES)
def test_types_that_change_from_file_to_file_are_widened(tmp_path: Path, change: str, folders: tuple[str, str]) -> None:
    name, *kinds = CHANGES[change]
    parts = {}
    for number, (folder, kind) in enumerate(zip(folders, kinds, strict=True)):
        table = session_rows(60, number)
        values = table[name].combine_chunks()
        if name == "price":
            values = pa.array(range(60))
        if name == "note":
            values = pa.array(range(60))
        if name in ("click", "item") and kind == pa.string():
            values = values.cast(pa.int64())
        parts[f"{folder}/{number}.parquet"] = replaced(table, name, values.cast(kind))
    log = write_log(tmp_path / "log", parts)
    for layout in LAYOUTS:
        cluster_log(log, tmp_path / layout, SCHEMA, ClusterConfig(layout=layout, **SMALL))
        schema = SCHEMA.model_copy(update={"row_id": None})
        assert trained_rows(tmp_path / layout, schema) == trained_rows(log, schema)
        assert len(trained_rows(log, schema)) == 120


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_column_without_values_in_the_first_file_has_the_type_of_the_others(tmp_path: Path, layout: str) -> None:
    first, second = session_rows(60, 1), session_rows(60, 2)
    for name in ("item", "country", "newest"):
        first = replaced(first, name, pa.nulls(60))
    first = replaced(first, "history", pa.array([[]] * 60, pa.list_(pa.null())))
    first = replaced(first, "scores", pa.array([[]] * 60, pa.list_(pa.null())))
    log = write_log(tmp_path / "log", {"a.parquet": first, "b.parquet": second})
    cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(layout=layout, **SMALL))
    assert trained_rows(tmp_path / "out", SCHEMA) == trained_rows(log, SCHEMA)


def test_a_second_run_takes_other_types_and_no_values(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", {"day=1/a.parquet": session_rows(60, 1)})
    cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL))
    table = replaced(session_rows(60, 2), "newest", pa.nulls(60))
    table = replaced(table, "age", pa.array([str(n) for n in range(60)])).drop_columns(["note"])
    write_log(log, {"day=2/a.parquet": table})
    cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL))
    assert trained_rows(tmp_path / "out", SCHEMA) == trained_rows(log, SCHEMA)
    write_log(log, {"day=3/a.parquet": session_rows(60, 3).drop_columns(["price"])})
    with pytest.raises(DataError, match=r"day=3/a\.parquet: no column price"):
        cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL))
    write_log(log, {"day=3/a.parquet": session_rows(60, 3).append_column("more", pa.array(range(60)))})
    with pytest.raises(DataError, match="does not have the columns more; cluster it to a new folder"):
        cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL))


def test_a_value_that_the_common_type_cannot_hold_is_named_with_its_place(tmp_path: Path) -> None:
    first, second = session_rows(60, 1), session_rows(60, 2)
    first = replaced(first, "user", pa.array(np.arange(60) + 2**53))
    second = replaced(second, "user", second["user"].cast(pa.float64()))
    log = write_log(tmp_path / "log", {"a.parquet": first, "b.parquet": second})
    with pytest.raises(DataError, match=r"a\.parquet, row group 0: column user is stored as int64.*double.*one type"):
        cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL))
    assert not (tmp_path / "out").exists()


def test_columns_of_one_name_matter_only_if_they_are_named(tmp_path: Path) -> None:
    table = session_rows(60, 1)
    twins = table.append_column("twin", pa.array(range(60))).append_column("twin", pa.array(["x"] * 60))
    log = write_log(tmp_path / "log", {"a.parquet": twins})
    notes: list[str] = []
    cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL), on_message=notes.append)
    assert notes == [f"not copied: {log}/a.parquet: more than one column is named twin"]
    assert rows_of(tmp_path / "out").column_names == table.column_names
    assert len(trained_rows(log, SCHEMA)) == 60

    log = write_log(tmp_path / "named", {"a.parquet": table.append_column("price", table["price"])})
    for attempt in (
        lambda: cluster_log(log, tmp_path / "new", SCHEMA, ClusterConfig(**SMALL)),
        lambda: trained_rows(log, SCHEMA),
    ):
        with pytest.raises(DataError, match=r"a\.parquet: more than one column is named price"):
            attempt()
    assert not (tmp_path / "new").exists()


def test_types_without_a_common_one_are_refused_if_named_and_left_out_if_not(tmp_path: Path) -> None:
    first, second = session_rows(60, 1), session_rows(60, 2)
    parts = {"a.parquet": first, "b.parquet": replaced(second, "note", pa.array([[1]] * 60))}
    notes: list[str] = []
    log = write_log(tmp_path / "log", parts)
    cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL), on_message=notes.append)
    assert len(notes) == 1
    assert "b.parquet: column note is stored as list<element: int64>, but as string in " in notes[0]
    parts["b.parquet"] = replaced(second, "item", pa.array([[1]] * 60))
    with pytest.raises(DataError, match="column item is stored as list<element: int64>, but as int32 in"):
        cluster_log(write_log(tmp_path / "bad", parts), tmp_path / "new", SCHEMA, ClusterConfig(**SMALL))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_may_have_the_names_of_the_layouts_own(tmp_path: Path, layout: str) -> None:
    table = session_rows(60, 1)
    runs = pa.array(np.asarray(table["session"]) % 5)
    for name in ("impressions", "_impressions", "first", "start", "length", "runs_0", "runs_1", "__session",
                 "__destination", "__row_id", "__group_0", "user.x", "impressions.list.element.click"):  # fmt: skip
        table = table.append_column(name, runs)
    table = table.append_column("impressions_of_day", table["history"])
    log = write_log(tmp_path / "log", {"a.parquet": table})
    cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(layout=layout, **SMALL))
    assert rows_of(tmp_path / "out").equals(pq.read_table(log / "a.parquet").select(table.column_names)) or (
        rows_of(tmp_path / "out").to_pylist() == table.to_pylist()
    )
    assert trained_rows(tmp_path / "out", SCHEMA) == trained_rows(log, SCHEMA)


def test_sessions_that_are_found_get_a_name_that_is_free(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", {"a.parquet": session_rows(60, 1)})
    schema = SCHEMA.model_copy(update={"session_id": None})
    cluster_log(log, tmp_path / "out", schema, ClusterConfig(user="user", **SMALL))
    assert Schema.from_yaml(tmp_path / "out/schema.yaml").session_id == "found_session"
    write_log(log, {"b.parquet": session_rows(60, 2)})
    assert len(cluster_log(log, tmp_path / "out", schema, ClusterConfig(user="user", **SMALL)).windows) == 1


def test_a_refusal_comes_before_work_and_leaves_nothing(tmp_path: Path) -> None:
    table = session_rows(60, 1).append_column("original_row", pa.array(range(60)))
    log = write_log(tmp_path / "log", {"day=1/a.parquet": session_rows(60, 1), "day=2/a.parquet": table})
    with pytest.raises(ConfigError, match="already has a column original_row"):
        cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL))
    assert not (tmp_path / "out").exists()
    structs = replaced(session_rows(60, 1), "session", pa.array([{"a": 1}] * 60))
    log = write_log(tmp_path / "structs", {"a.parquet": structs})
    with pytest.raises(ConfigError, match="column session of type struct<a: int64> cannot be a session id"):
        cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL))
    lacking = session_rows(60, 2).drop_columns(["price"])
    log = write_log(tmp_path / "lacking", {"a.parquet": session_rows(60, 1), "b.parquet": lacking})
    with pytest.raises(DataError, match=r"b\.parquet: no column price"):
        cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(**SMALL))
    assert not (tmp_path / "out").exists()
