"""`ShardGroup`: a trainer's connection to all shards, with their session, stores and checkpoints."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

from headrace.embeddings.changes.segments import SegmentEntry
from headrace.embeddings.shards.budgets import decide, unpack_demands
from headrace.embeddings.shards.client import ShardClient
from headrace.embeddings.shards.plan import PlanKind, make_plan
from headrace.embeddings.shards.requests import Consumer, OpenRequest
from headrace.embeddings.shards.security import ClientSecurity
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.stores.remote import RemoteStore, StoreOptions
from headrace.embeddings.tables.budgeted_table_group import TableRows
from headrace.embeddings.tables.lifecycle.rebalancing import Rebalancing
from headrace.embeddings.tables.lifecycle.row_retention import Demand
from headrace.errors import ConfigError, ShardLost

__all__ = ["GroupOptions", "ShardGroup", "TableGroupState", "wait_for_shards"]

POLL_S = 0.2  # interval of checks whether a lost shard is back


@dataclass(frozen=True)
class GroupOptions:
    """Options of a `ShardGroup`.

    Attributes:
        plan: Kind of sharding plan, row-wise or table-wise, see `make_plan`.
        store: Options of the table groups' stores.
        security: Token and certificate authority.
        timeout_s: Maximum time for one answer of a shard, including waiting for other trainers.
        retry_s: Maximum time for retries after a connection breaks, before the shard counts as lost.
    """

    plan: PlanKind = "row_wise"
    store: StoreOptions = field(default_factory=StoreOptions)
    security: ClientSecurity = field(default_factory=ClientSecurity)
    timeout_s: float = 150.0
    retry_s: float = 2.0


@dataclass(frozen=True)
class TableGroupState:
    """A table group at the start of a session.

    Attributes:
        version: Its version.
        window_starts: Start versions of its recent windows.
        num_ids: Number of ids in all shards that have a row or wait for one.
    """

    version: int
    window_starts: tuple[int, ...]
    num_ids: int


class ShardGroup:
    """A session with all shards. A context manager: leaving it closes the connections; the shards keep serving.

    Leaving it without an error waits for pending updates.

    In your own training loop, with the rows of `bags` in two shards::

        table_groups = {"embeddings": TableGroupSpec(bags.tables, seed)}
        with ShardGroup(["127.0.0.1:9001", "127.0.0.1:9002"], table_groups) as group:
            bags.use_store(group.store("embeddings"))

    Args:
        addresses: Address "host:port" of each shard; their order is part of the sharding plan.
        table_groups: Specification of each table group by name.
        trainer: Number of this trainer.
        num_trainers: Trainers that share the session.
        session: Session name, equal for all trainers and different for every start; optional with a single trainer.
        run: Identifier of the run; shards that currently serve another run refuse.
        step: Number of the last applied step.
        checkpoint: Checkpoint to start from; None to start from initial values.
        traffic: Traffic by table group and table, see `make_plan`.
        partitions: Number of partitions of table groups with a budget, by name; None for one per shard.
        options: Options, see `GroupOptions`.

    Raises:
        ConfigError: Arguments are inconsistent.
        ShardError: A shard refused the request.
        ShardLost: A shard cannot be reached.

    Attributes:
        table_groups: State of each table group when the session was opened.
        rebalancings: The decisions on budgets at the end of the last window, by table group.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        table_groups: Mapping[str, TableGroupSpec],
        *,
        trainer: int = 0,
        num_trainers: int = 1,
        session: str | None = None,
        run: str = "default",
        step: int = 0,
        checkpoint: int | None = None,
        traffic: Mapping[str, Mapping[str, float]] | None = None,
        partitions: Mapping[str, int] | None = None,
        options: GroupOptions | None = None,
    ) -> None:
        options = options or GroupOptions()
        if not addresses or len(set(addresses)) != len(addresses):
            raise ConfigError(f"shards: given {list(addresses)}, expected at least one address, without duplicates")
        if session is None and num_trainers > 1:
            raise ConfigError("shards: several trainers need the same session name, given none")
        self.session = session or uuid.uuid4().hex
        self.num_trainers = num_trainers
        self._windows = 0
        self._client = uuid.uuid4().hex  # identifies this process to shards
        security = options.security
        self._clients = [
            ShardClient(n, address, security=security, timeout_s=options.timeout_s, retry_s=options.retry_s)
            for n, address in enumerate(addresses)
        ]
        self._pool = ThreadPoolExecutor(len(addresses), "shards")
        self._stores: dict[str, RemoteStore] = {}
        plans = {
            name: (
                spec,
                make_plan(
                    spec.tables,
                    len(addresses),
                    kind=options.plan,
                    traffic=(traffic or {}).get(name),
                    num_partitions=(partitions or {}).get(name),
                ),
            )
            for name, spec in table_groups.items()
        }
        self._plans = plans
        self.rebalancings: dict[str, Rebalancing] = {}
        try:
            requests = [
                OpenRequest(
                    run=run,
                    session=self.session,
                    shard=shard,
                    num_trainers=num_trainers,
                    table_groups=plans,
                    step=step,
                    checkpoint=checkpoint,
                    merged=options.store.staleness is not None,
                    trainer=trainer,
                    client=self._client,
                ).to_dict()
                for shard in range(len(addresses))
            ]
            opened = self._each(lambda shard, client: client.act("open", requests[shard]))
        except BaseException:
            self.close()
            raise
        self.table_groups: dict[str, TableGroupState] = {
            name: TableGroupState(
                version=opened[0]["table_groups"][name]["version"],
                window_starts=tuple(opened[0]["table_groups"][name]["window_starts"]),
                num_ids=sum(answer["table_groups"][name]["rows"] for answer in opened),
            )
            for name in plans
        }
        for name, (spec, plan) in plans.items():
            self._stores[name] = RemoteStore(
                name,
                self._clients,
                plan,
                spec,
                session=self.session,
                trainer=trainer,
                client=self._client,
                step=step,
                options=options.store,
            )

    def store(self, table_group: str) -> RemoteStore:
        """The store of a table group."""
        return self._stores[table_group]

    @property
    def stores(self) -> dict[str, RemoteStore]:
        """All stores by table group."""
        return dict(self._stores)

    def end_window(self, step: int) -> int:
        """End a window in all shards, which evicts ids by retention settings; called by one trainer.

        Args:
            step: Last step of the window.

        Returns:
            Number of rows freed.
        """
        self._finish_evicting()
        self._windows += 1
        request = {"session": self.session, "window": self._windows, "step": step, "client": self._client}
        answers = self._each(lambda _, client: client.act("end_window", request))
        freed: int = sum(answer["freed"] for answer in answers)
        return freed + self._rebalance(request, answers)

    def _rebalance(self, request: dict[str, Any], answers: Sequence[dict[str, Any]]) -> int:
        """Divide budgets anew after the end of a window, as the shards' answers suggest; returns the rows freed."""
        self.rebalancings, freed = {}, 0
        for name in answers[0]["demands"]:
            demands: dict[int, tuple[int, int, Demand]] = {}
            for answer in answers:
                demands |= unpack_demands(answer["demands"][name])
            self.rebalancings[name], rounds = decide(demands)
            for budgets in rounds:
                freed += self._send_budgets(request, name, budgets)
        return freed

    def _send_budgets(self, request: dict[str, Any], table_group: str, budgets: Mapping[int, int]) -> int:
        plan = self._plans[table_group][1]
        of_shard = [
            {str(number): budgets[number] for number in plan.partitions_in(shard) if number in budgets}
            for shard in range(plan.num_shards)
        ]
        answers = self._each(
            lambda shard, client: client.act("end_window", request | {"budgets": {table_group: of_shard[shard]}})
        )
        freed: int = sum(answer["freed"] for answer in answers)
        return freed

    def save(self, folder: str, step: int) -> list[str]:
        """Make every shard write its part into a checkpoint's temporary folder; called by one trainer.

        Args:
            folder: Name of this folder within the checkpoint folder, which shards can access too.
            step: Step of the checkpoint; no trainer may request a later step meanwhile.

        Returns:
            Paths of the files written, relative to the folder.
        """
        self._finish_evicting()
        request = {"session": self.session, "folder": folder, "step": step, "client": self._client}
        answers = self._each(lambda _, client: client.act("save", request, timeout_s=3600))
        return [file for answer in answers for file in answer["files"]]

    @property
    def divisions(self) -> dict[str, Any]:
        """How the keys of each table group are divided into parts that are saved apart, as JSON-able values.

        Under a budget these are partitions, wherever they are.
        """
        return {
            name: plan.to_dict()
            if spec.budget is None
            else {"partition_count": plan.partition_count, "owners": list(plan.owners)}
            for name, (spec, plan) in self._plans.items()
        }

    @property
    def num_parts(self) -> dict[str, int]:
        """Number of parts of each table group that are saved apart."""
        return {
            name: plan.num_shards if spec.budget is None else plan.partition_count
            for name, (spec, plan) in self._plans.items()
        }

    def record_changes(self, consumer: Consumer = "checkpoints", number: int | None = None) -> None:
        """Make every shard record changes, before the first step; called by one trainer.

        Args:
            consumer: Who needs them.
            number: The publication that has the state of now; None for checkpoints.
        """
        request = {"session": self.session, "consumer": consumer, "number": number, "client": self._client}
        self._each(lambda _, client: client.act("record_changes", request))

    def take_deltas(
        self,
        number: int,
        step: int,
        *,
        saved: int | None,
        everything: Sequence[str],
        consumer: Consumer = "checkpoints",
    ) -> None:
        """Make every shard copy what changed since a checkpoint or a publication; called by one trainer.

        Args:
            number: Number of the one that the copies are for.
            step: Its step; no trainer may request a later step meanwhile.
            saved: The complete one that it continues; None to copy everything.
            everything: Table groups of which everything is copied in any case.
            consumer: What the copies are for.
        """
        self._finish_evicting()
        request = {"session": self.session, "number": number, "step": step, "client": self._client}
        request |= {"saved": saved, "everything": list(everything), "consumer": consumer}
        self._each(lambda _, client: client.act("take_deltas", request, timeout_s=3600))

    def write_deltas(
        self,
        folder: str,
        names: Mapping[str, Sequence[str]],
        *,
        as_int8: bool,
        consumer: Consumer = "checkpoints",
    ) -> dict[str, list[SegmentEntry]]:
        """Make every shard write its copies as segments; may be called from another thread than all other methods.

        Args:
            folder: Name of the temporary folder of the checkpoint or publication.
            names: For each table group, the name of the segment of each part.
            as_int8: Whether weights are stored as int8.
            consumer: What the copies are for.

        Returns:
            For each table group, the segment of each part.
        """

        def parts_of(shard: int, name: str) -> Sequence[int]:
            spec, plan = self._plans[name]
            return [shard] if spec.budget is None else plan.partitions_in(shard)

        def write(shard: int, client: ShardClient) -> Any:
            mine = {name: [of_parts[part] for part in parts_of(shard, name)] for name, of_parts in names.items()}
            request = {"session": self.session, "folder": folder, "names": mine, "as_int8": as_int8}
            request |= {"consumer": consumer, "client": self._client}
            return client.act("write_deltas", request, timeout_s=3600)

        found: dict[str, dict[int, SegmentEntry]] = {name: {} for name in names}
        for shard, answer in enumerate(self._each(write)):
            for name, entries in answer["segments"].items():
                of_parts = zip(parts_of(shard, name), entries, strict=True)
                found[name] |= {part: SegmentEntry(**entry) for part, entry in of_parts}
        return {name: [entries[part] for part in sorted(entries)] for name, entries in found.items()}

    def status(self) -> list[dict[str, Any]]:
        """Status of each shard."""
        return self._each(lambda _, client: client.act("status", {}))

    def rows_by_table(self) -> dict[str, TableRows]:
        """The rows of each table under a budget, in all shards; those of updates on their way may be missing."""
        groups = [group for status in self.status() for group in status["table_groups"].values()]
        return TableRows.total(group["tables"] for group in groups)

    def close(self, *, wait: bool = True) -> None:
        """Close all connections.

        Args:
            wait: Whether to wait for pending reads and updates; otherwise they fail.
        """
        if wait:
            self._end_threads()
        for client in self._clients:
            client.close()
        self._end_threads()

    def _finish_evicting(self) -> None:
        for store in self._stores.values():
            store.finish_evicting()

    def _end_threads(self) -> None:
        for store in self._stores.values():
            store.close()
        self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.close(wait=error is None)

    def _each(self, call: Callable[[int, ShardClient], Any]) -> list[Any]:
        """Call all shards in parallel; raises the first error once all have answered."""
        futures = [self._pool.submit(call, shard, client) for shard, client in enumerate(self._clients)]
        errors = [error for error in (future.exception() for future in futures) if error is not None]
        if errors:
            raise next((error for error in errors if not isinstance(error, ShardLost)), errors[0])
        return [future.result() for future in futures]


def wait_for_shards(
    addresses: Iterable[str],
    *,
    security: ClientSecurity | None = None,
    wait_s: float,
    on_message: Callable[[str], None] = lambda line: None,
) -> None:
    """Wait until all shards answer.

    Args:
        addresses: Addresses of the shards.
        security: Token and certificate authority.
        wait_s: Maximum waiting time in seconds.
        on_message: Called once when a shard must be waited for, and once when it is back.

    Raises:
        ShardLost: A shard does not answer; the text names it.
    """
    deadline = time.monotonic() + wait_s
    for number, address in enumerate(addresses):
        client = ShardClient(number, address, security=security or ClientSecurity(), timeout_s=5.0, retry_s=0.0)
        said = False
        try:
            while True:
                try:
                    client.act("status", {})
                    break
                except ShardLost as error:
                    if time.monotonic() > deadline:
                        raise ShardLost(f"{error}; waited {wait_s:g} s") from error
                    if not said:
                        on_message(f"waiting for {client.name}")
                    said = True
                    time.sleep(POLL_S)
            if said:
                on_message(f"{client.name} is back")
        finally:
            client.close()
