"""compute_score: the similarity of two id lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from headrace.errors import ConfigError
from headrace.features.kernels import scores
from headrace.features.operator import Column, ColumnOperator, Kind
from headrace.features.registry import register

__all__ = ["ComputeScore"]

_MODES = {
    "overlap": scores.OVERLAP,
    "count": scores.COUNT,
    "max_count": scores.MAX_COUNT,
    "jaccard": scores.JACCARD,
    "cosine": scores.COSINE,
    "sum": scores.SUM,
    "min": scores.MIN,
    "max": scores.MAX,
}


@register
class ComputeScore(ColumnOperator):
    """Similarity of an input list and a matching list of ids, 0 if they share no ids.

    Modes, named with the corresponding torcharrow functions:

    - `overlap` (has_id_overlap): 1 if they share an id.
    - `count` (id_overlap_count): size c of their multiset intersection.
    - `max_count` (get_max_count): sum over shared ids of the greater of the two counts.
    - `jaccard` (get_jaccard_similarity): c / (n + m - c) for lists of lengths n and m.
    - `cosine` (get_cosine_similarity): cosine similarity of the vectors of scores, summed by id.
    - `sum`, `min`, `max` (get_score_sum, _min, _max): sum, minimum or maximum of the matching list's scores of shared
      ids.

    Columns: `from: [ids, matching ids]`, or with scores `from: [ids, scores, matching ids, matching scores]`. Without
    scores each id has score 1. A null score is 0. It is an error if a row has more or fewer scores than ids.
    """

    name: ClassVar[str] = "compute_score"
    shorthand: ClassVar[str | None] = "score"
    takes: ClassVar[tuple[Kind, ...]] = (Kind.ID, Kind.IDS, Kind.NUMBERS)
    reads_row_ids: ClassVar[bool] = False
    purpose: ClassVar[str] = "similarity of two id lists: overlap, count, max_count, jaccard, cosine, sum, min or max"

    score: Literal["overlap", "count", "max_count", "jaccard", "cosine", "sum", "min", "max"] = Field(default="count")

    def returns(self, kinds: Sequence[Kind]) -> Kind:
        ids = [kind.has_ids for kind in kinds]
        if ids not in ([True, True], [True, False, True, False]):
            given = ", ".join(kind.value for kind in kinds)
            raise ConfigError(f"given {given}; expected ids and ids, or ids, numbers, ids and numbers")
        return Kind.NUMBER

    def apply(self, columns: Sequence[Column], row_ids: NDArray[np.int64]) -> Column:
        if len(columns) == 2:
            ids, others = columns
            weights, other_weights = np.ones(len(ids.values)), np.ones(len(others.values))
        else:
            ids, others = columns[0], columns[2]
            weights, other_weights = _scores(ids, columns[1]), _scores(others, columns[3])
        result = np.empty(len(ids), np.float64)
        scores.compute_scores(
            ids.values, ids.offsets, weights, others.values, others.offsets, other_weights, _MODES[self.score], result
        )
        return Column(result)


def _scores(ids: Column, weights: Column) -> NDArray[np.float64]:
    """The scores of ids, with 0 for null.

    Raises:
        ValueError: A row has more or fewer scores than ids.
    """
    assert ids.offsets is not None
    assert weights.offsets is not None
    wrong = np.flatnonzero(np.diff(ids.offsets) != np.diff(weights.offsets))
    if len(wrong):
        row = int(wrong[0])
        sizes = int(np.diff(ids.offsets)[row]), int(np.diff(weights.offsets)[row])
        raise ValueError(f"compute_score: row {row} has {sizes[0]} ids and {sizes[1]} scores, expected the same number")
    values: NDArray[np.float64] = np.nan_to_num(weights.values, nan=0.0)
    return values
