"""Dense layers with first values from a generator of their own, so that a model depends on its seed alone."""

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["linear", "mlp", "seeded"]


def seeded(seed: int) -> torch.Generator:
    """A generator that no other part of the program draws from."""
    return torch.Generator().manual_seed(seed)


class Linear(nn.Linear):
    """A linear layer that does not draw its first values from the global generator."""

    def reset_parameters(self) -> None:
        """Does nothing: `linear` fills the layer."""


def linear(num_in: int, num_out: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """A linear layer that begins as in the DLRM code: weights N(0, 2 / (in + out)), bias N(0, 1 / out)."""
    layer = Linear(num_in, num_out, bias=bias)
    with torch.no_grad():
        layer.weight.normal_(0.0, (2.0 / (num_in + num_out)) ** 0.5, generator=generator)
        if bias:
            layer.bias.normal_(0.0, num_out**-0.5, generator=generator)
    return layer


def mlp(num_in: int, widths: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Linear layers of the given widths, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [linear(num_in, width, generator), nn.ReLU()]
        num_in = width
    return nn.Sequential(*layers)
