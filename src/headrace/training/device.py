"""Where a job's model computes: the CPU, or a GPU to which each batch is sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from headrace.errors import ConfigError
from headrace.tensors import Batch

__all__ = ["Device", "place_model"]

Device = Literal["cpu", "cuda"]


def place_model(model: nn.Module, device: Device) -> nn.Module:
    """A model, its tables included, on the device; from then on it takes batches from the host. Returns it.

    Dense features are sent on as the model is called. Ids stay on the host, where they become rows.

    Raises:
        ConfigError: There is no such device.
    """
    if device == "cpu":
        return model
    if not torch.cuda.is_available():
        raise ConfigError(f"training.device: given {device}, but torch {torch.__version__} finds no GPU; expected cpu")
    return send_batches(model.to(device), torch.device(device))


def send_batches(model: nn.Module, device: torch.device) -> nn.Module:
    """Have the dense features of each batch sent to the device as the model is called. Returns the model."""

    def send(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        batch: Batch = arguments[0]
        return (replace(batch, dense=batch.dense.to(device, non_blocking=True)), *arguments[1:])

    model.register_forward_pre_hook(send)
    return model
