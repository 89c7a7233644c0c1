"""Reading a nested log: group columns straight from the file, only what is asked for, bad rows as in any log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from session_logs import SCHEMA, session_rows, write_log

from headrace.errors import DataError
from headrace.logs import BadRowPolicy, ParquetSource, Schema, list_files, select_files
from headrace.logs.clustering import ClusterConfig, cluster_log
from headrace.logs.cursor import Selection
from headrace.logs.footers import read_footer
from headrace.logs.groups import expand, feature_names, group_of, has_groups

pytest.importorskip("duckdb")


def cluster(folder: Path, table: pa.Table, schema: Schema = SCHEMA, **values: object) -> Path:
    log = write_log(folder / "log", {"a.parquet": table})
    cluster_log(log, folder / "out", schema, ClusterConfig(rows_per_group=100, **values))
    return folder / "out"


def pieces_of(path: Path, schema: Schema = SCHEMA, **values: object) -> tuple[ParquetSource, list]:
    source = ParquetSource(select_files(list_files(path)), schema, **values)
    return source, [batch for split in range(len(source)) for batch in source.read(split)]


def test_features_that_repeat_come_as_groups_of_unique_rows(tmp_path: Path) -> None:
    out = cluster(tmp_path, session_rows(400, 1, rows_per_session=12.0))
    source, batches = pieces_of(out)
    assert has_groups(source.output_schema)
    for batch in batches:
        assert batch.rows.schema.equals(source.output_schema)
        batch.rows.validate(full=True)
        for name, column in zip(batch.rows.schema.names, batch.rows.columns, strict=True):
            if name.startswith("__group_"):
                assert len(group_of(column).unique) < 0.8 * batch.rows.num_rows
    plain = {"click", "item", "price", "time", "session", "__row_id"}
    assert plain <= set(source.output_schema.names)
    assert set(feature_names(source.output_schema)) == {*SCHEMA.columns, "__row_id"}


def test_labels_weights_times_and_row_ids_are_plain_even_where_they_repeat(tmp_path: Path) -> None:
    table = session_rows(300, 2, rows_per_session=15.0)
    out = cluster(tmp_path, table.append_column("weight", table["user"].cast(pa.float32())))
    schema = SCHEMA.model_copy(update={"weight": "weight"})
    source, _ = pieces_of(out, schema)
    assert "weight" in source.output_schema.names


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    out = cluster(tmp_path, session_rows(300, 3, rows_per_session=12.0))
    file = next(iter(out.glob("*.parquet")))
    footer = read_footer(list_files(out)[0])
    raw = bytearray(file.read_bytes())
    for name in ("newest", "price", "tags", "age"):  # ruin the data of all others
        for leaf in footer.leaves[name]:
            if footer.metadata.schema.column(leaf).path.endswith(".first"):
                continue
            for group in range(footer.metadata.num_row_groups):
                chunk = footer.metadata.row_group(group).column(leaf)
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                raw[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(bytes(raw))
    _, batches = pieces_of(out, columns=["history", "click"])
    assert sum(batch.num_read for batch in batches) == 300
    assert set(feature_names(batches[0].rows.schema)) == {"history", "click", "__row_id"}
    with pytest.raises(DataError, match="row group 0: cannot be decoded"):
        pieces_of(out, columns=["age", "click"])


def test_a_part_of_a_file_is_the_same_rows_in_groups(tmp_path: Path) -> None:
    out = cluster(tmp_path, session_rows(300, 3))
    (file,) = list_files(out)
    names = [*SCHEMA.columns, "__row_id"]
    whole = [row for batch in pieces_of(out)[1] for row in expand(batch.rows, names).to_pylist()]
    source = ParquetSource([Selection(file, 0, 37, 255, None, 218)], SCHEMA, max_rows_per_batch=19)
    part = [
        row
        for split in range(len(source))
        for batch in source.read(split)
        for row in expand(batch.rows, names).to_pylist()
    ]
    assert part == whole[37:255]


def bad_rows_table() -> pa.Table:
    """Values that no schema accepts, in columns of every place: impression, runs, list of runs, weights of a list."""
    table = session_rows(300, 6, rows_per_session=12.0)
    rows = table.to_pylist()
    sessions = sorted({row["session"] for row in rows})
    for row in rows:
        if row["session"] == sessions[3]:
            row["age"] = float("nan")
        if row["session"] == sessions[5] and row["history"]:
            row["history"] = [*row["history"][:-1], None]
        if row["session"] == sessions[7]:
            row["scores"] = [*row["scores"], 1.0]
        if row["session"] == sessions[9]:
            row["newest"] = row["newest"] * 5
    rows[11]["click"] = 3
    return pa.Table.from_pylist(rows, schema=table.schema)


STRICT = Schema.from_dict(
    {
        **SCHEMA.model_dump(),
        "id_lists": [
            {"name": "history", "weights": "scores"},
            {"name": "newest", "max_length": 10},
            {"name": "tags", "type": "string"},
        ],
    },
    where="test",
)


def test_the_same_rows_are_bad_for_the_same_reasons_as_in_the_log(tmp_path: Path) -> None:
    out = cluster(tmp_path, bad_rows_table())
    clustered = STRICT.model_copy(update={"row_id": "original_row"})
    policy = BadRowPolicy(policy="quarantine", max_ratio=1.0)

    def found(path: Path, schema: Schema) -> tuple[dict[int, tuple[str, str]], list[int]]:
        rejects, good = {}, []
        for batch in pieces_of(path, schema, policy=policy)[1]:
            good += batch.rows.column("__row_id").to_pylist()
            for row in [] if batch.rejects is None else batch.rejects.to_pylist():
                raw = json.loads(row["raw"])
                rejects[raw.get("original_row", raw["__row_id"])] = row["column"], row["reason"]
        return rejects, sorted(good)

    assert found(out, clustered) == found(tmp_path / "log", STRICT)
    assert {column for column, _ in found(out, clustered)[0].values()} == {
        "click",
        "age",
        "history",
        "scores",
        "newest",
    }


def test_a_bad_value_of_a_group_stops_with_its_place_and_is_shown(tmp_path: Path) -> None:
    out = cluster(tmp_path, bad_rows_table())
    with pytest.raises(DataError, match=r"row group \d, row \d+, column newest: list longer than 10, given \[\d+"):
        pieces_of(out, STRICT.model_copy(update={"id_lists": (STRICT.id_lists[1],)}), columns=["newest"])


def test_an_error_of_one_session_does_not_change_the_types_of_the_others(tmp_path: Path) -> None:
    out = cluster(tmp_path, bad_rows_table())
    source, batches = pieces_of(out, STRICT, policy=BadRowPolicy(policy="drop", max_ratio=1.0))
    assert all(batch.rows.schema.equals(source.output_schema) for batch in batches)
    assert sum(batch.num_dropped for batch in batches) > 20


def test_clustered_files_are_read_as_any_log(tmp_path: Path) -> None:
    out = cluster(tmp_path, session_rows(200, 4), layout="clustered")
    source, batches = pieces_of(out)
    assert not has_groups(source.output_schema)
    assert sum(batch.num_read for batch in batches) == 200


def test_files_of_two_layouts_are_not_read_together(tmp_path: Path) -> None:
    out = cluster(tmp_path, session_rows(200, 4, rows_per_session=12.0))
    pq.write_table(session_rows(20, 1), out / "z.parquet")
    with pytest.raises(DataError, match=r"z\.parquet: its layout differs from that of .*part-00000\.parquet"):
        pieces_of(out)


def test_bytes_of_a_piece_are_estimated_without_reading(tmp_path: Path) -> None:
    out = cluster(tmp_path, session_rows(400, 4, rows_per_session=12.0))
    source, batches = pieces_of(out)
    estimates = [source.estimate_bytes(split) for split in range(len(source))]
    real = np.mean([batch.rows.nbytes for batch in batches])
    assert 0.3 * real < np.mean(estimates) < 10 * real
