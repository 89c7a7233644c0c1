"""The training step in PyTorch: models as in their public code, with three kinds of embeddings.

- `tables`: one `nn.EmbeddingBag(sparse=True)` per feature and `torch.optim.Adagrad`, as in facebookresearch/dlrm.
- `one_table`: the same with all features in one `EmbeddingBag`, where ids are offset by the first row of their table.
- `fbgemm`: FBGEMM's table-batched embeddings on the CPU, with exact row-wise Adagrad in the backward pass; torchrec's
  sharded modules use them too. For DLRM, interaction and MLPs are torchrec's own modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from peers.step_work import DENSE_ADAGRAD, RawBatch, Shape, StepCode

__all__ = ["make"]

LR = 0.01


class Tables(nn.Module):
    """One `EmbeddingBag` per feature."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.bags = nn.ModuleList(bag(shape, (num_rows,)) for num_rows in shape.table_rows)

    def prepare(self, raw: RawBatch, shape: Shape) -> Any:
        ids, offsets = torch.from_numpy(raw.ids), torch.from_numpy(raw.offsets)
        size, parts = len(raw.labels), []
        for at in range(shape.num_tables):
            own = offsets[at * size : (at + 1) * size + 1]
            parts.append((ids[own[0] : own[-1]].clone(), (own[:-1] - own[0]).clone()))
        return parts

    def forward(self, parts: Any) -> Tensor:
        return torch.stack([bag(ids, starts) for bag, (ids, starts) in zip(self.bags, parts, strict=True)], 1)


class OneTable(nn.Module):
    """All features in one `EmbeddingBag`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.bag = bag(shape, shape.table_rows)
        self.first = torch.from_numpy(shape.first_rows)

    def prepare(self, raw: RawBatch, shape: Shape) -> Any:
        offsets = torch.from_numpy(raw.offsets)
        size = len(raw.labels)
        counts = offsets[size::size] - offsets[:-1:size]
        return torch.from_numpy(raw.ids) + torch.repeat_interleave(self.first, counts), offsets[:-1].clone()

    def forward(self, parts: Any) -> Tensor:
        out = self.bag(*parts)
        return out.view(self.shape.num_tables, -1, self.shape.embedding_dim).transpose(0, 1)


class Fbgemm(nn.Module):
    """FBGEMM's table-batched embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            EmbeddingLocation,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        place = (EmbeddingLocation.HOST, ComputeDevice.CPU)
        self.shape = shape
        self.tables = SplitTableBatchedEmbeddingBagsCodegen(
            [(num_rows, shape.embedding_dim, *place) for num_rows in shape.table_rows],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LR,
            eps=1e-10,
        )
        for weights, num_rows in zip(self.tables.split_embedding_weights(), shape.table_rows, strict=True):
            weights.uniform_(-(num_rows**-0.5), num_rows**-0.5)

    def prepare(self, raw: RawBatch, shape: Shape) -> Any:
        return torch.from_numpy(raw.ids), torch.from_numpy(raw.offsets)

    def forward(self, parts: Any) -> Tensor:
        return self.tables(*parts).view(-1, self.shape.num_tables, self.shape.embedding_dim)


def bag(shape: Shape, tables: Sequence[int]) -> nn.EmbeddingBag:
    """Create a sum-pooled `EmbeddingBag` of several tables in a row, with the initial values of the DLRM code."""
    made = nn.EmbeddingBag(sum(tables), shape.embedding_dim, mode="sum", sparse=True)
    for weights, num_rows in zip(made.weight.detach().split(list(tables)), tables, strict=True):
        weights.uniform_(-(num_rows**-0.5), num_rows**-0.5)
    return made


def mlp(num_in: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Create linear layers, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(num_in, width), nn.ReLU()]
        num_in = width
    return nn.Sequential(*layers)


def init_linear(module: nn.Module) -> None:
    """Initialize a linear layer as in the DLRM code, so that all arms learn alike."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, (2 / sum(module.weight.shape)) ** 0.5)
        nn.init.normal_(module.bias, 0, module.out_features**-0.5)


class DLRM(nn.Module):
    """DLRM with the dot interaction of facebookresearch/dlrm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        num_vectors = shape.num_tables + 1
        self.bottom = mlp(shape.num_dense, (*shape.bottom, shape.embedding_dim))
        num_pairs = num_vectors * (num_vectors - 1) // 2
        self.top = nn.Sequential(mlp(shape.embedding_dim + num_pairs, shape.top), nn.Linear(shape.top[-1], 1))
        self.li = torch.tensor([i for i in range(num_vectors) for j in range(i)])
        self.lj = torch.tensor([j for i in range(num_vectors) for j in range(i)])

    def forward(self, dense: Tensor, emb: Tensor) -> Tensor:
        x = self.bottom(dense)
        vectors = torch.cat([x[:, None], emb.to(x.dtype)], 1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.li, self.lj]
        return self.top(torch.cat([x, dots], 1))


class TorchRecDLRM(nn.Module):
    """DLRM from torchrec's `DenseArch`, `InteractionArch` and `OverArch`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        from torchrec.models.dlrm import DenseArch, InteractionArch, OverArch

        num_vectors = shape.num_tables + 1
        self.dense = DenseArch(shape.num_dense, [*shape.bottom, shape.embedding_dim])
        self.interaction = InteractionArch(shape.num_tables)
        num_in = shape.embedding_dim + num_vectors * (num_vectors - 1) // 2
        self.over = OverArch(num_in, [*shape.top, 1])

    def forward(self, dense: Tensor, emb: Tensor) -> Tensor:
        x = self.dense(dense)
        return self.over(self.interaction(x, emb.to(x.dtype)))


class DCNv2(nn.Module):
    """DCN-v2: three full-rank cross layers in parallel with a deep network."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        num_in = shape.num_dense + shape.num_tables * shape.embedding_dim
        self.cross = nn.ModuleList(nn.Linear(num_in, num_in) for _ in range(3))
        self.deep = mlp(num_in, shape.top)
        self.head = nn.Linear(num_in + shape.top[-1], 1)

    def forward(self, dense: Tensor, emb: Tensor) -> Tensor:
        x0 = torch.cat([dense, emb.flatten(1)], 1)
        x = x0
        for layer in self.cross:
            x = x0 * layer(x) + x
        return self.head(torch.cat([x, self.deep(x0)], 1))


class WideDeep(nn.Module):
    """Wide & Deep: the deep network and the wide part, whose weights per id (`first`) are a table of dimension 1."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        num_in = shape.num_dense + shape.num_tables * shape.embedding_dim
        self.deep = nn.Sequential(mlp(num_in, shape.top), nn.Linear(shape.top[-1], 1))
        self.wide = nn.Linear(shape.num_dense, 1)

    def forward(self, dense: Tensor, emb: Tensor, first: Tensor) -> Tensor:
        return self.deep(torch.cat([dense, emb.flatten(1)], 1)) + self.wide(dense) + first.sum(1)


class DeepFM(WideDeep):
    """DeepFM: the same, plus the second-order term of a factorization machine."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.vectors = nn.Parameter(torch.randn(shape.num_dense, shape.embedding_dim) * 0.01)

    def forward(self, dense: Tensor, emb: Tensor, first: Tensor) -> Tensor:
        fields = torch.cat([dense[:, :, None] * self.vectors, emb], 1)
        second = 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(1, keepdim=True)
        return super().forward(dense, emb, first) + second


EMBEDDINGS = {"tables": Tables, "one_table": OneTable, "fbgemm": Fbgemm}
MODELS = {"dlrm": DLRM, "dcnv2": DCNv2, "deepfm": DeepFM, "wide_deep": WideDeep}


def make(shape: Shape, *, embeddings: str, bf16: bool, compiled: bool = False) -> StepCode:
    """Create the model and its optimizers."""
    torch.set_num_threads(shape.threads)
    torch.manual_seed(shape.seed)
    groups = [EMBEDDINGS[embeddings](shape)]
    if shape.model in ("deepfm", "wide_deep"):
        from dataclasses import replace

        # FBGEMM needs at least four numbers per row; three of those of a first-order weight are never read.
        dim = 4 if embeddings == "fbgemm" else 1
        groups.append(EMBEDDINGS[embeddings](replace(shape, embedding_dim=dim)))
    model = TorchRecDLRM(shape) if (shape.model, embeddings) == ("dlrm", "fbgemm") else MODELS[shape.model](shape)
    model.apply(init_linear)
    dense_optimizer = torch.optim.Adagrad(model.parameters(), **DENSE_ADAGRAD)
    forward = torch.compile(model) if compiled else model
    rows = [p for group in groups for p in group.parameters()] if embeddings != "fbgemm" else []
    row_optimizer = torch.optim.Adagrad(rows, lr=LR) if rows else None

    def prepare(raw: RawBatch) -> Any:
        labels = torch.from_numpy(raw.labels)[:, None]
        return torch.from_numpy(raw.dense), groups[0].prepare(raw, shape), labels

    loss_of = nn.functional.binary_cross_entropy_with_logits

    def step(batch: Any) -> float:
        dense, ids, labels = batch
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            parts = [group(ids) for group in groups]
            parts[1:] = [part[..., :1] for part in parts[1:]]
            logits = forward(dense, *parts)
        loss = loss_of(logits.float(), labels)
        loss.backward()
        dense_optimizer.step()
        dense_optimizer.zero_grad()
        if row_optimizer is not None:
            row_optimizer.step()
            row_optimizer.zero_grad()
        return loss.item()

    def save(path: str) -> None:
        modules = [model, *groups]
        optimizers = [dense_optimizer] if row_optimizer is None else [dense_optimizer, row_optimizer]
        torch.save([each.state_dict() for each in (*modules, *optimizers)], path)

    return StepCode(prepare, step, save)
