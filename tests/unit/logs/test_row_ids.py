"""Ids of rows: the same in every layout of a log, and not needed where rows are only scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from session_logs import SCHEMA, session_rows, write_log

from headrace.errors import DataError
from headrace.logs import BadRowPolicy, ParquetSource, Schema, list_files, make_row_id, select_files
from headrace.logs.clustering import ClusterConfig, cluster_log
from headrace.logs.groups import expand

pytest.importorskip("duckdb")

NAMED = SCHEMA.model_copy(update={"row_id": "number"})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "log", {"a.parquet": session_rows(60, 1), "b.parquet": session_rows(40, 2)})


def clustered(log: Path, schema: Schema = SCHEMA, layout: str = "clustered") -> Path:
    out = log.with_name(layout)
    cluster_log(log, out, schema, ClusterConfig(layout=layout))
    return out


def open_source(path: Path, schema: Schema, **options: object) -> ParquetSource:
    return ParquetSource(select_files(list_files(path)), schema, **options)


def items_by_id(source: ParquetSource) -> dict[int, object]:
    batches = [batch.rows for split in range(len(source)) for batch in source.read(split)]
    tables = [expand(batch, ["item", "__row_id"]) for batch in batches]
    return {row["__row_id"]: row["item"] for table in tables for row in table.to_pylist()}


@pytest.mark.parametrize("layout", ["clustered", "nested"])
def test_an_id_is_located_in_the_log_that_was_clustered(log: Path, layout: str) -> None:
    copy = open_source(clustered(log, layout=layout), SCHEMA)
    assert copy.locate(make_row_id(1, 7)) == "b.parquet, row 7"
    assert copy.locate(make_row_id(9, 7)) == f"row id {make_row_id(9, 7)}"
    files, rows = copy.row_ids.places(np.array([make_row_id(1, 7), make_row_id(0, 3), make_row_id(9, 1)]))
    assert files.to_pylist() == ["b.parquet", "a.parquet", None]
    assert rows.to_pylist() == [7, 3, 1]
    assert open_source(log, SCHEMA).locate(make_row_id(1, 7)) == f"{log}/b.parquet, row 7"


@pytest.mark.parametrize("layout", ["clustered", "nested"])
def test_a_quarantined_row_of_a_copy_keeps_the_id_it_had(tmp_path: Path, layout: str) -> None:
    table = session_rows(60, 1)
    clicks = table["click"].to_pylist()
    clicks[13] = 5
    log = write_log(
        tmp_path / "log",
        {"a.parquet": table.set_column(table.schema.get_field_index("click"), "click", pa.array(clicks))},
    )
    source = open_source(clustered(log, layout=layout), SCHEMA, policy=BadRowPolicy(policy="quarantine"))
    rejects = [batch.rejects for split in range(len(source)) for batch in source.read(split) if batch.rejects]
    (raw,) = [json.loads(text) for found in rejects for text in found["raw"].to_pylist()]
    assert raw["__row_id"] == 13
    assert "original_row" not in raw


def test_a_named_column_gives_the_ids_in_every_layout_and_may_be_missing_where_it_is_optional(tmp_path: Path) -> None:
    table = session_rows(60, 1)
    log = write_log(tmp_path / "log", {"a.parquet": table.append_column("number", pa.array(range(100, 160)))})
    expected = items_by_id(open_source(log, NAMED))
    assert set(expected) == set(range(100, 160))
    assert items_by_id(open_source(clustered(log, NAMED), NAMED)) == expected
    assert items_by_id(open_source(log, NAMED, optional=["number"])) == expected
    assert open_source(log, NAMED).locate(103) == "row id 103"

    without = write_log(tmp_path / "without", {"a.parquet": table})
    with pytest.raises(DataError, match=r"a\.parquet: no column number; the file has"):
        open_source(without, NAMED)
    found = open_source(without, NAMED, optional=["number"])
    assert "number" not in found.output_schema.names
    assert items_by_id(found) == {row - 100: item for row, item in expected.items()}


def test_a_column_that_only_a_copy_has_is_left_out_where_it_is_optional(log: Path) -> None:
    found = SCHEMA.model_copy(update={"session_id": "visit"})
    with pytest.raises(DataError, match="no column visit"):
        open_source(log, found)
    assert "visit" not in open_source(log, found, optional=["visit"]).output_schema.names


def test_a_copy_and_the_log_itself_are_not_read_together(log: Path) -> None:
    folder = clustered(log)
    pq.write_table(session_rows(20, 3), folder / "z.parquet")
    with pytest.raises(DataError, match=r"z\.parquet: no column original_row, which .*part-00000\.parquet has; read"):
        open_source(folder, SCHEMA)
