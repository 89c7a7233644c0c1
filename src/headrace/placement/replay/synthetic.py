"""Synthetic row streams: ids with Zipf popularity, whose ranks drift."""

from __future__ import annotations

import numpy as np

from headrace.placement.replay.stream import RowStream, Samples

__all__ = ["zipf_stream"]


def zipf_stream(
    *,
    num_batches: int,
    num_samples: int,
    num_features: int = 1,
    num_ids: int = 1_000_000,
    alpha: float = 1.05,
    drift: float = 0.0,
    seed: int = 0,
) -> RowStream:
    """Make a stream in which every sample has one id of each feature, drawn from a Zipf distribution.

    The probability of an id of rank r is proportional to r to the power of -alpha. Rows are numbered by first
    occurrence.

    Args:
        num_batches: Number of global batches.
        num_samples: Samples per global batch.
        num_features: Number of features, each with its own ids.
        num_ids: Number of ids per feature.
        alpha: Exponent; 0 for uniform.
        drift: Ranks by which ids are shifted per batch: at 1, an id has another rank in every batch.
        seed: Seed.
    """
    random = np.random.default_rng(seed)
    weights = np.arange(1, num_ids + 1, dtype=np.float64) ** -alpha
    bounds = np.cumsum(weights) / weights.sum()
    feature_starts = np.arange(num_features) * num_ids
    drawn = np.empty((num_batches, num_samples, num_features), dtype=np.int64)
    for number in range(num_batches):
        ranks = np.searchsorted(bounds, random.random((num_samples, num_features)))
        drawn[number] = (np.minimum(ranks, num_ids - 1) + int(drift * number)) % num_ids + feature_starts
    return RowStream.of(*_numbered(drawn, num_features * num_ids))


def _numbered(drawn: np.ndarray, num_ids: int) -> tuple[list[Samples], int]:
    """Samples of the drawn ids [batches, samples, features], with dense row numbers."""
    occurs = np.zeros(num_ids, dtype=np.bool_)
    occurs[drawn.ravel()] = True
    numbers = np.cumsum(occurs, dtype=np.int64) - 1
    rows = numbers[drawn].astype(np.int32)
    _, num_samples, num_features = drawn.shape
    starts = np.arange(num_samples + 1, dtype=np.int64) * num_features
    return [(starts, batch.ravel()) for batch in rows], int(occurs.sum())
