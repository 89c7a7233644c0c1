"""The planted teacher: weights of hidden effects, and the best score that any model can reach on its labels."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.auc import area_under_curve
from headrace.logs.generate.spec import GenerateConfig

__all__ = ["BoundMeter", "Calibration", "TeacherWeights", "WindowBound", "calibrate", "click_probability"]

Floats = npt.NDArray[np.float64]

# Shares of the logit's variance. Frequent values (segments, categories, dense values) have most of it, so that most can
# be learned within a few hundred thousand rows; effects that need long training (single users) have little.
_SHARES = {"user": 0.03, "segments": 0.22, "item": 0.12, "categories": 0.2, "dense": 0.22, "lists": 0.08}
_CROSS_SHARES = {"segment_category": 0.08, "list_category": 0.02, "dense_category": 0.03}

_NUM_BINS = 8192
"""Probability bins for the best AUC; the error is below the share of pairs in the same bin."""


@dataclass(frozen=True)
class TeacherWeights:
    """Weights of the unit-variance hidden effects, before calibration.

    Attributes:
        user, item: Weights of the two id columns whose ids are replaced over time.
        segments, categories, dense, lists: One weight per column.
        segment_category, list_category, dense_category: Weights of the products.
    """

    user: float
    item: float
    segments: Floats
    categories: Floats
    dense: Floats
    lists: Floats
    segment_category: float
    list_category: float
    dense_category: float

    @classmethod
    def of(cls, config: GenerateConfig) -> TeacherWeights:
        """Spread each group's share of the variance evenly over its columns."""
        num_dense = config.user_dense + config.item_dense

        def spread(group: str, columns: int) -> Floats:
            return np.full(columns, np.sqrt(_SHARES[group] / max(columns, 1)))

        return cls(
            user=float(np.sqrt(_SHARES["user"])),
            item=float(np.sqrt(_SHARES["item"])),
            segments=spread("segments", len(config.user_segments)),
            categories=spread("categories", len(config.item_categories)),
            dense=spread("dense", num_dense),
            lists=spread("lists", config.id_lists),
            **{name: float(np.sqrt(share)) for name, share in _CROSS_SHARES.items()},
        )


@dataclass(frozen=True)
class Calibration:
    """Converts the raw sum of effects to a logit: `scale * raw + intercept`."""

    scale: float
    intercept: float


def calibrate(raw: Floats, *, signal: float, label_rate: float) -> Calibration:
    """Find scale and intercept that give a sample of raw logits the target spread and mean probability."""
    spread = float(raw.std())
    scale = signal / spread if spread > 0 else 0.0
    low, high = -60.0, 60.0
    for _ in range(80):  # bisection: the mean probability grows with the intercept
        middle = (low + high) / 2
        if float(click_probability(raw, Calibration(scale, middle)).mean()) < label_rate:
            low = middle
        else:
            high = middle
    return Calibration(scale, (low + high) / 2)


def click_probability(raw: Floats, calibration: Calibration) -> Floats:
    """The true click probability of each row."""
    logit = np.clip(calibration.scale * raw + calibration.intercept, -30.0, 30.0)
    return np.asarray(1.0 / (1.0 + np.exp(-logit)))


@dataclass(frozen=True)
class WindowBound:
    """The best expected score of any model on one window.

    Attributes:
        window: Number of the window.
        rows: Number of rows.
        label_rate: Share of clicks.
        best_log_loss: Mean entropy of the true probabilities, in nats per row.
        best_normalized_entropy: `best_log_loss` divided by the entropy of the mean probability.
        best_auc: Expected AUC of ranking by the true probability.
    """

    window: int
    rows: int
    label_rate: float
    best_log_loss: float
    best_normalized_entropy: float
    best_auc: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class BoundMeter:
    """Accumulates true probabilities and labels of a window in constant memory."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._rows = 0
        self._clicks = 0
        self._probability = 0.0
        self._entropy = 0.0
        self._positive = np.zeros(_NUM_BINS)
        self._count = np.zeros(_NUM_BINS)

    def add(self, probability: Floats, labels: npt.NDArray[np.int8]) -> None:
        """Add rows with these true probabilities."""
        self._rows += len(probability)
        self._clicks += int(labels.sum())
        self._probability += float(probability.sum())
        self._entropy += float(_entropy(probability).sum())
        bins = np.minimum((probability * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
        self._count += np.bincount(bins, minlength=_NUM_BINS)
        self._positive += np.bincount(bins, weights=probability, minlength=_NUM_BINS)

    def result(self) -> WindowBound:
        """The bound for the rows added."""
        rows = max(self._rows, 1)
        base = float(_entropy(np.array([self._probability / rows]))[0])
        best = self._entropy / rows
        auc, _ = area_under_curve(self._count - self._positive, self._positive)
        return WindowBound(
            window=self._window,
            rows=self._rows,
            label_rate=self._clicks / rows,
            best_log_loss=best,
            best_normalized_entropy=best / base if base > 0 else 1.0,
            best_auc=auc if math.isfinite(auc) else 0.5,
        )


def _entropy(probability: Floats) -> Floats:
    p = np.clip(probability, 1e-15, 1 - 1e-15)
    return np.asarray(-(p * np.log(p) + (1 - p) * np.log1p(-p)))
