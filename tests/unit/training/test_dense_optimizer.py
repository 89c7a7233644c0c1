"""Dense optimizers go on from a checkpoint exactly where they stopped."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from headrace.training.dense_optimizer import (
    DenseOptimizerConfig,
    eager,
    initial_slot,
    load_optimizer_arrays,
    optimizer_arrays,
    slots_of,
)

CONFIGS = [
    {"kind": "adam", "lr": 0.01},
    {"kind": "adam", "lr": 0.01, "weight_decay": 0.1},
    {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
    {"kind": "sgd", "lr": 0.1},
    {"kind": "adagrad", "lr": 0.1},
]


def descend(parameter: torch.Tensor, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        parameter.grad = torch.sin(parameter.detach() * (step + 1))
        optimizer.step()


@pytest.mark.parametrize("values", CONFIGS, ids=str)
def test_training_in_two_parts_equals_training_in_one(values: dict[str, object]) -> None:
    config = TypeAdapter(DenseOptimizerConfig).validate_python(values)
    whole = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
    descend(whole, config.make([whole]), range(6))

    first = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
    optimizer = config.make([first])
    descend(first, optimizer, range(3))
    second = torch.nn.Parameter(first.detach().clone())
    resumed = config.make([second])
    load_optimizer_arrays(resumed, optimizer_arrays(optimizer))
    descend(second, resumed, range(3, 6))
    assert torch.equal(second, whole)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_without_the_compiler_the_steps_are_those_of_torch(kind: type[torch.optim.Optimizer]) -> None:
    parameters = [torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)) for _ in range(2)]
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01, "fused": True}
    optimizers = [make([each], **options) for make, each in zip((kind, eager(kind)), parameters, strict=True)]
    for parameter, optimizer in zip(parameters, optimizers, strict=True):
        descend(parameter, optimizer, range(3))
        optimizer.zero_grad()
        assert parameter.grad is None
        assert isinstance(optimizer, kind)
    assert torch.equal(*parameters)
    expected, found = (optimizer_arrays(optimizer) for optimizer in optimizers)
    assert expected.keys() == found.keys()
    assert all((expected[name] == found[name]).all() for name in expected)


@pytest.mark.parametrize("values", CONFIGS, ids=str)
def test_entries_that_a_trained_parameter_gains_do_not_move_faster_than_new_ones(values: dict[str, object]) -> None:
    config = TypeAdapter(DenseOptimizerConfig).validate_python(values)
    trained, grown, new = (torch.nn.Parameter(torch.zeros(size)) for size in (1, 2, 1))
    optimizer, resumed, first = (config.make([parameter]) for parameter in (trained, grown, new))

    def step_of_last(parameter: torch.Tensor, optimizer: torch.optim.Optimizer) -> float:
        before = float(parameter.detach()[-1])
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        return abs(float(parameter.detach()[-1]) - before)

    fresh = slots_of(optimizer_arrays(first), 0)
    for _ in range(500):
        step_of_last(trained, optimizer)
    slots = slots_of(optimizer_arrays(optimizer), 0)
    arrays = {
        f"0.{name}": slot if name == "step" else np.concatenate([slot, initial_slot(name, slot, (1,), fresh.get(name))])
        for name, slot in slots.items()
    }
    load_optimizer_arrays(resumed, arrays)
    for _ in range(50):
        assert step_of_last(grown, resumed) <= 1.01 * step_of_last(new, first)
