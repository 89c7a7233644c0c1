"""Dense optimizers go on from a checkpoint exactly where they stopped."""

import pytest
import torch
from pydantic import TypeAdapter

from headrace.training.dense_optimizer import (
    DenseOptimizerConfig,
    load_optimizer_arrays,
    optimizer_arrays,
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
