"""`headrace init`: a schema and a job that train as they are, each choice with its reason, nothing overwritten."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from headrace.cli.app import app
from headrace.errors import ConfigError
from headrace.logs import Schema
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.training import JobConfig, Trainer
from headrace.training.first_job import DENSE_OPTIMIZER, EMBEDDING_OPTIMIZER, LINEAR_OPTIMIZER


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def values(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated logs of two windows without their schema: user, item and lists of items."""
    folder = tmp_path_factory.mktemp("generated") / "logs"
    generate_logs(GenerateConfig(rows=6_000, windows=2, users=900, items=300, id_lists=1, seed=5), folder)
    (folder / "schema.yaml").unlink()
    return folder


def click_log(path: Path, rows: int = 4_000) -> Path:
    """A file in order of time: users, items and histories are codes from 0 on; the first item is never shown."""
    rng = np.random.default_rng(3)
    item, user = 1 + rng.integers(0, 200, rows) % rng.integers(1, 201, rows), rng.integers(0, 300, rows)
    history = 1 + rng.integers(0, 200, 3 * rows) % rng.integers(1, 201, 3 * rows)
    table = pa.table(
        {
            "time": 1_700_000_000_000 + 1_000 * np.arange(rows),
            "user_id": user,
            "item_id": item,
            "history": pa.ListArray.from_arrays(pa.array(np.arange(0, 3 * rows + 1, 3), pa.int32()), history),
            "price": rng.random(rows),
            "click": (rng.random(rows) < 0.1).astype(np.int8),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def test_a_log_gets_a_schema_and_a_job_with_reasons(logs: Path, tmp_path: Path) -> None:
    result = run("init", logs, "--out", tmp_path)
    job = values(tmp_path / "job.yaml")
    features = job.pop("features")
    assert features["others"] == "default"
    assert all(ops[0] == "log1p" and [*ops[1]] == ["standardize"] for ops in features["dense"].values())
    assert job == {
        "run": "run",
        "data": {
            "path": "../" * len(tmp_path.relative_to(logs.parents[1]).parts) + str(logs.relative_to(logs.parents[1])),
            "schema": "schema.yaml",
            "window": {"kind": "folder"},
        },
        "embeddings": {
            "default": {"optimizer": EMBEDDING_OPTIMIZER},
            "linear_optimizer": LINEAR_OPTIMIZER,
            "tables": {"item": {"feature_names": ["item", "history"], "pooling": {"history": "mean"}}},
        },
        "model": {"kind": "dcnv2", "embedding_dim": 16, "num_cross_layers": 2, "cross_rank": 64, "linear": True},
        "training": {"batch_size": "auto", "dense_optimizer": DENSE_OPTIMIZER, "baseline": "user_x0"},
    }
    lines = [line.strip() for line in (tmp_path / "job.yaml").read_text().splitlines()]
    for number, line in enumerate(lines):
        if ": " in line and not line.startswith("#"):
            assert lines[number - 1].startswith("# "), f"no reason for {line}"
    assert "# One window for each of 2 folders: windows are trained on in turn, each with its own metrics and" in lines
    assert result.stdout.splitlines()[-1] == f"next: headrace train {tmp_path / 'job.yaml'}"
    assert "item, history hold the same ids" in result.stdout
    loaded = JobConfig.from_file(tmp_path / "job.yaml")
    assert loaded.schema_of_logs.session_id == "session"
    assert Path(loaded.data.path) == logs


def test_one_file_becomes_windows_of_rows(tmp_path: Path) -> None:
    run("init", click_log(tmp_path / "logs" / "a.parquet", 24_000), "--out", tmp_path)
    job = values(tmp_path / "job.yaml")
    assert job["data"]["window"] == {"kind": "rows", "num_rows": 2_400, "include_incomplete": True}
    assert job["data"]["path"] == "logs/a.parquet"
    assert job["embeddings"]["tables"] == {
        "item_id": {"feature_names": ["item_id", "history"], "pooling": {"history": "mean"}}
    }


@pytest.mark.parametrize(("rate", "rarer"), [(0.02, "Only 2.00% of the labels are positive"), (0.98, "are negative")])
def test_first_batches_are_larger_where_a_label_is_rare(rate: float, rarer: str, tmp_path: Path) -> None:
    rows = np.arange(4_000)
    rare = pa.table({"click": (rows % 100 < round(100 * rate)).astype(np.int64), "user_id": rows % 90})
    pq.write_table(rare, tmp_path / "a.parquet")
    run("init", tmp_path / "a.parquet", "--out", tmp_path)
    assert values(tmp_path / "job.yaml")["training"]["first_batch_size"] == 256
    assert rarer in (tmp_path / "job.yaml").read_text()


def test_first_batches_are_the_usual_ones_where_no_label_is_rare(tmp_path: Path) -> None:
    rows = np.arange(4_000)
    pq.write_table(pa.table({"click": (rows % 20 == 0).astype(int), "user_id": rows % 90}), tmp_path / "a.parquet")
    run("init", tmp_path / "a.parquet", "--out", tmp_path)
    assert "first_batch_size" not in values(tmp_path / "job.yaml")["training"]


def test_files_of_one_folder_become_windows(tmp_path: Path) -> None:
    for number in range(3):
        click_log(tmp_path / "logs" / f"{number}.parquet")
    run("init", tmp_path / "logs", "--out", tmp_path)
    assert values(tmp_path / "job.yaml")["data"]["window"] == {"kind": "file"}


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    log = click_log(tmp_path / "logs" / "a.parquet")
    run("init", log, "--out", tmp_path)
    (tmp_path / "job.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"job\.yaml: exists already; --force overwrites it, or choose another"):
        run("init", log, "--out", tmp_path)
    (tmp_path / "job.yaml").unlink()
    with pytest.raises(ConfigError, match=r"schema\.yaml: exists already; --force overwrites it, --schema"):
        run("init", log, "--out", tmp_path)
    assert not (tmp_path / "job.yaml").exists()
    (tmp_path / "schema.yaml").write_text("labels: [click]\nids: [user_id]\n")
    run("init", log, "--out", tmp_path, "--schema", tmp_path / "schema.yaml")
    assert Schema.from_yaml(tmp_path / "schema.yaml").columns == ("click", "user_id")
    assert "tables" not in values(tmp_path / "job.yaml")["embeddings"], "the schema does not read the history"
    run("init", log, "--out", tmp_path, "--force")
    assert len(Schema.from_yaml(tmp_path / "schema.yaml").columns) == 6


def test_a_schema_beside_the_log_is_used(tmp_path: Path) -> None:
    log = click_log(tmp_path / "logs" / "a.parquet")
    (tmp_path / "logs" / "schema.yaml").write_text("labels: [click]\nids: [user_id, item_id]\n")
    result = run("init", tmp_path / "logs", "--out", tmp_path)
    assert f"schema: {log.parent / 'schema.yaml'}" in result.stdout
    assert values(tmp_path / "job.yaml")["data"]["schema"] == "logs/schema.yaml"
    assert not (tmp_path / "schema.yaml").exists()


def test_csv_is_converted_first(tmp_path: Path) -> None:
    rows = "".join(
        f"{n % 90},m{n % 70},{n % 6},a|b,2024-01-01 00:{n // 60 % 60:02}:{n % 60:02}\n" for n in range(3_000)
    )
    (tmp_path / "ratings.csv").write_text("user,movie,rating,genres,when\n" + rows)
    result = run("init", tmp_path / "ratings.csv", "--out", tmp_path / "job", "--label", "rating >= 4")
    lines = result.stdout.splitlines()
    assert lines[:4] == [
        "columns separated by commas, names in the first line",
        "genres: lists of texts, split at '|'",
        "label: rating >= 4; left out rating, which tells it",
        f"converted to Parquet: {tmp_path / 'job' / 'logs'}; other options: headrace import csv --help",
    ]
    job = JobConfig.from_file(tmp_path / "job" / "job.yaml")
    assert [column.name for column in job.schema_of_logs.labels] == ["label"]
    assert [column.name for column in job.schema_of_logs.id_lists] == ["genres"]
    assert values(tmp_path / "job" / "job.yaml")["data"]["path"] == "logs"
    with pytest.raises(ConfigError, match="expected a new folder for the converted logs; if they are there already"):
        run("init", tmp_path / "ratings.csv", "--out", tmp_path / "job", "--force")


def test_logs_of_text_in_a_folder_called_logs_go_to_another_one(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.jsonl").write_text("".join(f'{{"user": {n}, "click": {n % 2}}}\n' for n in range(50)))
    run("init", tmp_path / "logs", "--out", tmp_path)
    assert values(tmp_path / "job.yaml")["data"]["path"] == "logs-parquet"


def test_clustered_logs_are_shuffled_by_session(logs: Path, tmp_path: Path) -> None:
    run("inspect", logs, "--write-schema", tmp_path / "schema.yaml")
    plain = run("init", logs, "--out", tmp_path / "plain").stdout
    assert "headrace cluster" in plain, "sessions repeat their values"
    run("cluster", logs, tmp_path / "clustered", "--schema", tmp_path / "schema.yaml")
    printed = run(
        "init", tmp_path / "clustered", "--out", tmp_path / "job", "--schema", tmp_path / "schema.yaml"
    ).stdout
    assert values(tmp_path / "job" / "job.yaml")["pipeline"]["shuffle"] == {
        "num_rows": 50_000,
        "seed": 7,
        "by": "session",
    }
    assert "headrace cluster" not in printed
    assert "order of time" not in printed, "sessions are together on purpose"


def test_without_a_label_it_says_what_to_do(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": [1, 2, 3], "price": [0.5, 1.5, 2.5]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"no column looks like a label .*: name it with --label, .* with --schema"):
        run("init", tmp_path / "a.parquet", "--out", tmp_path / "job")
    (tmp_path / "b.csv").write_text("user,rating\n1,5\n2,3\n")
    with pytest.raises(ConfigError, match=r"b\.csv: .* or make a label of other columns of CSV .* with --label"):
        run("init", tmp_path / "b.csv", "--out", tmp_path / "job")
    with pytest.raises(ConfigError, match=r"label: given 'price > 1', expected one of the columns: user_id, price"):
        run("init", tmp_path / "a.parquet", "--out", tmp_path / "job", "--label", "price > 1")


def test_the_label_and_columns_to_ignore_can_be_given(tmp_path: Path) -> None:
    rows = np.arange(1_200)
    columns = {"click": rows % 2, "bought": rows % 4 == 0, "fold": rows % 5, "user_id": rows % 90, "rating": rows % 6}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")

    def parts(*options: str) -> dict[str, Any]:
        run("init", tmp_path / "a.parquet", "--out", tmp_path / "job", "--force", *options)
        schema = Schema.from_yaml(tmp_path / "job" / "schema.yaml")
        return {"labels": [c.name for c in schema.labels], "dense": [c.name for c in schema.dense]}

    assert parts() == {"labels": ["click"], "dense": ["bought", "fold", "rating"]}
    assert parts("--label", "bought", "--ignore", "fold") == {"labels": ["bought"], "dense": ["rating"]}
    written = (tmp_path / "job" / "schema.yaml").read_text()
    assert "#   bought: label, the label, as given" in written
    assert "#   click: ignored, looks like a label too, and may tell the given one, bought" in written
    assert "#   fold: ignored, to be ignored, as given" in written
    for options, message in (
        (
            ["--label", "sold"],
            r"label: given 'sold', expected one of the columns: click, bought, fold, user_id",
        ),
        (["--ignore", "x"], r"ignore: given 'x', expected one of the columns: click"),
    ):
        with pytest.raises(ConfigError, match=message):
            parts(*options)
    (tmp_path / "mine.yaml").write_text("labels: [click]\nids: [user_id]\n")
    for option in ("--label", "--ignore"):
        with pytest.raises(ConfigError, match=rf"{option}: the schema .*mine.yaml says the role of each column"):
            parts(option, "click", "--schema", str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("ratings", [np.arange(1_200) % 6, (np.arange(1_200) % 90) / 7 - 3])
def test_a_number_can_be_the_label_and_is_learned_by_regression(tmp_path: Path, ratings: Any) -> None:
    rows = np.arange(1_200)
    columns = {"click": rows % 2, "user_id": rows % 90, "price": rows % 7 / 2, "rating": ratings}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    out = run("init", tmp_path / "a.parquet", "--out", tmp_path / "job", "--label", "rating").output
    assert f"1,200 rows, label mean: rating {ratings.mean():.4f}\n" in out
    assert "rating has values other than 0 and 1, so it is a number: a regression with squared error." in out
    job = JobConfig.from_file(tmp_path / "job" / "job.yaml")
    (label,) = job.schema_of_logs.labels
    assert (label.name, label.is_regression) == ("rating", True)
    assert "click" not in job.schema_of_logs.columns
    result = Trainer(job).run()
    assert result.windows[-1].rows.num_used == 1_200
    assert result.windows[-1].scores["rating"].relative_mse < 1


def test_a_column_of_a_csv_file_can_be_the_label(tmp_path: Path) -> None:
    rows = "".join(f"{n % 90},{n % 2},{n % 3}\n" for n in range(600))
    (tmp_path / "a.csv").write_text("user,shown,grade\n" + rows)
    (tmp_path / "b.csv").write_text("user,grade\n1,good\n2,bad\n")
    with pytest.raises(ConfigError, match=r"label: given 'grade', which has type string; .* 'rating >= 4'"):
        run("init", tmp_path / "b.csv", "--out", tmp_path / "job", "--label", "grade")
    run("init", tmp_path / "a.csv", "--out", tmp_path / "job", "--label", "shown", "--ignore", "grade")
    schema = Schema.from_yaml(tmp_path / "job" / "schema.yaml")
    assert [column.name for column in schema.labels] == ["shown"]
    assert schema.columns == ("shown", "user")


def test_bad_rows_are_quarantined_and_many_ids_get_rows_of_their_own(tmp_path: Path) -> None:
    table = pq.read_table(click_log(tmp_path / "a.parquet", 60_000))
    labels = table["click"].to_pylist()
    labels[7:1_207] = [5] * 1_200
    table = table.set_column(5, "click", pa.array(labels, pa.int8()))
    table = table.append_column("page_id", pa.array(np.arange(60_000) * 7_919))
    table = table.append_column("session", pa.array(np.arange(60_000) // 6))
    pq.write_table(table.append_column("region_id", pa.array(np.arange(60_000) // 6)), tmp_path / "a.parquet")
    schema = "labels: [click]\nids: [user_id, page_id, region_id]\nsession_id: session\n"
    (tmp_path / "schema.yaml").write_text(schema)
    result = run("init", tmp_path / "a.parquet", "--out", tmp_path / "job")
    job = values(tmp_path / "job" / "job.yaml")
    assert job["data"]["bad_rows"] == {"policy": "quarantine", "max_ratio": 0.04}
    assert job["embeddings"]["tables"] == {"page_id": {"kind": "collisionless", "num_embeddings": 65_536}}
    assert "1,200 rows are bad (2.00%)" in result.stdout


def test_a_wide_log_gets_cross_layers_of_low_rank(tmp_path: Path) -> None:
    columns = {f"kind_{n}": np.arange(2_000) % (n + 2) for n in range(40)}
    pq.write_table(pa.table({"click": np.arange(2_000) % 2, **columns}), tmp_path / "a.parquet")
    names = ", ".join(columns)
    (tmp_path / "schema.yaml").write_text(f"labels: [click]\nids: [{names}]\n")
    run("init", tmp_path / "a.parquet", "--out", tmp_path / "job")
    assert values(tmp_path / "job" / "job.yaml")["model"]["cross_rank"] == 128


def test_names_of_any_kind_stay_in_their_comments(tmp_path: Path) -> None:
    codes = np.arange(2_000) % 100
    names = ["item: 'x'", "last item: #2\nrun: gone"]
    pq.write_table(
        pa.table({"click": codes % 2, names[0]: codes + 10**9, names[1]: codes + 10**9}), tmp_path / "a.parquet"
    )
    run("init", tmp_path / "a.parquet", "--out", tmp_path / "job")
    job = values(tmp_path / "job" / "job.yaml")
    assert job["run"] == "run"
    JobConfig.from_file(tmp_path / "job" / "job.yaml")


def test_the_best_number_is_the_baseline_and_one_that_gives_the_label_away_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    click = rng.random(3_000) < 0.3
    table = pa.table(
        {
            "user_id": rng.integers(0, 100, 3_000),
            "click": click.astype(np.int8),
            "views": rng.poisson(3 + 2 * click).astype(np.float32),
            "price": rng.random(3_000),
            "paid": np.where(click, 7.5, 0.0),
        }
    )
    (tmp_path / "logs").mkdir()
    pq.write_table(table, tmp_path / "logs" / "a.parquet")
    result = run("init", tmp_path / "logs", "--out", tmp_path)
    assert values(tmp_path / "job.yaml")["training"]["baseline"] == "views"
    assert "paid alone tells the label (AUC 1.000): is it known before the label is?" in result.stdout
