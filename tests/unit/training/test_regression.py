"""Labels that are numbers, beside clicks: training from their mean on, metrics, predictions, exports and reports."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from small_batches import batch_of
from torch import nn

from headrace.cli.tables import run_table, scores_table, window_table
from headrace.errors import CheckpointError, ConfigError
from headrace.logs import LabelColumn, Schema
from headrace.observe.comparison import compare_runs
from headrace.observe.report import render_report
from headrace.observe.run_data import RunData
from headrace.scoring import ExportedModel, Scorer, export_model
from headrace.training import JobConfig, RegressionMetrics, Trainer, TrainResult
from headrace.training.components import build_components
from headrace.training.label_rate import start_at_labels
from headrace.training.label_units import label_units, predict_in_units, set_label_units

ROWS = 3000
NAN = math.nan
RATING = {"name": "rating", "allowed": None}


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(rows)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("allowed", "kind", "is_regression"),
    [
        ([0, 1], None, False),
        (None, None, True),
        ([1, 2, 3, 4, 5], None, True),
        (None, "binary", False),
        ([0, 0.5, 1], "regression", True),
    ],
)
def test_the_allowed_values_or_the_kind_make_a_label_a_number(
    allowed: list[float] | None, kind: str | None, is_regression: bool
) -> None:
    label = LabelColumn.from_dict({"name": "x", "allowed": allowed, "kind": kind}, where="schema")
    assert label.is_regression == is_regression


def test_a_schema_is_written_with_the_allowed_values_it_was_read_with() -> None:
    schema = Schema.from_dict({"labels": ["click", RATING, {"name": "x", "allowed": [1, 2]}]}, where="schema")
    assert Schema.from_dict(yaml.safe_load(schema.to_yaml()), where="again") == schema
    assert Schema.from_dict(schema.model_dump(), where="again") == schema


def test_a_binary_label_allows_no_other_numbers() -> None:
    with pytest.raises(ConfigError, match="kind: binary allows values from 0 to 1, given 5 in allowed"):
        LabelColumn.from_dict({"name": "x", "allowed": [1, 5], "kind": "binary"}, where="schema")


def test_a_model_predicts_numbers_in_units_and_clicks_as_before() -> None:
    model, rows = Head(), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    before = model(rows).detach()
    predict_in_units(model, (True, False))
    assert torch.equal(model(rows), before)
    means, units = set_label_units(model, batch_of([[10.0, 1.0], [NAN, 0.0], [14.0, 0.0], [100.0, 1.0]], [1, 1, 1, 0]))
    assert (means[0], units[0]) == (12.0, 2.0)
    torch.testing.assert_close(model(rows)[:, 0], 12 + 2 * before[:, 0])
    assert torch.equal(model(rows)[:, 1], before[:, 1])
    assert label_units(model).tolist() == [2.0, 0.0]
    copy = Head()
    predict_in_units(copy, (True, False))
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(rows), model(rows))
    _, units = set_label_units(model, batch_of([[3.0, 1.0], [3.0, 0.0]]))
    assert units[0] == 1.0, "no unit from labels that are all the same"


def test_a_number_starts_at_its_mean_and_is_predicted_from_the_rows_before() -> None:
    batch = batch_of([[NAN, 1.0], [10.0, 0.0], [20.0, 1.0], [60.0, 1.0]])
    model = Head()
    nn.init.zeros_(model.head.weight)
    predict_in_units(model, (True, False))
    start = start_at_labels(model, batch, (True, False))
    assert start is not None
    outputs = model(torch.zeros(4, 3)).detach().numpy()
    np.testing.assert_allclose(outputs[:, 0], 30.0)
    np.testing.assert_allclose(1 / (1 + np.exp(-outputs[:, 1])), 3.5 / 5, rtol=1e-6)
    found = start.removed_from(outputs, batch)
    np.testing.assert_allclose(found[:, 0], [NAN, NAN, 10.0, 15.0])
    np.testing.assert_allclose(1 / (1 + np.exp(-found[:, 1])), [1 / 2, 1.5 / 2, 1.5 / 3, 2.5 / 4], rtol=1e-6)
    assert start.messages(["rating", "click"]) == [
        "the model's output starts at the label rate of the first 4 rows: click 0.7",
        "the model's output starts at the mean of the first 4 rows: rating 30 (standard deviation 21.6)",
    ]


def test_a_model_without_a_head_starts_at_the_mean_of_numbers_only() -> None:
    model = nn.Linear(3, 2)
    predict_in_units(model, (False, True))
    batch = batch_of([[1.0, 5.0], [0.0, 7.0]])
    start = start_at_labels(model, batch, (False, True))
    assert start is not None
    assert start.is_set.tolist() == [False, True]
    outputs = np.array([[0.3, 6.0], [0.4, 6.5]], np.float32)
    np.testing.assert_allclose(start.removed_from(outputs, batch), [[0.3, NAN], [0.4, 5.5]], rtol=1e-6)
    plain = nn.Linear(3, 2)
    assert start_at_labels(plain, batch, (False, False)) is None


def test_labels_that_look_like_clicks_and_nobody_called_numbers_are_doubted() -> None:
    model = nn.Linear(3, 2)
    predict_in_units(model, (True, True))
    start = start_at_labels(model, batch_of([[1.0, 1.0], [NAN, 0.0]]), (True, True))
    assert start is not None
    labels = [LabelColumn(name="buy", allowed=None), LabelColumn(name="share", allowed=None, kind="regression")]
    (line,) = start.doubts(labels)
    assert line.startswith("trained as numbers, but only 0 and 1 in the first 2 rows: buy; for a probability, give the")


def test_metrics_of_numbers_match_their_definitions() -> None:
    rng = np.random.default_rng(0)
    labels = (1000 + 50 * rng.normal(size=500)).astype(np.float32)
    outputs = (labels + 20 * rng.normal(size=500) + 3).astype(np.float32)
    weights = rng.integers(0, 3, 500).astype(np.float32)
    y, x = np.repeat(labels, weights.astype(int)).astype(float), np.repeat(outputs, weights.astype(int)).astype(float)
    whole, one, other = RegressionMetrics(), RegressionMetrics(), RegressionMetrics()
    whole.update(
        np.append(outputs, NAN).astype(np.float32), np.append(labels, 5).astype(np.float32), np.append(weights, 1)
    )
    whole.update(np.zeros(1, np.float32), np.full(1, NAN, np.float32))  # without the label
    one.update(outputs[:200], labels[:200], weights[:200])
    other.load_state_dict(one.state_dict())
    later = RegressionMetrics()
    later.update(outputs[200:], labels[200:], weights[200:])
    other.merge(later)
    for metrics in (whole, other):
        scores = metrics.compute()
        assert scores.rows == 500
        assert scores.rmse == pytest.approx(math.sqrt(((x - y) ** 2).mean()))
        assert scores.mae == pytest.approx(np.abs(x - y).mean())
        assert scores.relative_mse == pytest.approx(((x - y) ** 2).mean() / y.var())
        assert scores.bias == pytest.approx(x.mean() - y.mean())
        assert scores.label_mean == pytest.approx(y.mean())
        assert math.isnan(scores.auc)
    assert set(scores.to_dict()) == {"rows", "rmse", "mae", "relative_mse", "bias", "label_mean"}
    nothing = RegressionMetrics().compute()
    assert (nothing.rows, math.isnan(nothing.rmse), nothing.is_regression) == (0, True, True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log in which the item explains most of a number around 1,000, and something of a click."""
    folder = tmp_path_factory.mktemp("regression")
    rng = np.random.default_rng(3)
    item = rng.integers(0, 20, ROWS)
    effect = rng.normal(size=20)[item]
    columns = {
        "rating": (1000 + 50 * effect + 10 * rng.normal(size=ROWS)).astype(np.float32),
        "click": (rng.random(ROWS) < 1 / (1 + np.exp(-effect))).astype(np.float32),
        "item": item,
    }
    (folder / "logs").mkdir()
    pq.write_table(pa.table(columns), folder / "logs" / "a.parquet", row_group_size=500)
    trained(folder, "once")
    return folder


def job_of(folder: Path, run: str, labels: Any = (RATING, "click"), **training: Any) -> JobConfig:
    values = {
        "run": run,
        "data": {
            "path": "logs",
            "schema": {"labels": list(labels), "ids": ["item"]},
            "window": {"kind": "rows", "num_rows": 1000},
        },
        "pipeline": {"workers": 1, "tuner": "none", "executor": "inline"},
        "embeddings": {"default": {"num_embeddings": 64, "optimizer": {"kind": "adagrad", "lr": 0.3}}},
        "model": {"kind": "deepfm", "embedding_dim": 4, "deep": [8]},
        "training": {"batch_size": 50, "threads": 1, "checkpoint_every_steps": 7, **training},
    }
    return JobConfig.from_dict(values, where="job").resolve(folder)


def trained(folder: Path, run: str, *arguments: Any, stop_at: int | None = None, **training: Any) -> TrainResult:
    steps = 0

    def should_stop() -> bool:
        nonlocal steps
        steps += 1
        return stop_at is not None and steps > stop_at

    return Trainer(job_of(folder, run, *arguments, **training), should_stop=should_stop).run()


def test_a_number_and_a_click_are_learned_in_one_job_whichever_comes_first(folder: Path) -> None:
    result = trained(folder, "mixed", ("click", RATING))
    last = result.windows[-1]
    assert last.scores["rating"].relative_mse < 0.3
    assert last.scores["click"].ne < 0.95
    assert last.scores["rating"].label_mean == pytest.approx(1000, abs=30)
    assert set(result.windows[0].summary()) == {"bad", "loss", "AUC", "NE"}
    assert result.windows[0].to_record(step=1, time_s=1.0)["rmse_rating"] > 0


def test_the_first_window_is_no_better_than_it_can_be(folder: Path) -> None:
    """One batch of the whole window: each row is predicted from the mean of the rows before it, and no more."""
    (window, *_) = trained(folder, "one batch", (RATING,), batch_size=1000, clip_grad_norm=1.0).windows
    scores = window.scores["rating"]
    assert scores.rows == 999, "nothing is known before the first row"
    assert 0.95 < scores.relative_mse < 1.1


def test_a_run_that_is_stopped_twice_ends_with_the_same_numbers(folder: Path) -> None:
    for stop_at in (3, 11, None):
        trained(folder, "stopped", stop_at=stop_at)
    scorers = [Scorer(job_of(folder, run)) for run in ("once", "stopped")]
    one, other = (scorer.components.model.state_dict() for scorer in scorers)
    assert all(torch.equal(one[name], other[name]) for name in one)
    records = [
        [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("once", "stopped")
    ]
    names = ("rmse", "mae", "relative_mse", "bias", "label_mean", "auc_click")
    last = [[record[name] for name in names] for run in records for record in run if record["kind"] == "window"]
    assert last[:3] == last[3:]


def test_evaluation_predictions_and_export_agree(folder: Path) -> None:
    scorer = Scorer(job_of(folder, "once"))
    scores = scorer.evaluate(str(folder / "logs"))
    assert scores["rating"].relative_mse < 0.2
    table = scores_table(scores).splitlines()
    assert table[0].split() == ["label", "rows", "rate", "AUC", "log", "loss", "NE", "calibration"]
    assert table[4].split() == ["label", "rows", "mean", "RMSE", "MAE", "relative", "MSE", "bias"]
    scorer.predict(str(folder / "logs"), folder / "out.parquet")
    predicted, log = pq.read_table(folder / "out.parquet"), pq.read_table(folder / "logs" / "a.parquet")
    assert predicted.column_names[-2:] == ["pred_rating", "p_click"]
    errors = predicted.column("pred_rating").to_numpy() - log.column("rating").to_numpy()
    assert math.sqrt((errors**2).mean()) == pytest.approx(scores["rating"].rmse, rel=1e-4)
    assert 0 < predicted.column("p_click").to_numpy().min() < predicted.column("p_click").to_numpy().max() < 1
    assert export_model(job_of(folder, "once"), folder / "exported") == 0.0
    exported = ExportedModel(folder / "exported")
    assert exported.is_regression == (True, False)
    (batch, outputs), *_ = scorer.score(scorer.list_logs(str(folder / "logs")), "score")
    np.testing.assert_array_equal(exported(batch).numpy(), outputs)


def test_tables_report_and_comparison_show_the_metrics_of_a_number(folder: Path) -> None:
    result, run = trained(folder, "again"), RunData.read(folder / "once")
    header = ["window", "rows", "bad", "rows/s", "RMSE", "MAE", "relative", "MSE"]
    whole = result.windows[-1].run
    assert whole is not None
    for table in (window_table(result.windows), run_table(run)):
        lines = table.splitlines()
        assert lines[0].split() == header
        assert lines[-1].split()[-1] == f"{whole.scores['rating'].relative_mse:.4f}"
    assert set(result.windows[0].summary()) == {"bad", "RMSE", "MAE", "relative MSE"}
    page = render_report(run, made="now")
    for text in ("RMSE, all rows", "Relative squared error", "Root mean squared error", "relative MSE"):
        assert text in page
    assert "<b>nan" not in page
    compared = compare_runs(run, RunData.read(folder / "again"))
    assert compared.header()[:5] == ["window", "rows 1", "rows 2", "RMSE 1", "RMSE 2"]
    assert compared.verdict().startswith("run 2 against run 1, over all rows: relative MSE the same, RMSE the same")
    whole_runs = compared.to_dict()["whole_run"]
    assert {"rmse", "mae", "relative_mse", "bias"} < set(whole_runs[0])


def test_a_label_cannot_become_a_number_in_a_run(folder: Path) -> None:
    job = job_of(folder, "once", ({"name": "rating", "allowed": None, "kind": "binary"}, "click"))
    with pytest.raises(CheckpointError, match=r"regression was \['rating'\], is now 'absent'"):
        Trainer(job).run()


def test_a_baseline_needs_a_binary_label(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^training.baseline: ranks a label of clicks, but the first label, rating"):
        build_components(job_of(folder, "wrong", baseline="rating"))
