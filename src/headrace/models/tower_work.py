"""`TowerWork`: counts FLOP of towers over histories, with and without deduplication."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

__all__ = ["TowerWork", "tower_work"]


@dataclass
class TowerWork:
    """Floating-point operations of all forward passes; backward passes take twice as many.

    Attributes:
        num_flop: Operations computed, with shared terms once per unique history.
        num_plain_flop: Operations if all terms were computed for every row.
    """

    num_flop: int = 0
    num_plain_flop: int = 0

    def add(self, num_flop: int, num_plain_flop: int) -> None:
        """Add a forward pass."""
        self.num_flop += num_flop
        self.num_plain_flop += num_plain_flop

    def add_lists(self, flop_U: npt.NDArray[np.int64], inverse: Tensor | None) -> None:
        """Add work that is done once per unique list.

        Args:
            flop_U: int64 [U], operations per list.
            inverse: int32 [B], list of each row of the batch; None if each row has its own.
        """
        plain = flop_U if inverse is None else flop_U[inverse.cpu().numpy()]
        self.add(int(flop_U.sum()), int(plain.sum()))


def tower_work(model: nn.Module) -> TowerWork:
    """The total of all towers of a model."""
    total = TowerWork()
    for module in model.modules():
        if isinstance(work := getattr(module, "work", None), TowerWork):
            total.add(work.num_flop, work.num_plain_flop)
    return total
