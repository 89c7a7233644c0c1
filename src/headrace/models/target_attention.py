"""Target attention: how much each id of a history matters for the candidate of a row.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", 2018 (section 4.3): an MLP scores every pair of
history id e and candidate t, and the history becomes the sum of its ids' vectors by score, without a softmax. The code
that came with the paper feeds the MLP [t, e, t - e, t * e]. Its first layer is linear, so it falls into three parts:

    W [t, e, t - e, t * e] = (W1 + W3) t + (W2 - W3) e + W4 (t * e)
                             once a row    once an id of    once a pair
                                           a unique list

and only the last one depends on both: this is where histories shared between rows are saved.

Legend: B rows, U unique lists, n ids of all unique lists, P pairs of a row and an id of its list, D dimension, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from headrace.models.layers import linear, mlp
from headrace.models.tower_work import TowerWork

__all__ = ["TargetAttention"]


class TargetAttention(nn.Module):
    """One vector per row from the row's history and its candidate.

    Args:
        dim: D.
        widths: Hidden widths of the scoring MLP.
        generator: Of first values.
    """

    def __init__(self, dim: int, widths: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.target = linear(dim, widths[0], generator)
        self.item = linear(dim, widths[0], generator, bias=False)
        self.product = linear(dim, widths[0], generator, bias=False)
        self.deep = mlp(widths[0], widths[1:], generator)
        self.score = linear(widths[-1], 1, generator)
        self.work = TowerWork()
        self._first = 2 * dim * widths[0]
        self._deeper = 2 * sum(before * after for before, after in pairwise((*widths, 1)))

    def forward(self, rows_ND: Tensor, offsets: Tensor, inverse: Tensor | None, target_BD: Tensor) -> Tensor:
        """Attend.

        Args:
            rows_ND: The ids' embeddings, one unique list after the other.
            offsets: int64 [U + 1], where each list begins.
            inverse: int32 [B], the list of each row; None if row b has list b.
            target_BD: The candidates' embeddings.

        Returns:
            [B, D]; zeros for a row whose list is empty.
        """
        pair_rows, pair_ids = pairs(offsets, inverse)
        pair_flop, row_flop = (self._first + self._deeper) * len(pair_rows), self._first * len(target_BD)
        self.work.add(
            self._first * len(rows_ND) + row_flop + pair_flop, self._first * len(pair_rows) + row_flop + pair_flop
        )
        item_PD, target_PD = rows_ND.index_select(0, pair_ids), target_BD.index_select(0, pair_rows)
        hidden_PW = self.item(rows_ND).index_select(0, pair_ids) + self.target(target_BD).index_select(0, pair_rows)
        hidden_PW = torch.relu(hidden_PW + self.product(item_PD * target_PD))
        score_P1 = self.score(self.deep(hidden_PW))
        return torch.zeros_like(target_BD).index_add(0, pair_rows, score_P1 * item_PD)


def pairs(offsets: Tensor, inverse: Tensor | None) -> tuple[Tensor, Tensor]:
    """Every row with every id of its list: row numbers int64 [P], ascending, and positions of ids int64 [P]."""
    starts, lengths = offsets[:-1], offsets[1:] - offsets[:-1]
    if inverse is not None:
        starts, lengths = starts[inverse], lengths[inverse]
    pair_rows = torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), lengths)
    firsts = torch.cumsum(lengths, 0) - lengths
    return pair_rows, torch.arange(len(pair_rows), device=offsets.device) - (firsts - starts)[pair_rows]
