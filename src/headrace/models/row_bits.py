"""How many rows a batch needs for its products to give each row the same bits as in any other batch.

Libraries choose another kernel, with another order of sums, for products of few rows, and for rows that do not fill a
tile. So a row alone can get another last bit than the same row among others. Batches of a multiple of `TILE` rows, and
of at least as many as `rows_for_equal_bits` says, do not show this.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from headrace.models.layers import MLP, Linear
from headrace.models.products import full_rate

__all__ = ["TILE", "pad_to_tile", "rows_for_equal_bits"]

TILE = 16
"""Rows per tile of the products: a multiple of the vector width, and of the tiles of MKL and oneDNN."""
MOST_ROWS = 4096
"""Rows of the product that others are compared with; no kernel is known that needs more."""


def pad_to_tile(num_rows: int, least: int) -> int:
    """The number of rows to which a batch is filled up: a multiple of `TILE`, of at least `least` rows."""
    return -(-max(num_rows, least, 1) // TILE) * TILE


def rows_for_equal_bits(model: nn.Module) -> int:
    """The fewest rows of a batch, from which a row's outputs do not depend on the others, as measured here.

    Every parameter matrix of the model is taken for that of a product. Products along another axis than rows, such as
    those of attention, are not covered.
    """
    in_stacks = {id(layer) for stack in model.modules() if isinstance(stack, MLP) for layer in stack}
    heads = {
        id(layer.weight)
        for layer in model.modules()
        if isinstance(layer, Linear) and layer.is_head and id(layer) not in in_stacks
    }  # these run as kernels of headrace, which compute row by row
    matrices = (each for each in model.parameters() if each.dim() == 2 and each.is_cpu and id(each) not in heads)
    return max((_rows_of_product(*each.shape) for each in matrices), default=TILE)


@functools.cache
def _rows_of_product(width: int, depth: int) -> int:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(MOST_ROWS, depth, generator=generator), torch.randn(width, depth, generator=generator)
    return max(_least_equal(x, weight, is_full_rate=False), _least_equal(x, weight, is_full_rate=True))


def _least_equal(x: Tensor, weight: Tensor, *, is_full_rate: bool) -> int:
    with torch.inference_mode(), full_rate() if is_full_rate else nullcontext():
        expected = x @ weight.t()

        def is_equal(num_rows: int) -> bool:
            return torch.equal(x[:num_rows] @ weight.t(), expected[:num_rows])

        num_rows = MOST_ROWS // 2  # halved until it is too few, and then raised
        while num_rows >= TILE and is_equal(num_rows):
            num_rows //= 2
        num_rows = max(num_rows, 0) // TILE * TILE + TILE
        while num_rows < MOST_ROWS and not is_equal(num_rows):
            num_rows += TILE
    return num_rows
