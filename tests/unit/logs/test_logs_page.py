"""The page on logs: its schema is read, and its code runs as it is printed."""

import re
from pathlib import Path

import pytest
import yaml

from headrace.logs import BadRowPolicy, ParquetLogWriter, Schema, WindowConfig, read_rejects
from headrace.logs.parquet_source import ParquetSource
from headrace.logs.source import ROW_ID

PAGE = Path(__file__).parents[3] / "docs" / "logs.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_yaml_is_accepted() -> None:
    schema, bad_rows = blocks("yaml")
    assert "history_weights" in Schema.from_dict(yaml.safe_load(schema), where="page").columns
    assert BadRowPolicy.from_dict(yaml.safe_load(bad_rows)["bad_rows"], where="page").policy == "quarantine"
    for window in re.findall(r"^\| `(\{kind: .*?\})`", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        WindowConfig.from_dict(yaml.safe_load(window), where="page")


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("schema.yaml").write_text("labels: [click]\nids: [user]\nid_lists: [history]\n")
    read, write = blocks("python")
    exec(compile(write, "docs/logs.md", "exec"), {})
    import pyarrow as pa

    bad = pa.table({"click": [5, 1], "user": [8, 8], "history": [[3], [4]]})
    with ParquetLogWriter("logs", schema=bad.schema, partition=[("hour", "14")]) as writer:
        writer.write(bad)
    names: dict[str, object] = {}
    exec(compile(read, "docs/logs.md", "exec"), names)
    assert capsys.readouterr().out.splitlines() == [
        "2 good rows of 2",
        "1 good rows of 2",
        "nothing new: all rows of 2 files are used",
    ]
    assert read_rejects("quarantine")["reason"].to_pylist() == ["label is not one of 0, 1"]
    again = names["again"]
    assert not isinstance(again, ParquetSource)
    (batch,) = again.read(0)  # type: ignore[attr-defined]
    assert batch.rows.to_pylist() == [{"click": 5.0, "user": 8, "history": [3], ROW_ID: 1 << 36}]
