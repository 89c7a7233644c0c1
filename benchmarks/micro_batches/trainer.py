"""The trainer of `bench_micro_batches.py`: makes training steps with rows kept by use, and measures how long they wait.

It reads commands from standard input, one line of JSON each, and answers with a line of JSON:

    {"do": "load", "address": "127.9.0.2:4711", "features": 26}
    {"do": "batches", "hit_share": 0.9}
    {"do": "run", "split": "popular_first", "steps": 12}
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from typing import Any

import numba
import numpy as np
import torch

torch.set_num_threads(1)
numba.set_num_threads(1)

from headrace.embeddings import EmbeddingsConfig, Keys, embedding_bags, key_layouts  # noqa: E402
from headrace.embeddings.shards.group import ShardGroup  # noqa: E402
from headrace.embeddings.shards.table_group import TableGroupSpec  # noqa: E402
from headrace.embeddings.stores.remote import RemoteStore  # noqa: E402
from headrace.embeddings.tables.seen_keys import SeenKeys  # noqa: E402
from headrace.models import DLRMConfig  # noqa: E402
from headrace.placement.lookahead import Lookahead  # noqa: E402
from headrace.placement.micro_batches import SPLITS  # noqa: E402
from headrace.placement.resident_store import ResidentStore  # noqa: E402
from headrace.tensors import Batch, KeyedJaggedTensor  # noqa: E402
from headrace.training.dense_optimizer import Adam  # noqa: E402
from headrace.training.step import TrainingStep  # noqa: E402

BATCH_SIZE, NUM_BATCHES, DIM = 2048, 12, 64
HOT, COLD = 1_000, 20_000
"""Ids per feature: those that are used in every batch or two, and those that are used once in fifty or more."""
CHUNK = 50_000
WARM_UP = 2  # uncounted steps per run
SEEN_BYTES = 1 << 23


class Trainer:
    """A DLRM of default size with one id per row and feature, whose rows are in a shard, and all known there."""

    def __init__(self, address: str, num_features: int) -> None:
        self.names = [f"f{number}" for number in range(num_features)]
        default = {"kind": "hashed", "num_embeddings": 1_000_000, "optimizer": {"kind": "rowwise_adagrad", "lr": 0.01}}
        embeddings = EmbeddingsConfig.from_dict({"default": default}, where="embeddings")
        self.model = DLRMConfig(embedding_dim=DIM).build(
            num_dense=13, sparse_keys=self.names, num_labels=1, embeddings=embeddings, seed=1
        )
        self.step = TrainingStep(self.model, Adam(lr=1e-4).make(self.model.parameters()), precision="fp32")
        (self.bags,) = embedding_bags(self.model).values()
        self._stack = ExitStack()
        self.group = self._stack.enter_context(ShardGroup([address], {"t": TableGroupSpec(self.bags.tables, 1)}))
        self.remote: RemoteStore = self.group.store("t")
        self.seen = SeenKeys(SEEN_BYTES)
        self.store: ResidentStore | None = None
        self.batches: list[Batch] = []

    def make_batches(self, hit_share: float) -> dict[str, Any]:
        """Make batches in which a share of the ids is hot, whose rows stay in the trainer, and forget all others.

        With the first batches of a trainer, all rows are created in the shard.
        """
        rng = np.random.default_rng(0)
        num_features = len(self.names)
        self.batches = []
        for _ in range(NUM_BATCHES):
            shape = num_features, BATCH_SIZE
            hot, cold = rng.integers(0, HOT, shape), rng.integers(HOT, HOT + COLD, shape)
            ids = np.where(rng.random(shape) < hit_share, hot, cold)
            lengths, offsets = torch.ones(ids.size, dtype=torch.int32), torch.arange(ids.size + 1)
            kjt = KeyedJaggedTensor(tuple(self.names), torch.from_numpy(ids.reshape(-1)), lengths, offsets, BATCH_SIZE)
            dense = torch.from_numpy(rng.random((BATCH_SIZE, 13), dtype=np.float32))
            labels = torch.from_numpy(rng.integers(0, 2, (BATCH_SIZE, 1)).astype(np.float32))
            batch = Batch(dense, (kjt,), labels, torch.arange(BATCH_SIZE))
            self.batches.append(batch.with_keys(key_layouts(self.model)))
        if self.store is None:
            self._create_rows()
        else:
            self.store.flush()
        most_cold = max(self._num_cold(batch) for batch in self.batches)
        previous = self.store
        self.store = ResidentStore(
            self.remote,
            memory_bytes=0,
            version=self.remote.step if previous is None else previous.version,
            window_starts=[0],
            seen=self.seen,
            keeps="frequent",
        )
        # Room for the hot rows and those of two batches, so that cold ones are gone when they are used again.
        self.store._residency.capacity = num_features * HOT + 2 * most_cold
        self.bags.use_store(self.store)
        self.run("whole", 2 * NUM_BATCHES)
        return {"cold": most_cold}

    def run(self, split: str, steps: int) -> dict[str, Any]:
        """Make steps, and return means per step."""
        assert self.store is not None
        lookahead = Lookahead([self.bags], 0, SPLITS[split])
        for number in range(WARM_UP):
            self._step(lookahead, self.batches[number % NUM_BATCHES])
        before = self._counters()
        num_parts = 0
        wall, cpu = time.perf_counter(), time.process_time()
        for number in range(WARM_UP, WARM_UP + steps):
            num_parts += self._step(lookahead, self.batches[number % NUM_BATCHES])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        waited_s, fetch_s, num_bytes, fetched, keys = np.subtract(self._counters(), before) / steps
        return {
            "step_s": wall / steps,
            "cpu_s": cpu / steps,
            "wait_s": waited_s,
            "fetch_s": fetch_s,
            "bytes": num_bytes,
            "missing_share": fetched / keys,
            "parts": num_parts / steps,
        }

    def _step(self, lookahead: Lookahead, batch: Batch) -> int:
        with lookahead.training(batch, ()) as parts:
            return len(self.step.train_parts(parts, len(batch)))

    def _counters(self) -> list[float]:
        assert self.store is not None
        moved, kept = self.remote.counters(), self.store.counters
        return [self.store.waited_s, moved.read_s, moved.bytes_fetched, kept.fetched, kept.keys]

    def _create_rows(self) -> None:
        """Train every id once in the shard."""
        rng = np.random.default_rng(1)
        ids = np.arange(HOT + COLD, dtype=np.int64)
        for table in range(len(self.names)):
            # The keys as the model has them, because ids of hashed tables are rows.
            kjt = KeyedJaggedTensor(
                tuple(self.names),
                torch.from_numpy(ids),
                torch.from_numpy((np.arange(len(self.names)) == table).repeat(len(ids)).astype(np.int32)),
                torch.from_numpy(
                    np.concatenate([[0], np.cumsum((np.arange(len(self.names)) == table).repeat(len(ids)))])
                ),
                len(ids),
            )
            keys = self.bags.key_layout.find((kjt,), tuple(self.names)).keys
            for first in range(0, len(keys), CHUNK):
                part = keys.take(np.arange(first, min(first + CHUNK, len(keys))))
                gradients = rng.normal(size=(len(part), DIM)).astype(np.float32)
                self.remote.update(Keys(part.tables, part.ids, part.counts), gradients).result()
                self.seen.add(part)

    def _num_cold(self, batch: Batch) -> int:
        (kjt,) = batch.sparse
        ids = kjt.values.numpy().reshape(len(self.names), -1)
        return sum(len(np.unique(column[column >= HOT])) for column in ids)

    def close(self) -> None:
        if self.store is not None:
            self.store.flush()
        self._stack.close()


def main() -> None:
    """Execute commands until the input ends."""
    trainer: Trainer | None = None
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {}
        if command["do"] == "load":
            if trainer is not None:
                trainer.close()
            trainer = Trainer(command["address"], command["features"])
        elif command["do"] == "batches":
            assert trainer is not None
            answer = trainer.make_batches(command["hit_share"])
        else:
            assert trainer is not None
            answer = trainer.run(command["split"], command["steps"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    if trainer is not None:
        trainer.close()


if __name__ == "__main__":
    main()
