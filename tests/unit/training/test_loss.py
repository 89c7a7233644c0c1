"""The fused loss is torch's, with its gradient, for clicks and for numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from headrace.training.loss import LabelLoss


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.booleans(), st.floats(0.1, 200))
def test_loss_and_gradient_are_those_of_torch(rows: int, labels: int, weighted: bool, spread: float) -> None:
    generator = torch.Generator().manual_seed(rows)
    logits = spread * torch.randn(rows, labels, generator=generator)
    targets = torch.randint(0, 2, (rows, labels), generator=generator).float()
    weights = torch.rand(rows, generator=generator) if weighted else None
    leaf, factors = logits.double().requires_grad_(), torch.ones(rows) if weights is None else weights
    expected = binary_cross_entropy_with_logits(leaf, targets.double(), weight=factors.double()[:, None])
    expected.backward()  # type: ignore[no-untyped-call]
    loss, grad = LabelLoss()(logits, targets, weights)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(grad, leaf.grad.float(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_and_gradients_of_parts_add_up_to_those_of_the_batch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, weights = torch.randn(10, 2, generator=generator, dtype=dtype), torch.rand(10, generator=generator)
    labels = torch.randint(0, 2, (10, 2), generator=generator).to(dtype)
    loss, grad = LabelLoss()(logits, labels, weights)
    parts = [LabelLoss()(logits[p], labels[p], weights[p], num_rows=10) for p in (slice(0, 3), slice(3, 10))]
    assert sum(value for value, _ in parts) == pytest.approx(loss, rel=1e-6)
    together = torch.cat([part for _, part in parts])
    if dtype == torch.float32:
        assert torch.equal(together, grad)
    torch.testing.assert_close(together, grad)


@pytest.mark.parametrize("logit", [1e4, -1e4, 100.0, -100.0])
def test_logits_far_out_give_finite_losses_and_exact_gradients(logit: float) -> None:
    loss, grad = LabelLoss()(torch.tensor([[logit]]), torch.tensor([[0.0]]), None)
    assert loss == pytest.approx(max(logit, 0.0), abs=1e-40)
    assert grad.item() == (1.0 if logit > 0 else pytest.approx(0.0, abs=1e-40))


@pytest.mark.parametrize("logit", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_give_a_loss_that_is_none(logit: float) -> None:
    loss, _ = LabelLoss()(torch.tensor([[0.0], [logit]]), torch.tensor([[0.0], [1.0]]), None)
    assert not math.isfinite(loss)


def test_float64_logits_and_no_rows_go_by_torch() -> None:
    loss, grad = LabelLoss()(torch.zeros(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64), None)
    assert loss == pytest.approx(math.log(2))
    assert grad.dtype == torch.float64
    assert math.isnan(LabelLoss()(torch.zeros(0, 1), torch.zeros(0, 1), None)[0])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_missing_label_counts_as_if_its_weight_were_zero(fused: bool, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    dtype = torch.float32 if fused else torch.float64  # the fused pass is for float32
    logits = torch.randn(6, 2, generator=generator).to(dtype)
    labels = torch.randint(0, 2, (6, 2), generator=generator).to(dtype)
    known = torch.ones(6, 2, dtype=dtype)
    known[[0, 3, 3], [1, 0, 1]] = 0.0
    weights = torch.rand(6, generator=generator).to(dtype) if weighted else None
    leaf, factors = logits.clone().requires_grad_(), known if weights is None else known * weights[:, None]
    expected = binary_cross_entropy_with_logits(leaf, labels, weight=factors)
    expected.backward()  # type: ignore[no-untyped-call]
    loss, grad = LabelLoss()(logits, labels.masked_fill(known == 0, math.nan), weights)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(grad, leaf.grad)
    assert (grad[known == 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("label", [-0.5, 1.5, 4.0])
def test_a_label_that_is_no_probability_has_no_finite_loss(label: float, dtype: torch.dtype) -> None:
    loss, _ = LabelLoss()(torch.zeros(2, 1, dtype=dtype), torch.tensor([[1.0], [label]], dtype=dtype), None)
    assert math.isnan(loss)


@pytest.mark.parametrize("fused", [True, False])
def test_the_weight_of_a_label_multiplies_its_part_of_the_loss(fused: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    dtype = torch.float32 if fused else torch.float64
    logits = torch.randn(9, 3, generator=generator).to(dtype)
    labels = torch.randint(0, 2, (9, 3), generator=generator).to(dtype)
    factors = torch.tensor([1.0, 5.0, 0.0], dtype=torch.float64)
    rows = torch.rand(9, generator=generator).to(dtype)
    parts = [LabelLoss()(logits[:, [n]], labels[:, [n]], rows) for n in range(3)]
    loss, grad = LabelLoss(factors)(logits, labels, rows)
    assert loss == pytest.approx(sum(f * value for f, (value, _) in zip(factors.tolist(), parts, strict=True)) / 3)
    expected = torch.cat([part for _, part in parts], dim=1) * factors / 3
    torch.testing.assert_close(grad, expected.to(dtype), rtol=1e-6, atol=1e-9)
    ones, plain = LabelLoss(torch.ones(3))(logits, labels, rows), LabelLoss()(logits, labels, rows)
    assert ones[0] == plain[0]
    assert torch.equal(ones[1], plain[1])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_label_with_a_unit_has_the_squared_error_in_that_unit(fused: bool, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    dtype = torch.float32 if fused else torch.float64
    outputs = torch.randn(8, 2, generator=generator).to(dtype)
    labels = torch.stack(
        [torch.randint(0, 2, (8,), generator=generator), 50 * torch.randn(8, generator=generator) + 3], dim=1
    ).to(dtype)
    labels[3, 1] = math.nan
    rows = torch.rand(8, generator=generator).to(dtype) if weighted else None
    weights = torch.ones(8, dtype=dtype) if rows is None else rows
    leaf = outputs.clone().requires_grad_()
    clicks = binary_cross_entropy_with_logits(leaf[:, 0], labels[:, 0], weight=weights)
    errors = ((leaf[:, 1] - labels[:, 1].nan_to_num()) / 50) ** 2 * weights
    expected = (clicks + errors[torch.arange(8) != 3].sum() / 8) / 2
    expected.backward()  # type: ignore[no-untyped-call]
    both = LabelLoss(units=torch.tensor([0.0, 50.0]))
    loss, grad = both(outputs, labels, rows)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(grad, leaf.grad, rtol=1e-5, atol=1e-9)
    assert both.impossible(torch.tensor([[0.5, 7.0], [math.nan, -1.0], [2.0, 0.0]])).tolist() == [2.0]
