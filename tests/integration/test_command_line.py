"""The commands from end to end on a small generated log, and what they say when something is wrong."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import log_loss, roc_auc_score

from headrace.cli import main
from headrace.errors import ConfigError
from headrace.logs import BadRowPolicy, Schema
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.observe.decisions import DecisionLog
from headrace.pipeline import read_parquet
from headrace.scoring import ExportedModel
from headrace.training import CheckpointFolder
from headrace.training.checkpoint import write_arrays
from headrace.training.run_folder import RunFolder

JOB = """\
run: {run}
data: {{path: logs, schema: {schema}, bad_rows: {{policy: quarantine, max_ratio: 0.2}}}}
model: {{kind: dlrm, embedding_dim: 4, bottom: [8], top: [16]}}
embeddings: {{default: {{kind: collisionless, num_embeddings: 64}}}}
training: {{batch_size: 256, threads: 1, row_ledger: true}}
"""
DOCS = Path(__file__).parents[2] / "docs"
MAX_LENGTH = 45
"""Longest history the schema allows: some rows of the log have longer ones and are bad."""


@dataclass(frozen=True)
class Outcome:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


def headrace(*arguments: object) -> Outcome:
    """Run a command in this process."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["headrace", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    finally:
        sys.argv = before
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs with some bad rows, a job, and its run over both windows; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("command-line")
    generate_logs(GenerateConfig(rows=6_000, windows=2, users=200, items=100, seed=5), folder / "logs")
    schema = yaml.safe_load((folder / "logs" / "schema.yaml").read_text())
    for column in schema["id_lists"]:
        column["max_length"] = MAX_LENGTH if column["name"] == "history" else None
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema))
    write_job(folder)
    first = headrace("train", folder / "job.yaml", "--windows", 1)
    assert first.code == 0, first.err
    assert "window=000" in first.out
    assert "3,000 rows in 1 file are not used" in first.out
    assert "default training.precision: " in first.out
    second = headrace("train", folder / "job.yaml", "--until", "window=001")
    assert "going on from checkpoint 1" in second.out
    assert "default " not in second.out  # said once
    assert "nothing new: all rows of 2 files are used" in second.out
    assert f"report: {folder / 'run' / 'report.html'}" in second.out
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def without_defaults(output: str) -> list[str]:
    """The lines of an output but for those about settings that the job file leaves open."""
    return [line for line in output.splitlines() if not line.startswith("default ")]


def write_job(folder: Path, text: str = JOB, *, run: str = "run", schema: str = "schema.yaml") -> Path:
    path = folder / "job.yaml"
    path.write_text(text.format(run=run, schema=schema))
    return path


def long_histories(folder: Path) -> int:
    files = (folder / "logs").rglob("*.parquet")
    return sum(sum(len(ids) > MAX_LENGTH for ids in pq.read_table(path)["history"].to_pylist()) for path in files)


def allow_long_histories(folder: Path) -> None:
    schema = yaml.safe_load((folder / "schema.yaml").read_text())
    for column in schema["id_lists"]:
        column.pop("max_length", None)
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema))


def scored(path: Path) -> dict[int, float]:
    return dict(zip(*(pq.read_table(path)[name].to_pylist() for name in ("row_id", "p_click")), strict=True))


def trained_row_ids(run: Path) -> list[int]:
    return [row for path in sorted((run / "ledger").glob("*")) for row in pq.read_table(path)["row_id"].to_pylist()]


# What goes wrong is one line and exit code 2.


def assert_one_line(outcome: Outcome, *parts: object) -> None:
    lines = outcome.err.splitlines()
    assert outcome.code == 2
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("headrace: ")
    for part in parts:
        assert str(part) in lines[0]


def test_an_unknown_key_is_one_line_and_debug_shows_the_traceback(trained: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(run="run", schema="schema.yaml").replace("bottom", "bottm"))
    expected = "model.bottm: unknown key, expected one of: kind, embedding_dim, bottom, top"
    assert_one_line(headrace("train", job), f"headrace: {job}: {expected}")
    for arguments in (["--debug", "train", job], ["train", job, "--debug"]):
        with pytest.raises(ConfigError, match=r"model\.bottm: unknown key"):
            headrace(*arguments)


def test_missing_logs_schemas_and_jobs_are_named(trained: Path, tmp_path: Path) -> None:
    job = write_job(tmp_path)
    assert_one_line(headrace("train", tmp_path / "jbo.yaml"), f"{tmp_path / 'jbo.yaml'}: no such file")
    assert_one_line(headrace("train", job), f"{tmp_path / 'logs'}: no such file or folder")
    shutil.copytree(trained / "logs" / "window=000", tmp_path / "logs")
    place = tmp_path / "schema.yaml"
    assert_one_line(headrace("train", job), f"data.schema: {place}: no such file", f"--write-schema {place}")
    assert_one_line(headrace("evaluate", trained / "job.yaml", tmp_path / "lgos"), f"{tmp_path / 'lgos'}: no such file")
    assert not (tmp_path / "run").exists()


def test_a_changed_model_is_refused_with_both_sides(copy: Path) -> None:
    write_job(copy, JOB.replace("embedding_dim: 4", "embedding_dim: 8"))
    assert_one_line(
        headrace("train", copy / "job.yaml"),
        "checkpoint 2 belongs to another model: model.embedding_dim was 4, is now 8",
        "use a different run folder",
    )
    write_job(copy, JOB.replace("kind: collisionless", "kind: hashed"))
    assert_one_line(headrace("train", copy / "job.yaml"), "kind was saved as collisionless, but the job says hashed")
    assert CheckpointFolder(copy / "run" / "checkpoints").numbers() == [1, 2]


def test_a_second_writer_is_refused_and_told_who_writes(copy: Path) -> None:
    holder = RunFolder(copy / "run")
    holder.lock()
    try:
        assert_one_line(headrace("train", copy / "job.yaml"), f"process {os.getpid()} is writing to this run")
        assert_one_line(headrace("replay", copy / "job.yaml"), f"process {os.getpid()} is writing to this run")
    finally:
        holder.unlock()
    assert headrace("train", copy / "job.yaml").code == 0


def test_a_torn_checkpoint_is_refused_and_the_one_before_is_used_and_both_are_said(copy: Path) -> None:
    torn = copy / "run" / "checkpoints" / "00000002" / "dense.safetensors"
    size = torn.stat().st_size
    torn.write_bytes(torn.read_bytes()[:-1])
    refused = f"refused a checkpoint, falling back to the previous one: {torn}: has {size - 1} bytes, expected {size}"

    found = headrace("evaluate", copy / "job.yaml", copy / "logs" / "window=001", "--json")
    assert found.err.splitlines()[0] == refused
    assert json.loads(found.out)["checkpoint"] == 1

    outcome = headrace("train", copy / "job.yaml")
    assert outcome.out.splitlines()[:2] == [
        refused,
        f"going on from checkpoint 1, step {json.loads(found.out)['step']}",
    ]
    assert "window=001" in outcome.out
    reasons = [json.loads(line)["reason"] for line in (copy / "run" / "decisions.jsonl").read_text().splitlines()]
    assert refused in reasons
    ids = trained_row_ids(copy / "run")
    assert len(set(ids)) == len(ids) == 6_000 - long_histories(copy)
    assert headrace("train", copy / "job.yaml").out.startswith("going on from checkpoint 2")

    for number in (1, 2):
        (copy / "run" / "checkpoints" / f"{number:08d}" / "manifest.json").unlink()
    assert_one_line(headrace("train", copy / "job.yaml"), "all checkpoints are damaged")


# Scoring.


def test_predictions_score_as_evaluate_says(trained: Path, tmp_path: Path) -> None:
    logs, out = trained / "logs" / "window=001", tmp_path / "scores" / "out.parquet"
    found = json.loads(headrace("evaluate", trained / "job.yaml", logs, "--json").out)
    outcome = headrace("predict", trained / "job.yaml", logs, out)
    rows, bad = found["rows"]["used"], found["rows"]["quarantined"]
    assert bad > 0
    assert outcome.out == f"{rows:,} predictions: {out}; {bad} bad rows skipped\n"
    assert (found["checkpoint"], rows + bad) == (2, 3_000)

    log = pq.read_table(logs, columns=["row", "click"])
    labels = dict(zip(log["row"].to_pylist(), log["click"].to_pylist(), strict=True))
    predictions = scored(out)
    y, p = np.array([labels[row] for row in predictions]), np.array(list(predictions.values()))
    scores = found["labels"]["click"]
    assert scores["rows"] == len(predictions) == rows
    assert scores["log_loss"] == pytest.approx(log_loss(y, p), rel=1e-5)
    assert abs(scores["auc"] - roc_auc_score(y, p)) <= scores["auc_error"] + 1e-6
    assert scores["calibration"] == pytest.approx(p.mean() / y.mean(), rel=1e-5)
    table = headrace("evaluate", trained / "job.yaml", logs).out
    assert table.startswith(f"checkpoint 2, after {found['step']} steps; {bad} bad rows skipped\n")
    assert f"{scores['auc']:.4f}" in table


def test_explain_says_where_the_time_went(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    log = DecisionLog(tmp_path / "run" / "decisions.jsonl")
    log.record("tuner", {"workers": (2, 3)}, "all stages measured")
    log.record("explain", {}, "train", {"text": "limit: consumer\nwhy: the trainer is fed"})
    log.close()
    outcome = headrace("explain", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    shares = re.findall(r"^(forward|backward|wait|push) .* ([0-9.]+)%$", outcome.out, re.MULTILINE)
    assert len(shares) == 4
    assert 50 < sum(float(share) for _, share in shares) <= 100.4
    assert "limit: consumer" in outcome.out
    assert "tuner: workers 2 -> 3: all stages measured" in outcome.out
    missing = headrace("explain", tmp_path / "nothing")
    assert (missing.code, missing.out) == (2, "")
    assert "nothing: no such file or folder, expected a run folder or a job file" in missing.err


def test_an_older_checkpoint_can_be_asked_for(trained: Path) -> None:
    found = headrace("evaluate", trained / "job.yaml", trained / "logs", "--checkpoint", 1, "--json")
    assert json.loads(found.out)["checkpoint"] == 1
    assert_one_line(
        headrace("evaluate", trained / "job.yaml", trained / "logs", "--checkpoint", 9),
        "there is no checkpoint 9, expected one of: 1, 2",
    )


def test_nothing_is_written_into_or_over_the_logs(copy: Path) -> None:
    log = next((copy / "logs").rglob("*.parquet"))
    before = log.read_bytes()
    job, within = copy / "job.yaml", "is part of the logs at"
    assert_one_line(headrace("predict", job, log, log), f"predictions: {log} {within} {log}")
    assert_one_line(headrace("predict", job, log, copy / "logs/scores.parquet"), within)
    assert_one_line(headrace("predict", job, log, job), "is the job file")
    assert_one_line(headrace("export", job, copy / "logs/exported"), within)
    inside = copy / "logs/clustered"
    assert_one_line(headrace("cluster", copy / "logs", inside, "--schema", copy / "schema.yaml"), within)
    assert_one_line(
        headrace("inspect", copy / "logs", "--write-schema", log), f"--write-schema: {log} is one of the log files"
    )
    write_job(copy, run="logs/run")
    assert_one_line(headrace("train", job), f"run: {copy / 'logs/run'} {within}")
    assert log.read_bytes() == before
    assert not {"scores.parquet", "exported", "clustered", "run"} & {path.name for path in (copy / "logs").iterdir()}


def test_predict_needs_no_labels_and_without_a_row_id_says_file_and_row(copy: Path, tmp_path: Path) -> None:
    headrace("predict", copy / "job.yaml", copy / "logs", tmp_path / "with.parquet")
    before = scored(tmp_path / "with.parquet")
    rows = {}
    for path in sorted((copy / "logs").rglob("*.parquet")):
        table = pq.read_table(path, partitioning=None)
        rows[str(path)] = table["row"].to_pylist()
        pq.write_table(table.drop_columns(["click", "row"]), path)
    schema = yaml.safe_load((copy / "schema.yaml").read_text())
    del schema["row_id"]
    (copy / "schema.yaml").write_text(yaml.safe_dump(schema))
    outcome = headrace("predict", copy / "job.yaml", copy / "logs", tmp_path / "without.parquet")
    assert outcome.code == 0, outcome.err
    after = pq.read_table(tmp_path / "without.parquet").to_pylist()
    assert {rows[row["file"]][row["row"]]: row["p_click"] for row in after} == before


def test_an_export_reads_back_with_equal_scores(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    outcome = headrace("export", trained / "job.yaml", out)
    assert outcome.out.startswith("exported and verified, logits differ by at most "), outcome.err
    headrace("predict", trained / "job.yaml", trained / "logs", tmp_path / "scores.parquet")
    expected = scored(tmp_path / "scores.parquet")

    exported = ExportedModel(out)
    schema = Schema.from_yaml(trained / "schema.yaml")
    pipe = read_parquet(trained / "logs", schema, bad_rows=BadRowPolicy(policy="drop")).batch(300)
    found = {}
    with pipe.transform(exported.plan).open(executor="inline") as batches:
        for batch in batches:
            found.update(zip(batch.row_ids.tolist(), exported(batch)[:, 0].sigmoid().tolist(), strict=True))
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[row] for row in expected], list(expected.values()), rtol=1e-5)

    assert_one_line(headrace("export", trained / "job.yaml", out), f"{out}: already exists")


def test_the_page_on_checkpoints_names_every_file_key_and_column(trained: Path) -> None:
    page = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    folder = trained / "run" / "checkpoints" / "00000002"
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [path.name for path in folder.iterdir()]
    columns = [path.stem.replace("slot.accumulator", "slot.NAME") for path in folder.glob("tables/*/*")]
    for name in (*manifest, *manifest["state"], *columns):
        assert f"`{name}`" in page, name
    assert [name for name in files if name not in page] == []


def test_the_code_on_the_pages_runs(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy)
    read_an_id, read_all = python_blocks("checkpoints.md")
    names: dict[str, object] = {}
    (copy / "exports" / "news").mkdir(parents=True)
    write_arrays(copy / "exports" / "news", CheckpointFolder(copy / "run" / "checkpoints").load(2))
    for given, here in (('"items"', '"item"'), ("1234", "7")):
        read_an_id = read_an_id.replace(given, here)
    exec(read_an_id, names)
    exec(read_all.replace("runs/news", "run"), names)
    columns = CheckpointFolder(copy / "run" / "checkpoints").load(2).columns["embeddings"]
    item_table = [table["name"] for table in json.loads(columns["header"].tobytes())["tables"]].index("item")
    (place,) = np.flatnonzero((columns["tables"] == item_table) & (columns["ids"] == 7))
    np.testing.assert_array_equal(names["vector"], columns["weights"][place])

    write_job(copy, run="again")
    (train,) = python_blocks("training.md")
    exec(train, {})
    window, ne = capsys.readouterr().out.splitlines()[-2:]
    name, rows, auc = window.split()
    assert float(ne) > 0
    assert (name, rows[:1], auc[:2]) == ("window=000", "2", "0.")


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


# Bad rows.


def test_replay_after_a_fix_uses_each_quarantined_row_once_and_counts_add_up(copy: Path) -> None:
    bad = long_histories(copy)
    assert bad > 20
    before = CheckpointFolder(copy / "run" / "checkpoints").load(2).state["rows"]
    assert before == {"read": 6_000, "used": 6_000 - bad, "filtered": 0, "dropped": 0, "quarantined": bad}

    outcome = headrace("replay", copy / "job.yaml")  # nothing was corrected: all of them are still bad
    assert outcome.out.splitlines()[-1] == f"{bad} rows replayed: 0 used, 0 dropped, {bad} still bad"
    allow_long_histories(copy)
    outcome = headrace("replay", copy / "job.yaml")
    assert outcome.out.splitlines()[-1] == f"{bad} rows replayed: {bad} used, 0 dropped, 0 still bad", outcome.err

    after = CheckpointFolder(copy / "run" / "checkpoints").load(4).state["rows"]
    assert after == {"read": 6_000, "used": 6_000, "filtered": 0, "dropped": 0, "quarantined": 0}
    ids = trained_row_ids(copy / "run")
    assert len(set(ids)) == len(ids) == 6_000
    assert headrace("replay", copy / "job.yaml").out.endswith("no quarantined rows\n")


def test_a_torn_checkpoint_of_a_replay_brings_the_quarantined_rows_back(copy: Path) -> None:
    bad = long_histories(copy)
    allow_long_histories(copy)
    assert f"{bad} used" in headrace("replay", copy / "job.yaml").out
    (copy / "run" / "checkpoints" / "00000003" / "manifest.json").unlink()
    assert f"{bad} rows replayed" in headrace("replay", copy / "job.yaml").out
    ids = trained_row_ids(copy / "run")
    assert len(set(ids)) == len(ids) == 6_000


def test_too_many_bad_rows_stop_training_and_scoring(copy: Path, tmp_path: Path) -> None:
    write_job(copy, JOB.replace("max_ratio: 0.2", "max_ratio: 0.001, min_rows: 5"), run="strict")
    assert_one_line_at_the_end(headrace("train", copy / "job.yaml"), "rows are bad", "bad_rows.max_ratio")
    write_job(copy, JOB.replace("max_ratio: 0.2", "max_ratio: 0.001, min_rows: 5"))
    out = tmp_path / "scores.parquet"
    assert_one_line_at_the_end(headrace("predict", copy / "job.yaml", copy / "logs", out), "rows are bad")
    assert list(tmp_path.glob("*scores*")) == []  # nothing half-written


def assert_one_line_at_the_end(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err.splitlines()[-1]


def test_a_run_that_an_error_ends_has_printed_the_windows_it_finished_and_leaves_a_report(copy: Path) -> None:
    shutil.rmtree(copy / "run")
    (damaged,) = (copy / "logs" / "window=001").glob("*.parquet")
    content = bytearray(damaged.read_bytes())
    content[200:2000] = bytes(1800)
    damaged.write_bytes(content)
    outcome = headrace("train", copy / "job.yaml")
    assert_one_line_at_the_end(outcome, f"headrace: {damaged}, row group 0")
    header, _, row, report = without_defaults(outcome.out)
    assert header.split()[:4] == ["window", "rows", "bad", "rows/s"]
    assert report == f"report: {copy / 'run' / 'report.html'}"
    assert "window=000" in (copy / "run" / "report.html").read_text()

    name, rows, bad, rate, auc, log_loss, ne, *_ = row.split()
    (last,) = [line for line in outcome.err.splitlines() if line.startswith(f"train {name}: ") and "done in" in line]
    expected = f"train {name}: {rows} rows  {rate} rows/s  bad {bad}  loss {log_loss}  AUC {auc}  NE {ne}  done in "
    assert last.startswith(expected)


# The real command.


def test_piped_output_has_no_escape_codes_and_results_stay_apart_from_progress(copy: Path) -> None:
    shutil.rmtree(copy / "run")
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    command = [sys.executable, "-m", "headrace", "train", str(copy / "job.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    header, _, *rows = without_defaults(done.stdout)
    assert header.split()[:4] == ["window", "rows", "bad", "rows/s"]
    assert [row.split()[0] for row in rows[:2]] == ["window=000", "window=001"]
    assert all(line.startswith("train ") for line in done.stderr.splitlines())


def test_the_command_shows_a_traceback_with_debug(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headrace", "train", str(tmp_path / "none.yaml"), "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.endswith(f"ConfigError: {tmp_path / 'none.yaml'}: no such file\n")


def test_the_demo_ends_with_a_table_and_the_report(tmp_path: Path) -> None:
    outcome = headrace("demo", "--out", tmp_path / "demo", "--rows", 3_000)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    table = next(place for place, line in enumerate(lines) if line.startswith("window  "))
    assert lines[table].split()[-4:] == ["loss", "NE", "best", "NE"]
    assert [line.split()[0] for line in lines[table + 2 : table + 5]] == ["window=000", "window=001", "window=002"]
    assert "; 1,000 of 1,000 ids read the same bits as in the trainer" in outcome.out
    assert "answers over HTTP; 200 of 200 rows score the same bits as in headrace predict" in outcome.out
    assert '    curl -d \'{"records": [{' in outcome.out
    report = tmp_path / "demo" / "run" / "report.html"
    assert lines[-2:] == [f"job: {tmp_path / 'demo' / 'job.yaml'}", f"report: {report}"]
    assert report.stat().st_size > 10_000
