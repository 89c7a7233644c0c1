"""A trainer that keeps rows while it trains them has the bits of one that reads and updates shards in every step."""

from __future__ import annotations

import time
import tracemalloc
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from served_tables import DIRECT, EXACT, HASHED, Serve, batch

from headrace.embeddings import Keys, LocalStore, RowWiseAdagradConfig, TableGroup
from headrace.embeddings.optimizers import AdamConfig, FTRLConfig
from headrace.embeddings.shards.group import ShardGroup
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.tables.seen_keys import SeenKeys
from headrace.errors import HeadraceError, ShardError, ShardLost
from headrace.placement.resident_store import ResidentStore
from headrace.placement.returns import MAX_PUTS

Change = dict[str, Any]

CASES: dict[str, Change] = {
    "plain": {},
    "bf16": {"rows": "bf16"},
    "int8": {"rows": "int8"},
    "adam": {"optimizer": AdamConfig(lr=0.01)},
    "ftrl": {"optimizer": FTRLConfig(lr=0.1)},
    "sum": {"optimizer": RowWiseAdagradConfig(lr=0.1, reduction="sum")},
    "admission": {"admission_count": 3},
    "retention": {"evict_after": 1},
    "admission and retention": {"admission_count": 3, "evict_after": 2},
}


def spec_of(change: Change) -> TableGroupSpec:
    every = {name: value for name, value in change.items() if name in ("rows", "optimizer")}
    tables = [table.model_copy(update=every) for table in (HASHED, EXACT, DIRECT)]
    tables[1] = tables[1].model_copy(update=change)
    return TableGroupSpec(tables, seed=3)


def resident(group: ShardGroup, *, num_rows: int, verify: bool = False) -> ResidentStore:
    """A store for some rows, which may be far less than the tables have."""
    state, remote = group.table_groups["t"], group.store("t")
    store = ResidentStore(
        remote,
        memory_bytes=0,
        version=state.version,
        window_starts=state.window_starts,
        seen=remote.seen_keys(1 << 10) if state.num_ids else SeenKeys(1 << 10),
        verify=verify,
    )
    store._residency.capacity = num_rows
    store._rows.grow(num_rows)
    store._returns.max_rows = 20  # so that many puts have several parts
    return store


def contents(blocks: Any) -> dict[tuple[int, int], list[float]]:
    return {
        pair: [float(number) for column in block.columns.values() for number in np.atleast_1d(column[place])]
        for block in blocks
        if not block.is_tombstones
        for place, pair in enumerate(zip(block.tables.tolist(), block.ids.tolist(), strict=True))
    }


Work = tuple[Keys, npt.NDArray[np.float32]]


def train(store: ResidentStore, local: LocalStore, work: list[Work], *, ahead: int) -> None:
    """Make steps with both stores, whose reads must agree; `ahead` batches are announced early."""
    waiting: deque[Keys] = deque()
    for number, (keys, gradients) in enumerate(work):
        for later, _ in work[number + len(waiting) : number + ahead]:
            store.announce(later)
            waiting.append(later)
        store.prepare()
        if waiting and number + len(waiting) == len(work):
            store.end_after(len(waiting))
        assert (store.read(keys).result() == local.read(keys).result()).all()
        lr_factor = 1.0 if store.remote.spec.tables[0].optimizer.kind == "ftrl" else 0.5
        store.update(keys, gradients, num_rows=30 + number, lr_factor=lr_factor)
        local.update(keys, gradients, num_rows=30 + number, lr_factor=lr_factor)
        if waiting:
            waiting.popleft()
            store.finish()


@pytest.mark.parametrize(("num_rows", "ahead"), [(40, 0), (40, 5), (90, 1), (1000, 0), (1000, 5)])
@pytest.mark.parametrize("case", CASES)
def test_kept_rows_have_the_bits_of_one_process(serve: Serve, case: str, num_rows: int, ahead: int) -> None:
    spec, rng = spec_of(CASES[case]), np.random.default_rng(0)
    local = LocalStore(TableGroup(spec.tables, seed=spec.seed))
    with ShardGroup([serve() for _ in range(2)], {"t": spec}) as group:
        store = resident(group, num_rows=num_rows)
        for _ in range(4):
            train(store, local, [batch(rng) for _ in range(6)], ahead=ahead)
            evicted = batch(rng, 20)[0].unseen()
            assert store.evict(evicted).result() == local.evict(evicted).result()
            train(store, local, [batch(rng) for _ in range(3)], ahead=ahead)
            store.flush()
            assert group.end_window(store.step) == local.table_group.end_window()
            store.end_window()
        assert store.version == local.table_group.version
        assert contents(store.changes(0)) == contents(local.changes(0))
        if num_rows == 1000:
            assert store.counters.fetched < store.counters.keys / 3


def test_reads_without_an_update_have_the_newest_rows(serve: Serve) -> None:
    spec, rng = spec_of({}), np.random.default_rng(1)
    local = LocalStore(TableGroup(spec.tables, seed=spec.seed))
    with ShardGroup([serve(), serve()], {"t": spec}) as group:
        store = resident(group, num_rows=50)
        for _ in range(10):
            train(store, local, [batch(rng) for _ in range(2)], ahead=2)
            keys = batch(rng)[0].unseen()
            assert (store.read(keys).result() == local.read(keys).result()).all()


def test_a_change_of_a_row_that_was_here_before_is_not_lost(serve: Serve) -> None:
    """Rows come and go: the second return has the training of the first stay and of the second."""
    spec, rng = spec_of({}), np.random.default_rng(2)
    local = LocalStore(TableGroup(spec.tables, seed=spec.seed))
    with ShardGroup([serve()], {"t": spec}) as group:
        store = resident(group, num_rows=45)
        store.acknowledge("copy", 0)
        local.acknowledge("copy", 0)
        train(store, local, [batch(rng) for _ in range(20)], ahead=3)
        assert store.counters.returned > 45
        assert contents(store.changes(0)) == contents(local.changes(0))
        since = store.version
        store.acknowledge("copy", since)
        local.acknowledge("copy", since)
        train(store, local, [batch(rng) for _ in range(3)], ahead=3)
        assert contents(store.changes(since)) == contents(local.changes(since))


def test_a_new_session_goes_on_with_the_returned_rows(serve: Serve, tmp_path: Any) -> None:
    spec, rng = spec_of({"admission_count": 3}), np.random.default_rng(3)
    local = LocalStore(TableGroup(spec.tables, seed=spec.seed))
    address = serve(checkpoints=tmp_path)
    with ShardGroup([address], {"t": spec}) as group:
        store = resident(group, num_rows=1000)
        train(store, local, [batch(rng) for _ in range(5)], ahead=2)
        store.flush()
        (tmp_path / ".00000001.1.partial").mkdir()
        group.save(".00000001.1.partial", store.step)
        (tmp_path / ".00000001.1.partial").rename(tmp_path / "00000001")
    with ShardGroup([address], {"t": spec}, step=store.step, checkpoint=1) as group:
        store = resident(group, num_rows=1000)
        assert (store.step, store.version) == (5, 5)
        train(store, local, [batch(rng) for _ in range(5)], ahead=2)
        assert contents(store.changes(0)) == contents(local.changes(0))


def test_one_trainer_cannot_keep_rows_while_another_sends_updates(serve: Serve) -> None:
    spec, address = spec_of({}), serve()
    keys, gradients = batch(np.random.default_rng(0))
    session = {"num_trainers": 2, "session": "s"}
    with (
        ShardGroup([address], {"t": spec}, trainer=1, **session) as other,
        ShardGroup([address], {"t": spec}, trainer=0, **session) as group,
    ):
        other.store("t").update(keys, gradients).result()
        store = resident(group, num_rows=100)
        store.update(keys, gradients)
        with pytest.raises(ShardError, match="trainer 0: keeps rows, but others send their updates"):
            store.flush()


def test_a_resumed_session_knows_the_keys_that_were_never_trained(serve: Serve, tmp_path: Any) -> None:
    spec = spec_of({})
    address = serve(checkpoints=tmp_path)
    trained = Keys(np.ones(50, np.int32), np.arange(50), np.ones(50, np.int32))
    with ShardGroup([address], {"t": spec}) as group:
        store = resident(group, num_rows=100)
        store.update(trained, np.ones((50, 4), np.float32))
        store.flush()
        (tmp_path / ".00000001.1.partial").mkdir()
        group.save(".00000001.1.partial", store.step)
        (tmp_path / ".00000001.1.partial").rename(tmp_path / "00000001")
    both = Keys(np.ones(100, np.int32), np.arange(100), np.ones(100, np.int32))
    with ShardGroup([address], {"t": spec}, step=1, checkpoint=1) as group:
        store = resident(group, num_rows=100)
        store.update(both, np.ones((100, 4), np.float32))
        assert 50 <= store.counters.fetched < 60
        assert store.counters.new == 100 - store.counters.fetched


@pytest.mark.parametrize("case", ["plain", "admission and retention"])
def test_verification_finds_nothing_where_nothing_is_wrong(serve: Serve, case: str) -> None:
    spec, rng = spec_of(CASES[case]), np.random.default_rng(4)
    local = LocalStore(TableGroup(spec.tables, seed=spec.seed))
    with ShardGroup([serve(), serve()], {"t": spec}) as group:
        store = resident(group, num_rows=45, verify=True)
        for _ in range(3):
            train(store, local, [batch(rng) for _ in range(6)], ahead=3)
            evicted = batch(rng, 20)[0].unseen()
            store.evict(evicted)
            local.evict(evicted)
            store.flush()
            group.end_window(store.step)
            store.end_window()
            local.table_group.end_window()


def test_verification_finds_a_stale_row(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that leave are not put back, so the shard has old ones."""
    rng = np.random.default_rng(5)
    with ShardGroup([serve()], {"t": spec_of({})}) as group:
        store = resident(group, num_rows=45, verify=True)
        monkeypatch.setattr(store, "_put", lambda rows, keys, **_: store._seen.add(keys))
        local = LocalStore(TableGroup(store.remote.spec.tables, seed=3))
        work = [batch(rng) for _ in range(20)]
        with pytest.raises(HeadraceError, match=r"placement.verify: .* rows are not those .* table .*, id \d+"):
            train(store, local, work, ahead=0)


def test_verification_finds_a_lost_return(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with ShardGroup([serve()], {"t": spec_of({})}) as group:
        store = resident(group, num_rows=1000, verify=True)
        keys, gradients = batch(np.random.default_rng(6))
        store.update(keys, gradients)
        store._rows.is_changed[store._residency.find(keys)[7]] = False
        with pytest.raises(HeadraceError, match=r"placement.verify: 1 changes are not in their shard, the first of"):
            store.flush()


def test_changed_rows_return_before_the_end_is_reached(serve: Serve) -> None:
    """Once the last batch is known, most rows are back when it is trained, and each goes back once."""
    spec, rng = spec_of({}), np.random.default_rng(7)
    local = LocalStore(TableGroup(spec.tables, seed=spec.seed))
    with ShardGroup([serve(), serve()], {"t": spec}) as group:
        store = resident(group, num_rows=1000)
        work = [batch(rng, 12) for _ in range(12)]
        train(store, local, work, ahead=12)
        distinct = {pair for keys, _ in work for pair in zip(keys.tables.tolist(), keys.ids.tolist(), strict=True)}
        assert store.counters.returned == len(distinct)
        assert contents(store.changes(0)) == contents(local.changes(0))
        assert store.counters.returned == len(distinct)


def test_memory_stays_within_what_was_given(serve: Serve) -> None:
    """Rows, optimizer state, index and the set of seen keys, while many more keys pass by than fit."""
    table = EXACT.model_copy(update={"embedding_dim": 16})
    memory_bytes, rng = 1 << 20, np.random.default_rng(8)
    largest = []
    with ShardGroup([serve(max_keys=10_000)], {"t": TableGroupSpec([table], seed=0)}) as group:
        store = limited(group, memory_bytes)
        for number in range(40):
            pass_by(store, rng, 300, 100_000 + 1000 * number + np.arange(700))
            largest.append(store.num_bytes)
        assert store.counters.peak_rows > 5_000
        assert store.counters.returned > 20_000
        assert max(largest) <= 1.02 * memory_bytes


def test_no_more_is_allocated_than_was_given(serve: Serve) -> None:
    """Counts the arrays that really exist, all that placement has made, instead of asking it for its bytes."""
    table = EXACT.model_copy(update={"embedding_dim": 16})
    memory_bytes, rng = 2 << 20, np.random.default_rng(8)
    arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    in_placement = tracemalloc.Filter(True, "*/headrace/placement/*", all_frames=True)
    with ShardGroup([serve(max_keys=10_000)], {"t": TableGroupSpec([table], seed=0)}) as group:
        tracemalloc.start(10)
        try:
            store = limited(group, memory_bytes)
            for number in range(15):
                pass_by(store, rng, 1000, 100_000 + 2000 * number + np.arange(2000))
            wait(store._returns._pending)  # what is on its way is not kept
            found = tracemalloc.take_snapshot().filter_traces([arrays]).filter_traces([in_placement])
        finally:
            tracemalloc.stop()
        assert store.counters.returned > 10_000
        allocated = store._seen.num_bytes + sum(trace.size for trace in found.traces)
        assert allocated <= 1.02 * memory_bytes
        assert abs(allocated - store.num_bytes) <= 0.02 * memory_bytes


def limited(group: ShardGroup, memory_bytes: int) -> ResidentStore:
    """A store that may use so much memory."""
    seen = SeenKeys(memory_bytes // 16)
    return ResidentStore(group.store("t"), memory_bytes=memory_bytes, version=0, window_starts=[0], seen=seen)


def pass_by(store: ResidentStore, rng: np.random.Generator, num_repeated: int, new: npt.NDArray[np.int64]) -> None:
    """A step on some ids that come again and again, and on new ones."""
    ids = np.unique(np.concatenate([rng.zipf(1.2, num_repeated) % 50_000, new])).astype(np.int64)
    keys = Keys(np.zeros(len(ids), np.int32), ids, np.ones(len(ids), np.int32))
    store.announce(keys)
    store.prepare()
    store.update(keys, np.zeros((len(ids), 16), np.float32))
    store.finish()


def test_a_return_that_failed_is_not_forgotten(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link comes back, and later returns succeed; the flush must fail, or the checkpoint would have old rows."""
    rng = np.random.default_rng(9)
    with ShardGroup([serve()], {"t": spec_of({})}) as group:
        store = resident(group, num_rows=1000)
        store._returns.max_rows = 1000
        keys, gradients = batch(rng)
        store.update(keys, gradients)
        with monkeypatch.context() as broken:
            broken.setattr(group._clients[0], "ask", lambda *_: (_ for _ in ()).throw(ShardLost("shard 0: cut off")))
            store._put(store._residency.find(keys), keys)
            wait(store._returns._pending)
        with pytest.raises(ShardLost, match="cut off"):
            store.flush()


def test_rows_come_while_others_return_but_not_before_they_have_returned_themselves(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of({})
    local = LocalStore(TableGroup(spec.tables, seed=spec.seed))
    with ShardGroup([serve()], {"t": spec}) as group:
        store = resident(group, num_rows=10)
        parts = [
            (
                Keys(np.ones(10, np.int32), np.arange(10) + first, np.ones(10, np.int32)),
                np.full((10, 4), first + 1.0, "f4"),
            )
            for first in (0, 10, 20)
        ]
        train(store, local, parts, ahead=1)  # rows of all three are in the shard, those of the last one here
        store.flush()
        held: list[Any] = []
        pool = store.remote._updaters[0]
        monkeypatch.setattr(pool, "submit", lambda *call, do=pool.submit: held.append((do, call)))
        train(store, local, parts[2:], ahead=1)
        train(store, local, parts[:1], ahead=1)  # others come, while those that leave are held up
        assert held
        store.announce(parts[2][0])
        store.prepare()  # asks for them again
        coming = store._arriving[-1].states
        time.sleep(0.05)
        assert not coming.done()
        monkeypatch.undo()
        for do, call in held:
            do(*call)
        assert (store.read(parts[2][0]).result() == local.read(parts[2][0]).result()).all()


def num_connections(address: str) -> int:
    """Open connections of this process to an address."""
    port = int(address.rpartition(":")[2])
    open_ones = [each for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED]
    return sum(each.raddr.port == port for each in open_ones)


def test_rows_return_on_a_connection_of_their_own(serve: Serve) -> None:
    """On a slow link, requests would otherwise wait behind rows that were sent before them."""
    address, keys = serve(), batch(np.random.default_rng(12))[0]
    with ShardGroup([address], {"t": spec_of({})}) as group:
        store = resident(group, num_rows=100)
        store.remote.read(keys, after=0).result()
        store.remote.fetch(keys).result()
        assert num_connections(address) == 1
        store.update(keys, np.ones((len(keys), 4), np.float32))
        store.flush()
        assert num_connections(address) == 2


def test_a_slow_link_holds_training_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that leave wait in memory until they are sent, so only a few returns may be on their way."""
    rng, pending = np.random.default_rng(10), []
    with ShardGroup([serve()], {"t": spec_of({})}) as group:
        store = resident(group, num_rows=45)
        original = store.remote.put

        def put(*args: Any, **named: Any) -> Any:
            pending.append(sum(not each.done() for each in store._returns._pending))
            time.sleep(0.001)
            return original(*args, **named)

        monkeypatch.setattr(store.remote, "put", put)
        monkeypatch.setattr(store.remote, "_updaters", [ThreadPoolExecutor(1)])
        slow = store.remote._updaters[0].submit
        monkeypatch.setattr(store.remote._updaters[0], "submit", lambda run, *rest: slow(_slowly, run, *rest))
        for _ in range(40):
            keys, gradients = batch(rng)
            store.update(keys, gradients)
        store.flush()
    assert len(pending) > 30
    assert max(pending) < MAX_PUTS


def _slowly(run: Any, *rest: Any) -> None:
    time.sleep(0.02)
    run(*rest)


def test_rows_that_are_used_again_before_the_end_return_again(serve: Serve) -> None:
    """With little memory, not all batches before the end are announced, so rows that seemed done are used again."""
    spec, rng = spec_of({}), np.random.default_rng(11)
    local = LocalStore(TableGroup(spec.tables, seed=spec.seed))
    with ShardGroup([serve(), serve()], {"t": spec}) as group:
        store = resident(group, num_rows=1000)
        for number in range(20):
            keys, gradients = batch(rng)
            store.announce(keys)
            store.prepare()
            store.end_after(20 - number)
            assert (store.read(keys).result() == local.read(keys).result()).all()
            store.update(keys, gradients)
            local.update(keys, gradients)
            store.finish()
        assert contents(store.changes(0)) == contents(local.changes(0))
