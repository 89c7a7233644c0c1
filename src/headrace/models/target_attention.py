"""Target attention: weights each id of a history by its relevance to the row's candidate.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", 2018 (section 4.3): an MLP scores every pair of
history id e and candidate t, and the history becomes the sum of its ids' vectors weighted by score, without a softmax.
In the paper's code the input of the MLP is [t, e, t - e, t * e]. Its first layer is linear, so it splits into three
terms:

    W [t, e, t - e, t * e] = (W1 + W3) t + (W2 - W3) e + W4 (t * e)
                             once a row    once an id of    once a pair
                                           a unique list

Only the last one depends on both, so sharing histories between rows saves the second.

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
    """Computes one vector per row from its history and its candidate.

    Args:
        dim: Dimension D.
        widths: Hidden widths of the scoring MLP.
        generator: Random generator of initial values.
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
        """Apply the attention.

        Args:
            rows_ND: Embeddings of the ids of all unique lists, concatenated.
            offsets: int64 [U + 1], start of each list.
            inverse: int32 [B], list of each row; None if row b has list b.
            target_BD: Embeddings of the candidates.

        Returns:
            [B, D]; zeros for rows with empty lists.
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
    """All pairs of a row and an id of its list: row numbers, int64 [P], ascending, and positions of ids, int64 [P]."""
    starts, lengths = offsets[:-1], offsets[1:] - offsets[:-1]
    if inverse is not None:
        starts, lengths = starts[inverse], lengths[inverse]
    pair_rows = torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), lengths)
    firsts = torch.cumsum(lengths, 0) - lengths
    return pair_rows, torch.arange(len(pair_rows), device=offsets.device) - (firsts - starts)[pair_rows]
