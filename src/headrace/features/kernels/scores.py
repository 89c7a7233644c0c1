"""Kernels of compute_score: the similarity of two id lists, and scores of their shared ids.

Both lists of a row are sorted and merged, so a row of lengths n and m costs O(n log n + m log m).
"""

from typing import Any

import numpy as np

from headrace.compiling import kernel

__all__ = ["COSINE", "COUNT", "JACCARD", "MAX", "MAX_COUNT", "MIN", "OVERLAP", "SUM", "compute_scores"]

OVERLAP, COUNT, MAX_COUNT, JACCARD, COSINE, SUM, MIN, MAX = range(8)


@kernel()
def _run_of(ids: Any, scores: Any, start: int) -> Any:
    """The end of the run of equal ids from `start` on, and the sum, minimum and maximum of its scores."""
    stop = start + 1
    total = low = high = scores[start]
    while stop < ids.size and ids[stop] == ids[start]:
        total += scores[stop]
        low, high = min(low, scores[stop]), max(high, scores[stop])
        stop += 1
    return stop, total, low, high


@kernel()
def _norm(ids: Any, scores: Any) -> Any:
    """Norm of the vector of score sums by id."""
    squares, at = 0.0, 0
    while at < ids.size:
        at, total, _, _ = _run_of(ids, scores, at)
        squares += total * total
    return np.sqrt(squares)


@kernel()
def _score(ids: Any, scores: Any, other_ids: Any, other_scores: Any, mode: int) -> Any:
    """One row's score; all four arrays sorted by id."""
    common = most = product = total = 0.0
    low, high = np.inf, -np.inf
    at = other_at = 0
    while at < ids.size and other_at < other_ids.size:
        if ids[at] < other_ids[other_at]:
            at += 1
        elif ids[at] > other_ids[other_at]:
            other_at += 1
        else:
            stop, score, _, _ = _run_of(ids, scores, at)
            other_stop, other_score, least, greatest = _run_of(other_ids, other_scores, other_at)
            common += min(stop - at, other_stop - other_at)
            most += max(stop - at, other_stop - other_at)
            product += score * other_score
            total += other_score
            low, high = min(low, least), max(high, greatest)
            at, other_at = stop, other_stop
    if common == 0:
        return 0.0
    if mode == OVERLAP:
        return 1.0
    if mode == COUNT:
        return common
    if mode == MAX_COUNT:
        return most
    if mode == JACCARD:
        return common / (ids.size + other_ids.size - common)
    if mode == COSINE:
        norms = _norm(ids, scores) * _norm(other_ids, other_scores)
        return product / norms if norms > 0 else 0.0
    if mode == SUM:
        return total
    return low if mode == MIN else high


@kernel()
def compute_scores(
    ids: Any, bounds: Any, scores: Any, other_ids: Any, other_bounds: Any, other_scores: Any, mode: int, out: Any
) -> None:
    """Write each row's score.

    Args:
        ids: int64, the input list.
        bounds: int64 [B + 1], start of each row.
        scores: float64, one per id.
        other_ids: int64, the matching list.
        other_bounds: int64 [B + 1].
        other_scores: float64.
        mode: One of the modes above.
        out: float64 [B], output.
    """
    for row in range(out.size):
        mine, theirs = ids[bounds[row] : bounds[row + 1]], other_ids[other_bounds[row] : other_bounds[row + 1]]
        if mine.size == 0 or theirs.size == 0:
            out[row] = 0.0
            continue
        order, other_order = np.argsort(mine), np.argsort(theirs)
        out[row] = _score(
            mine[order],
            scores[bounds[row] : bounds[row + 1]][order],
            theirs[other_order],
            other_scores[other_bounds[row] : other_bounds[row + 1]][other_order],
            mode,
        )
