"""`TowerWork`: matrix products of towers over histories, and what they would be if every row had its own history."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

__all__ = ["TowerWork", "tower_work"]


@dataclass
class TowerWork:
    """Floating-point operations of forward passes so far; backward takes twice as many of both.

    Attributes:
        num_flop: Computed, shared parts once per unique history.
        num_plain_flop: If all parts were computed for every row.
    """

    num_flop: int = 0
    num_plain_flop: int = 0

    def add(self, num_flop: int, num_plain_flop: int) -> None:
        """Count a forward pass."""
        self.num_flop += num_flop
        self.num_plain_flop += num_plain_flop

    def add_lists(self, flop_U: npt.NDArray[np.int64], inverse: Tensor | None) -> None:
        """Count what is computed for each unique list.

        Args:
            flop_U: int64 [U], of each list.
            inverse: int32 [B], which list each row of the batch has; None if each row has its own.
        """
        plain = flop_U if inverse is None else flop_U[inverse.cpu().numpy()]
        self.add(int(flop_U.sum()), int(plain.sum()))


def tower_work(model: nn.Module) -> TowerWork:
    """Of all towers of a model together, so far."""
    total = TowerWork()
    for module in model.modules():
        if isinstance(work := getattr(module, "work", None), TowerWork):
            total.add(work.num_flop, work.num_plain_flop)
    return total
