"""Configs of the dense parameters' optimizers, which are torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from inspect import unwrap
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from headrace.registry import DENSE_OPTIMIZERS, NamedConfig, Registry

__all__ = [
    "STEP",
    "DenseOptimizerConfig",
    "clip_gradients",
    "eager",
    "initial_slot",
    "load_optimizer_arrays",
    "optimizer_arrays",
    "slots_of",
]

STEP = "step"
"""Slot of torch's optimizers with the number of steps of a parameter; all others have the parameter's shape."""


@cache
def eager(optimizer: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """A subclass of one of torch's optimizers that works without torch's compiler, and is not to be compiled with it.

    torch's methods import its compiler just to be left out of what it compiles, which costs each training process over
    a second at its start, and memory. What is below those wrappers is the same.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), methods)


class DenseOptimizerConfig(NamedConfig):
    """Base class of dense optimizer configs; jobs refer to your own by its import path, see `ModelConfig`."""

    registry: ClassVar[Registry[type[DenseOptimizerConfig]]] = DENSE_OPTIMIZERS

    def make(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Create the torch optimizer for these parameters."""
        raise NotImplementedError(f"{type(self).__name__}.make")


class Adam(DenseOptimizerConfig):
    """Adam (Kingma and Ba, 2015); with `weight_decay`, decoupled as in AdamW."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the means of gradients and of their squares."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay: each step subtracts this fraction of the weight, times the learning rate."""

    def make(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Create the torch optimizer."""
        options: dict[str, Any] = {"lr": self.lr, "betas": self.betas, "eps": self.eps}
        return eager(torch.optim.AdamW)(parameters, weight_decay=self.weight_decay, fused=True, **options)


class SGD(DenseOptimizerConfig):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"]
    lr: float = Field(gt=0)
    """Learning rate."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the previous step that is added to the next."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty, added to the gradient."""

    def make(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Create the torch optimizer."""
        return eager(torch.optim.SGD)(
            parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, fused=True
        )


class Adagrad(DenseOptimizerConfig):
    """Adagrad (Duchi et al., 2011)."""

    kind: Literal["adagrad"]
    lr: float = Field(default=1e-2, gt=0)
    """Learning rate."""
    eps: float = Field(default=1e-10, gt=0)
    """Added to the square root of the accumulator."""
    initial_accumulator_value: float = Field(default=0.0, ge=0)
    """Initial value of accumulators; larger values make the first steps smaller."""

    def make(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Create the torch optimizer."""
        return eager(torch.optim.Adagrad)(
            parameters,
            lr=self.lr,
            eps=self.eps,
            initial_accumulator_value=self.initial_accumulator_value,
            fused=True,
        )


def clip_gradients(optimizer: torch.optim.Optimizer, parameters: list[Tensor], max_norm: float) -> None:
    """Clip the gradients of the next step to this norm, like `torch.nn.utils.clip_grad_norm_`.

    A fused optimizer divides by a scale in its own pass over the gradients, so clipping needs no extra pass.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if optimizer.defaults.get("fused"):
        optimizer.grad_scale = torch.clamp((norm + 1e-6) / max_norm, min=1.0)  # type: ignore[attr-defined]
    else:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def optimizer_arrays(optimizer: torch.optim.Optimizer) -> dict[str, NDArray[Any]]:
    """Convert the optimizer's state to arrays named `<parameter index>.<slot>`, for a checkpoint."""
    arrays = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            if value is not None:
                arrays[f"{index}.{name}"] = np.atleast_1d(torch.as_tensor(value).detach().cpu().numpy()).copy()
    return arrays


def load_optimizer_arrays(optimizer: torch.optim.Optimizer, arrays: dict[str, NDArray[Any]]) -> None:
    """Load state saved by `optimizer_arrays`; hyper-parameters are those of the job."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, array in arrays.items():
        index, name = key.split(".", 1)
        shape = parameters[int(index)].shape if name != STEP else torch.Size(())
        state.setdefault(int(index), {})[name] = torch.from_numpy(array.copy()).reshape(shape)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def slots_of(arrays: dict[str, NDArray[Any]], index: int | None) -> dict[str, NDArray[Any]]:
    """The slots of one parameter by name, from `optimizer_arrays`; none for None."""
    start = f"{index}."
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


def initial_slot(name: str, saved: NDArray[Any], shape: tuple[int, ...], fresh: NDArray[Any] | None) -> NDArray[Any]:
    """Values of a slot for entries that a trained parameter gains.

    They are those of a new optimizer, except for Adam's second moment, which starts at the mean of the other entries:
    Adam corrects it for the steps of the parameter as a whole, so if it started at zero, new entries would move at up
    to seven times the learning rate.

    Args:
        name: Name of the slot.
        saved: The slot before.
        shape: Shape of the parameter now.
        fresh: The slot of a new optimizer; None for zeros.
    """
    if name == "exp_avg_sq":
        return np.full(shape, saved.mean(), saved.dtype)
    return np.zeros(shape, saved.dtype) if fresh is None else fresh.reshape(shape)
