"""Sampling of whole rows."""

import numpy as np
import plain_operators as plain
import pyarrow as pa
import pytest

from headrace.errors import DataError
from headrace.features import RowSampling


def rows(size: int = 2000) -> pa.RecordBatch:
    rng = np.random.default_rng(0)
    return pa.record_batch(
        {"__row_id": rng.integers(0, 2**63, size), "click": (rng.random(size) < 0.1).astype(np.int8)}
    )


def test_a_row_is_kept_or_not_wherever_it_stands() -> None:
    sampling = RowSampling(probability=0.3, seed=4)
    batch = rows()
    kept = sampling(batch)
    assert kept.to_pylist() == [plain.in_sample(i, 4, 0.3) for i in batch.column("__row_id").to_pylist()]
    assert sampling(batch.slice(100, 50)).to_pylist() == kept.to_pylist()[100:150]
    assert RowSampling(probability=0.3, seed=5)(batch) != kept


def test_positives_are_kept_where_asked_for() -> None:
    batch = rows()
    kept = RowSampling(probability=0.2, keep_label="click")(batch).to_pylist()
    clicks = batch.column("click").to_pylist()
    assert all(keep for keep, click in zip(kept, clicks, strict=True) if click)
    negatives = [keep for keep, click in zip(kept, clicks, strict=True) if not click]
    assert 0.16 < sum(negatives) / len(negatives) < 0.24


def test_a_missing_column_is_named() -> None:
    with pytest.raises(DataError, match="column like: missing"):
        RowSampling(probability=0.2, keep_label="like")(rows())
