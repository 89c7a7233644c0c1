"""Transformer encoding of id lists: bucketing by length, and an encoder that turns each list into one vector.

Legend: n ids, V lists (of all encoded features), B rows, D embedding dimension, L longest list of a bucket, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from headrace.config import Config
from headrace.models.layers import linear

__all__ = ["Bucket", "HistoryEncoder", "HistoryEncoderConfig", "length_buckets"]

Int64s = npt.NDArray[np.int64]

MAX_PADDED = 1.15  # padded over real positions of a bucket, unless it is tiny
SMALL_BUCKET = 1024
LARGE_BUCKET = 32_768
"""Positions per bucket: large enough for full speed, small enough that activations stay in the cache."""


class HistoryEncoderConfig(Config):
    """A transformer encoder over the ids of a list; its outputs are averaged."""

    features: tuple[str, ...] = Field(min_length=1)
    """The id lists to encode, each separately, with shared weights and a learned vector per feature."""
    num_layers: int = Field(default=1, ge=1)
    """Number of encoder layers."""
    num_heads: int = Field(default=2, ge=1)
    """Attention heads; must divide `embedding_dim`."""
    feedforward: int = Field(default=64, ge=1)
    """Hidden width of the feed-forward part."""
    max_length: int = Field(default=512, ge=1)
    """Number of position embeddings; ids beyond it share the last one."""


@dataclass(frozen=True)
class Bucket:
    """Lists of similar length.

    Attributes:
        lists: int64 [b], indices of the lists.
        length: Maximum length L.
    """

    lists: Int64s
    length: int


def length_buckets(lengths: Int64s) -> Iterator[Bucket]:
    """Group the non-empty lists into buckets with little padding, shortest first.

    Args:
        lengths: int64 [V].
    """
    order = np.argsort(lengths, kind="stable")
    order = order[np.searchsorted(lengths[order], 1) :]
    sizes = lengths[order]
    totals = np.concatenate([[0], np.cumsum(sizes)])
    first = 0
    while first < len(order):
        # In ascending order, a bucket's length is that of its last list.
        ends = np.arange(first + 1, len(order) + 1)
        padded = sizes[first:] * (ends - first)
        real = totals[first + 1 :] - totals[first]
        fits = (padded <= np.maximum(MAX_PADDED * real, SMALL_BUCKET)) & (padded <= max(LARGE_BUCKET, sizes[first]))
        end = int(ends[-1] if fits.all() else max(ends[int(np.argmin(fits))] - 1, first + 1))
        yield Bucket(order[first:end], int(sizes[end - 1]))
        first = end


class HistoryEncoder(nn.Module):
    """Encodes lists of embeddings to one vector per list; an empty list gives zeros.

    Pre-norm transformer layers as in Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020, over
    click histories as in Chen et al., "Behavior Sequence Transformer", 2019.

    Args:
        config: Sizes of the layers.
        embedding_dim: Dimension D.
        generator: Random generator of initial values.
    """

    def __init__(self, config: HistoryEncoderConfig, embedding_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        dim = embedding_dim
        self.feedforward = config.feedforward
        self.places_LD = nn.Parameter(torch.empty(config.max_length, dim).normal_(0, 0.02, generator=generator))
        self.features_FD = nn.Parameter(torch.empty(len(config.features), dim).normal_(0, 0.02, generator=generator))
        self.layers = nn.ModuleList(
            EncoderLayer(dim, config.num_heads, config.feedforward, generator) for _ in range(config.num_layers)
        )

    def forward(self, parts: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Encode the lists of all features.

        Args:
            parts: For each feature of the config, the embeddings of its concatenated lists [n_f, D], and the start of
                each list, int64 [V_f + 1].

        Returns:
            [V_f, D] for each feature.
        """
        rows_ND = torch.cat([rows + vector for (rows, _), vector in zip(parts, self.features_FD, strict=True)])
        lengths = np.concatenate([np.diff(offsets.cpu().numpy()) for _, offsets in parts])
        starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        buckets = list(length_buckets(lengths))
        encoded = [self._encode(rows_ND, starts, lengths, bucket) for bucket in buckets]
        empty = np.flatnonzero(lengths == 0)
        vectors_VD = torch.cat([rows_ND.new_zeros(len(empty), rows_ND.shape[1]), *encoded])
        places = np.empty(len(lengths), dtype=np.int64)
        places[np.concatenate([empty, *[bucket.lists for bucket in buckets]])] = np.arange(len(lengths))
        counts = [len(offsets) - 1 for _, offsets in parts]
        return list(torch.split(vectors_VD[torch.from_numpy(places)], counts))

    def flop(self, lengths_V: Int64s) -> Int64s:
        """Floating-point operations of the matrix products for lists of these lengths, int64 [V], without padding."""
        dim, hidden = self.places_LD.shape[1], self.feedforward
        one_id = 2 * dim * (3 * dim + dim + 2 * hidden)
        return len(self.layers) * (one_id * lengths_V + 4 * dim * lengths_V**2)

    def _encode(self, rows_ND: Tensor, starts: Int64s, lengths: Int64s, bucket: Bucket) -> Tensor:
        """Encode the lists of a bucket to [b, D]."""
        sizes, steps = lengths[bucket.lists][:, None], np.arange(bucket.length)
        index_bL = starts[bucket.lists][:, None] + np.minimum(steps, sizes - 1)
        x_bLD = rows_ND[torch.from_numpy(index_bL)]
        x_bLD = x_bLD + self.places_LD[torch.from_numpy(np.minimum(steps, len(self.places_LD) - 1))]
        is_full = int(sizes.min()) == bucket.length
        mask_bL = None if is_full else torch.from_numpy(steps < sizes).to(x_bLD.device)
        for layer in self.layers:
            x_bLD = layer(x_bLD, mask_bL)
        if mask_bL is not None:
            x_bLD = x_bLD.masked_fill(~mask_bL[:, :, None], 0.0)
        return x_bLD.sum(1) / torch.from_numpy(sizes.astype(np.float32)).to(x_bLD.device)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each with pre-norm and a residual connection."""

    def __init__(self, dim: int, num_heads: int, feedforward: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = linear(dim, 3 * dim, generator)
        self.out = linear(dim, dim, generator)
        self.up, self.down = linear(dim, feedforward, generator), linear(feedforward, dim, generator)

    def forward(self, x_bLD: Tensor, mask_bL: Tensor | None) -> Tensor:
        """Map [b, L, D] to [b, L, D]; masked positions are not attended to, and their outputs are meaningless."""
        b, length, dim = x_bLD.shape
        qkv = self.qkv(self._normed(self.attention_norm, x_bLD))
        q, k, v = qkv.view(b, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        mask = None if mask_bL is None else mask_bL[:, None, None, :]
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x_bLD = x_bLD + self.out(attended.transpose(1, 2).reshape(b, length, dim))
        hidden = torch.relu(self.up(self._normed(self.feedforward_norm, x_bLD)))
        return x_bLD + self.down(hidden)  # type: ignore[no-any-return]

    @staticmethod
    def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
