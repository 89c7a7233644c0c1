"""Arguments of wrong types are refused with one line that names the argument."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace as hr
from headrace.embeddings import EmbeddingsConfig
from headrace.errors import ConfigError
from headrace.logs import Cursor, ParquetLogWriter, WindowConfig, find_windows, list_files
from headrace.logs.clustering import cluster_log
from headrace.logs.inspection import inspect_log
from headrace.logs.quarantine import read_rejects
from headrace.pipeline import from_iterable
from headrace.training import JobConfig

ROWS = pa.table({"click": [0, 1], "user": [1, 2]})
SCHEMA = hr.Schema.from_dict({"labels": ["click"], "ids": ["user"]}, where="schema")
LABELS = {"labels": ["click"]}

CALLS: dict[str, Callable[[Any], Any]] = {
    "Schema: labels: missing": lambda log: hr.Schema(),  # type: ignore[call-arg]
    "Schema: labels: given 5": lambda log: hr.Schema(labels=5),  # type: ignore[arg-type]
    "Schema: given dict, expected keyword arguments": lambda log: hr.Schema(LABELS),  # type: ignore[call-arg,misc]
    "YAML file: given dict, expected a path": lambda log: hr.Schema.from_yaml(LABELS),  # type: ignore[arg-type]
    "YAML file: given NoneType": lambda log: JobConfig.from_file(None),  # type: ignore[arg-type]
    "EmbeddingsConfig: defualt: unknown key": lambda log: EmbeddingsConfig(defualt={}),  # type: ignore[call-arg]
    "EmbeddingsConfig: default: given 'x'": lambda log: EmbeddingsConfig(default="x"),  # type: ignore[arg-type]
    "FeaturePlan: schema: given str": lambda log: hr.FeaturePlan([], "schema.yaml"),  # type: ignore[arg-type]
    "FeaturePlan: schema: given dict": lambda log: hr.FeaturePlan.from_config(None, LABELS),  # type: ignore[arg-type]
    "FeaturePlan: specs: given list": lambda log: hr.FeaturePlan(["user"], SCHEMA),  # type: ignore[list-item]
    "FeaturePlan: dedup: given str": lambda log: hr.FeaturePlan([], SCHEMA, dedup="on"),  # type: ignore[arg-type]
    "FeaturePlan.apply: batch: given Table": lambda log: hr.FeaturePlan.from_config(None, SCHEMA).apply(ROWS),
    "read_parquet: bad_rows: given str": lambda log: hr.read_parquet(log, SCHEMA, bad_rows="drop"),  # type: ignore[arg-type]
    "ParquetSource: columns: given 'user'": lambda log: hr.read_parquet(log, SCHEMA, columns="user"),
    "ArrowSource: bad_rows: given dict": lambda log: hr.read_arrow(ROWS, SCHEMA, bad_rows={}),  # type: ignore[arg-type]
    "batch: drop_last: given str": lambda log: hr.read_arrow(ROWS).batch(2, drop_last="no"),  # type: ignore[arg-type]
    "open: tuner: given int": lambda log: hr.read_arrow(ROWS).batch(2).open(tuner=5),
    "iterable: given int, expected batches": lambda log: from_iterable(5),  # type: ignore[arg-type]
    "logs: given int, expected a path, a glob or a URL": lambda log: list_files(5),  # type: ignore[arg-type]
    "logs: given NoneType": lambda log: read_rejects(None),  # type: ignore[arg-type]
    "inspect_log: schema: given str": lambda log: inspect_log(log, schema="schema.yaml"),  # type: ignore[arg-type]
    "cluster_log: schema: given str": lambda log: cluster_log(log, log.parent / "out", "schema"),  # type: ignore[arg-type]
    "cluster_log: config: given dict": lambda log: cluster_log(log, log.parent / "out", SCHEMA, {}),  # type: ignore[arg-type]
    "find_windows: schema: given str": lambda log: find_windows(log, "schema", Cursor(), WindowConfig()),  # type: ignore[arg-type]
    "ParquetLogWriter: schema: given str": lambda log: ParquetLogWriter(log.parent / "out", schema="x"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("message", "call"), CALLS.items(), ids=list(CALLS))
def test_a_wrong_argument_is_named(message: str, call: Callable[[Path], Any], tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    pq.write_table(ROWS, log / "a.parquet")
    with pytest.raises(ConfigError) as caught:
        call(log)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_mistake_in_a_nested_config_keeps_its_path() -> None:
    with pytest.raises(ConfigError, match=r"^EmbeddingsConfig: default\.dim: unknown key"):
        EmbeddingsConfig(default={"dim": 3})  # type: ignore[arg-type]
