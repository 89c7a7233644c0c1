"""Every fused kernel against the same computed by plain torch modules and autograd."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from headrace.models.cross import CrossNetwork
from headrace.models.fields import join_fields, join_fields_with_fm
from headrace.models.interaction import dot_interaction, plain_dot_interaction
from headrace.models.layers import MLP, linear, mlp, seeded, set_precision

BF16 = torch.bfloat16
ROWS = st.integers(1, 40)
SMALL = st.integers(1, 35)
quick = settings(max_examples=25, deadline=None)


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
    """The value, and the gradients of a sum with fixed random weights."""
    out = function(*inputs)
    weights = torch.randn(out.shape, generator=seeded(9))
    return [out.detach().float(), *torch.autograd.grad((out.float() * weights).sum(), wanted)]


def assert_same(ours: Sequence[Tensor], plain: Sequence[Tensor], tolerance: float = 2e-4) -> None:
    for mine, other in zip(ours, plain, strict=True):
        assert mine.shape == other.shape
        bound = tolerance * (1.0 + other.abs().max()) if other.numel() else 0.0
        assert ((mine.float() - other).abs() <= bound).all()


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=seeded(seed)).requires_grad_()


@quick
@given(ROWS, SMALL, st.integers(1, 20), st.booleans())
def test_dot_interaction_and_its_gradient_are_those_of_autograd(rows: int, fields: int, dim: int, dense: bool) -> None:
    x, emb = (numbers(0, rows, dim) if dense else None), numbers(1, rows, fields, dim)
    wanted = [emb] if x is None else [x, emb]
    if x is None and fields == 1:
        assert dot_interaction(x, emb).shape == (rows, 0)
        return
    ours = gradients(dot_interaction, [x, emb], wanted)  # type: ignore[list-item]
    assert_same(ours, gradients(plain_dot_interaction, [x, emb], wanted), 1e-5)  # type: ignore[list-item]


def plain_mlp(model: MLP, x: Tensor) -> Tensor:
    return nn.Sequential.forward(model, x)  # type: ignore[no-any-return]


@quick
@given(ROWS, SMALL, st.lists(SMALL, min_size=1, max_size=3))
def test_mlp_and_its_gradients_are_those_of_autograd(rows: int, width: int, widths: list[int]) -> None:
    model, x = mlp(width, widths, seeded(0)), numbers(1, rows, width)
    wanted = [x, *model.parameters()]
    assert_same(gradients(model, [x], wanted), gradients(lambda x: plain_mlp(model, x), [x], wanted), 1e-5)


@quick
@given(ROWS, SMALL, st.integers(1, 8), st.integers(1, 3))
def test_head_over_parts_is_a_linear_layer_over_all_of_them(rows: int, width: int, outputs: int, parts: int) -> None:
    head, inputs = linear(width * parts, outputs, seeded(0)), [numbers(p, rows, width) for p in range(parts)]
    wanted = [*inputs, *head.parameters()]
    plain = gradients(lambda *x: nn.functional.linear(torch.cat(x, 1), head.weight, head.bias), inputs, wanted)
    assert_same(gradients(head, inputs, wanted), plain, 1e-5)


def plain_cross(network: CrossNetwork, x0: Tensor) -> Tensor:
    x = x0
    for layer in network.layers:
        weights = [part.weight for part in (layer if isinstance(layer, nn.Sequential) else [layer])]
        bias = (layer[-1] if isinstance(layer, nn.Sequential) else layer).bias
        product = x
        for weight in weights:
            product = product @ weight.T  # type: ignore[union-attr]
        x = x0 * (product + bias) + x
    return x


@quick
@given(ROWS, SMALL, st.integers(1, 3), st.sampled_from([None, 1, 5]))
def test_cross_layers_are_those_of_autograd(rows: int, width: int, layers: int, rank: int | None) -> None:
    network, x = CrossNetwork(width, layers, rank, seeded(0)), numbers(1, rows, width)
    wanted = [x, *network.parameters()]
    assert_same(gradients(network, [x], wanted), gradients(lambda x: plain_cross(network, x), [x], wanted), 1e-4)


@quick
@given(ROWS, st.integers(0, 5), SMALL, st.integers(1, 20))
def test_joined_fields_and_factorisation_machine_are_those_of_autograd(
    rows: int, num_dense: int, fields: int, dim: int
) -> None:
    dense, emb, vectors = (
        numbers(0, rows, num_dense).detach(),
        numbers(1, rows, fields, dim),
        numbers(2, num_dense, dim),
    )

    def plain(emb: Tensor, vectors: Tensor) -> Tensor:
        fields = torch.cat([dense[:, :, None] * vectors, emb], 1)
        pairs = (fields[:, :, None] * fields[:, None]).sum(3).triu(1).sum((1, 2))
        return torch.cat([dense, emb.flatten(1), pairs[:, None]], 1)

    def ours(emb: Tensor, vectors: Tensor) -> Tensor:
        joined, machine = join_fields_with_fm(dense, emb, vectors)
        assert torch.equal(joined, join_fields(dense, emb))
        return torch.cat([joined, machine[:, None]], 1)

    expected = gradients(plain, [emb, vectors], [emb, vectors])
    assert_same(gradients(ours, [emb, vectors], [emb, vectors]), expected)


def test_gradient_of_joined_fields_alone_is_handed_through() -> None:
    dense, emb = torch.ones(3, 2), numbers(0, 3, 2, 4)
    (grad,) = torch.autograd.grad((join_fields(dense, emb) ** 2).sum(), [emb])
    torch.testing.assert_close(grad, 2 * emb)


@pytest.mark.parametrize("rank", [None, 8])
def test_in_bf16_layers_agree_with_fp32_to_its_bits(rank: int | None) -> None:
    x = numbers(0, 64, 24)
    for model in (mlp(24, [48, 32], seeded(0)), CrossNetwork(24, 2, rank, seeded(0))):
        wanted = [x, *model.parameters()]
        exact = gradients(model, [x], wanted)
        set_precision(model, "bf16")
        rounded = gradients(model, [x], wanted)
        assert model(x).dtype == BF16
        assert all(grad.dtype == torch.float32 for grad in rounded[1:])
        for mine, other in zip(rounded, exact, strict=True):
            assert (mine - other).norm() < 0.1 * other.norm()  # a ReLU near 0 may open in one and not in the other
        assert (rounded[0] - exact[0]).norm() < 0.01 * exact[0].norm()
        assert not torch.equal(rounded[0], exact[0])


def test_bf16_interaction_writes_what_fp32_gives_rounded_once() -> None:
    x, emb = numbers(0, 33, 16).detach().to(BF16), numbers(1, 33, 5, 16).detach()
    assert torch.equal(dot_interaction(x, emb, BF16), dot_interaction(x, emb).to(BF16))
    emb = emb.requires_grad_()
    (grad,) = torch.autograd.grad(dot_interaction(x, emb, BF16).float().sum(), [emb])
    (plain,) = torch.autograd.grad(plain_dot_interaction(x, emb).sum(), [emb])
    torch.testing.assert_close(grad, plain)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("rank", [None, 8])
def test_in_bf16_weights_are_those_after_the_last_step_of_a_fused_optimizer(
    make: Callable[..., torch.optim.Optimizer], rank: int | None
) -> None:
    x = numbers(0, 64, 24)
    for model in (mlp(24, [48, 32], seeded(0)), CrossNetwork(24, 2, rank, seeded(0))):
        set_precision(model, "bf16")
        before = model(x)
        optimizer = make(model.parameters(), lr=0.1, fused=True)
        before.float().mean().backward()
        optimizer.step()
        after = model(x).float()
        set_precision(model, "fp32")
        exact = model(x)
        assert (after - exact).norm() < 0.01 * exact.norm()
        assert (after - before.float()).norm() > 0.02 * exact.norm()


def test_ties_are_rounded_to_even_as_torch_does() -> None:
    ties = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 1 + 2.0**-8 + 2.0**-20, 1e-40, 3e38])
    x = torch.cat([ties, -ties, torch.randn(52, generator=seeded(0)) * 1e5]).reshape(4, 4, 4)
    joined = join_fields(torch.empty(4, 0), x, BF16)
    assert torch.equal(joined, x.flatten(1).to(BF16))


def test_weights_are_themselves_in_their_own_type() -> None:
    layer = linear(4, 3, seeded(0))
    assert torch.equal(layer.weight_as(BF16), layer.weight.detach().to(BF16))
    assert layer.weight_as(torch.float32).data_ptr() == layer.weight.data_ptr()


def test_results_that_are_kept_do_not_change_with_the_next_batch() -> None:
    model, emb = mlp(40, [600], seeded(0)), torch.randn(64, 9, 16, generator=seeded(1))
    kept = model(numbers(0, 64, 40)), dot_interaction(None, emb)
    copies = [tensor.clone() for tensor in kept]
    model(numbers(5, 64, 40))
    dot_interaction(None, emb + 1)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(kept, copies, strict=True))


def test_two_forward_passes_before_one_backward_give_both_gradients() -> None:
    model, first, second = mlp(40, [600], seeded(0)), numbers(0, 64, 40), numbers(1, 64, 40)
    (model(first).sum() + model(second).sum()).backward()
    expected = torch.autograd.grad(plain_mlp(model, first).sum() + plain_mlp(model, second).sum(), [first, second])
    assert_same([first.grad, second.grad], expected, 1e-5)  # type: ignore[list-item]


def test_a_gradient_that_is_handed_in_stays_as_it_was() -> None:
    model, x = mlp(4, [6], seeded(0)), numbers(0, 5, 4)
    given = torch.ones(5, 6)
    model(x).backward(given)
    assert torch.equal(given, torch.ones(5, 6))


def test_float64_and_autocast_take_the_plain_path() -> None:
    model, x = mlp(4, [3], seeded(0)), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == BF16
    assert model.double()(x.double()).dtype == torch.float64


def test_no_rows_give_no_rows() -> None:
    assert mlp(4, [3], seeded(0))(torch.empty(0, 4)).shape == (0, 3)
    assert dot_interaction(torch.empty(0, 4), torch.empty(0, 2, 4)).shape == (0, 7)
