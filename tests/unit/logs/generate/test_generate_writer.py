"""A synthetic log on disk: a folder a window, its schema, and the bound beside it."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from headrace.errors import ConfigError
from headrace.logs import Schema
from headrace.logs.generate import GenerateConfig, generate_logs, generate_window

CONFIG = GenerateConfig(rows=3001, windows=3)


def test_every_window_has_a_folder_with_its_rows(tmp_path: Path) -> None:
    written: list[int] = []
    log = generate_logs(CONFIG, tmp_path / "logs", on_rows=written.append)
    assert sorted(path.name for path in log.folder.iterdir()) == [
        "schema.yaml",
        "teacher.json",
        "window=000",
        "window=001",
        "window=002",
    ]
    tables = [pq.read_table(log.folder / f"window={w:03d}" / "part-00000.parquet") for w in range(3)]
    assert [table.num_rows for table in tables] == [1001, 1000, 1000]
    assert tables[1].to_batches()[0].equals(next(generate_window(CONFIG, 1)).batch)
    assert sum(written) == log.num_rows == 3001


def test_the_schema_beside_the_windows_names_every_column(tmp_path: Path) -> None:
    log = generate_logs(CONFIG, tmp_path / "logs")
    schema = Schema.from_yaml(log.folder / "schema.yaml")
    names = pq.read_schema(log.folder / "window=000" / "part-00000.parquet").names
    assert set(schema.columns) == set(names)


def test_the_bound_of_each_window_is_kept_with_the_config_that_made_it(tmp_path: Path) -> None:
    log = generate_logs(CONFIG, tmp_path / "logs")
    teacher = json.loads((log.folder / "teacher.json").read_text())
    assert GenerateConfig.from_dict(teacher["config"], where="teacher.json") == CONFIG
    assert teacher["windows"] == [bound.to_dict() for bound in log.bounds]
    assert [window["rows"] for window in teacher["windows"]] == [1001, 1000, 1000]
    assert all(0.7 < window["best_normalized_entropy"] < 1 for window in teacher["windows"])


def test_a_folder_that_holds_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(ConfigError, match="is not empty; choose a new or empty folder"):
        generate_logs(CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
