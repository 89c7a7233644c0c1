"""`Autotune`: the model and the optimisers of tf.data's AUTOTUNE, reimplemented on headrace's counters.

It follows github.com/tensorflow/tensorflow (Apache-2.0), core/framework/model.cc at commit 02145c25 unless another file
is named, without using its code:

- A stage's own time is wall time over elements, over its whole life (`SelfProcessingTimeLocked`).
- Input times propagate from the consumer to the source, output times back (`InputTimeLocked`, `OutputTimeLocked` of
  `KnownRatio` and `AsyncKnownRatio`). The consumer is assumed to need no time (`OptimizeLoop` passes model_input_time
  0).
- The wait for an element is P(buffer empty) x time to produce one, in an M/M/1/K queue (`ComputeWaitTime`).
- Hill climbing: set all knobs to their minimum, then add 1 where the modelled output time falls most, until it is below
  total processing time / CPU budget, or all are at their maximum, or buffers would exceed the RAM budget
  (`OptimizeHillClimb`). Max-parallelism is the same without the CPU condition (`OptimizeMaxParallelism`); it became the
  default in later versions.
- The period is 10 ms, doubled after each run up to 60 s (`OptimizeLoop`).
- CPU and RAM budgets are fixed at the start; RAM is half of what is free (core/data/root_dataset.cc,
  `kRamBudgetShare`). A stage's maximum is the size of the thread pool for all stages, created at the start for the
  available CPUs (`runner_threadpool_size`), so CPUs added later cannot be used.
- Prefetch has its own tuner: a buffer that was full and is then found empty is doubled, and never shrinks
  (core/kernels/data/prefetch_autotuner.cc).
- Before the first run parallelism is min(16, pool) (`initial_parallelism` in AutotuneOptions).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.tuning.measuring import LifelongMeans, max_workers
from headrace.tuning.observation import Observation
from headrace.tuning.policies.base import Proposal
from headrace.tuning.policies.relaunched import Relaunched
from headrace.tuning.space import PREFETCH, THREADS, Space, workers_of

__all__ = ["Autotune", "ModelNode", "output_time", "wait_time"]

MIN_PERIOD_S = 0.010
MAX_PERIOD_S = 60.0
INITIAL_PARALLELISM = 16
RAM_BUDGET_SHARE = 0.5


@dataclass(frozen=True)
class ModelNode:
    """A node of tf.data's model: its own seconds and inputs per element, bytes, and whether it is parallel."""

    name: str
    self_s: float
    ratio: float
    element_bytes: float
    max_parallelism: int

    @property
    def parallel(self) -> bool:
        """Whether it is an AsyncKnownRatio with a parallelism knob, else KnownRatio."""
        return self.max_parallelism > 1


def wait_time(producer_s: float, consumer_s: float, buffer_size: float) -> float:
    """Expected wait for an element: P(empty) of an M/M/1/K queue, times the time to produce one."""
    if producer_s == 0:
        return 0.0
    if consumer_s == 0:
        return producer_s
    if consumer_s == producer_s:
        return producer_s / (buffer_size + 1.0)
    if consumer_s > producer_s:
        ratio = producer_s / consumer_s
        power = ratio**buffer_size
        return float(producer_s * power * (1.0 - ratio) / (1.0 - ratio * power))
    ratio = consumer_s / producer_s
    return float(producer_s * (1.0 - ratio) / (1.0 - ratio ** (buffer_size + 1.0)))


def output_time(nodes: Sequence[ModelNode], parallelism: Mapping[str, float]) -> float:
    """Modelled seconds from a request at the end of the chain to its element.

    Args:
        nodes: From the source to the consumer.
        parallelism: Parallelism of the parallel nodes, by name.
    """
    input_times: list[float] = []
    inherited = 0.0
    for node in reversed(nodes):
        inherited = (inherited + node.self_s / parallelism.get(node.name, 1.0)) / node.ratio
        input_times.append(inherited)
    output = 0.0
    for node, input_s in zip(nodes, reversed(input_times), strict=True):
        producer_s = node.ratio * output
        if node.parallel:
            k = parallelism[node.name]
            output = node.self_s / k + wait_time(producer_s, node.ratio * input_s, k / node.ratio)
        else:
            output = node.self_s + producer_s
    return output


class Autotune:
    """tf.data's AUTOTUNE; see the module docstring."""

    def __init__(
        self,
        algorithm: Literal["hill_climb", "max_parallelism"] = "max_parallelism",
        *,
        max_period_s: float = MAX_PERIOD_S,
    ) -> None:
        """Choose the optimiser.

        Args:
            algorithm: The optimiser.
            max_period_s: Maximum seconds between optimisations; lower than tf.data's only where a test compresses time.
        """
        self._algorithm, self._max_period_s = algorithm, max_period_s

    def start(self, space: Space, observation: Observation) -> Proposal:
        """Fix the budgets and start with parallelism min(16, pool) per stage."""
        self._space = space
        self._pool = max(1, int(observation.cpus))
        free = observation.memory_limit_bytes - observation.memory_used_bytes
        self._ram_budget = RAM_BUDGET_SHARE * free
        self._means = LifelongMeans()
        self._period_s, self._next_s = MIN_PERIOD_S, observation.time_s + MIN_PERIOD_S
        self._prefetch_was_full = False
        first = min(INITIAL_PARALLELISM, self._pool)
        values = {name: first for stage, _ in space.worker_knobs() if (name := workers_of(stage))}
        values |= {THREADS: self._pool, PREFETCH: 1}
        return Proposal(space.clip(values), f"initial parallelism {first}, a pool of {self._pool} threads")

    def decide(self, observation: Observation) -> Proposal:
        """Run the optimiser if it is due, and always the prefetch tuner."""
        self._means.add(observation)
        values = self._prefetch(observation)
        if observation.time_s < self._next_s or not self._means.complete:
            due = self._next_s - observation.time_s
            why = (
                "nothing has been measured"
                if not self._means.complete
                else f"the next optimisation is due in {due:.2f} s"
            )
            return Proposal(values, "prefetch found empty: doubled" if values else why)
        # Several short periods may have passed since the last call.
        while self._next_s <= observation.time_s:
            self._period_s = min(2 * self._period_s, self._max_period_s)
            self._next_s += self._period_s
        parallelism, why = self._climb(self._nodes(observation), observation.values.get(PREFETCH, 1))
        values |= {workers_of(stage): int(k) for stage, k in parallelism.items()}
        return Proposal(self._space.clip(values), f"{self._algorithm}: {why}; next in {self._period_s:.2f} s")

    def _prefetch(self, observation: Observation) -> dict[str, int]:
        if PREFETCH not in self._space or not observation.stages:
            return {}
        limit, depth = observation.values.get(PREFETCH, 1), observation.stages[-1].queue_depth
        if depth >= limit:
            self._prefetch_was_full = True
        elif depth == 0 and self._prefetch_was_full:
            self._prefetch_was_full = False
            return self._space.clip({PREFETCH: 2 * limit})
        return {}

    def _nodes(self, observation: Observation) -> list[ModelNode]:
        nodes, before = [], None
        for name, means in self._means.stages.items():
            ratio = before / means.services if before else 1.0
            most = min(max_workers(self._space, name), self._pool)
            nodes.append(ModelNode(name, means.wall_per_service_s, ratio, means.bytes_per_service, most))
            before = means.services
        return nodes

    def _climb(self, nodes: Sequence[ModelNode], prefetch: int) -> tuple[dict[str, float], str]:
        processing, ratio = 0.0, 1.0
        for node in reversed(nodes):
            processing += ratio * node.self_s
            ratio *= node.ratio
        parallelism = {node.name: 1.0 for node in nodes if node.parallel}
        most = {node.name: node.max_parallelism for node in nodes}
        while True:
            now = output_time(nodes, parallelism)
            buffered = sum(parallelism.get(node.name, 0.0) * node.element_bytes for node in nodes)
            buffered += prefetch * nodes[-1].element_bytes
            if all(k >= most[name] for name, k in parallelism.items()):
                return parallelism, "all knobs at their maximum"
            if self._algorithm == "hill_climb" and now < processing / self._pool:
                return parallelism, f"modelled output time {now * 1e3:.3g} ms is within the CPU budget"
            if buffered > self._ram_budget:
                return parallelism, "modelled buffers exceed the RAM budget"
            best, best_delta = None, -1e-9  # -1.0 in its nanoseconds
            for name, k in parallelism.items():
                if k < most[name]:
                    delta = now - output_time(nodes, {**parallelism, name: k + 1})
                    if delta > best_delta and math.isfinite(delta):
                        best, best_delta = name, delta
            if best is None:
                return parallelism, "no knob lowers the modelled output time"
            parallelism[best] += 1


def hill_climbing() -> Autotune:
    """AUTOTUNE with tf.data's hill climbing."""
    return Autotune("hill_climb")


def adaptive() -> Relaunched:
    """AUTOTUNE in a job that is restarted at each resize."""
    return Relaunched(Autotune)
