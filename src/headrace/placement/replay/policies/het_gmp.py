"""`HETGMP`: samples and rows are partitioned offline, and rows live at trainers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.placement.replay.eviction import highest
from headrace.placement.replay.movement import SHARD, Action, Drop, Kind, Move, Plan
from headrace.placement.replay.policy import Knowledge, PlacementPolicy, Setting
from headrace.placement.replay.reordering import concatenate_samples, reorder_samples
from headrace.placement.replay.stream import Int8s, Int32s, Int64s, RowStream

__all__ = ["HETGMP"]

Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NUM_SWEEPS = 5
SLACK = 1.05
"""Samples and rows of a partition, relative to equal shares, that sweeps may reach. Samples are equal in the end."""
MIRROR_RATIO = 0.01
"""Share of its remote rows that a trainer mirrors."""
SEED = 0


class HETGMP(PlacementPolicy):
    """HET-GMP (SIGMOD'22; rules from `partition.cc` of Hsword/SIGMOD2022_HET-GMP), with bound 0.

    - The graph of samples and rows is partitioned before training: from a random start, sweeps over the samples move
      each to the partition with room and the fewest expected remote reads, and sweeps over the rows move each to the
      partition that reads it most. A row with n uses among N samples of a partition, in batches of B, is read
      `(1 - (1 - n/N)^B) N/B` times.
    - A trainer trains the samples of its partition, and its memory holds the partition's rows: reading these costs
      nothing. It reads the others from their trainers, and sends gradients there.
    - A trainer mirrors one percent of its remote rows, those with the highest `s(n)² (1/degree + 1/n)`. With bound 0 a
      mirrored row is read again if another trainer has updated it.

    All links cost the same here. Batches consist of other samples than the log's, and the time of partitioning is not
    counted.
    """

    name = "het_gmp"
    keeps_batches = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._homes: Int8s = np.zeros(setting.num_rows, dtype=np.int8)
        self._is_mirror: Bools = np.zeros((setting.num_trainers, setting.num_rows), dtype=np.bool_)
        self._is_fresh: Bools = np.zeros_like(self._is_mirror)
        self._read: list[Int32s] = [np.zeros(0, dtype=np.int32)] * setting.num_trainers

    def prepare(self, stream: RowStream) -> RowStream:
        starts, values = concatenate_samples(stream)
        num_trainers = self.setting.num_trainers
        num_samples = len(starts) - 1
        parts = np.random.default_rng(SEED).permutation(num_samples).astype(np.int64) % num_trainers
        share, batch_size = num_samples // num_trainers, stream.num_samples // num_trainers
        uses = np.minimum(np.arange(num_samples + 1), share) / share
        reads: Float64s = (1 - (1 - uses) ** batch_size) * share / batch_size
        counts = np.zeros((stream.num_rows, num_trainers), dtype=np.int32)
        np.add.at(counts, (values, np.repeat(parts, np.diff(starts))), 1)
        for _ in range(NUM_SWEEPS):
            self._homes = self._sweep_rows(counts)
            _sweep_samples(starts, values, self._homes, reads, counts, parts, max(share + 1, int(share * SLACK)))
        _even_out(starts, values, self._homes, reads, counts, parts, share)
        self._homes = self._sweep_rows(counts)
        by_part = np.argsort(parts, kind="stable").reshape(num_trainers, -1, batch_size)
        reordered = reorder_samples(stream, by_part.transpose(1, 0, 2).ravel())
        capacity = self.setting.capacity or stream.num_rows
        self._choose_mirrors(counts, reads, capacity - max(len(batch.rows) for batch in reordered.batches))
        return reordered

    def _sweep_rows(self, counts: Int32s) -> Int8s:
        """The partition with room that reads each row most, frequent rows first."""
        homes = np.zeros(len(counts), dtype=np.int8)
        order = np.argsort(-counts.sum(axis=1), kind="stable")
        _place_rows(order, counts, homes, int(len(counts) / self.setting.num_trainers * SLACK) + 1)
        return homes

    def homes(self) -> Int8s:
        return self._homes

    def plan(self, known: Knowledge) -> Plan:
        now = known.now
        actions = self._send()
        for trainer in self.setting.trainers:
            rows = now.of(trainer)
            read = rows[~self._is_fresh[trainer, rows]]
            actions.append(Move(Kind.READ, SHARD, trainer, read))
            self._read[trainer] = rows
            updated = now.rows[now.readers & ~np.int64(1 << trainer) != 0]
            self._is_fresh[trainer, rows] = self._is_mirror[trainer, rows]
            self._is_fresh[trainer, updated] = False
        return Plan(actions)

    def finish(self) -> Sequence[Action]:
        return self._send()

    def _send(self) -> list[Action]:
        """Gradients of the previous step go to the rows' trainers; copies that are no mirrors are dropped."""
        actions: list[Action] = []
        for trainer, rows in enumerate(self._read):
            actions.append(Move(Kind.GRADIENT, trainer, SHARD, rows))
            actions.append(Drop(trainer, rows[~self._is_mirror[trainer, rows]]))
        return actions

    def _choose_mirrors(self, counts: Int32s, reads: Float64s, room: int) -> None:
        degrees = np.maximum(counts.sum(axis=1), 1)
        for trainer in self.setting.trainers:
            remote = np.flatnonzero((self._homes != trainer) & (counts[:, trainer] > 0)).astype(np.int32)
            local = counts[remote, trainer]
            gains = reads[local] ** 2 * (1 / degrees[remote] + 1 / local)
            order = np.argsort(np.argsort(gains, kind="stable"), kind="stable")
            num_mirrors = min(int(MIRROR_RATIO * len(remote)), max(0, room))
            self._is_mirror[trainer, highest(remote, order, num_mirrors)] = True


@kernel()
def _place_rows(order: Int64s, counts: Int32s, homes: Int8s, most: int) -> None:
    num_parts = counts.shape[1]
    loads = np.zeros(num_parts, dtype=np.int64)
    for row in order:
        best = -1
        for part in range(num_parts):
            if loads[part] < most and (
                best < 0
                or counts[row, part] > counts[row, best]
                or (counts[row, part] == counts[row, best] and loads[part] < loads[best])
            ):
                best = part
        homes[row] = best
        loads[best] += 1


@kernel()
def _extra_reads(
    sample: int, part: int, starts: Int64s, values: Int32s, homes: Int8s, reads: Float64s, counts: Int32s, own: int
) -> float:
    """Expected remote reads that a sample adds to a partition; `own` is 1 if it is counted there already."""
    total = 0.0
    for place in range(starts[sample], starts[sample + 1]):
        row = values[place]
        if homes[row] != part:
            n = counts[row, part] - own
            total += reads[n + 1] - reads[n]
    return total


@kernel()
def _move(sample: int, source: int, target: int, starts: Int64s, values: Int32s, counts: Int32s) -> None:
    for place in range(starts[sample], starts[sample + 1]):
        counts[values[place], source] -= 1
        counts[values[place], target] += 1


@kernel()
def _sweep_samples(
    starts: Int64s, values: Int32s, homes: Int8s, reads: Float64s, counts: Int32s, parts: Int64s, most: int
) -> None:
    """Move each sample to the partition where it adds the fewest remote reads, among those with room."""
    num_parts = counts.shape[1]
    loads = np.bincount(parts, minlength=num_parts)
    for sample in range(len(parts)):
        part = parts[sample]
        best, least = part, _extra_reads(sample, part, starts, values, homes, reads, counts, 1)
        for other in range(num_parts):
            if other != part and loads[other] < most:
                extra = _extra_reads(sample, other, starts, values, homes, reads, counts, 0)
                if extra < least:
                    best, least = other, extra
        if best != part:
            _move(sample, part, best, starts, values, counts)
            loads[part] -= 1
            loads[best] += 1
            parts[sample] = best


@kernel()
def _even_out(
    starts: Int64s, values: Int32s, homes: Int8s, reads: Float64s, counts: Int32s, parts: Int64s, share: int
) -> None:
    """Give every partition an equal share: those above it lose the samples that cost least elsewhere."""
    num_parts = counts.shape[1]
    loads = np.bincount(parts, minlength=num_parts)
    for source in range(num_parts):
        if loads[source] <= share:
            continue
        members = np.flatnonzero(parts == source)
        costs = np.empty(len(members), dtype=np.float64)
        for i in range(len(members)):
            costs[i] = 1e300
            for target in range(num_parts):
                if loads[target] < share:
                    cost = _extra_reads(members[i], target, starts, values, homes, reads, counts, 0)
                    costs[i] = min(costs[i], cost)
            costs[i] -= _extra_reads(members[i], source, starts, values, homes, reads, counts, 1)
        for i in np.argsort(costs)[: loads[source] - share]:
            best, least = -1, 1e300
            for target in range(num_parts):
                if loads[target] < share:
                    cost = _extra_reads(members[i], target, starts, values, homes, reads, counts, 0)
                    if cost < least:
                        best, least = target, cost
            _move(members[i], source, best, starts, values, counts)
            loads[source] -= 1
            loads[best] += 1
            parts[members[i]] = best
