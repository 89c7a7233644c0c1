"""A training step, whole and in phases, beside plain torch."""

import copy
import resource
from functools import partial

import pytest
import small_batches
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from headrace.errors import HeadraceError
from headrace.models import DLRM
from headrace.training.dense_optimizer import SGD, Adagrad, Adam, clip_gradients
from headrace.training.step import TrainingStep

make_model = partial(small_batches.make_model, {"kind": "sgd", "lr": 0.1}, num_labels=2)
make_batch = partial(small_batches.make_batch, num_labels=2, has_weights=True)


def parameters(model: DLRM) -> list[torch.Tensor]:
    assert model.embeddings.table_group is not None
    return [
        *(p.detach().clone() for p in model.parameters()),
        torch.from_numpy(model.embeddings.table_group.storage.weights),
    ]


def sgd(model: DLRM) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, fused=True)


def test_loss_and_logits_are_those_before_the_step() -> None:
    model, batch = make_model(), make_batch(0)
    assert batch.weights is not None
    expected = copy.deepcopy(model).eval()(batch)
    result = TrainingStep(model, sgd(model))(batch)
    torch.testing.assert_close(torch.from_numpy(result.logits), expected.detach())
    loss = binary_cross_entropy_with_logits(expected, batch.labels, weight=batch.weights[:, None])
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert set(result.seconds) == {"forward", "backward", "push", "dense_optimizer"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_phases_make_the_step_that_the_call_makes(precision: str) -> None:
    whole, phased = make_model(), make_model()
    call = TrainingStep(whole, sgd(whole), precision=precision)  # type: ignore[arg-type]
    step = TrainingStep(phased, sgd(phased), precision=precision)  # type: ignore[arg-type]
    for seed in range(4):
        call(make_batch(seed))
        step.forward_backward(make_batch(seed))
        step.push()
        step.update()
    assert all(torch.equal(a, b) for a, b in zip(parameters(whole), parameters(phased), strict=True))


def test_phases_over_micro_batches_make_the_step_of_the_whole_batch() -> None:
    whole, split = make_model(), make_model()
    batch = make_batch(1)
    result = TrainingStep(whole, sgd(whole))(batch)
    step = TrainingStep(split, sgd(split))
    parts = [step.forward_backward(batch.slice(*rows), num_rows=24) for rows in ((0, 10), (10, 24))]
    step.push()
    step.update()
    assert sum(part.loss for part in parts) == pytest.approx(result.loss, rel=1e-6)
    logits = torch.cat([torch.from_numpy(part.logits) for part in parts])
    torch.testing.assert_close(logits, torch.from_numpy(result.logits))
    for ours, theirs in zip(parameters(split), parameters(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_loss_that_is_no_number_leaves_parameters_as_they_were() -> None:
    model, batch = make_model(), make_batch(0)
    before = parameters(model)
    batch.dense[3, 0] = float("nan")
    with pytest.raises(HeadraceError, match="the loss is nan; lower the learning rates"):
        TrainingStep(model, sgd(model))(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(model), strict=True))


def test_a_step_after_the_first_ones_asks_the_kernel_for_no_memory() -> None:
    model = make_model(bottom=(256,), top=(256, 256))
    step, batch = TrainingStep(model, sgd(model)), make_batch(0, num_rows=2048)
    for _ in range(6):
        step(batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step(batch)
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10
    activations = 2048 * 256 * 4 * 3 / 4096  # pages of three hidden layers: about 1500
    assert faults < activations / 10


@pytest.mark.parametrize("max_norm", [0.01, 100.0])
@pytest.mark.parametrize("config", [Adam(), SGD(kind="sgd", lr=0.1), Adagrad(kind="adagrad")], ids=lambda c: c.kind)
def test_clipping_in_the_optimizers_pass_is_that_of_torch(config: Adam | SGD | Adagrad, max_norm: float) -> None:
    ours = torch.nn.Parameter(torch.linspace(-1, 1, 12))
    plain = torch.nn.Parameter(ours.detach().clone())
    ours_optimizer, plain_optimizer = config.make([ours]), config.make([plain])
    for step in range(3):
        ours.grad = torch.sin(ours.detach() * (step + 1))
        plain.grad = ours.grad.clone()
        clip_gradients(ours_optimizer, [ours], max_norm)
        torch.nn.utils.clip_grad_norm_([plain], max_norm)
        ours_optimizer.step()
        plain_optimizer.step()
        torch.testing.assert_close(ours.detach(), plain.detach(), rtol=1e-5, atol=1e-7)


def test_clipping_for_an_optimizer_that_is_not_fused_scales_the_gradients() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    clip_gradients(torch.optim.SGD([parameter], lr=0.1, fused=False), [parameter], 1.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]))
