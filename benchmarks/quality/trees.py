"""LightGBM at its defaults, fitted again before each window on all rows before it.

Ids are categorical features. With those of more than 1,000 values as numbers instead, as LightGBM's documentation
suggests, NE was 10 to 15 % better on `rare-10k` and `rare-20k` (1.56 and 1.36, still far above 1), 5 % worse on
`new-ids`, 3 % worse on `news`, and within 1 % on five others. Of lists it gets the length, the last id, and an
indicator for each of the 50 most frequent ids of the rows it is fitted on. In the first window it predicts the label
rate so far.
"""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt

from quality.columns import Columns, windows
from quality.scores import label_rate_logits

__all__ = ["predict_then_learn"]

FREQUENT_IDS = 50


def predict_then_learn(columns: Columns, seed: int) -> npt.NDArray[np.float64]:
    """Log-odds [N], of each window before it was learned."""
    logits = label_rate_logits(columns.labels)
    numbers, categorical = _fixed(columns)
    for start, stop in windows(len(logits)):
        if len(np.unique(columns.labels[:start])) < 2:
            continue
        features = np.concatenate([numbers[:stop], *_indicators(columns, start, stop)], axis=1)
        model = lightgbm.LGBMClassifier(random_state=seed, verbose=-1)
        model.fit(features[:start], columns.labels[:start], categorical_feature=categorical)
        logits[start:stop] = model.predict(features[start:stop], raw_score=True)
    return logits


def _fixed(columns: Columns) -> tuple[npt.NDArray[np.float32], list[int]]:
    """Features [N, F] that are the same for every window, and which are categorical."""
    features: list[npt.NDArray[Any]] = list(columns.dense.values())
    last = [_last(lists.offsets, lists.values) for lists in columns.lists.values()]
    features += [np.where(numbers == 0, np.nan, numbers) for numbers in (*columns.ids.values(), *last)]
    categorical = list(range(len(columns.dense), len(features)))
    features += [lists.lengths for lists in columns.lists.values()]
    return np.stack(features, axis=1).astype(np.float32), categorical


def _last(offsets: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    ends = np.append(values, 0)[offsets[1:] - 1]
    return np.where(np.diff(offsets) > 0, ends, 0)


def _indicators(columns: Columns, start: int, stop: int) -> list[npt.NDArray[np.float32]]:
    """Which of the most frequent ids of the rows before `start` the lists of the rows before `stop` hold."""
    out = []
    for name, lists in columns.lists.items():
        counts = np.bincount(lists.values[: lists.offsets[start]], minlength=columns.sizes[name])
        place = np.full(columns.sizes[name], FREQUENT_IDS)
        frequent = np.argsort(-counts, kind="stable")[:FREQUENT_IDS]
        place[frequent] = np.arange(len(frequent))
        held = np.zeros((stop, FREQUENT_IDS + 1), np.float32)
        held[lists.rows[: lists.offsets[stop]], place[lists.values[: lists.offsets[stop]]]] = 1
        out.append(held[:, :FREQUENT_IDS])
    return out
