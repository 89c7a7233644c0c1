"""`ShardGroup`: all shards of a training, seen from one trainer: opens the session, gives out stores, saves."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

from headrace.embeddings.shards.client import ShardClient
from headrace.embeddings.shards.plan import PlanKind, make_plan
from headrace.embeddings.shards.requests import OpenRequest
from headrace.embeddings.shards.security import ClientSecurity
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.stores.remote import RemoteStore, StoreOptions
from headrace.errors import ConfigError, ShardLost

__all__ = ["GroupOptions", "ShardGroup", "wait_for_shards"]

POLL_S = 0.2  # between looks whether a lost shard is back


@dataclass(frozen=True)
class GroupOptions:
    """How to deal with shards.

    Attributes:
        plan: Row-wise or table-wise, see `make_plan`.
        store: Of every table group's store.
        security: Token and certificate authority.
        timeout_s: How long a shard may take for one answer, waiting for other trainers included.
        retry_s: How long to try again when a connection breaks, before the shard counts as lost.
    """

    plan: PlanKind = "row_wise"
    store: StoreOptions = field(default_factory=StoreOptions)
    security: ClientSecurity = field(default_factory=ClientSecurity)
    timeout_s: float = 150.0
    retry_s: float = 2.0


class ShardGroup:
    """A session with all shards. A context manager; leaving it closes the connections, shards go on serving.

    Left without an error, updates on their way are waited for.

    In a loop of your own, with rows of `bags` in two shards::

        table_groups = {"embeddings": TableGroupSpec(bags.tables, seed)}
        with ShardGroup(["127.0.0.1:9001", "127.0.0.1:9002"], table_groups) as group:
            bags.use_store(group.store("embeddings"))

    Args:
        addresses: "host:port" of each shard; their order is part of the plan.
        table_groups: Name -> what it is.
        trainer: Number of this trainer.
        num_trainers: Trainers that share the session.
        session: The same for all trainers, another for every start; may be left out by a single trainer.
        run: Which training this is; shards that serve another one at the moment refuse.
        step: The last step that is made.
        checkpoint: Checkpoint to begin from; None for first values.
        traffic: By table group and table, see `make_plan`.
        options: See `GroupOptions`.

    Raises:
        ConfigError: The arguments do not fit each other.
        ShardError: A shard refused.
        ShardLost: A shard cannot be reached.
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
        self._client = uuid.uuid4().hex  # to shards, this process and no other is this trainer
        security = options.security
        self._clients = [
            ShardClient(n, address, security=security, timeout_s=options.timeout_s, retry_s=options.retry_s)
            for n, address in enumerate(addresses)
        ]
        self._pool = ThreadPoolExecutor(len(addresses), "shards")
        self._stores: dict[str, RemoteStore] = {}
        plans = {
            name: (spec, make_plan(spec.tables, len(addresses), kind=options.plan, traffic=(traffic or {}).get(name)))
            for name, spec in table_groups.items()
        }
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
            self._each(lambda shard, client: client.act("open", requests[shard]))
        except BaseException:
            self.close()
            raise
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
        """Evict ids not seen for long, in all shards; one trainer calls this for all.

        Args:
            step: The window's last step.

        Returns:
            How many rows were freed.
        """
        self._finish_evicting()
        self._windows += 1
        request = {"session": self.session, "window": self._windows, "step": step, "client": self._client}
        return sum(answer["freed"] for answer in self._each(lambda _, client: client.act("end_window", request)))

    def save(self, folder: str, step: int) -> list[str]:
        """Have every shard write its part into a checkpoint's temporary folder; one trainer calls this for all.

        Args:
            folder: Its name within the folder of checkpoints, which shards see too.
            step: The step the checkpoint is of; no trainer hands in a later one meanwhile.

        Returns:
            The files written, relative to the folder.
        """
        self._finish_evicting()
        request = {"session": self.session, "folder": folder, "step": step, "client": self._client}
        answers = self._each(lambda _, client: client.act("save", request, timeout_s=3600))
        return [file for answer in answers for file in answer["files"]]

    def status(self) -> list[dict[str, Any]]:
        """What each shard serves."""
        return self._each(lambda _, client: client.act("status", {}))

    def close(self, *, wait: bool = True) -> None:
        """Close all connections.

        Args:
            wait: For reads and updates on their way; else they fail.
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
        """Call all shards at once; the first error is raised when all have answered."""
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
        addresses: Of the shards.
        security: Token and certificate authority.
        wait_s: How long.
        on_message: Told once of each shard that has to be waited for, and when it is back.

    Raises:
        ShardLost: One is still silent; names it.
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
