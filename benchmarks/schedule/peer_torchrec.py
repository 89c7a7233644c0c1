"""torchrec as a peer: `DistributedModelParallel` on gloo with two ranks, plain and with `TrainPipelineSparseDist`.

    python -m schedule.peer_torchrec RANK HOST:PORT WORKLOAD

The two ranks share the tables (table-wise) and each batch in Criteo's format. Features are computed beforehand, because
torchrec does not compute features; a step therefore contains no feature work.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

torch.set_num_threads(1)

import torch.distributed as dist  # noqa: E402
import torchrec  # noqa: E402
from fbgemm_gpu.split_embedding_configs import EmbOptimType  # noqa: E402
from torch import nn  # noqa: E402
from torchrec.datasets.utils import Batch  # noqa: E402
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist  # noqa: E402
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: E402
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology  # noqa: E402
from torchrec.distributed.planner.types import ParameterConstraints  # noqa: E402
from torchrec.models.dlrm import DLRM, DLRMTrain  # noqa: E402

from schedule.workloads import Workload, make_workload  # noqa: E402

MAX_ROWS = 1_000_000


def main() -> None:
    """Join the process group, and train as requested; rank 0 reads the requests and answers them."""
    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method=f"tcp://{sys.argv[2]}", rank=rank, world_size=2)
    work = make_workload(sys.argv[3])
    batches, model = build(rank, work)
    optimizer = dense_optimizer(model)
    _, piped = build(rank, work)  # a separate model, because the pipeline rewrites it
    pipeline = TrainPipelineSparseDist(piped, dense_optimizer(piped), torch.device("cpu"))
    stream = repeat_forever(batches)
    for line in sys.stdin if rank == 0 else iter(int, 1):
        command = [json.loads(line) if rank == 0 else None]  # type: ignore[arg-type]
        dist.broadcast_object_list(command, src=0)
        assert command[0] is not None
        if command[0]["arm"] == "end":
            break
        is_plain = command[0]["arm"] == "plain"
        one = (lambda: plain(model, optimizer, next(stream))) if is_plain else (lambda: pipeline.progress(stream))
        for _ in range(5):
            one()
        start = time.perf_counter()
        for _ in range(command[0]["steps"]):
            one()
        if rank == 0:
            sys.stdout.write(json.dumps({"step_s": (time.perf_counter() - start) / command[0]["steps"]}) + "\n")
            sys.stdout.flush()
    os._exit(0)  # gloo's threads cannot be stopped in another way


def dense_optimizer(model: Any) -> torch.optim.Optimizer:
    """Create the optimizer of all parameters but the embeddings, which are updated in the backward pass."""
    return torch.optim.SGD(
        [p for n, p in model.named_parameters() if "embedding" not in n and p.requires_grad], lr=0.01
    )


def plain(model: Any, optimizer: Any, batch: Any) -> None:
    """Make one step without a pipeline."""
    optimizer.zero_grad()
    loss, _ = model(batch)
    loss.backward()
    optimizer.step()


def repeat_forever(batches: list[Any]) -> Iterator[Any]:
    """Yield the batches again and again."""
    while True:
        yield from batches


def build(rank: int, work: Workload) -> tuple[list[Any], Any]:
    """Return this rank's halves of the batches, and its part of the model."""
    dense_names = [name for name in work.schema["dense"] if name.startswith("i")]
    id_names = work.schema["ids"]
    bucket_names = dense_names if work.borders else []
    columns = {name: work.table.column(name).to_numpy() for name in ("label", *dense_names, *id_names)}
    dense = np.stack([np.log1p(columns[name]) for name in dense_names], 1).astype(np.float32)
    ids = [columns[name] % MAX_ROWS for name in id_names]
    ids += [np.searchsorted(work.borders, columns[name]) for name in bucket_names]
    keys = [*id_names, *(f"b{n}" for n in range(len(bucket_names)))]
    sizes = [int(column.max()) + 1 for column in ids]
    half = work.batch_size // 2
    batches = []
    for first in range(rank * half, len(dense) - half + 1, work.batch_size):
        part = slice(first, first + half)
        values = torch.from_numpy(np.concatenate([column[part] for column in ids]).astype(np.int64))
        lengths = torch.ones(len(values), dtype=torch.int32)
        kjt = torchrec.KeyedJaggedTensor.from_lengths_sync(keys, values, lengths)
        labels = torch.from_numpy(columns["label"][part].astype(np.int32))
        batches.append(Batch(torch.from_numpy(dense[part]), kjt, labels))
    tables = [
        torchrec.EmbeddingBagConfig(
            name=f"t_{key}", embedding_dim=work.embedding_dim, num_embeddings=size, feature_names=[key]
        )
        for key, size in zip(keys, sizes, strict=True)
    ]
    collection = torchrec.EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    dlrm = DLRM(
        collection,
        len(dense_names),
        [*work.model["bottom"], work.embedding_dim],
        [*work.model["top"], 1],
        torch.device("cpu"),
    )
    train: nn.Module = DLRMTrain(dlrm)
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.01}
    sharders: list[Any] = [EmbeddingBagCollectionSharder(fused_params=fused)]
    # Table-wise, because gloo lacks a collective that row-wise sharding of uneven tables needs.
    limits = {config.name: ParameterConstraints(sharding_types=["table_wise"]) for config in tables}
    planner = EmbeddingShardingPlanner(topology=Topology(world_size=2, compute_device="cpu"), constraints=limits)
    plan = planner.collective_plan(train, sharders, dist.group.WORLD)
    return batches, DistributedModelParallel(train, device=torch.device("cpu"), plan=plan, sharders=sharders)


if __name__ == "__main__":
    main()
