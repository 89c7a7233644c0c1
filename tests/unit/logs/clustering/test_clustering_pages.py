"""The pages on clustering: their code and their query run as they are printed, and give what they say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from session_logs import session_rows, write_log

from headrace.logs.nested.build import build_nested
from headrace.logs.nested.layout import Layout

DOCS = Path(__file__).parents[4] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_code_clusters_and_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("duckdb")
    monkeypatch.chdir(tmp_path)
    write_log(Path("logs"), {"hour=1/a.parquet": session_rows(400, 1, rows_per_session=12.0)})
    names: dict[str, object] = {}
    for block in blocks("clustering.md", "python"):
        exec(compile(block, "docs/clustering.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("hour=1 ")
    assert "unique rows for 400" in printed
    assert names["rows"].num_rows == 400


def test_the_example_and_the_query_of_the_nested_format_are_right(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    rows = pa.RecordBatch.from_pydict(
        {
            "session": [9, 9, 9],
            "t": [1, 2, 3],
            "item": [40, 41, 42],
            "click": [0, 1, 0],
            "history": [[5, 6, 7], [5, 6, 7], [6, 7, 41]],
        }
    )
    layout = Layout(
        kind="nested",
        session="session",
        columns=tuple(rows.schema.names),
        session_columns=("session",),
        runs=({"columns": ("history",), "rows_per_run": 2.0},),
    )
    nested = build_nested(rows, np.zeros(1, dtype=np.int64), layout)
    assert nested.to_pylist() == [
        {
            "session": 9,
            "runs_0": [
                {"first": 0, "history": {"start": 0, "length": 3}},
                {"first": 2, "history": {"start": 1, "length": 3}},
            ],
            "history": [5, 6, 7, 41],
            "impressions": [
                {"t": 1, "item": 40, "click": 0},
                {"t": 2, "item": 41, "click": 1},
                {"t": 3, "item": 42, "click": 0},
            ],
        }
    ]
    pq.write_table(pa.Table.from_batches([nested]), tmp_path / "part-00000.parquet")
    (query,) = blocks("format-nested.md", "sql")
    with duckdb.connect() as connection:
        found = connection.execute(query.replace("'part-", f"'{tmp_path}/part-")).fetchall()
    assert sorted(found) == [tuple(row.values()) for row in rows.to_pylist()]
