"""A model starts at the label rate, and what that knows of the first rows is not in their predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_batches import batch_of
from torch import nn

from headrace.training.label_rate import first_logits, set_output_bias, without_start


def sigmoid(x: object) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, dtype=np.float64)))


def test_the_rate_counts_rows_of_each_label_by_weight_and_half_a_row_of_each_kind() -> None:
    nan = math.nan
    batch = batch_of([[1, nan], [0, 1], [0, nan], [0, nan]])
    np.testing.assert_allclose(sigmoid(first_logits(batch)), [1.5 / 5, 1.5 / 2])
    weighted = batch_of([[1.0], [0.0]], weights=[3.0, 1.0])
    np.testing.assert_allclose(sigmoid(first_logits(weighted)), [3.5 / 5])
    never = batch_of([[0.0]] * 99)
    np.testing.assert_allclose(sigmoid(first_logits(never)), [0.5 / 100])


def test_each_row_of_the_first_batch_is_predicted_from_the_rows_before_it_alone() -> None:
    labels = [[1.0], [0.0], [1.0], [1.0]]
    start = first_logits(batch_of(labels))
    logits = np.full((4, 1), start, dtype=np.float32)
    found = sigmoid(without_start(logits, start, batch_of(labels)))[:, 0]
    np.testing.assert_allclose(found, [1 / 2, 1.5 / 2, 1.5 / 3, 2.5 / 4], rtol=1e-6)
    changed = [*labels[:2], [0.0], [0.0]]  # what comes later has no part in it
    start = first_logits(batch_of(changed))
    logits = np.full((4, 1), start, dtype=np.float32)
    np.testing.assert_allclose(sigmoid(without_start(logits, start, batch_of(changed)))[:3, 0], found[:3], rtol=1e-6)


def test_what_else_a_model_knows_of_a_row_stays_in_its_prediction() -> None:
    start = first_logits(batch_of([[1.0], [0.0]]))
    logits = np.array([[start[0] + 2], [start[0] - 1]], dtype=np.float32)
    found = without_start(logits, start, batch_of([[1.0], [0.0]]))
    np.testing.assert_allclose(found[:, 0], [2.0, math.log(1.5 / 0.5) - 1], rtol=1e-6)


class WithHead(nn.Module):
    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_labels)


@pytest.mark.parametrize(("model", "is_set"), [(WithHead(2), True), (WithHead(3), False), (nn.Linear(2, 2), False)])
def test_the_bias_is_that_of_a_layer_called_head_with_a_number_per_label(model: nn.Module, is_set: bool) -> None:
    logits = np.array([-3.0, 0.5])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert set_output_bias(model, logits) == is_set
    if is_set:
        np.testing.assert_allclose(model.head.bias.detach().numpy(), logits)  # type: ignore[union-attr]
    else:
        assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
