"""`ShardedTables`: manages the shards of a run's embeddings consistently with its checkpoints."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from headrace.embeddings import KeyLayout, embedding_bags
from headrace.embeddings.changes.segments import SegmentEntry
from headrace.embeddings.shards.group import ShardGroup
from headrace.embeddings.shards.security import is_loopback, split_address
from headrace.embeddings.shards.shard import saved_partition_count
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.tables.budgeted_table_group import TableRows
from headrace.embeddings.tables.lifecycle.rebalancing import Rebalancing
from headrace.embeddings.tables.make_group import check_has_partitions
from headrace.embeddings.tables.seen_keys import SeenKeys
from headrace.errors import ConfigError
from headrace.placement.joining import MAX_TRAINERS
from headrace.placement.links import is_worth_keeping, seconds_per_row
from headrace.placement.moves import Moves
from headrace.placement.peers import Peers
from headrace.placement.resident_store import ResidentStore
from headrace.placement.samples.planning import KEY_BYTES, SamplePlanner, row_prices
from headrace.placement.samples.sample_exchange import SampleExchange
from headrace.training.commits import table_group_name
from headrace.training.job import JobConfig
from headrace.training.peers import GlooConnections
from headrace.training.process_group import ProcessGroup
from headrace.training.run_folder import RunFolder

__all__ = ["PlacementChoice", "ShardedTables", "choose_placement", "exchange_of", "run_name", "settle_placement"]

Int64s = npt.NDArray[np.int64]

SAMPLES_SHARE = 16
"""Part of the memory of resident rows that is for placing samples: one in 16."""

MIN_SEEN_BYTES, SEEN_ID_BYTES, SEEN_SHARE = 1 << 16, 8, 16
"""Part of the memory of resident rows that is for the set of keys known to the shards: one in 16."""


class ShardedTables:
    """The sharded embeddings of a run. All trainers call `end_window` and `return_rows`; trainer 0 calls `save`.

    Args:
        job: The job, which has the addresses of the shards.
        model: The model whose embeddings are in the shards.
        process_group: The trainers.

    Attributes:
        placement: Where rows are while they are trained.
        samples: Exchanges samples with other trainers, if the job says so; None before `open`.

    Raises:
        ConfigError: The job has a policy of rows that cannot divide them between shards, or traffic of unknown tables.
    """

    def __init__(self, job: JobConfig, model: nn.Module, process_group: ProcessGroup) -> None:
        self._job = job
        self._process_group = process_group
        self._bags = {table_group_name(name): bags for name, bags in embedding_bags(model).items()}
        for bags in self._bags.values():
            if bags.budget is not None:
                check_has_partitions(bags.budget.retention)
        self._group: ShardGroup | None = None
        self._resident: dict[str, ResidentStore] = {}
        self._connections: GlooConnections | None = None
        self._moves = Moves()
        self.samples: SampleExchange | None = None
        self.placement = choose_placement(job, num_trainers=process_group.size)
        names = {table.name for bags in self._bags.values() for table in bags.tables}
        unknown = [name for name in job.cluster.traffic if name not in names]
        if unknown:
            raise ConfigError(f"cluster.traffic.{unknown[0]}: unknown, expected one of: {', '.join(sorted(names))}")

    def open(self, *, step: int, checkpoint: int | None) -> None:
        """Start a session from a checkpoint or from initial values; from then on embeddings are in the shards."""
        seed, config = self._job.training.seed, self._job.cluster
        table_groups = {name: TableGroupSpec(bags.tables, seed, bags.budget) for name, bags in self._bags.items()}
        traffic = {
            name: {table.name: config.traffic.get(table.name, 0.0) for table in bags.tables}
            for name, bags in self._bags.items()
        }
        self._group = ShardGroup(
            config.shards,
            table_groups,
            trainer=self._process_group.rank,
            num_trainers=self._process_group.size,
            session=self._process_group.share(uuid.uuid4().hex),
            run=run_name(self._job.run),
            step=step,
            checkpoint=checkpoint,
            traffic=traffic if config.traffic else None,
            partitions={} if self._job.embeddings.budget is None else self._partitions(checkpoint),
            options=config.options(),
        )
        if self.placement.keeps_rows and self._job.placement.policy == "auto":
            self.placement = self._settle(self._group)
        self._resident = self._keep_rows(self._group) if self.placement.keeps_rows else {}
        self._moves = self.moves() or Moves()
        for name, bags in self._bags.items():
            bags.use_store(self._resident.get(name) or self._group.store(name))

    def _partitions(self, checkpoint: int | None) -> dict[str, int]:
        """Number of partitions of each table group: the job's, or that of the checkpoint; at least one per shard."""
        asked, num_shards = self._job.embeddings.partitions, len(self._job.cluster.shards)
        if asked is not None and asked < num_shards:
            raise ConfigError(
                f"embeddings.partitions: given {asked} for {num_shards} shards, expected at least as many"
            )
        folder = RunFolder(self._job.run).checkpoints / f"{checkpoint or 0:08d}"
        saved = {name: 0 if checkpoint is None else saved_partition_count(folder, name) for name in self._bags}
        return {name: asked or max(count, num_shards) for name, count in saved.items()}

    def rows_by_table(self) -> dict[str, TableRows]:
        """The rows of each table under a budget; empty without one."""
        return {} if self._group is None or self._job.embeddings.budget is None else self._group.rows_by_table()

    @property
    def rebalancings(self) -> dict[str, Rebalancing]:
        """Trainer 0's decisions on budgets at the end of the last window, by table group."""
        return {} if self._group is None else self._group.rebalancings

    def end_window(self, step: int) -> None:
        """Evict rows and divide budgets anew, after all trainers have made the window's last step."""
        assert self._group is not None
        self.return_rows()
        if self._process_group.rank == 0:
            self._group.end_window(step)
        for store in self._resident.values():
            store.end_window()
        if self._resident:
            self._process_group.share(None)  # no trainer may put rows of the next window before shards have ended this

    def return_rows(self) -> None:
        """Return the changed rows that this trainer keeps, before a checkpoint."""
        for store in self._resident.values():
            store.flush()

    def save(self, folder: Path, step: int) -> None:
        """Make each shard write its part into a checkpoint's temporary folder, once all trainers have returned rows."""
        assert self._group is not None
        self._group.save(folder.name, step)

    @property
    def group(self) -> ShardGroup:
        """The shards, while they are open."""
        assert self._group is not None
        return self._group

    @property
    def divisions(self) -> dict[str, Any]:
        """See `ShardGroup.divisions`."""
        assert self._group is not None
        return self._group.divisions

    @property
    def num_parts(self) -> dict[str, int]:
        """See `ShardGroup.num_parts`."""
        assert self._group is not None
        return self._group.num_parts

    def record_changes(self) -> None:
        """See `ShardGroup.record_changes`."""
        assert self._group is not None
        self._group.record_changes()

    def take_deltas(self, number: int, step: int, *, saved: int | None, everything: Sequence[str]) -> None:
        """Make the shards copy what changed, once all trainers have returned rows; see `ShardGroup.take_deltas`."""
        assert self._group is not None
        self._group.take_deltas(number, step, saved=saved, everything=everything)

    def write_deltas(
        self, folder: Path, names: Mapping[str, Sequence[str]], *, as_int8: bool
    ) -> dict[str, list[SegmentEntry]]:
        """Make the shards write their copies, see `ShardGroup.write_deltas`."""
        assert self._group is not None
        return self._group.write_deltas(folder.name, names, as_int8=as_int8)

    @property
    def publications(self) -> PublishedShards:
        """The shards as the writer of publications sees them."""
        return PublishedShards(self)

    def take_moves(self) -> Moves | None:
        """What moved since the last call, if this trainer keeps rows; otherwise None."""
        if (moves := self.moves()) is None:
            return None
        before, self._moves = self._moves, moves
        return moves - before

    def moves(self) -> Moves | None:
        """What has moved so far, if this trainer keeps rows; otherwise None."""
        if not self._resident:
            return None
        return Moves.of(self._resident.values(), None if self.samples is None else self.samples.moved)

    @property
    def num_kept_rows(self) -> int:
        """Largest number of rows that this trainer has kept."""
        return sum(store.counters.peak_rows for store in self._resident.values())

    def _settle(self, group: ShardGroup) -> PlacementChoice:
        """Settle a choice of `auto` by what trainer 0 measures while the others wait, so that all choose the same."""
        row_s = max(map(seconds_per_row, group.stores.values())) if self._process_group.rank == 0 else None
        return settle_placement(self.placement, self._process_group.share(row_s), num_trainers=self._process_group.size)

    def _keep_rows(self, group: ShardGroup) -> dict[str, ResidentStore]:
        placement, count = self._job.placement, len(group.table_groups)
        memory_bytes, places_samples = placement.memory_bytes, False
        if self._process_group.size > 1:
            self._connections = GlooConnections(self._job.cluster.wait_s)
            places_samples = placement.samples == "by_cost"
        samples_bytes = memory_bytes // SAMPLES_SHARE if places_samples else 0
        memory_bytes -= samples_bytes
        stores = {}
        for number, (name, state) in enumerate(group.table_groups.items()):
            remote, seen_bytes = group.store(name), max(MIN_SEEN_BYTES, memory_bytes // SEEN_SHARE)
            if state.num_ids:  # the shards send it
                seen_bytes = min(seen_bytes, MIN_SEEN_BYTES + SEEN_ID_BYTES * state.num_ids)
            stores[name] = ResidentStore(
                remote,
                memory_bytes=memory_bytes,
                version=state.version,
                window_starts=state.window_starts,
                seen=remote.seen_keys(seen_bytes) if state.num_ids else SeenKeys(seen_bytes),
                peers=self._connections and self._connections.peers(number, count),
                keeps="recent" if placement.window else "frequent",
                tells_keys=not places_samples,
                verify=placement.verify,
            )
        if places_samples and self._connections is not None:
            peers = self._connections.peers(0, count)
            layouts = {name: bags.key_layout for name, bags in self._bags.items()}
            self.samples = exchange_of(stores, layouts, peers, memory_bytes=samples_bytes * count)
        return stores

    def close(self, *, wait: bool) -> None:
        """Close the connections."""
        if self._connections is not None:
            self._connections.close()
            self._connections = None
        if self._group is not None:
            self._group.close(wait=wait)
            self._group = None


class PublishedShards:
    """The shards of a run for publications, see `RowsInShards`. Trainer 0 calls it, once all trainers have returned
    rows."""

    def __init__(self, tables: ShardedTables) -> None:
        self._tables = tables

    @property
    def divisions(self) -> dict[str, Any]:
        """See `ShardGroup.divisions`."""
        return self._tables.divisions

    @property
    def num_parts(self) -> dict[str, int]:
        """See `ShardGroup.num_parts`."""
        return self._tables.num_parts

    def record_changes(self, number: int) -> None:
        """See `ShardGroup.record_changes`."""
        self._tables.group.record_changes("publications", number)

    def take_deltas(self, number: int, step: int, *, saved: int | None, everything: Sequence[str]) -> None:
        """See `ShardGroup.take_deltas`."""
        self._tables.group.take_deltas(number, step, saved=saved, everything=everything, consumer="publications")

    def write_deltas(
        self, folder: Path, names: Mapping[str, Sequence[str]], *, as_int8: bool
    ) -> dict[str, list[SegmentEntry]]:
        """See `ShardGroup.write_deltas`."""
        return self._tables.group.write_deltas(folder.name, names, as_int8=as_int8, consumer="publications")


def exchange_of(
    stores: Mapping[str, ResidentStore], layouts: Mapping[str, KeyLayout], peers: Peers, *, memory_bytes: int
) -> SampleExchange:
    """The exchange of samples for some stores by name, whose rows are priced together where layouts are equal."""
    prices: dict[KeyLayout, Int64s] = {}
    for name, store in stores.items():
        price = row_prices(peers.size, *store.prices)
        known = prices.get(layouts[name])
        prices[layouts[name]] = price if known is None else known + price
    for_keys = memory_bytes // 2
    planner = SamplePlanner(list(prices.values()), for_keys // (KEY_BYTES * len(prices)))
    return SampleExchange(peers, list(prices), planner, memory_bytes=memory_bytes - for_keys)


def choose_placement(job: JobConfig, *, num_trainers: int) -> PlacementChoice:
    """Choose where the rows of a job's shards are while they are trained.

    Raises:
        ConfigError: The job asks for a placement that is not possible; the text has the reason.
    """
    placement, cluster, scheduler = job.placement, job.cluster, job.scheduler
    is_local = all(is_loopback(split_address(shard)[0]) for shard in cluster.shards)
    obstacles = {
        "rows are in this process": not cluster.shards,
        "embeddings.budget moves rows of ids that are in no announced batch": job.embeddings.budget is not None,
        f"there are more than {MAX_TRAINERS} trainers": num_trainers > MAX_TRAINERS,
        "placement.window is 0, and there are several trainers": num_trainers > 1 and not placement.window,
        "trainers would exchange rows between machines without encryption, see placement.trusted_network": (
            num_trainers > 1 and not is_local and not placement.trusted_network
        ),
        f"cluster.staleness is {cluster.staleness}": cluster.staleness != 0,
        f"cluster.rows is {cluster.rows}": cluster.rows != "fp32",
        f"cluster.gradients is {cluster.gradients}": cluster.gradients != "fp32",
        f"scheduler.policy is {scheduler.policy}": scheduler.policy != "auto",
        f"training.device is {job.training.device}": job.training.device != "cpu",
    }
    found = [obstacle for obstacle, is_there in obstacles.items() if is_there]
    if placement.policy == "lookahead" and found and cluster.shards:
        raise ConfigError(f"placement.policy: given lookahead, expected none, because {found[0]}")
    if placement.policy == "none" or found:
        return PlacementChoice(False, f"none: {found[0] if found else 'as the job says'}")
    keeper = "the only trainer" if num_trainers == 1 else "each trainer"
    return PlacementChoice(True, f"lookahead: {keeper} keeps up to {placement.memory} of rows per table group")


def settle_placement(choice: PlacementChoice, row_s: float, *, num_trainers: int) -> PlacementChoice:
    """Settle a choice of `auto` to keep rows by the time of reading a row from the shards, in seconds."""
    reads = f"reading a row from the shards takes {1e6 * row_s:.2f} us"
    if is_worth_keeping(row_s, num_trainers=num_trainers):
        return PlacementChoice(True, f"{choice.reason}; {reads}")
    keeping = "keeping it in the trainer" if num_trainers == 1 else f"exchanging it between {num_trainers} trainers"
    return PlacementChoice(False, f"none: {reads}, so that {keeping} would cost more than it saves")


@dataclass(frozen=True)
class PlacementChoice:
    """Where the rows of shards are while they are trained.

    Attributes:
        keeps_rows: Whether the trainer keeps them.
        reason: The policy, and the reason for it.
    """

    keeps_rows: bool
    reason: str


def run_name(run: str) -> str:
    """The name by which shards identify a run: its folder's name and a hash of its path."""
    return f"{Path(run).name}-{hashlib.sha256(str(Path(run).resolve()).encode()).hexdigest()[:8]}"
