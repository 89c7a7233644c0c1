"""Dense layers whose initial values come from a given generator, so that a model depends only on its seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headrace.models.fused_head import fused_head
from headrace.models.fused_mlp import fused_mlp
from headrace.models.numbers import runs_compiled
from headrace.models.products import DTYPES, Precision

__all__ = ["MLP", "Linear", "head", "linear", "mlp", "seeded", "set_precision"]

MOST_HEAD_OUTPUTS = 8
"""Maximum outputs of a layer that runs as a fused head; with more, a matrix product is faster."""


def seeded(seed: int) -> torch.Generator:
    """Create a separate seeded generator."""
    return torch.Generator().manual_seed(seed)


class Linear(nn.Linear):
    """A linear layer that does not use the global generator for initial values, and can compute in bfloat16."""

    def reset_parameters(self) -> None:
        """Do nothing, because `linear` initialises the layer."""

    @property
    def is_head(self) -> bool:
        """Whether it has so few outputs that it runs as a `fused_head`, unless it is in an `MLP`."""
        return self.out_features <= MOST_HEAD_OUTPUTS and self.bias is not None

    def forward(self, *parts: Tensor) -> Tensor:
        """Apply the layer to an input, or to the concatenation of parts [B, width]; returns float32 [..., out]."""
        if self.is_head and all(x.dim() == 2 for x in parts) and runs_compiled(self.weight, *parts):
            return fused_head(parts, self.weight, self.bias)
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return super().forward(x.to(self.weight.dtype))

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The detached weight in a compute dtype.

        It is cast in every forward pass: fused optimizers change weights without incrementing their version, so a
        cached copy could not detect that it is outdated.
        """
        return self.weight.detach().to(dtype)


class MLP(nn.Sequential):
    """Linear layers, each followed by a ReLU.

    Attributes:
        precision: Precision of its products; see `set_precision`.
    """

    precision: Precision = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype, and so the cheapest input dtype."""
        return DTYPES[self.precision]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers; returns [B, width of the last layer], float32 or bfloat16 according to `precision`."""
        layers = [layer for layer in self if isinstance(layer, Linear)]
        if not layers:
            return x
        if x.dim() != 2 or not runs_compiled(x, layers[0].weight):
            plain: Tensor = super().forward(x.to(layers[0].weight.dtype))  # type: ignore[no-untyped-call]
            return plain
        weights = [layer.weight_as(self.dtype) for layer in layers]
        return fused_mlp(x, weights, [parameter for layer in layers for parameter in (layer.weight, layer.bias)])


def linear(num_in: int, num_out: int, generator: torch.Generator, *, bias: bool = True) -> Linear:
    """Create a linear layer initialised as in the DLRM code: weights N(0, 2 / (in + out)), bias N(0, 1 / out)."""
    layer = Linear(num_in, num_out, bias=bias)
    with torch.no_grad():
        layer.weight.normal_(0.0, (2.0 / (num_in + num_out)) ** 0.5, generator=generator)
        if bias:
            layer.bias.normal_(0.0, num_out**-0.5, generator=generator)
    return layer


def head(num_in: int, num_labels: int, generator: torch.Generator) -> Linear:
    """The last layer of a model: no bias, and weights of 0.3 times those of `linear`.

    So a new model predicts nearly the same for all rows. What random layers say of a row is noise, and costs most where
    positives are rare.
    """
    layer = linear(num_in, num_labels, generator)
    with torch.no_grad():
        layer.weight *= 0.3
        layer.bias.zero_()
    return layer


def mlp(num_in: int, widths: Sequence[int], generator: torch.Generator) -> MLP:
    """Create linear layers of the given widths, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [linear(num_in, width, generator), nn.ReLU()]
        num_in = width
    return MLP(*layers)


def set_precision(model: nn.Module, precision: Precision) -> None:
    """Set the precision of a model's matrix products, from its next forward pass on; parameters stay float32."""
    for module in model.modules():
        if hasattr(module, "precision"):
            setattr(module, "precision", precision)  # noqa: B010  # a layer of any class
