"""Every sparse optimizer against torch.optim on the same rows, and row-wise Adagrad against its definition."""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings import AdagradConfig, AdamConfig, FTRLConfig, RowWiseAdagradConfig, SGDConfig
from headrace.embeddings.optimizers import Rounding, SparseOptimizer, build_optimizer
from headrace.errors import ConfigError

CAPACITY = 9
FP32 = Rounding.of("fp32", 0, 0, np.zeros(2, np.uint64))
CONFIGS = [
    SGDConfig(lr=0.3, weight_decay=0.1),
    AdagradConfig(lr=0.2, initial_accumulator=0.4, eps=0.05),
    AdamConfig(lr=0.01, beta1=0.8, beta2=0.95, eps=1e-4),
    RowWiseAdagradConfig(lr=0.2, initial_accumulator=0.1, eps=0.05, weight_decay=0.01),
    FTRLConfig(lr=0.3, beta=0.5, l1=0.05, l2=0.1, initial_accumulator=0.1),
]
BY_KIND = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)


class RowWiseAdagradByDefinition(torch.optim.Optimizer):
    """The textbook form, a row at a time."""

    def __init__(self, weight: torch.Tensor, config: RowWiseAdagradConfig) -> None:
        super().__init__([weight], {})
        self.weight, self.config = weight, config
        self.accumulator = torch.full((len(weight),), config.initial_accumulator)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        grad = self.weight.grad.coalesce()
        for row, g in zip(grad.indices()[0].tolist(), grad.values(), strict=True):
            g = g + self.config.weight_decay * self.weight[row]
            self.accumulator[row] += (g**2).mean()
            self.weight[row] -= self.config.lr * g / (self.accumulator[row].sqrt() + self.config.eps)


class FTRLByDefinition(torch.optim.Optimizer):
    """McMahan et al. 2013, Algorithm 1, an element at a time, in doubles; started from what the rows begin with."""

    def __init__(self, weight: torch.Tensor, config: FTRLConfig) -> None:
        super().__init__([weight], {})
        self.weight, self.config = weight, config
        self.n = np.full(weight.shape, config.initial_accumulator)
        w = weight.detach().double().numpy()
        pull = (config.beta + np.sqrt(self.n)) / config.lr + config.l2
        self.z = -w * pull - np.sign(w) * config.l1

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        c, grad = self.config, self.weight.grad.coalesce()
        for row, g in zip(grad.indices()[0].tolist(), grad.values().double().numpy(), strict=True):
            for i in range(len(g)):
                w, n = float(self.weight[row, i]), self.n[row, i]
                sigma = (math.sqrt(n + g[i] ** 2) - math.sqrt(n)) / c.lr
                self.z[row, i] += g[i] - sigma * w
                self.n[row, i] += g[i] ** 2
                z = self.z[row, i]
                if abs(z) <= c.l1:
                    self.weight[row, i] = 0.0
                else:
                    pull = (c.beta + math.sqrt(self.n[row, i])) / c.lr + c.l2
                    self.weight[row, i] = -(z - math.copysign(c.l1, z)) / pull


def reference(config: Any, weight: torch.Tensor) -> torch.optim.Optimizer:
    if config.kind == "sgd":
        return torch.optim.SGD([weight], lr=config.lr)
    if config.kind == "adagrad":
        return torch.optim.Adagrad(
            [weight], lr=config.lr, initial_accumulator_value=config.initial_accumulator, eps=config.eps
        )
    if config.kind == "adam":
        return torch.optim.SparseAdam([weight], lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps)
    if config.kind == "ftrl":
        return FTRLByDefinition(weight, config)
    return RowWiseAdagradByDefinition(weight, config)


def fresh(config: Any, dim: int, seed: int) -> tuple[SparseOptimizer, np.ndarray, np.ndarray]:
    optimizer = build_optimizer([config], dim)
    weights = np.random.default_rng(seed).normal(size=(CAPACITY, dim)).astype(np.float32)
    return optimizer, weights, np.repeat(optimizer.initial_state, CAPACITY, axis=0)


def apply(
    optimizer: SparseOptimizer,
    weights: np.ndarray,
    state: np.ndarray,
    rows: np.ndarray,
    gradients: np.ndarray,
    *,
    step: int = 1,
    table: int = 0,
    num_rows: int = 1,
    lr_factor: float = 1.0,
) -> None:
    tables = np.full(len(rows), table, dtype=np.int32)
    factors = {"num_rows": num_rows, "lr_factor": lr_factor}
    optimizer.apply(weights, state, rows, tables, rows, gradients, step, FP32, **factors)


def steps(dim: int, seed: int, num_steps: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed + 1)
    picks = [1 + rng.permutation(CAPACITY - 1)[: rng.integers(0, CAPACITY)] for _ in range(num_steps)]
    return [(rows.astype(np.int64), rng.normal(size=(len(rows), dim)).astype(np.float32)) for rows in picks]


def train(config: Any, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    optimizer, weights, state = fresh(config, dim, seed)
    for step, (rows, gradients) in enumerate(steps(dim, seed), start=1):
        apply(optimizer, weights, state, rows, gradients, step=step)
    return weights, state


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch.optim builds sparse tensors unchecked
@BY_KIND
@given(dim=st.sampled_from([1, 3, 8, 16]), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_updates_equal_the_reference_on_rows_with_gradients(config: Any, dim: int, seed: int) -> None:
    if config.kind == "sgd":
        config = config.model_copy(update={"weight_decay": 0.0})  # torch decays rows without a gradient too
    _, start, _ = fresh(config, dim, seed)
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    torch_optimizer = reference(config, weight)
    for rows, gradients in steps(dim, seed):
        indices = torch.from_numpy(rows)[None]
        grad = torch.sparse_coo_tensor(indices, torch.from_numpy(gradients), weight.shape, check_invariants=True)
        weight.grad = grad.coalesce()
        torch_optimizer.step()
    weights, _ = train(config, dim, seed)
    np.testing.assert_allclose(weights, weight.detach().numpy(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("config", "torch_kind"),
    [
        (SGDConfig(lr=0.3, weight_decay=0.1), torch.optim.SGD),
        (AdagradConfig(lr=0.1, weight_decay=0.1), torch.optim.Adagrad),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_weight_decay_equals_torch_where_every_row_has_a_gradient(config: Any, torch_kind: Any) -> None:
    optimizer, weights, state = fresh(config, 4, 0)
    weight = torch.nn.Parameter(torch.from_numpy(weights[1:].copy()))
    torch_optimizer = torch_kind([weight], lr=config.lr, weight_decay=config.weight_decay)
    rows = np.arange(1, CAPACITY)
    for step in range(1, 4):
        gradients = np.random.default_rng(step).normal(size=(CAPACITY - 1, 4)).astype(np.float32)
        weight.grad = torch.from_numpy(gradients)
        torch_optimizer.step()
        apply(optimizer, weights, state, rows, gradients, step=step)
    np.testing.assert_allclose(weights[1:], weight.detach().numpy(), rtol=1e-5, atol=1e-6)


@BY_KIND
def test_hyper_parameters_are_those_of_the_rows_table(config: Any) -> None:
    fast = config.model_copy(update={"lr": config.lr * 3})
    both = build_optimizer([config, fast], 4)
    moved = []
    for table in (0, 1):
        _, weights, state = fresh(config, 4, 0)
        before = weights[2].copy()
        row, gradient = np.array([2]), np.ones((1, 4), dtype=np.float32)
        apply(both, weights, state, row, gradient, table=table)
        moved.append(weights[2] - before)
    if config.kind == "ftrl":  # not linear in its rate
        assert (moved[1] < moved[0]).all()
    else:
        np.testing.assert_allclose(moved[1], 3 * moved[0], rtol=1e-5)


@BY_KIND
def test_the_zero_row_is_never_updated(config: Any) -> None:
    optimizer, weights, state = fresh(config, 4, 0)
    weights[0] = 0
    before = state.copy()
    rows = np.zeros(3, dtype=np.int64)
    apply(optimizer, weights, state, rows, np.ones((3, 4), dtype=np.float32))
    assert not weights[0].any()
    np.testing.assert_array_equal(state, before)


@pytest.mark.parametrize("config", [AdagradConfig(eps=0.0), RowWiseAdagradConfig(eps=0.0)], ids=lambda c: c.kind)
def test_a_zero_gradient_without_eps_leaves_the_row_alone(config: Any) -> None:
    optimizer, weights, state = fresh(config, 4, 0)
    before = weights.copy()
    apply(optimizer, weights, state, np.array([3]), np.zeros((1, 4), dtype=np.float32))
    np.testing.assert_array_equal(weights, before)


@BY_KIND
def test_updates_are_bit_for_bit_the_same_for_any_number_of_threads(config: Any) -> None:
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        results.append(train(config, 16, 3))
    for one, many in zip(*results, strict=True):
        np.testing.assert_array_equal(one, many)


@BY_KIND
def test_a_long_gradient_of_a_row_is_scaled_to_the_longest_allowed_and_a_short_one_is_not(config: Any) -> None:
    gradients = np.array([[3.0, 0.0, -4.0, 0.0], [0.1, 0.2, 0.0, 0.0]], dtype=np.float32)
    clipped = np.array([[0.3, 0.0, -0.4, 0.0], [0.1, 0.2, 0.0, 0.0]], dtype=np.float32)
    rows = np.array([2, 5])
    results = []
    for settings_, given_ in ((config.model_copy(update={"clip_row_norm": 0.5}), gradients), (config, clipped)):
        optimizer, weights, state = fresh(settings_, 4, 0)
        apply(optimizer, weights, state, rows, given_)
        results.append(weights)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)


@BY_KIND
def test_decoupled_decay_shrinks_a_row_beside_its_update(config: Any) -> None:
    plain = config.model_copy(update={"weight_decay": 0.0})
    decayed = plain.model_copy(update={"weight_decay": 0.25, "weight_decay_mode": "decoupled"})
    rows = np.array([2])
    gradient = np.full((1, 4), 0.5, dtype=np.float32)
    optimizer, weights, state = fresh(decayed, 4, 0)
    before = weights.copy()
    apply(optimizer, weights, state, rows, gradient)
    other, expected, other_state = fresh(plain, 4, 0)
    expected[2] *= 1 - plain.lr * 0.25
    apply(other, expected, other_state, rows, gradient)
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.delete(weights, 2, axis=0), np.delete(before, 2, axis=0))


def test_adam_with_decoupled_decay_equals_adamw_where_every_row_has_a_gradient() -> None:
    config = AdamConfig(lr=0.05, weight_decay=0.3, weight_decay_mode="decoupled")
    optimizer, weights, state = fresh(config, 4, 0)
    weight = torch.nn.Parameter(torch.from_numpy(weights[1:].copy()))
    adamw = torch.optim.AdamW([weight], lr=0.05, weight_decay=0.3)
    for step in range(1, 5):
        gradients = np.random.default_rng(step).normal(size=(CAPACITY - 1, 4)).astype(np.float32)
        weight.grad = torch.from_numpy(gradients)
        adamw.step()
        rows = np.arange(1, CAPACITY)
        apply(optimizer, weights, state, rows, gradients, step=step)
    # AdamW divides the second moment by its correction before adding eps; eps is small beside it here
    np.testing.assert_allclose(weights[1:], weight.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_ftrl_makes_elements_with_little_evidence_exactly_zero() -> None:
    optimizer, weights, state = fresh(FTRLConfig(lr=0.1, l1=1.0), 4, 0)
    weights[:] = 0
    rows = np.array([3])
    apply(optimizer, weights, state, rows, np.array([[0.5, -0.9, 1.5, -2.0]], dtype=np.float32))
    assert (weights[3, :2] == 0).all()
    assert weights[3, 2] < 0 < weights[3, 3]


@pytest.mark.parametrize("config", CONFIGS[:-1], ids=lambda config: config.kind)
def test_a_factor_of_a_step_is_that_of_its_learning_rate(config: Any) -> None:
    config = config.model_copy(update={"weight_decay": 0.25, "weight_decay_mode": "decoupled"})
    rows, gradients = np.array([2, 5]), np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    found = []
    for each, factor in ((config, 0.5), (config.model_copy(update={"lr": 0.5 * config.lr}), 1.0), (config, 1.0)):
        optimizer, weights, state = fresh(each, 4, 0)
        w, s, tables = torch.from_numpy(weights[rows]), torch.from_numpy(state[rows]), torch.zeros(2, dtype=torch.int64)
        on_device, _ = optimizer.updated(w, torch.from_numpy(gradients), s, tables, 3, lr_factor=factor)
        apply(optimizer, weights, state, rows, gradients, step=3, lr_factor=factor)
        torch.testing.assert_close(on_device, torch.from_numpy(weights[rows]))
        found.append(weights)
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0][rows] != found[2][rows]).all()


@BY_KIND
@pytest.mark.parametrize("more", [{}, {"clip_row_norm": 0.7, "weight_decay": 0.2}], ids=["plain", "clipped"])
def test_with_sum_a_step_is_that_of_the_summed_loss(config: Any, more: dict[str, Any]) -> None:
    config = config.model_copy(update=more)
    rows, gradients = np.array([2, 5]), np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    gradients[1] *= 0.1  # its norm is below the maximum until it is multiplied
    summed = config.model_copy(update={"reduction": "sum"})
    found = []
    for each, gradient, num_rows in ((summed, gradients, 8), (config, 8 * gradients, 1), (config, gradients, 8)):
        optimizer, weights, state = fresh(each, 4, 0)
        w, s, tables = torch.from_numpy(weights[rows]), torch.from_numpy(state[rows]), torch.zeros(2, dtype=torch.int64)
        on_device, _ = optimizer.updated(w, torch.from_numpy(gradient), s, tables, 1, num_rows=num_rows)
        apply(optimizer, weights, state, rows, gradient, num_rows=num_rows)
        torch.testing.assert_close(on_device, torch.from_numpy(weights[rows]), rtol=1e-5, atol=1e-6)
        found.append((weights, state))
    for mine, expected in zip(found[0], found[1], strict=True):
        np.testing.assert_array_equal(mine, expected)  # 8 is a power of two, so products are exact
    assert (found[0][0][rows] != found[2][0][rows]).any(axis=1).all()


def test_ftrl_refuses_a_factor() -> None:
    with pytest.raises(ConfigError, match=r"optimizer ftrl: .* they would jump with it"):
        FTRLConfig().with_lr_factor(0.5)
