"""The teacher's bound is what the true probabilities really reach, and a plain model gets near it."""

from functools import cache

import numpy as np
import pytest
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss, roc_auc_score

from headrace.logs.generate import GenerateConfig, generate_window
from headrace.logs.generate.teacher import BoundMeter, Calibration, calibrate, click_probability

ROWS = 100_000


@cache
def window(number: int = 0, **values: object) -> tuple[np.ndarray, np.ndarray]:
    config = GenerateConfig.from_dict({"rows": 3 * ROWS, **values}, where="test")
    parts = list(generate_window(config, number))
    labels = np.concatenate([part.batch["click"].to_numpy() for part in parts])
    return np.concatenate([part.probability for part in parts]), labels


def bound(probability: np.ndarray, labels: np.ndarray):
    meter = BoundMeter(0)
    half = len(labels) // 2
    meter.add(probability[:half], labels[:half])
    meter.add(probability[half:], labels[half:])
    return meter.result()


def test_log_loss_of_the_true_probabilities_is_the_stated_best() -> None:
    probability, labels = window()
    best = bound(probability, labels)
    losses = -np.log(np.where(labels == 1, probability, 1 - probability))
    assert losses.mean() == pytest.approx(best.best_log_loss, abs=4 * losses.std() / np.sqrt(len(losses)))
    assert best.rows == ROWS
    assert best.label_rate == labels.mean()


def test_best_normalized_entropy_lies_where_there_is_something_to_learn_and_not_all() -> None:
    for number in range(3):
        best = bound(*window(number))
        assert 0.80 < best.best_normalized_entropy < 0.88
        rate = window(number)[0].mean()
        base = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
        assert best.best_normalized_entropy == pytest.approx(best.best_log_loss / base, rel=1e-6)


def test_auc_of_the_true_probabilities_is_the_stated_best() -> None:
    probability, labels = window()
    assert roc_auc_score(labels, probability) == pytest.approx(bound(probability, labels).best_auc, abs=0.006)


def test_labels_are_calibrated_in_every_bucket_of_the_probability() -> None:
    probability, labels = window()
    for low in np.arange(0.05, 0.75, 0.1):
        inside = (probability >= low) & (probability < low + 0.1)
        expected = probability[inside].mean()
        assert labels[inside].mean() == pytest.approx(expected, abs=4.5 * np.sqrt(0.25 / inside.sum()))


def test_no_signal_leaves_nothing_to_learn() -> None:
    best = bound(*window(signal=0.0, rows=3000))
    assert best.best_normalized_entropy == pytest.approx(1.0)
    assert best.best_auc == pytest.approx(0.5)


@pytest.mark.parametrize("label_rate", [0.02, 0.25, 0.6])
def test_label_rate_is_the_one_asked_for(label_rate: float) -> None:
    probability, _ = window(label_rate=label_rate, rows=3 * 20_000)
    assert probability.mean() == pytest.approx(label_rate, rel=0.01)


def test_calibration_gives_the_spread_and_the_rate() -> None:
    raw = np.random.default_rng(0).normal(3.0, 0.2, 10_000)
    found = calibrate(raw, signal=1.5, label_rate=0.1)
    logit = found.scale * raw + found.intercept
    assert logit.std() == pytest.approx(1.5)
    assert click_probability(raw, found).mean() == pytest.approx(0.1)


def test_auc_of_hand_made_probabilities() -> None:
    meter = BoundMeter(0)
    meter.add(np.array([0.25, 0.75]), np.array([0, 1], np.int8))
    # Clicks and non-clicks in proportion 1 : 3 and 3 : 1. A click ranks above in 9 of 16 pairs and ties in 6.
    assert meter.result().best_auc == pytest.approx((9 + 3) / 16)
    assert click_probability(np.array([0.0]), Calibration(1.0, 0.0))[0] == 0.5


def test_drift_makes_yesterdays_probabilities_worse() -> None:
    def transfer(drift_ratio: float) -> float:
        """Gain on the last window of what segment and category tell in the first, over the base rate."""
        config = GenerateConfig(rows=3 * 60_000, drift_ratio=drift_ratio, new_ids_ratio=0.0)
        tables = []
        for number in (0, 2):
            parts = list(generate_window(config, number))
            cells = [p.batch["segment_0"].to_numpy() * 20 + p.batch["category_0"].to_numpy() for p in parts]
            tables.append((np.concatenate(cells), np.concatenate([p.probability for p in parts])))
        (old_cells, old), (new_cells, new) = tables
        sums, counts = np.bincount(old_cells, old, 240), np.bincount(old_cells, minlength=240)
        guess = (sums + 20 * old.mean()) / (counts + 20)
        return float(np.corrcoef(guess[new_cells], new)[0, 1])

    assert transfer(0.5) < transfer(0.0) - 0.1


def test_a_hashed_linear_model_gets_a_good_part_of_the_way() -> None:
    config = GenerateConfig(rows=100_000, windows=1)
    parts = list(generate_window(config, 0))
    hasher = FeatureHasher(1 << 14, input_type="string")
    model = SGDClassifier(loss="log_loss", alpha=1e-6, learning_rate="constant", eta0=0.02, random_state=0)
    tail_loss, tail_best = [], []
    for part in parts:
        ids = [np.char.add(f"{n}=", part.batch[n].to_numpy().astype(str)) for n in config.id_names if n != "user"]
        dense = np.stack([part.batch[name].to_numpy() for name in config.dense_names], 1)
        dense[:, 1::2] = np.log1p(dense[:, 1::2]) - 2
        features = hstack([hasher.transform(np.stack(ids, 1).tolist()), csr_matrix(dense)]).tocsr()
        labels = part.batch["click"].to_numpy()
        for start in range(0, len(labels), 4096):
            rows = slice(start, min(start + 4096, len(labels)))
            if part is parts[-1]:
                guess = np.clip(model.predict_proba(features[rows])[:, 1], 1e-4, 1 - 1e-4)
                tail_loss.append(log_loss(labels[rows], guess, labels=[0, 1]))
                tail_best.append(log_loss(labels[rows], part.probability[rows], labels=[0, 1]))
            model.partial_fit(features[rows], labels[rows], classes=[0, 1])
    rate = config.label_rate
    base = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    reached, best = float(np.mean(tail_loss)) / base, float(np.mean(tail_best)) / base
    assert best < reached < 1 - 0.4 * (1 - best)
