"""Shards over the network: the same numbers as one process, whatever is sent; requests that are wrong harm nobody."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from headrace.embeddings import AdamConfig, Keys, LocalStore, RowWiseAdagradConfig, TableConfig, TableGroup
from headrace.embeddings.shards.group import GroupOptions, ShardGroup, wait_for_shards
from headrace.embeddings.shards.security import ClientSecurity, ServerSecurity
from headrace.embeddings.shards.service import ShardServer
from headrace.embeddings.shards.shard import Shard
from headrace.embeddings.shards.table import TableSpec
from headrace.embeddings.shards.wire import (
    PROTOCOL,
    ReadHeader,
    StreamHeader,
    pack_ids,
    pack_rows,
    read_schema,
    update_schema,
)
from headrace.embeddings.stores.remote import RemoteStore, StoreOptions
from headrace.errors import ConfigError, ShardError, ShardLost

Serve = Callable[..., str]

SPACES = {
    "hashed": TableConfig(num_embeddings=50, optimizer=RowWiseAdagradConfig(lr=0.1)),
    "exact": TableConfig(kind="collisionless", num_embeddings=4, optimizer=RowWiseAdagradConfig(lr=0.05)),
    "direct": TableConfig(kind="direct", num_embeddings=30, optimizer=RowWiseAdagradConfig(lr=0.2)),
}
SPEC = TableSpec(SPACES, 4, seed=3)
TABLES = {"t": SPEC}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts shards in this process; gives the address of each."""
    with ExitStack() as stack:

        def start(
            *, security: ServerSecurity | None = None, max_keys: int = 1000, hold_s: float = 20.0, port: int = 0
        ) -> str:
            server = ShardServer(
                Shard(hold_s=hold_s), f"127.0.0.1:{port}", security=security, max_keys=max_keys, threads=1
            )
            stack.callback(server.shutdown)
            return f"127.0.0.1:{server.port}"

        yield start


def batch(rng: np.random.Generator, num_keys: int = 40) -> tuple[Keys, npt.NDArray[np.float32]]:
    pairs = np.unique(np.stack([rng.integers(0, 3, num_keys), rng.integers(0, 30, num_keys)], axis=1), axis=0)
    keys = Keys(pairs[:, 0].astype(np.int32), pairs[:, 1].copy(), rng.integers(1, 4, len(pairs)).astype(np.int32))
    return keys, rng.normal(size=(len(pairs), 4)).astype(np.float32)


def all_keys() -> Keys:
    sizes = (50, 30, 30)
    spaces = np.repeat(np.arange(3, dtype=np.int32), sizes)
    ids = np.concatenate([np.arange(size) for size in sizes])
    return Keys(spaces, ids, np.ones(len(ids), np.int32))


def read(store: RemoteStore | LocalStore, keys: Keys) -> npt.NDArray[np.float32]:
    return store.read(keys).result()


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("plan", ["row_wise", "table_wise"])
def test_one_trainer_gets_the_same_bits_as_a_table_in_its_process(serve: Serve, num_shards: int, plan: str) -> None:
    local = LocalStore(TableGroup(SPACES, 4, seed=3))
    rng = np.random.default_rng(0)
    options = GroupOptions(plan=plan)  # type: ignore[arg-type]
    with ShardGroup([serve() for _ in range(num_shards)], TABLES, options=options) as group:
        store = group.store("t")
        for _ in range(6):
            keys, gradients = batch(rng)
            assert (read(store, keys) == read(local, keys)).all(), "before it is trained"
            assert (read(store, keys.unseen()) == read(local, keys.unseen())).all()
            updated = store.update(keys, gradients)  # the next read sees it, waited for or not
            local.update(keys, gradients)
        assert (read(store, all_keys()) == read(local, all_keys())).all()
        updated.result()
        assert store.counters().updates == 6
        assert store.keys_by_space().sum() == store.counters().keys
        assert sum(status["tables"]["t"]["rows"] for status in group.status()) > 0


def test_optimizers_that_count_steps_count_them_in_shards_without_keys_too(serve: Serve) -> None:
    spaces = {"a": TableConfig(num_embeddings=40, optimizer=AdamConfig(lr=0.1))}
    local = LocalStore(TableGroup(spaces, 4, seed=3))
    one = Keys(np.zeros(1, np.int32), np.array([5]), np.ones(1, np.int32))
    every = Keys(np.zeros(40, np.int32), np.arange(40), np.ones(40, np.int32))
    with ShardGroup([serve() for _ in range(4)], {"t": TableSpec(spaces, 4, 3)}) as group:
        store = group.store("t")
        for keys in (one, one, every):
            gradients = np.ones((len(keys), 4), np.float32)
            for each in (store, local):
                each.update(keys, gradients).result()
        assert (read(store, every) == read(local, every)).all()


def test_several_trainers_equal_one_process_on_the_same_global_batches(serve: Serve) -> None:
    local = LocalStore(TableGroup(SPACES, 4, seed=3))
    addresses = [serve(), serve()]
    rows = (5, 3)
    rng = np.random.default_rng(1)
    steps = [[batch(rng) for _ in range(2)] for _ in range(8)]
    found: list[list[npt.NDArray[np.float32]]] = [[], []]

    def train(trainer: int) -> None:
        with ShardGroup(addresses, TABLES, trainer=trainer, num_trainers=2, session="s") as group:
            store = group.store("t")
            for step in steps:
                keys, gradients = step[trainer]
                found[trainer].append(read(store, keys))
                if trainer == 1:
                    time.sleep(0.005)
                store.update(keys, gradients, num_rows=rows[trainer])
            found[trainer].append(read(store, all_keys()))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, range(2)))
    for number, step in enumerate(steps):
        total: dict[tuple[int, int], npt.NDArray[np.float64]] = {}
        for trainer, (keys, gradients) in enumerate(step):
            expected = read(local, keys)
            np.testing.assert_allclose(found[trainer][number], expected, rtol=1e-6, atol=1e-7)
            for pair, gradient in zip(zip(keys.spaces, keys.ids, strict=True), gradients, strict=True):
                total[pair] = total.get(pair, np.zeros(4)) + gradient * rows[trainer] / sum(rows)
        pairs = np.array(list(total))
        keys = Keys(pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int64), np.ones(len(pairs), np.int32))
        local.update(keys, np.stack(list(total.values())).astype(np.float32))
    final = read(local, all_keys())
    np.testing.assert_allclose(found[0][-1], final, rtol=1e-6, atol=1e-7)
    assert (found[0][-1] == found[1][-1]).all()


def test_a_read_waits_for_the_step_it_asks_for_and_no_longer(serve: Serve) -> None:
    keys, gradients = batch(np.random.default_rng(2))
    address = serve()
    with (
        ShardGroup([address], TABLES, trainer=0, num_trainers=2, session="s") as one,
        ShardGroup([address], TABLES, trainer=1, num_trainers=2, session="s") as two,
    ):
        first, second = one.store("t"), two.store("t")
        before = read(first, keys)
        first.update(keys, gradients).result()
        held = first.read(keys)
        assert (first.read(keys, after=0).result() == before).all(), "asks for less, is answered at once"
        assert not held.done()
        second.update(keys, gradients).result()
        assert (held.result() != before).any()
        assert first.counters().held_s > 0


def test_staleness_lets_reads_run_ahead_by_that_many_steps(serve: Serve) -> None:
    keys, gradients = batch(np.random.default_rng(2))
    options = GroupOptions(store=StoreOptions(staleness=1))
    address = serve(hold_s=0.2)
    with (
        ShardGroup([address], TABLES, trainer=0, num_trainers=2, session="s", options=options) as one,
        ShardGroup([address], TABLES, trainer=1, num_trainers=2, session="s", options=options) as two,
    ):
        store = one.store("t")
        store.update(keys, gradients).result()
        read(store, keys)
        store.update(keys, gradients).result()
        with pytest.raises(ShardError, match=r"read of trainer 0 waited 0\.2 s for step 1, missing from trainers: 1"):
            read(store, keys)
        two.store("t").update(keys, gradients).result()
        read(store, keys)


def test_asynchronous_trainers_never_wait(serve: Serve) -> None:
    keys, gradients = batch(np.random.default_rng(2))
    options = GroupOptions(store=StoreOptions(staleness=None))
    with ShardGroup([serve()], TABLES, trainer=0, num_trainers=2, session="s", options=options) as group:
        store = group.store("t")
        before = read(store, keys)
        for _ in range(20):  # further ahead than a synchronous trainer may be
            store.update(keys, gradients).result()
        assert (read(store, keys) != before).any()


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 2**-8), ("int8", 1 / 254)])
def test_rows_and_gradients_travel_within_their_error(serve: Serve, precision: str, bound: float) -> None:
    spaces = {"a": TableConfig(num_embeddings=40, init_scale=1.0, optimizer={"kind": "sgd", "lr": 1.0})}  # type: ignore[arg-type]
    local = LocalStore(TableGroup(spaces, 8, seed=3))
    options = GroupOptions(store=StoreOptions(rows=precision, gradients=precision))  # type: ignore[arg-type]
    keys = Keys(np.zeros(40, np.int32), np.arange(40), np.ones(40, np.int32))
    gradients = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    with ShardGroup([serve(), serve()], {"t": TableSpec(spaces, 8, 3)}, options=options) as group:
        store = group.store("t")
        rows, exact = read(store, keys), read(local, keys)
        assert 0 < np.abs(rows - exact).max() <= bound * np.abs(exact).max()
        for each in (store, local):
            each.update(keys, gradients).result()
        moved = read(store, keys) - read(local, keys)
        assert np.abs(moved).max() <= bound * (np.abs(gradients).max() + np.abs(exact).max() + 4)
        assert store.counters().bytes_received < 40 * 8 * 4 * 2


def test_a_broken_connection_is_mended_and_nothing_is_counted_twice(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace.embeddings.shards import client as shard_client

    local = LocalStore(TableGroup(SPACES, 4, seed=3))
    ask, calls = shard_client._Stream.ask, 0

    def ask_and_lose_the_answer(self: object, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        answer = ask(self, *arguments)  # type: ignore[arg-type]
        if calls % 2:
            raise fl.FlightUnavailableError("the answer was lost")
        return answer

    monkeypatch.setattr(shard_client._Stream, "ask", ask_and_lose_the_answer)
    rng = np.random.default_rng(4)
    with ShardGroup([serve()], TABLES) as group:
        store = group.store("t")
        for _ in range(4):
            keys, gradients = batch(rng)
            for each in (store, local):
                read(each, keys)
                each.update(keys, gradients).result()
        assert (read(store, all_keys()) == read(local, all_keys())).all()
        assert store.counters().retries >= 8
        (status,) = group.status()
        assert status["tables"]["t"]["updates"] == 4


def test_a_silent_shard_is_reported_with_its_name(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.embeddings.shards import served_table

    address = serve()
    release = threading.Event()
    with ShardGroup([address], TABLES, options=GroupOptions(timeout_s=0.3)) as group:
        monkeypatch.setattr(served_table.ServedTable, "read", lambda *_, **__: release.wait())
        with pytest.raises(ShardLost, match=rf"shard 0 \({address}\): no answer within 0\.3 s"):
            read(group.store("t"), all_keys())
        release.set()


def test_a_shard_that_is_not_there_is_reported_with_its_name() -> None:
    with pytest.raises(ShardLost, match=r"shard 0 \(127\.0\.0\.1:1\): cannot be reached"):
        ShardGroup(["127.0.0.1:1"], TABLES, options=GroupOptions(retry_s=0.1))


def bad_requests() -> dict[str, tuple[pa.Schema | None, pa.RecordBatch | None, bytes, str]]:
    """Name -> schema, batch, header, and what the shard says."""
    keys = Keys(np.zeros(2, np.int32), np.array([1, 2]), np.ones(2, np.int32))
    good = ReadHeader(0, True, [2, 0, 0]).to_json()
    int32s = pa.schema([("id", pa.int32())])
    many = Keys(np.zeros(1001, np.int32), np.arange(1001), np.ones(1001, np.int32))
    outside = Keys(np.zeros(2, np.int32), np.array([1, 50]), np.ones(2, np.int32))
    nulls = pa.RecordBatch.from_arrays([pa.array([1, None])], names=["id"])
    request = pack_ids(keys, with_counts=False)
    return {
        "wrong dtype": (
            int32s,
            pa.RecordBatch.from_arrays([pa.array([1], pa.int32())], schema=int32s),
            good,
            "columns: given id: int32, expected id: int64",
        ),
        "id out of range": (
            None,
            pack_ids(outside, with_counts=False),
            good,
            "space hashed: id 50, expected 0 <= id < 50",
        ),
        "oversized": (None, pack_ids(many, with_counts=False), good, "request: 1001 keys, expected at most 1000"),
        "nulls": (nulls.schema, nulls, good, "contains nulls"),
        "no header": (
            None,
            request,
            b"",
            "expected a record batch with a header in its metadata",
        ),
        "garbage header": (None, request, b"\xff\x00", "expected JSON"),
        "unknown key": (None, request, b'{"aftr": 1}', "ReadHeader: aftr: unknown"),
        "wrong sizes": (
            None,
            request,
            ReadHeader(0, True, [1, 1]).to_json(),
            "space_sizes: 2 spaces with 2 keys in all, expected 3 spaces and 2 keys",
        ),
        "negative size": (
            None,
            request,
            good.replace(b"[2,0,0]", b"[3,-1,0]"),
            "space_sizes.1: given -1",
        ),
        "sizes of text": (
            None,
            request,
            good.replace(b"[2,0,0]", b'["a"]'),
            "space_sizes.0: given 'a'",
        ),
        "number as text": (
            None,
            request,
            good.replace(b'"after":0', b'"after":"0"'),
            "ReadHeader: after: given",
        ),
    }


@pytest.mark.parametrize("name", list(bad_requests()))
def test_a_malformed_request_gets_a_clear_error_and_the_shard_goes_on(serve: Serve, name: str) -> None:
    schema, request, metadata, message = bad_requests()[name]
    address = serve()
    with ShardGroup([address], TABLES) as group, fl.connect(f"grpc://{address}") as client:
        before = read(group.store("t"), all_keys())
        header = StreamHeader(PROTOCOL, "read", group.session, "t", 0, "fp32", group._client)
        writer, reader = client.do_exchange(fl.FlightDescriptor.for_command(header.to_json()))
        writer.begin(schema or read_schema(with_counts=False))
        with suppress(fl.FlightError, StopIteration):
            writer.write_with_metadata(request, metadata)
            reader.read_chunk()
        with pytest.raises(fl.FlightError) as error:
            writer.close()
        assert message in str(error.value)
        assert (read(group.store("t"), all_keys()) == before).all()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (b"\x80\x04garbage", "StreamHeader: given"),
        (b"[1]", "StreamHeader: given list, expected a JSON object"),
        (StreamHeader(99, "read", "s", "t", 0, "fp32").to_json(), "protocol 99: this shard uses 2"),
        (StreamHeader(PROTOCOL, "drop", "s", "t", 0, "fp32").to_json(), "call 'drop': expected read or update"),
        (StreamHeader(PROTOCOL, "read", "s", "t", 0, "fp8").to_json(), "precision 'fp8': expected one of"),
        (StreamHeader(PROTOCOL, "read", "s", "u", 0, "fp32").to_json(), "table 'u': expected one of: t"),
        (StreamHeader(PROTOCOL, "read", "x", "t", 0, "fp32").to_json(), "serves another session, of run default"),
    ],
)
def test_a_garbage_command_is_refused(serve: Serve, command: bytes, message: str) -> None:
    address = serve()
    with ShardGroup([address], TABLES, session="s") as group, fl.connect(f"grpc://{address}") as client:
        writer, reader = client.do_exchange(fl.FlightDescriptor.for_command(command))
        with suppress(fl.FlightError, StopIteration):
            writer.begin(read_schema(with_counts=False))
            reader.read_chunk()
        with pytest.raises(fl.FlightError) as error:
            writer.close()
        assert message in str(error.value)
        with pytest.raises(fl.FlightError, match=r"changes: given .* expected JSON"):
            client.do_get(fl.Ticket(b"\x80garbage")).read_all()
        for body, text in ((b"{", "open: given b'{', expected JSON"), (b'{"run": 1}', "open: run: given 1, expected")):
            with pytest.raises(fl.FlightError, match=text):
                list(client.do_action(fl.Action("open", body)))
        with pytest.raises(fl.FlightError, match="action 'sudo': expected one of: open"):
            list(client.do_action(fl.Action("sudo", b"{}")))
        read(group.store("t"), all_keys())


@pytest.mark.parametrize("field", ["gradients", "id", "num_rows", "step"])
def test_an_update_that_would_spoil_rows_is_refused_by_name_and_changes_nothing(serve: Serve, field: str) -> None:
    with ShardGroup([serve()], TABLES) as group:
        store = group.store("t")
        keys, gradients = batch(np.random.default_rng(0))
        store.update(keys, gradients).result()
        before = read(store, all_keys())
        bad, bad_keys = gradients.copy(), Keys(keys.spaces, keys.ids.copy(), keys.counts)
        if field == "gradients":
            bad[1, 2] = np.inf
        elif field == "id":
            bad_keys.ids[1] = bad_keys.ids[0]
        if field in ("gradients", "id"):
            with pytest.raises(ShardError, match=rf"shard 0 .*: {field}: "):
                store.update(bad_keys, bad).result()
            store.step -= 1
        else:
            sent = {"step": 2, "num_rows": 1, "space_sizes": [0, 0, 0]} | {field: -1}
            none = np.zeros((0, 4), np.float32).view(np.uint8)
            request = pack_rows(
                keys.take(np.zeros(0, np.int64)), none, np.zeros(0, np.float32), update_schema("fp32", 4)
            )
            metadata = json.dumps(sent).encode()
            with pytest.raises(ShardError, match=rf"UpdateHeader: {field}: given -1, expected greater"):
                group._clients[0].ask(store._update_header, update_schema("fp32", 4), request, metadata)
        assert (read(store, all_keys()) == before).all()
        store.update(keys, gradients).result()
        assert (read(store, all_keys()) != before).any(), "it goes on with the same step"


def test_a_second_client_with_the_number_of_a_trainer_that_lives_is_refused(serve: Serve) -> None:
    address = serve()
    again = {"trainer": 0, "num_trainers": 2, "session": "s"}
    taken = "trainer 0: is already taken by another client of this session"
    with ShardGroup([address], TABLES, **again) as first:  # type: ignore[arg-type]
        with pytest.raises(ShardError, match=taken):
            ShardGroup([address], TABLES, **again)  # type: ignore[arg-type]
        before = read(first.store("t"), all_keys())
        with fl.connect(f"grpc://{address}") as stranger:
            for call in ("read", "update"):
                header = StreamHeader(PROTOCOL, call, "s", "t", 0, "fp32")
                writer, reader = stranger.do_exchange(fl.FlightDescriptor.for_command(header.to_json()))
                with suppress(fl.FlightError, StopIteration):
                    writer.begin(read_schema(with_counts=False))
                    reader.read_chunk()
                with pytest.raises(fl.FlightError, match=taken):
                    writer.close()
            save = fl.Action("save", b'{"session":"s","folder":".00000001.1.partial","step":0}')
            for action in (save, fl.Action("end_window", b'{"session":"s","window":1,"step":0}')):
                with pytest.raises(fl.FlightError, match="requested by a client that is not a trainer of this session"):
                    list(stranger.do_action(action))
        assert (read(first.store("t"), all_keys()) == before).all()
    with ShardGroup([address], TABLES, **again) as second:  # type: ignore[arg-type]
        read(second.store("t"), all_keys())


def test_trainers_that_mean_different_tables_are_told_what_differs(serve: Serve) -> None:
    address = serve()
    with (
        ShardGroup([address], TABLES, num_trainers=2, session="s"),
        pytest.raises(ShardError, match=r"shard 0 .*: open: trainers disagree on step: the first sent 0, this one 7"),
    ):
        ShardGroup([address], TABLES, num_trainers=2, session="s", step=7)
    other = {"t": TableSpec(SPACES, 8, seed=3)}
    with (
        ShardGroup([address], TABLES, num_trainers=2, session="u"),
        pytest.raises(ShardError, match=r"disagree on tables\.t\.spec\.embedding_dim: the first sent 4, this one 8"),
    ):
        ShardGroup([address], other, num_trainers=2, session="u")


def test_a_busy_shard_refuses_another_run_and_lets_its_own_begin_anew(serve: Serve) -> None:
    address = serve()
    keys, gradients = batch(np.random.default_rng(0))
    with ShardGroup([address], TABLES, run="news") as group:
        before = read(group.store("t"), keys)
        group.store("t").update(keys, gradients).result()
        with pytest.raises(ShardError, match="busy with run news with 1 trainers"):
            ShardGroup([address], TABLES, run="ads")
        with ShardGroup([address], TABLES, run="news") as again:
            assert (read(again.store("t"), keys) == before).all()
            with pytest.raises(ShardLost, match="another session has begun"):
                group.store("t").update(keys, gradients).result()


def test_a_restarted_shard_says_that_it_has_forgotten(serve: Serve) -> None:
    server = ShardServer(Shard(), "127.0.0.1:0")
    with ShardGroup([f"127.0.0.1:{server.port}"], TABLES) as group:
        read(group.store("t"), all_keys())
        server._shard._request = None  # what a process that has just started knows
        for streams in group._clients[0]._idle.values():
            for stream in streams:
                stream.drop()
            streams.clear()
        with pytest.raises(ShardLost, match="has no session"):
            read(group.store("t"), all_keys())
    server.shutdown()


def test_several_trainers_need_a_session() -> None:
    with pytest.raises(ConfigError, match="several trainers need the same session name"):
        ShardGroup(["127.0.0.1:1"], TABLES, num_trainers=2)


def test_sightings_of_several_trainers_count_together_and_whoever_comes_first_makes_no_difference(serve: Serve) -> None:
    late = {"a": TableConfig(kind="collisionless", admission_count=3, init_scale=1.0, optimizer={"kind": "sgd"})}  # type: ignore[arg-type]
    tables, address = {"t": TableSpec(late, 4, 0)}, serve()
    local = TableGroup(late, 4, seed=0)
    keys = Keys(np.zeros(3, np.int32), np.array([7, 8, 9]), np.array([1, 2, 3], np.int32))
    gradients = np.ones((3, 4), np.float32)
    with (
        ShardGroup([address], tables, trainer=0, num_trainers=2, session="s") as one,
        ShardGroup([address], tables, trainer=1, num_trainers=2, session="s") as two,
    ):
        stores = [one.store("t"), two.store("t")]
        for step in range(3):
            for store in stores if step % 2 else reversed(stores):
                assert (read(store, keys) == local.read(keys)).all(), "with the sightings of its own batch"
                assert (read(store, keys.unseen()) == local.read(keys.unseen())).all()
                store.update(keys, gradients)
            local.update(Keys(keys.spaces, keys.ids, 2 * keys.counts), gradients)
        assert (read(stores[0], keys.unseen()) == local.read(keys.unseen())).all()
        assert local.num_rows == 3


def test_changes_of_all_shards_keep_a_copy_up_to_date_also_over_evictions(serve: Serve) -> None:
    spaces = {**SPACES, "exact": SPACES["exact"].model_copy(update={"evict_after": 1})}
    local = LocalStore(TableGroup(spaces, 4, seed=3))
    rng = np.random.default_rng(5)
    copies: list[dict[tuple[int, int], list[float]]] = [{}, {}]
    with ShardGroup([serve(), serve(), serve()], {"t": TableSpec(spaces, 4, 3)}) as group:
        store, since = group.store("t"), 0
        store.acknowledge("copy", 0)
        local.acknowledge("copy", 0)
        num_tombstones = 0
        for step in range(6):
            keys, gradients = batch(rng, num_keys=12)
            store.update(keys, gradients)
            local.update(keys, gradients)
            if step % 2:
                assert group.end_window(store.step) == local.table.end_window()
            for copy, each in zip(copies, (store, local), strict=True):
                for block in each.changes(since):
                    num_tombstones += block.is_tombstones
                    for place, pair in enumerate(zip(block.spaces.tolist(), block.ids.tolist(), strict=True)):
                        copy.pop(pair, None)
                        if not block.is_tombstones:
                            copy[pair] = [*block.columns["weights"][place], *block.columns["slot.accumulator"][place]]
                    version = block.version
            since = version
            store.acknowledge("copy", since)
            assert copies[0] == copies[1]
    assert num_tombstones > 0
    assert len(copies[0]) > 20


def test_a_shard_of_a_job_refuses_the_tables_of_another(tmp_path: Path) -> None:
    other = TableSpec({"hashed": TableConfig(num_embeddings=51)}, 4, seed=3)
    server = ShardServer(Shard(expected={"t": other}), "127.0.0.1:0")
    with pytest.raises(ShardError, match="table t differs from the one in this shard's job file"):
        ShardGroup([f"127.0.0.1:{server.port}"], TABLES)
    server.shutdown()


def test_a_checkpoint_is_not_written_anywhere_but_where_the_shard_was_told(tmp_path: Path) -> None:
    server = ShardServer(Shard(checkpoints=tmp_path / "checkpoints"), "127.0.0.1:0")
    partial = tmp_path / "checkpoints" / ".00000001.77.partial"
    partial.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    with ShardGroup([f"127.0.0.1:{server.port}"], TABLES) as group:
        for folder in ("../elsewhere", "/tmp", "00000001", ".00000002.77.partial"):
            with pytest.raises(ShardError, match="expected a checkpoint being written in"):
                group.save(folder, 0)
        files = group.save(partial.name, 0)
        assert "tables/t/shard-0000-of-0001/weights.npy" in files
        written = {file: (partial / file).read_bytes() for file in files}
        assert group.save(partial.name, 0) == files, "asked again, because the answer was lost"
        assert {file: (partial / file).read_bytes() for file in files} == written
        assert sorted(str(path.relative_to(partial)) for path in partial.rglob("*.*")) == sorted(files)
        server._shard._tables["t"]._hold_s = 0.1
        with pytest.raises(ShardError, match="end of window 1 waited"):
            group.end_window(5)
    server.shutdown()


def test_who_waits_for_a_shard_says_so_once_and_gives_up_in_time(serve: Serve) -> None:
    said: list[str] = []
    wait_for_shards([serve()], wait_s=0.0, on_message=said.append)
    assert said == []
    with pytest.raises(ShardLost, match=r"shard 1 \(127\.0\.0\.1:1\): cannot be reached: .*; waited 0\.3 s"):
        wait_for_shards([serve(), "127.0.0.1:1"], wait_s=0.3, on_message=said.append)
    assert said == ["waiting for shard 1 (127.0.0.1:1)"]


def test_a_token_keeps_others_out(serve: Serve) -> None:
    address = serve(security=ServerSecurity(token="t" * 20))
    for token in (None, "u" * 20):
        options = GroupOptions(security=ClientSecurity(token=token))
        with pytest.raises(ShardError, match="the token is missing or wrong"):
            ShardGroup([address], TABLES, options=options)
    with ShardGroup([address], TABLES, options=GroupOptions(security=ClientSecurity(token="t" * 20))) as group:
        read(group.store("t"), all_keys())


def test_tls_is_spoken_and_checked(serve: Serve, tmp_path: Path) -> None:
    certificate, key = make_certificate()
    other, _ = make_certificate()
    address = serve(security=ServerSecurity(token="t" * 20, certificate=certificate, key=key))
    good = GroupOptions(security=ClientSecurity(token="t" * 20, authority=certificate))
    with ShardGroup([address], TABLES, options=good) as group:
        read(group.store("t"), all_keys())
    wrong = GroupOptions(security=ClientSecurity(token="t" * 20, authority=other), retry_s=0.1)
    with pytest.raises(ShardLost, match="cannot be reached"):
        ShardGroup([address], TABLES, options=wrong)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "[::]", "shard.example.org"])
def test_other_addresses_than_loopback_need_a_token_and_tls(host: str) -> None:
    with pytest.raises(ConfigError, match=r"needs a token \(--token-file\) and TLS"):
        ShardServer(Shard(), f"{host}:9000")
    with pytest.raises(ConfigError, match=r"needs a token and cluster\.tls_authority"):
        ShardGroup([f"{host}:9000"], TABLES, options=GroupOptions(security=ClientSecurity(token="t" * 20)))


def make_certificate() -> tuple[bytes, bytes]:
    """A certificate of its own for 127.0.0.1, and its key, as PEM."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "shard")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), secret
