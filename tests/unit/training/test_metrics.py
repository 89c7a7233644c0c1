"""Constant-memory metrics agree with exact ones."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from headrace.training.metrics import BinaryMetrics


def sample(seed: int, rows: int, spread: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.0, spread, rows).astype(np.float32)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logits * 0.7))).astype(np.float32)
    labels[:2] = (0.0, 1.0)
    return logits, labels


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(2, 3000), spread=st.floats(0.001, 30.0))
def test_auc_lies_within_its_stated_error_of_the_exact_one(seed: int, rows: int, spread: float) -> None:
    logits, labels = sample(seed, rows, spread)
    metrics = BinaryMetrics()
    metrics.update(logits, labels)
    scores = metrics.compute()
    assert abs(scores.auc - roc_auc_score(labels, logits)) <= scores.auc_error + 1e-12


def test_the_stated_error_is_small_on_ordinary_predictions() -> None:
    metrics = BinaryMetrics()
    metrics.update(*sample(1, 200_000))
    assert metrics.compute().auc_error < 1e-4


def test_log_loss_entropy_and_calibration_match_their_definitions() -> None:
    logits, labels = sample(2, 5000)
    metrics = BinaryMetrics()
    metrics.update(logits[:1000], labels[:1000])
    metrics.update(logits[1000:], labels[1000:])
    scores = metrics.compute()
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    rate = labels.mean(dtype=np.float64)
    exact = log_loss(labels, p)
    assert scores.rows == 5000
    assert scores.log_loss == pytest.approx(exact, rel=1e-9)
    assert scores.ne == pytest.approx(exact / (-rate * math.log(rate) - (1 - rate) * math.log(1 - rate)), rel=1e-6)
    assert scores.calibration == pytest.approx(p.mean() / rate, rel=1e-6)


def exact_ne_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """The delta method for a ratio of two means, from the losses of the rows themselves."""
    x, y = logits.astype(np.float64), labels.astype(np.float64)
    losses = np.logaddexp(0, np.where(y == 1, -x, x))
    of_rate = -np.log(np.where(y == 1, y.mean(), 1 - y.mean()))
    residuals = losses - losses.mean() / of_rate.mean() * of_rate
    return float(residuals.std() / of_rate.mean() / math.sqrt(len(y)))


@pytest.mark.parametrize("spread", [0.01, 0.5, 3.0])
def test_the_standard_error_of_the_entropy_is_that_of_the_rows(spread: float) -> None:
    logits, labels = sample(6, 4000, spread)
    metrics = BinaryMetrics()
    metrics.update(logits, labels)
    assert metrics.compute().ne_error == pytest.approx(exact_ne_error(logits, labels), rel=0.01)
    weighted = BinaryMetrics()
    weighted.update(logits, labels, np.full(4000, 3.0, np.float32))
    assert weighted.compute().ne_error == pytest.approx(metrics.compute().ne_error)


def test_the_standard_error_is_the_spread_over_many_samples() -> None:
    rng = np.random.default_rng(7)
    found = []
    for _ in range(300):
        logits = rng.normal(-3.5, 1.0, 1000).astype(np.float32)
        labels = (rng.random(1000) < 1 / (1 + np.exp(-logits))).astype(np.float32)
        metrics = BinaryMetrics()
        metrics.update(logits, labels)
        found.append(metrics.compute())
    errors = np.array([scores.ne_error for scores in found])
    assert np.std([scores.ne for scores in found]) == pytest.approx(errors.mean(), rel=0.15)


def test_the_label_rate_as_prediction_has_no_error() -> None:
    metrics = BinaryMetrics()
    labels = np.repeat(np.array([0, 1], np.float32), [900, 100])
    metrics.update(np.full(1000, -math.log(9), np.float32), labels)
    scores = metrics.compute()
    assert scores.ne == pytest.approx(1.0)
    assert scores.ne_error < 1e-4


def test_a_weight_of_two_counts_like_the_row_twice() -> None:
    logits, labels = sample(3, 300)
    weights = np.random.default_rng(0).integers(0, 4, 300).astype(np.float32)
    weighted, repeated = BinaryMetrics(), BinaryMetrics()
    weighted.update(logits, labels, weights)
    repeated.update(np.repeat(logits, weights.astype(int)), np.repeat(labels, weights.astype(int)))
    assert weighted.compute().auc == pytest.approx(repeated.compute().auc, abs=1e-12)
    assert weighted.compute().log_loss == pytest.approx(repeated.compute().log_loss, rel=1e-12)


def test_extreme_logits_stay_finite() -> None:
    metrics = BinaryMetrics()
    metrics.update(np.array([-1e30, 1e30, 0.0], np.float32), np.array([0, 1, 1], np.float32))
    scores = metrics.compute()
    assert math.isfinite(scores.log_loss)
    assert scores.auc == 1.0


def test_one_class_alone_has_no_auc() -> None:
    metrics = BinaryMetrics()
    metrics.update(np.zeros(3, np.float32), np.ones(3, np.float32))
    assert math.isnan(metrics.compute().auc)
    assert math.isnan(metrics.compute().ne_error)
    assert math.isnan(BinaryMetrics().compute().log_loss)


def test_saved_counts_go_on_where_they_stopped() -> None:
    logits, labels = sample(4, 1000)
    whole, first, second = BinaryMetrics(), BinaryMetrics(), BinaryMetrics()
    whole.update(logits, labels)
    first.update(logits[:400], labels[:400])
    second.load_state_dict(first.state_dict())
    second.update(logits[400:], labels[400:])
    assert second.compute() == whole.compute()


def test_rows_without_the_label_are_left_out() -> None:
    logits = np.array([0.5, -1.0, 2.0, 0.1], np.float32)
    labels = np.array([1.0, np.nan, 0.0, np.nan], np.float32)
    some, all_known = BinaryMetrics(), BinaryMetrics()
    some.update(logits, labels)
    all_known.update(logits[[0, 2]], labels[[0, 2]])
    assert some.compute() == all_known.compute()
