"""Alarms: a model worse than the label rate or than the baseline is named, with a likely reason and what to change."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.embeddings import RowWiseAdagradConfig
from headrace.observe.alarms import Alarm, find_alarms
from headrace.observe.report import render_report
from headrace.observe.run_data import RunData
from headrace.training.first_job import EMBEDDING_OPTIMIZER

GOOD = {"rows": 100_000, "auc": 0.7, "log_loss": 0.5, "ne": 0.9, "calibration": 1.0, "label_rate": 0.25, "step": 1000}


def alarms(
    folder: Path, *windows: dict[str, Any], job: str = "training: {batch_size: 512, baseline: clicks}"
) -> list[Alarm]:
    records = [{"kind": "window", "window": f"hour={n}", **GOOD, **window} for n, window in enumerate(windows)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.yaml").write_text(job)
    return find_alarms(RunData.read(folder))


def test_a_good_run_has_none(tmp_path: Path) -> None:
    assert alarms(tmp_path, {}, {"ne": 1.0009}) == []
    assert alarms(tmp_path) == []


def test_a_run_over_the_label_rate_is_named_with_its_normalised_entropy(tmp_path: Path) -> None:
    (alarm,) = alarms(tmp_path, {"ne": 1.25}, {"ne": 1.15, "step": 2000})
    assert alarm.what == "NE 1.2000 over all rows: worse than always predicting the label rate"
    assert str(alarm).splitlines()[0] == f"ALARM: {alarm.what}"
    assert str(alarm).splitlines()[1].startswith("  likely reason: ")
    assert str(alarm).splitlines()[2].startswith("  what to change: ")


@pytest.mark.parametrize(
    ("windows", "reason", "help_"),
    [
        ([{"ne": 1.2, "step": 40}], "the model made only 40 steps", "a smaller training.batch_size (now 512)"),
        ([{"ne": 1.05}, {}, {}], "the model had just begun", "nothing, if later windows count"),
        ([{"ne": 0.9}, {"ne": 1.2, "label_rate": 0.9}], "the label rate changes", "pipeline.shuffle"),
        ([{"ne": 1.2, "calibration": 1.4}], "predictions are 1.40 times the label rate", "lower embeddings.default"),
        ([{"ne": 1.2, "calibration": 0.5}], "predictions are 0.50 times the label rate", "lower embeddings.default"),
        ([{"ne": 1.02, "auc": 0.505}], "rank no better than by chance", "headrace inspect"),
        ([{"ne": 1.2}], "too sure of rare ids", "embeddings.default.optimizer: {kind: rowwise_adagrad"),
    ],
)
def test_the_reason_follows_from_the_windows(
    tmp_path: Path, windows: list[dict[str, Any]], reason: str, help_: str
) -> None:
    (alarm,) = alarms(tmp_path, *windows)
    assert reason in alarm.reason
    assert help_ in alarm.help


def test_the_optimizer_to_change_to_is_that_of_a_first_job(tmp_path: Path) -> None:
    (alarm,) = alarms(tmp_path, {"ne": 1.2})
    (optimizer,) = re.findall(r"embeddings\.default\.optimizer: ({.*?})", alarm.help)
    assert yaml.safe_load(optimizer) == EMBEDDING_OPTIMIZER
    assert RowWiseAdagradConfig.from_dict(yaml.safe_load(optimizer), where="advice").lr == 0.1


def test_windows_over_the_label_rate_are_named_if_the_run_as_a_whole_is_not(tmp_path: Path) -> None:
    (alarm,) = alarms(tmp_path, {}, {"ne": 1.05}, {}, {"ne": 1.03})
    assert alarm.what == "NE above 1 in hour=1, hour=3: worse than always predicting the label rate"


RARE = {"label_rate": 0.0272}


@pytest.mark.parametrize(
    ("window", "is_worse"),
    [
        # 68 of 2,500 rows are positive: by chance, one NE in thirty is above 1.02.
        (RARE | {"rows": 2_500, "ne": 1.02, "ne_error": 0.011}, False),
        (RARE | {"rows": 2_500, "ne": 1.04, "ne_error": 0.011}, True),
        (RARE | {"rows": 367_650, "ne": 1.02, "ne_error": 0.0032}, True),  # 10,000 positives
        (RARE | {"rows": 367_650, "ne": 1.005, "ne_error": 0.0032}, False),
        ({"rows": 10**9, "ne": 1.0009, "ne_error": 1e-6}, False),
        ({"rows": 10**9, "ne": 1.0011, "ne_error": 1e-6}, True),
        # Runs by older versions have no standard error.
        (RARE | {"rows": 2_500, "ne": 1.02}, False),
        (RARE | {"rows": 2_500, "ne": 1.1}, True),
        (RARE | {"rows": 367_650, "ne": 1.02}, True),
        ({"ne": 1.009, "label_rate": None}, False),
        ({"ne": 1.011, "label_rate": None}, True),
    ],
)
def test_an_entropy_above_one_is_named_if_noise_cannot_explain_it(
    tmp_path: Path, window: dict[str, Any], is_worse: bool
) -> None:
    run = {"run": GOOD | window | {"bad": 0, "seconds": 1.0}} if "ne_error" in window else {}
    assert bool(alarms(tmp_path, window | run)) == is_worse


def test_many_windows_that_noise_can_explain_are_named_together(tmp_path: Path) -> None:
    window = RARE | {"rows": 2_500, "ne": 1.02, "ne_error": 0.011}
    whole = {"rows": 100_000, "bad": 0, "seconds": 1.0, "auc": 0.6, "log_loss": 0.1, "calibration": 1.0}
    assert alarms(tmp_path, window, window | {"run": whole | {"ne": 1.004, "ne_error": 0.0017}}) == []
    (alarm,) = alarms(tmp_path, window, window | {"run": whole | {"ne": 1.02, "ne_error": 0.0017}})
    assert alarm.what.startswith("NE 1.0200 over all rows")


def test_a_baseline_that_ranks_better_is_named(tmp_path: Path) -> None:
    (alarm,) = alarms(tmp_path, {"auc": 0.6, "baseline_auc": 0.65}, {"auc": 0.62, "baseline_auc": 0.65})
    assert alarm.what == "AUC 0.6100, below that of clicks alone, 0.6500"
    assert "features.dense.clicks" in alarm.help
    (alarm,) = alarms(tmp_path, {"auc": 0.5, "baseline_auc": 0.65}, {"auc": 0.7, "baseline_auc": 0.65})
    assert alarm.reason == "the model had just begun: the last window is ahead"
    assert alarms(tmp_path, {"auc": 0.45, "ne": 0.99, "baseline_auc": 0.48}) == [], "no baseline worth the name"


def test_a_baseline_is_compared_over_all_rows_as_in_the_table(tmp_path: Path) -> None:
    first, last = {"auc": 0.6, "baseline_auc": 0.62}, {"auc": 0.68, "baseline_auc": 0.66}
    whole = GOOD | {"bad": 0, "seconds": 1.0, "auc": 0.61, "baseline_auc": 0.63}
    (alarm,) = alarms(tmp_path, first, last | {"run": whole})
    assert alarm.what == "AUC 0.6100, below that of clicks alone, 0.6300"
    assert "model -0.0200" in render_report(RunData.read(tmp_path), made="now")
    assert alarms(tmp_path, first, last | {"run": whole | {"baseline_auc": None}}) == []  # of an older version


NUMBER = {"rows": 1000, "rmse": 1.1, "mae": 0.9, "relative_mse": 0.9, "bias": 0.0, "label_mean": 3.5, "step": 1000}


@pytest.mark.parametrize(
    ("windows", "reason", "help_"),
    [
        ([{"relative_mse": 1.2, "step": 40}], "the model made only 40 steps", "a smaller training.batch_size"),
        ([{"relative_mse": 1.05}, {}, {}], "the model had just begun", "nothing, if later windows count"),
        ([{}, {"relative_mse": 1.2, "label_mean": 9.0}], "the label mean changes", "pipeline.shuffle"),
        ([{"relative_mse": 1.2}], "a few labels are very large", "log1p or clipping of the label"),
    ],
)
def test_a_number_predicted_worse_than_by_its_mean_is_named(
    tmp_path: Path, windows: list[dict[str, Any]], reason: str, help_: str
) -> None:
    records = [{"kind": "window", "window": f"hour={n}", **NUMBER, **window} for n, window in enumerate(windows)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (alarm,) = find_alarms(RunData.read(tmp_path))
    assert alarm.what.startswith("relative MSE ")
    assert alarm.what.endswith(": worse than always predicting the label mean")
    assert reason in alarm.reason
    assert help_ in alarm.help
