"""From raw files to a trained model as a new user goes: init, train, report, compare, explain; also on real logs."""

import gzip
import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import yaml

from headrace.cli import main
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.logs.importers import ClicksConfig, import_clicks, import_criteo
from headrace.logs.inspection import inspect_log

DATA = Path(os.environ.get("HEADRACE_DATA") or "missing")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="HEADRACE_DATA does not name a folder with real logs")


def headrace(*arguments: object) -> list[str]:
    """Run a command in this process; returns the lines of its output."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["headrace", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code = None
    except SystemExit as stopped:
        code = stopped.code
    finally:
        sys.argv = before
    assert not code, err.getvalue()
    return out.getvalue().splitlines()


def ratings(path: Path, rows: int = 12_000) -> Path:
    """A CSV file as they are handed out for films: what is liked depends on the film and on the user's last genre."""
    rng = np.random.default_rng(2)
    user, film = rng.integers(0, 200, rows), rng.permutation(400)[rng.geometric(0.02, rows) % 400]
    liked = rng.random(rows) < 1 / (1 + np.exp(-3.0 * np.sin(film.astype(float) * 7)))
    last = {int(name): 0 for name in user}
    lines = ["user_id,movie_id,rating,genres,last_movie_id,rated_at"]
    for n in range(rows):
        name, one = int(user[n]), int(film[n])
        seconds = f"{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}"
        genres = "|".join(["Drama", "Film-Noir"][: 1 + one % 2])
        lines.append(f"{name},{one},{5 if liked[n] else 2},{genres},{last[name]},2024-03-01 {seconds}")
        last[name] = one
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_csv_file_becomes_a_trained_model_in_two_commands(tmp_path: Path) -> None:
    lines = headrace("init", ratings(tmp_path / "ratings.csv"), "--out", tmp_path, "--label", "rating >= 4")
    assert "genres: lists of texts, split at '|'" in lines
    job = yaml.safe_load((tmp_path / "job.yaml").read_text())
    assert job["embeddings"]["tables"] == {"movie_id": {"feature_names": ["movie_id", "last_movie_id"]}}
    trained = headrace("train", tmp_path / "job.yaml")
    assert len([line for line in trained if line.startswith("rows-")]) == 10
    (whole,) = (line.split() for line in trained if line.startswith("whole run"))
    assert whole[2] == "12,000"
    assert float(whole[5]) > 0.7
    assert not [line for line in trained if "over all rows: worse" in line]
    assert trained[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    reported = headrace("report", tmp_path / "job.yaml")
    assert [line.split() for line in reported if line.startswith("whole run")] == [whole]
    assert any(line.startswith("phase of the step") for line in headrace("explain", tmp_path / "job.yaml"))


def test_two_jobs_on_one_log_are_compared_and_a_poor_one_is_named(tmp_path: Path) -> None:
    generate_logs(GenerateConfig(rows=4_000, windows=2, users=200, items=100, seed=5), tmp_path / "logs")
    headrace("init", tmp_path / "logs", "--out", tmp_path)
    job = yaml.safe_load((tmp_path / "job.yaml").read_text())
    job |= {"run": "poor", "model": {"kind": "dlrm", "bottom": [8], "top": [8]}}
    del job["embeddings"]["linear_optimizer"]  # DLRM has no linear part
    job["training"] = {"batch_size": 64, "dense_optimizer": {"kind": "adam", "lr": 0.5}}
    (tmp_path / "poor.yaml").write_text(yaml.safe_dump(job))
    headrace("train", tmp_path / "job.yaml")
    poor = headrace("train", tmp_path / "poor.yaml")
    assert any(line.startswith("ALARM: ") for line in poor)
    lines = headrace("compare", tmp_path / "job.yaml", tmp_path / "poor")
    settings = {line.split()[0] for line in lines[4:] if line.startswith(("model.", "training."))}
    assert {"model.kind", "training.dense_optimizer.lr"} <= settings
    assert lines[-1].startswith("run 2 against run 1, over all rows: NE ")


@needs_data
def test_columns_of_criteo_share_no_table_by_accident(tmp_path: Path) -> None:
    source = DATA / "criteo" / "criteo_kaggle_137139.tsv.gz"
    with gzip.open(source, "rt") as file:
        (tmp_path / "some.tsv").write_text("".join(islice(file, 8_000)))
    import_criteo(tmp_path / "some.tsv", tmp_path / "logs")
    found = inspect_log(tmp_path / "logs")
    assert found.shared_tables == []
    lines = headrace("init", tmp_path / "logs", "--out", tmp_path)
    assert lines[-1] == f"next: headrace train {tmp_path / 'job.yaml'}"
    # Without a header and a schema, the same file is understood from its values.
    lines = headrace("init", tmp_path / "some.tsv", "--out", tmp_path / "plain")
    assert lines[0] == "columns separated by tabs, no header: columns are called column1, column2, ..."
    schema = yaml.safe_load((tmp_path / "plain" / "schema.yaml").read_text())
    assert schema["labels"] == ["column1"]
    assert len(schema["ids"]) == 26


@needs_data
def test_articles_of_the_news_log_share_a_table_and_users_do_not_join_it(tmp_path: Path) -> None:
    done = []

    class Enough(Exception):
        """A few hours are imported."""

    def stop(read: int, so_far: object) -> None:
        done.append(read)
        if len(done) == 6:
            raise Enough

    with pytest.raises(Enough):
        import_clicks(DATA / "globo" / "clicks_hourly.tar.gz", tmp_path / "logs", ClicksConfig(), on_hour=stop)
    found = inspect_log(tmp_path / "logs")
    assert found.shared_tables == [("item", "history", "session_items")]
