"""Several trainers that keep rows have the bits of serial steps: reads, parameters, metadata, counts, evictions."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest
from served_tables import EXACT, Serve, batch
from test_resident_rows import CASES, contents, spec_of
from trainers import QueuePeers, run_trainers

from headrace.embeddings import Keys, LocalStore, TableGroup
from headrace.embeddings.shards.client import ShardClient
from headrace.embeddings.shards.group import ShardGroup
from headrace.embeddings.shards.merging import TrainerUpdate, merge_updates
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.shards.wire import StreamHeader
from headrace.embeddings.stores.remote import RemoteStore
from headrace.embeddings.tables.seen_keys import SeenKeys
from headrace.errors import HeadraceError
from headrace.placement.moves import Moves
from headrace.placement.resident_rows import ResidentRows
from headrace.placement.resident_store import ResidentStore
from headrace.placement.row_exchange import RowExchange

Float32s = npt.NDArray[np.float32]

A, B, C, D = ((1, number) for number in range(4))


@dataclass(frozen=True, eq=False)
class Step:
    """A step: each trainer's keys, gradients and rows, and what it reads if steps are serial."""

    updates: list[TrainerUpdate]
    reads: list[Float32s]


class Serial:
    """The steps of several trainers, one after the other in one process."""

    def __init__(self, spec: TableGroupSpec, num_trainers: int, rng: np.random.Generator) -> None:
        self.store = LocalStore(TableGroup(spec.tables, seed=spec.seed))
        self.lr_factor = 1.0 if spec.tables[0].optimizer.kind == "ftrl" else 0.5
        self._num_trainers, self._rng = num_trainers, rng

    def steps(self, number: int, num_keys: int = 25) -> list[Step]:
        steps = []
        for _ in range(number):
            updates = []
            for trainer in range(self._num_trainers):
                keys, gradients = batch(self._rng, num_keys)
                updates.append(TrainerUpdate(keys, gradients, 30 + int(self._rng.integers(5)) + trainer))
            reads = [self.store.read(update.keys).result() for update in updates]
            num_rows = sum(update.num_rows for update in updates)
            self.store.update(*merge_updates(updates), num_rows=num_rows, lr_factor=self.lr_factor)
            steps.append(Step(updates, reads))
        return steps


class Trainer:
    """A trainer that keeps rows, and makes some steps, of which it knows a few ahead."""

    def __init__(
        self,
        group: ShardGroup,
        peers: QueuePeers,
        steps: list[Step],
        *,
        num_rows: int,
        ahead: int,
        lr_factor: float = 0.5,
        seen_bytes: int = 1 << 10,
        verify: bool = False,
    ) -> None:
        state, remote = group.table_groups["t"], group.store("t")
        self.store = ResidentStore(
            remote,
            memory_bytes=0,
            version=state.version,
            window_starts=state.window_starts,
            seen=remote.seen_keys(seen_bytes) if state.num_ids else SeenKeys(seen_bytes),
            peers=peers,
            verify=verify,
        )
        self.store._residency.capacity = num_rows
        self.store._rows.grow(num_rows)
        self.store._returns.max_rows = 10  # so that many puts have several parts
        self._mine = [(step.updates[peers.rank], step.reads[peers.rank]) for step in steps]
        self._ahead, self._lr_factor = ahead, lr_factor
        self._num_announced = self._num_trained = 0

    def train(self, num_steps: int, *, before_end: int | None = None) -> None:
        """Make the next steps; rows return step by step before the end of a window, if it is known to be so far."""
        end = self._num_trained + num_steps
        while self._num_trained < end:
            for update, _ in self._mine[self._num_announced : self._num_trained + 1 + self._ahead]:
                self.store.announce(update.keys, update.num_rows)
                self._num_announced += 1
            self.store.prepare()
            if before_end is not None:
                self.store.end_after(before_end + end - num_steps - self._num_trained)
            update, expected = self._mine[self._num_trained]
            found = self.store.read(update.keys).result()
            wrong = np.flatnonzero((found != expected).any(axis=1))
            assert not len(wrong), f"step {self._num_trained}: {update.keys.ids[wrong]}"
            self.store.update(update.keys, update.gradients, num_rows=update.num_rows, lr_factor=self._lr_factor)
            self.store.finish()
            self._num_trained += 1


ROOM = [(1000, 0), (1000, 6), (25, 3), (1, 6)]
"""Rows that a trainer can keep, and batches announced ahead."""


@pytest.mark.parametrize(
    ("case", "num_trainers", "num_rows", "ahead"),
    [
        *(("plain", num_trainers, *room) for num_trainers in (2, 3) for room in ROOM),
        *(
            (case, 2 + (number + place) % 2, *room)
            for number, case in enumerate(CASES)
            if case != "plain"
            for place, room in enumerate(ROOM)
        ),
    ],
)
def test_rows_kept_by_several_trainers_have_the_bits_of_serial_steps(
    serve: Serve, case: str, num_trainers: int, num_rows: int, ahead: int
) -> None:
    spec = spec_of(CASES[case])
    serial = Serial(spec, num_trainers, np.random.default_rng(num_rows + ahead))
    addresses = [serve() for _ in range(2)]
    steps, freed = [], []
    for _ in range(3):
        steps += serial.steps(7)
        freed.append(serial.store.table_group.end_window())
    barrier = threading.Barrier(num_trainers, timeout=20)

    def train(rank: int, peers: QueuePeers) -> Any:
        numba.set_num_threads(1)
        with ShardGroup(addresses, {"t": spec}, trainer=rank, num_trainers=num_trainers, session="s") as group:
            options = {"num_rows": num_rows, "ahead": ahead, "lr_factor": serial.lr_factor}
            trainer = Trainer(group, peers, steps, **options)
            for number, expected in enumerate(freed):
                trainer.train(7, before_end=7 if number % 2 == 0 else None)
                trainer.store.flush()
                if rank == 0:
                    assert group.end_window(trainer.store.step) == expected
                barrier.wait()
                trainer.store.end_window()
            trainer.store.flush()
            barrier.wait()
            assert trainer.store.version == serial.store.table_group.version
            return contents(group.store("t").changes(0)), trainer.store.counters, trainer.store._seen.blocks

    results = run_trainers(num_trainers, train)
    expected = contents(serial.store.changes(0))
    assert all(found == expected for found, _, _ in results)
    assert all((seen == results[0][2]).all() for _, _, seen in results), "a false positive must be one for all"
    if case == "plain":
        assert sum(counters.handed_over for _, counters, _ in results) > 0
    assert sum(counters.elsewhere for _, counters, _ in results) > 0
    if num_rows == 1000:
        assert sum(counters.fetched for _, counters, _ in results) == 0


def in_session(addresses: list[str], spec: TableGroupSpec, rank: int, num_trainers: int, **options: Any) -> ShardGroup:
    return ShardGroup(addresses, {"t": spec}, trainer=rank, num_trainers=num_trainers, session="s", **options)


@pytest.mark.parametrize("case", ["plain", "admission and retention"])
def test_verification_finds_nothing_where_nothing_is_wrong(serve: Serve, case: str) -> None:
    train_verified(serve, CASES[case])


@pytest.mark.parametrize(
    ("broken", "name", "text"),
    [
        (RowExchange, "_values_of", "rows are not those that serial steps read"),
        (ResidentRows, "set_packed", "rows are not those that serial steps read"),
        (RemoteStore, "put", "rows are not those that serial steps read"),
        (ResidentStore, "flush", "changes are not in their shard"),
    ],
)
def test_verification_finds_stale_values_and_lost_rows(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, broken: Any, name: str, text: str
) -> None:
    original, nothing = getattr(broken, name), np.empty(0, dtype=np.int64)
    faults = {
        "_values_of": lambda *args: np.zeros_like(original(*args)),
        "set_packed": lambda *_: None,
        "put": lambda self, keys, states, **rest: original(
            self, keys.take(nothing), states.take(nothing, len(keys)), **rest
        ),
        "flush": lambda self: (self._rows.is_changed.fill(False), original(self)),
    }
    monkeypatch.setattr(broken, name, faults[name])
    with pytest.raises(HeadraceError, match=f"placement.verify: .*{text}"):
        train_verified(serve, {})


def train_verified(serve: Serve, change: dict[str, Any]) -> None:
    spec, addresses, barrier = spec_of(change), [serve(), serve()], threading.Barrier(2, timeout=20)
    serial = Serial(spec, 2, np.random.default_rng(4))
    steps = []
    for _ in range(3):
        steps += serial.steps(6)
        serial.store.table_group.end_window()

    def train(rank: int, peers: QueuePeers) -> None:
        numba.set_num_threads(1)
        with in_session(addresses, spec, rank, 2) as group:
            trainer = Trainer(group, peers, steps, num_rows=25, ahead=3, verify=True)
            try:
                for _ in range(3):
                    trainer.train(6)
                    trainer.store.flush()
                    barrier.wait()
                    if rank == 0:
                        group.end_window(trainer.store.step)
                    barrier.wait()
                    trainer.store.end_window()
            except BaseException:
                barrier.abort()
                raise

    run_trainers(2, train)


def test_bytes_of_each_kind_are_those_counted_by_hand(serve: Serve) -> None:
    """Rows have four numbers and one of optimizer state: 32 bytes with version and frequency."""
    spec, address = spec_of({}), serve()
    steps = [([A, B], [B, C]), ([C], [A]), ([B], [B]), ([D], []), ([C], [])]

    def train(rank: int, peers: QueuePeers) -> tuple[Moves, int]:
        numba.set_num_threads(1)
        with in_session([address], spec, rank, 2) as group:
            store = Trainer(group, peers, [], num_rows=1000, ahead=0).store
            for number, step in enumerate(steps):
                pairs = np.array(step[rank], dtype=np.int64).reshape(-1, 2)
                keys = Keys(pairs[:, 0].astype(np.int32), pairs[:, 1].copy(), np.ones(len(pairs), dtype=np.int32))
                if number == 3:
                    store.flush()
                    store._residency.capacity = 1  # so d takes the place of c, and c that of d
                store.announce(keys, 10)
                store.prepare()
                store.read(keys)
                store.update(keys, np.ones((len(keys), 4), dtype=np.float32), num_rows=10)
                store.finish()
            store._receive()
            store._returns.wait()
            return Moves.of([store]), peers.post.num_bytes

    (first, *sent), (second, *also_sent) = run_trainers(2, train)
    total = first + second
    num_rounds = 3 * len(steps)  # with nothing announced ahead: its length, its keys, and the round that goes on
    num_keys = [sum(len(step[rank]) for step in steps) for rank in range(2)]
    for rank, moves in enumerate((first, second)):
        sizes = [len(step[rank]) + (1 if step[rank] else 0) for step in steps]  # a byte for ids, a bit for counts
        assert moves.num_key_bytes == 8 * num_rounds + len(steps) * (16 + 4 * 3) + sum(sizes)
    assert total.num_state_bytes == 2 * 32, "c and a change places"
    assert total.num_value_bytes == 16, "b in step 3"
    assert total.num_gradient_bytes == 2 * 16, "b in steps 1 and 3"
    assert total.num_fetched_bytes == (8 + 4) + (8 * 8 + 28), "c, in one request of one column and its answer of eight"
    columns = 9 * 8
    assert total.num_returned_bytes == (2 * columns + 3 * 32) + 2 * columns + (columns + 32), (
        "all; nothing of c and a, which are in the shards; and d"
    )
    between = total.num_key_bytes + total.num_state_bytes + total.num_value_bytes + total.num_gradient_bytes
    assert between == max(*sent, *also_sent), "the later one has seen all messages"
    assert total.num_bytes == between + total.num_fetched_bytes + total.num_returned_bytes
    assert (total.num_keys, total.num_new) == (sum(num_keys), 4)


def steps_of(pairs: list[list[list[tuple[int, int]]]], spec: TableGroupSpec) -> tuple[list[Step], LocalStore]:
    """Steps in which trainers read these keys."""
    local, steps = LocalStore(TableGroup(spec.tables, seed=spec.seed)), []
    for parts in pairs:
        updates = []
        for part in parts:
            table = np.array(part, dtype=np.int64).reshape(-1, 2)
            keys = Keys(table[:, 0].astype(np.int32), table[:, 1].copy(), np.ones(len(part), dtype=np.int32))
            updates.append(TrainerUpdate(keys, np.ones((len(part), 4), dtype=np.float32), 10))
        reads = [local.read(update.keys).result() for update in updates]
        local.update(*merge_updates(updates), num_rows=20, lr_factor=0.5)
        steps.append(Step(updates, reads))
    return steps, local


def delay(monkeypatch: pytest.MonkeyPatch, call: str, trainer: int, seconds: float) -> None:
    """Delay the calls of a trainer to shards."""
    original = ShardClient.ask

    def ask(self: ShardClient, header: StreamHeader, *rest: Any) -> Any:
        if (header.call, header.trainer) == (call, trainer):
            time.sleep(seconds)
        return original(self, header, *rest)

    monkeypatch.setattr(ShardClient, "ask", ask)


def test_a_fetch_waits_for_the_return_of_another_trainer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer 0 has room for one row, and returns a late, after trainer 1 asks for it."""
    delay(monkeypatch, "put", 0, 0.5)
    spec, address = spec_of({}), serve()
    steps, _ = steps_of([[[A], []], [[D], []], [[], [A]]], spec)

    def train(rank: int, peers: QueuePeers) -> int:
        numba.set_num_threads(1)
        with in_session([address], spec, rank, 2) as group:
            trainer = Trainer(group, peers, steps, num_rows=1, ahead=0)
            trainer.train(3)
            return trainer.store.counters.fetched

    assert run_trainers(2, train) == [0, 1]


def test_a_late_return_does_not_overwrite_the_training_of_the_next_owner(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer 0 returns a before the end of the window, but it is used again, by trainer 1, which returns it too."""
    delay(monkeypatch, "put", 0, 0.5)
    spec, address = spec_of({}), serve()
    steps, local = steps_of([[[A], []], [[], [A]]], spec)
    barrier = threading.Barrier(2, timeout=20)

    def train(rank: int, peers: QueuePeers) -> Any:
        numba.set_num_threads(1)
        with in_session([address], spec, rank, 2) as group:
            trainer = Trainer(group, peers, steps, num_rows=10, ahead=0)
            trainer.train(2, before_end=2)
            trainer.store.flush()
            barrier.wait()
            return contents(group.store("t").changes(0)), trainer.store.counters

    (found, first), (_, second) = run_trainers(2, train)
    assert (first.returned, second.returned, second.handed_over) == (1, 1, 1)
    assert found == contents(local.changes(0))


@pytest.mark.parametrize(("readers", "sent"), [((0, 1), [2 * 16, 0, 0]), ((1, 2), [16, 16, 0]), ((2, 1), [16, 16, 0])])
def test_values_sent_before_the_end_of_a_window_are_sent_again_if_rows_are_evicted(
    serve: Serve, readers: tuple[int, int], sent: list[int]
) -> None:
    """Trainer 0 has a, and sends its value while the last step of the window computes, whose end evicts it; also if it
    hands it over."""
    spec, address = spec_of({"evict_after": 1}), serve()
    last = [[A] if trainer in readers else [] for trainer in range(3)]
    steps, _ = steps_of([[[A], [], []], [[D], [], []], last], spec)
    first = LocalStore(TableGroup(spec.tables, seed=spec.seed)).read(steps[0].updates[0].keys).result()
    steps[2].reads[:] = [first[: len(part)] for part in last]
    barrier = threading.Barrier(3, timeout=20)

    def train(rank: int, peers: QueuePeers) -> int:
        numba.set_num_threads(1)
        with in_session([address], spec, rank, 3) as group:
            trainer = Trainer(group, peers, steps, num_rows=10, ahead=2)
            for num_freed in (0, 1):
                trainer.train(1)
                trainer.store.flush()
                if rank == 0:
                    assert group.end_window(trainer.store.step) == num_freed
                barrier.wait()
                trainer.store.end_window()
            trainer.train(1)
            return trainer.store.exchanged.values

    assert run_trainers(3, train) == sent


def test_a_new_session_of_more_trainers_goes_on_with_the_returned_rows(serve: Serve, tmp_path: Any) -> None:
    spec, address = spec_of({"admission_count": 3}), serve(checkpoints=tmp_path)
    local = TableGroup(spec.tables, seed=spec.seed)
    barrier = threading.Barrier(2, timeout=20)
    first = Serial(spec, 2, np.random.default_rng(3))
    first.store = LocalStore(local)
    before = first.steps(6)
    second = Serial(spec, 3, np.random.default_rng(4))
    second.store = first.store
    after = second.steps(6)

    def begin(rank: int, peers: QueuePeers) -> None:
        numba.set_num_threads(1)
        with in_session([address], spec, rank, 2) as group:
            trainer = Trainer(group, peers, before, num_rows=1000, ahead=3)
            trainer.train(6)
            trainer.store.flush()
            barrier.wait()
            if rank == 0:
                (tmp_path / ".00000001.1.partial").mkdir()
                group.save(".00000001.1.partial", trainer.store.step)
                (tmp_path / ".00000001.1.partial").rename(tmp_path / "00000001")

    def go_on(rank: int, peers: QueuePeers) -> Any:
        numba.set_num_threads(1)
        options = {"session": "t", "step": 6, "checkpoint": 1}
        with ShardGroup([address], {"t": spec}, trainer=rank, num_trainers=3, **options) as group:
            trainer = Trainer(group, peers, after, num_rows=1000, ahead=3)
            trainer.train(6)
            trainer.store.flush()
            return contents(group.store("t").changes(0)) if rank == 0 else trainer.store.counters.fetched

    run_trainers(2, begin)
    found, *fetched = run_trainers(3, go_on)
    assert found == contents(local.changes(0))
    assert min(fetched) > 0


def test_keys_that_are_not_next_and_evictions_are_refused(serve: Serve) -> None:
    spec, address = spec_of({}), serve()
    steps = Serial(spec, 2, np.random.default_rng(8)).steps(1)

    def train(rank: int, peers: QueuePeers) -> None:
        numba.set_num_threads(1)
        with in_session([address], spec, rank, 2) as group:
            trainer = Trainer(group, peers, steps, num_rows=1000, ahead=0)
            trainer.train(1)
            keys = steps[0].updates[rank].keys
            with pytest.raises(HeadraceError, match="read: keys that are not announced, or not next"):
                trainer.store.read(keys)
            with pytest.raises(HeadraceError, match="evict: not possible while several trainers keep rows"):
                trainer.store.evict(keys)

    run_trainers(2, train)


def test_memory_stays_within_what_was_given(serve: Serve) -> None:
    """Each trainer knows where the rows of all are, and has room for its own."""
    table = EXACT.model_copy(update={"embedding_dim": 16})
    memory_bytes, spec, address = 1 << 20, TableGroupSpec([table], seed=0), serve(max_keys=10_000)

    def train(rank: int, peers: QueuePeers) -> tuple[int, int]:
        numba.set_num_threads(1)
        rng, largest = np.random.default_rng(rank), 0
        with in_session([address], spec, rank, 2) as group:
            seen = SeenKeys(memory_bytes // 16)
            fresh = {"version": 0, "window_starts": [0], "seen": seen, "peers": peers}
            store = ResidentStore(group.store("t"), memory_bytes=memory_bytes, **fresh)
            for number in range(40):
                first = 100_000 * (1 + rank) + 1000 * number
                ids = np.unique(np.concatenate([rng.zipf(1.2, 300) % 50_000, first + np.arange(700)]))
                keys = Keys(np.zeros(len(ids), np.int32), ids.astype(np.int64), np.ones(len(ids), np.int32))
                store.announce(keys, 1)
                store.prepare()
                store.update(keys, np.zeros((len(ids), 16), np.float32))
                store.finish()
                largest = max(largest, store.num_bytes)
            store._returns.wait()
            return largest, store.counters.peak_rows

    for largest, peak_rows in run_trainers(2, train):
        assert largest <= 1.02 * memory_bytes
        assert peak_rows > 4_000
