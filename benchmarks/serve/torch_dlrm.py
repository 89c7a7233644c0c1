"""The model in plain PyTorch, which the servers of other libraries use: records in, probabilities out.

All tables are one `nn.EmbeddingBag` with ids offset by table, which takes a tenth of the time of 26 bags;
`torch.compile` is no faster. Records become tensors with one `itemgetter` for all columns, the fastest of the plain
ways measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serve.workload import DENSE, DIM, IDS, NUM_EMBEDDINGS, WIDTHS

__all__ = ["TorchDLRM", "TorchScorer"]

_COLUMNS = itemgetter(*DENSE, *IDS)


class TorchDLRM(nn.Module):
    """DLRM with the dot interaction of facebookresearch/dlrm."""

    def __init__(self) -> None:
        super().__init__()
        num_vectors = len(IDS) + 1
        self.tables = nn.EmbeddingBag(len(IDS) * NUM_EMBEDDINGS, DIM, mode="sum")
        self.bottom = _mlp(len(DENSE), (*WIDTHS, DIM))
        self.top = _mlp(DIM + num_vectors * (num_vectors - 1) // 2, WIDTHS)
        self.head = nn.Linear(WIDTHS[-1], 1)
        pairs = torch.tril_indices(num_vectors, num_vectors, offset=-1)
        self.register_buffer("pairs", pairs[0] * num_vectors + pairs[1])

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Probabilities, float32 [B], of raw numbers [B, 13] and ids offset by table [B, 26]."""
        x = self.bottom(torch.log1p(dense))
        emb = self.tables(ids.view(-1, 1)).view(-1, len(IDS), DIM)
        vectors = torch.cat([x[:, None], emb], 1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        return torch.sigmoid(self.head(self.top(torch.cat([x, dots], 1))))[:, 0]

    @classmethod
    def load(cls, path: Path) -> TorchDLRM:
        """Load the weights of a workload."""
        model, arrays = cls(), np.load(path)
        with torch.no_grad():
            for number in range(len(IDS)):
                rows = slice(number * NUM_EMBEDDINGS, (number + 1) * NUM_EMBEDDINGS)
                model.tables.weight[rows] = torch.from_numpy(arrays[f"table_{number}"])
            for name in ("bottom", "top"):
                for at, layer in enumerate(getattr(model, name)[::2]):
                    layer.weight.copy_(torch.from_numpy(arrays[f"{name}_{at}_weight"]))
                    layer.bias.copy_(torch.from_numpy(arrays[f"{name}_{at}_bias"]))
            model.head.weight.copy_(torch.from_numpy(arrays["head_weight"]))
            model.head.bias.copy_(torch.from_numpy(arrays["head_bias"]))
        return model.eval()


class TorchScorer:
    """Scores records in one thread."""

    def __init__(self, weights: str | Path) -> None:
        torch.set_num_threads(1)
        self._model = TorchDLRM.load(Path(weights))
        self._first = np.arange(len(IDS), dtype=np.int64) * NUM_EMBEDDINGS

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> list[float]:
        """Probabilities of records."""
        # Ids are below 2^53, so float64 holds them.
        values = np.array(list(map(_COLUMNS, records)), np.float64)
        dense = torch.from_numpy(values[:, : len(DENSE)].astype(np.float32))
        ids = torch.from_numpy(values[:, len(DENSE) :].astype(np.int64) + self._first)
        with torch.inference_mode():
            return self._model(dense, ids).tolist()

    def many(self, requests: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[float]]:
        """Probabilities of several requests, as one batch."""
        found = self([record for records in requests for record in records])
        answers, first = [], 0
        for records in requests:
            answers.append(found[first : first + len(records)])
            first += len(records)
        return answers


def _mlp(num_in: int, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(num_in, width), nn.ReLU()]
        num_in = width
    return nn.Sequential(*layers)
