"""The trainer of `bench_schedule.py`: makes training steps as requested, and measures them.

It reads commands from standard input, one line of JSON each, and answers with a line of JSON:

    {"do": "load", "workload": "rm2", "address": "127.9.0.2:4711", "quick": false}
    {"do": "run", "case": "rm2, 1 Gb/s", "policy": "batch_prefetch", "num_ahead": 2, "num_threads": 1, "steps": 12}
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numba
import numpy as np
import torch

torch.set_num_threads(1)
numba.set_num_threads(1)


from headrace.embeddings import EmbeddingsConfig, embedding_bags  # noqa: E402
from headrace.embeddings.shards.group import GroupOptions, ShardGroup  # noqa: E402
from headrace.embeddings.shards.table_group import TableGroupSpec  # noqa: E402
from headrace.embeddings.stores.remote import StoreOptions  # noqa: E402
from headrace.features import FeaturePlan  # noqa: E402
from headrace.logs.schema import Schema  # noqa: E402
from headrace.models import ModelConfig  # noqa: E402
from headrace.pipeline import RowStats  # noqa: E402
from headrace.registry import STEP_POLICIES  # noqa: E402
from headrace.scheduling.feature_groups import MAX_GROUPS, group_features  # noqa: E402
from headrace.scheduling.graph import Kind  # noqa: E402
from headrace.scheduling.policies import BatchPrefetch  # noqa: E402
from headrace.scheduling.runtime import StepRuntime  # noqa: E402
from headrace.scheduling.selection import StrategySelector, make_selector  # noqa: E402
from headrace.scheduling.state import SchedulerState  # noqa: E402
from headrace.scheduling.trace import Span, Trace  # noqa: E402
from headrace.scheduling.work import TrainingWork  # noqa: E402
from headrace.training.dense_optimizer import Adam  # noqa: E402
from headrace.training.step import TrainingStep  # noqa: E402
from schedule.workloads import make_workload  # noqa: E402

WARM_UP = 6  # uncounted steps per run, in which the cost estimates settle


class RepeatedBatches:
    """A free replacement for a pipeline: yields record batches in memory, repeatedly, `count` in all."""

    segment = 0

    def __init__(self, batches: list[Any], count: int) -> None:
        self._batches = batches
        self._next, self._count = 0, count

    def next_in_segment(self) -> Any | None:
        if self._next == self._count:
            return None
        self._next += 1
        return self._batches[self._next % len(self._batches)]

    def take_row_stats(self) -> RowStats:
        return RowStats()

    def state_dict(self) -> dict[str, Any]:
        return {}


class Trainer:
    """The trainer of one workload, whose embedding rows are in a shard (if there is an address) or in this process."""

    def __init__(self, command: dict[str, Any]) -> None:
        work = make_workload(command["workload"], quick=command["quick"])
        schema = Schema.from_dict(work.schema, where="schema")
        self.plan = FeaturePlan.from_config(work.features, schema)
        default = {"kind": "hashed", "num_embeddings": 1_000_000, "optimizer": {"kind": "rowwise_adagrad", "lr": 0.01}}
        embeddings = EmbeddingsConfig.from_dict({"default": default}, where="embeddings")
        from pydantic import TypeAdapter

        self.model = (
            TypeAdapter(ModelConfig)
            .validate_python(work.model)
            .build(
                num_dense=len(self.plan.dense_names),
                sparse_keys=self.plan.sparse_keys,
                num_labels=1,
                embeddings=embeddings,
                seed=1,
            )
        )
        self._stack = ExitStack()
        if command["address"]:
            modules = embedding_bags(self.model)
            table_groups = {name: TableGroupSpec(bags.tables, 1) for name, bags in modules.items()}
            options = GroupOptions(store=StoreOptions(connections=MAX_GROUPS))
            group = self._stack.enter_context(ShardGroup([command["address"]], table_groups, options=options))
            for name, bags in modules.items():
                bags.use_store(group.store(name))
        self.is_remote = bool(command["address"])
        self.step = TrainingStep(self.model, Adam().make(self.model.parameters()))
        self.groups = group_features(
            self.plan, lambda feature: [feature], max_groups=MAX_GROUPS if self.is_remote else 1
        )
        self.batches = work.table.combine_chunks().to_batches(max_chunksize=work.batch_size)
        self.batch_size = work.batch_size
        self._selectors: dict[tuple[str, str], StrategySelector] = {}

    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """Make steps under a policy, and return their mean times and ratios."""
        policy = STEP_POLICIES[command["policy"]]
        if isinstance(policy, BatchPrefetch):
            policy = replace(policy, num_ahead=command["num_ahead"], num_threads=command["num_threads"])
        # Measurements of strategies are kept per case, as a job keeps them over its windows.
        place, num_groups = (command["case"], command["policy"]), len(self.groups)
        tried = place in self._selectors
        selector = make_selector(policy, num_groups=num_groups, store_waits=self.is_remote)
        selector = self._selectors.setdefault(place, selector)
        selectors = {num_groups: selector}
        state = SchedulerState(policy, num_cores=1, store_waits=self.is_remote, selectors=selectors)
        trace, steps = Trace(command["steps"]), command["steps"]
        selector.begin()
        warm_up = WARM_UP if tried else max(WARM_UP, selector.num_steps)
        batches = RepeatedBatches(self.batches, warm_up + steps + 1)
        deferred = []
        with (
            TrainingWork(batches, lambda segment: self.groups, self.model, self.step) as work,  # type: ignore[arg-type]
            StepRuntime(work, state, trace=trace, is_inline=not self.is_remote) as runtime,
        ):
            for _ in range(warm_up):
                runtime.step()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                runtime.step()
                deferred.append(work.deferred_ratio)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            while runtime.step() is not None:
                pass
        return {
            "step_s": wall / steps,
            "idle_ratio": max(0.0, 1 - cpu / wall),
            "deferred_ratio": float(np.mean(deferred)),
            "strategy": selector.strategy.name,
            **parts(trace.spans(), steps),
        }

    def plain(self, steps: int) -> dict[str, Any]:
        """Make steps in a plain loop (features, then the step) without a scheduler, and return their mean time."""
        total = 0.0
        for number in range(WARM_UP + steps):
            start = time.perf_counter()
            self.step(self.plan.apply(self.batches[number % len(self.batches)]))
            total += (time.perf_counter() - start) if number >= WARM_UP else 0.0
        return {"step_s": total / steps}

    def close(self) -> None:
        self._stack.close()


def parts(spans: list[Span], steps: int) -> dict[str, float]:
    """Return the seconds per step of each phase, bytes per step, and the share of communication hidden behind work."""

    def of(*kinds: Kind) -> list[tuple[float, float]]:
        return [(span.start_s, span.end_s) for span in spans if span.operator.kind in kinds]

    cpu = union(of(Kind.FEATURES, Kind.DENSE, Kind.UPDATE))
    network = union(of(Kind.PULL, Kind.DEFERRED_PULL, Kind.PUSH))
    return {
        "features_s": length(union(of(Kind.FEATURES))) / steps,
        "pull_s": length(union(of(Kind.PULL, Kind.DEFERRED_PULL))) / steps,
        "dense_s": length(union(of(Kind.DENSE, Kind.UPDATE))) / steps,
        "push_s": length(union(of(Kind.PUSH))) / steps,
        "bytes": sum(span.num_bytes for span in spans if span.operator.kind in (Kind.PULL, Kind.PUSH)) / steps,
        "hidden_ratio": overlap(cpu, network) / max(length(network), 1e-9),
    }


Intervals = list[tuple[float, float]]


def union(intervals: Intervals) -> Intervals:
    """Merge overlapping intervals."""
    merged: Intervals = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def length(intervals: Intervals) -> float:
    """Return the total length of intervals that do not overlap."""
    return sum(end - start for start, end in intervals)


def overlap(left: Intervals, right: Intervals) -> float:
    """Return the total length that both sets of merged intervals cover."""
    return length(left) + length(right) - length(union([*left, *right]))


def main() -> None:
    """Execute commands until the input ends."""
    trainer: Trainer | None = None
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {}
        if command["do"] == "load":
            if trainer is not None:
                trainer.close()
            trainer = Trainer(command)
        elif command["do"] == "run":
            assert trainer is not None
            plain = command["policy"] == "plain"
            answer = trainer.plain(command["steps"]) if plain else trainer.run(command)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    if trainer is not None:
        trainer.close()


if __name__ == "__main__":
    main()
