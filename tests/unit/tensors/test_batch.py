"""A batch counts its bytes and rows, and its validator finds parts that disagree."""

import dataclasses

import pytest
import torch

from headrace.tensors import Batch, KeyedJaggedTensor, validate_batch

BATCH = Batch(
    dense=torch.zeros(2, 3),
    sparse=(KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]]}), KeyedJaggedTensor.from_lists({"b": [[], [4]]})),
    labels=torch.ones(2, 1),
    row_ids=torch.tensor([5, 6]),
)


def test_a_consistent_batch_passes() -> None:
    validate_batch(BATCH)
    validate_batch(BATCH.to("cpu"))
    assert len(BATCH) == 2
    assert BATCH.keys == ("a", "b")
    assert BATCH.num_bytes == 24 + 8 + 16 + sum(group.num_bytes for group in BATCH.sparse)


def test_a_large_batch_is_shown_in_one_short_line() -> None:
    assert repr(BATCH) == (
        "Batch(dense=float32[2, 3], sparse=(KeyedJaggedTensor(2 rows, 3 values of 1 feature: a), "
        "KeyedJaggedTensor(2 rows, 1 values of 1 feature: b)), labels=float32[2, 1], row_ids=int64[2])"
    )
    many = {f"feature_{number}": [[1, 2]] * 1000 for number in range(500)}
    group = KeyedJaggedTensor.from_lists(many)
    batch = dataclasses.replace(BATCH, sparse=(group,) * 9)
    assert len(repr(batch)) < 600
    assert "and 6 more groups" in repr(batch)
    assert "\n" not in repr(batch)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"dense": torch.zeros(3, 3)}, ValueError, "dense has 3 rows, row_ids has 2"),
        ({"labels": torch.zeros(2, 1, dtype=torch.int64)}, TypeError, "labels is torch.int64, expected torch.float32"),
        ({"sparse": (KeyedJaggedTensor.from_lists({"a": [[1]]}),)}, ValueError, "group a has 1 rows, row_ids has 2"),
        ({"sparse": BATCH.sparse[:1] * 2}, ValueError, "a sparse feature occurs in two groups"),
    ],
)
def test_the_validator_says_what_is_wrong(change: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        validate_batch(dataclasses.replace(BATCH, **change))  # type: ignore[arg-type]
