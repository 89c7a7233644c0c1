"""The sparse optimizers in plain torch, for rows on a device: same formulas, same state, a row per unique key.

Legend: U unique keys, D dimension, S spaces. Hyper-parameters come as [U, 1], those of each key's space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["updated"]

Slots = dict[str, Tensor]
Hyper = Mapping[str, Tensor]
Update = Callable[[Tensor, Tensor, Slots, Hyper, int], tuple[Tensor, Slots]]


def _sgd(w: Tensor, g: Tensor, slots: Slots, hyper: Hyper, step: int) -> tuple[Tensor, Slots]:
    return w - hyper["lr"] * g, {}


def _adagrad(w: Tensor, g: Tensor, slots: Slots, hyper: Hyper, step: int) -> tuple[Tensor, Slots]:
    accumulator = slots["accumulator"] + g * g
    change = hyper["lr"] * g / (accumulator.sqrt() + hyper["eps"])
    return torch.where(accumulator > 0, w - change, w), {"accumulator": accumulator}


def _rowwise_adagrad(w: Tensor, g: Tensor, slots: Slots, hyper: Hyper, step: int) -> tuple[Tensor, Slots]:
    accumulator = slots["accumulator"] + (g * g).sum(dim=1, keepdim=True) / g.shape[1]
    rate = hyper["lr"] / (accumulator.sqrt() + hyper["eps"])
    return w - torch.where(accumulator > 0, rate, torch.zeros_like(rate)) * g, {"accumulator": accumulator}


def _adam(w: Tensor, g: Tensor, slots: Slots, hyper: Hyper, step: int) -> tuple[Tensor, Slots]:
    m = slots["first_moment"] + (1 - hyper["beta1"]) * (g - slots["first_moment"])
    v = slots["second_moment"] + (1 - hyper["beta2"]) * (g * g - slots["second_moment"])
    correction = (1 - hyper["beta2"].double() ** step).sqrt() / (1 - hyper["beta1"].double() ** step)
    rate = (hyper["lr"].double() * correction).float()
    return w - rate * m / (v.sqrt() + hyper["eps"]), {"first_moment": m, "second_moment": v}


def _ftrl(w: Tensor, g: Tensor, slots: Slots, hyper: Hyper, step: int) -> tuple[Tensor, Slots]:
    lr, beta, l1, l2 = (hyper[name] for name in ("lr", "beta", "l1", "l2"))
    n, z = slots["accumulator"], slots["linear"]
    is_first = (z == 0) & (n == hyper["initial_accumulator"]) & (w != 0)
    z = torch.where(is_first, -w * ((beta + n.sqrt()) / lr + l2) - torch.copysign(l1, w), z)
    root = (n + g * g).sqrt()
    z = z + g - (root - n.sqrt()) / lr * w
    pull = (beta + root) / lr + l2
    moved = -(z - torch.copysign(l1, z)) / pull
    return torch.where((z.abs() > l1) & (pull > 0), moved, torch.zeros_like(w)), {"linear": z, "accumulator": n + g * g}


_UPDATES: dict[str, Update] = {
    "sgd": _sgd,
    "adagrad": _adagrad,
    "rowwise_adagrad": _rowwise_adagrad,
    "adam": _adam,
    "ftrl": _ftrl,
}
_NAMES = {
    "sgd": ("lr",),
    "adagrad": ("lr", "eps"),
    "rowwise_adagrad": ("lr", "eps"),
    "adam": ("lr", "eps", "beta1", "beta2"),
    "ftrl": ("lr", "beta", "l1", "l2", "initial_accumulator"),
}


def updated(
    configs: Sequence[Any], w: Tensor, g: Tensor, slots: Slots, spaces: Tensor, step: int
) -> tuple[Tensor, Slots]:
    """Rows and their state after one step.

    Args:
        configs: Of each space's optimizer, all of one kind.
        w: float32 [U, D], the rows.
        g: float32 [U, D], their gradients.
        slots: float32 [U, width] each.
        spaces: int64 [U].
        step: 1 for the first.
    """
    kind = configs[0].kind

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=w.device)[spaces][:, None]

    longest = column([config.clip_row_norm or torch.inf for config in configs])
    norm = g.norm(dim=1, keepdim=True)
    g = torch.where(norm > longest, g * (longest / norm), g)
    is_l2 = [config.weight_decay_mode == "l2" for config in configs]
    g = g + column([c.weight_decay if l2 else 0.0 for c, l2 in zip(configs, is_l2, strict=True)]) * w
    w = w - column([0.0 if l2 else c.lr * c.weight_decay for c, l2 in zip(configs, is_l2, strict=True)]) * w
    hyper = {name: column([getattr(config, name) for config in configs]) for name in _NAMES[kind]}
    return _UPDATES[kind](w, g, slots, hyper, step)
