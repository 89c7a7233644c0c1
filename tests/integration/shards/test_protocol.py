"""The protocol of shards: sessions, broken connections, malformed requests; mistakes are named."""

from __future__ import annotations

import json
import threading
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from served_tables import GROUPS, TABLES, Serve, all_keys, batch, read

from headrace.embeddings import Keys, LocalStore, TableGroup
from headrace.embeddings.shards.group import GroupOptions, ShardGroup, wait_for_shards
from headrace.embeddings.shards.service import ShardServer
from headrace.embeddings.shards.shard import Shard
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.shards.wire import (
    PROTOCOL,
    ReadHeader,
    StreamHeader,
    pack_ids,
    pack_rows,
    read_schema,
    update_schema,
)
from headrace.errors import ConfigError, ShardError, ShardLost

RUN_IS_A_NUMBER = json.dumps({"run": 1, "protocol": PROTOCOL}).encode()


def test_a_broken_connection_is_mended_and_nothing_is_counted_twice(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace.embeddings.shards import client as shard_client

    local = LocalStore(TableGroup(TABLES, seed=3))
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
    with ShardGroup([serve()], GROUPS, options=GroupOptions(retry_s=60.0)) as group:
        store = group.store("t")
        for _ in range(4):
            keys, gradients = batch(rng)
            for each in (store, local):
                read(each, keys)
                each.update(keys, gradients).result()
        assert (read(store, all_keys()) == read(local, all_keys())).all()
        assert store.counters().retries >= 8
        (status,) = group.status()
        assert status["table_groups"]["t"]["updates"] == 4


def test_a_closed_connection_stays_closed_whatever_is_asked_meanwhile(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that nobody closes would keep its shard from ending."""
    from headrace.embeddings.shards import client as shard_client

    ask, close, streams = shard_client._Stream.ask, shard_client._Stream.close, []
    group = ShardGroup([serve()], GROUPS)
    client, store = group._clients[0], group.store("t")

    def close_before_the_answer_is_used(self: shard_client._Stream, *arguments: object) -> object:
        answer = ask(self, *arguments)  # type: ignore[arg-type]
        streams.append(self)
        client.close()
        return answer

    def count(self: shard_client._Stream) -> None:
        streams.remove(self)
        close(self)

    with monkeypatch.context() as broken:
        broken.setattr(shard_client._Stream, "ask", close_before_the_answer_is_used)
        broken.setattr(shard_client._Stream, "close", count)
        read(store, all_keys())
        assert streams == []
        with pytest.raises(ShardLost, match=r"shard 0 \(127\.0\.0\.1:\d+\): given up"):
            read(store, all_keys())
    with pytest.raises(ShardLost, match="given up"):
        group.status()
    group.close()


def test_a_request_that_begins_while_its_connection_closes_is_given_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace.embeddings.shards import client as shard_client
    from headrace.embeddings.shards import served_table_group

    release, add = threading.Event(), shard_client._Watch.add
    monkeypatch.setattr(served_table_group.ServedTableGroup, "read", lambda *_, **__: release.wait())
    group = ShardGroup([serve()], GROUPS)

    def close_first(self: shard_client._Watch, *arguments: object) -> int:
        group._clients[0].close()
        return add(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_client._Watch, "add", close_first)
    with pytest.raises(ShardLost, match="given up"):
        read(group.store("t"), all_keys())
    release.set()
    group.close()


def test_a_silent_shard_is_reported_with_its_name(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.embeddings.shards import served_table_group

    address = serve()
    release = threading.Event()
    with ShardGroup([address], GROUPS, options=GroupOptions(timeout_s=0.3)) as group:
        monkeypatch.setattr(served_table_group.ServedTableGroup, "read", lambda *_, **__: release.wait())
        with pytest.raises(ShardLost, match=rf"shard 0 \({address}\): no answer within 0\.3 s"):
            read(group.store("t"), all_keys())
        release.set()


def test_a_shard_that_is_not_there_is_reported_with_its_name() -> None:
    with pytest.raises(ShardLost, match=r"shard 0 \(127\.0\.0\.1:1\): cannot be reached"):
        ShardGroup(["127.0.0.1:1"], GROUPS, options=GroupOptions(retry_s=0.1))


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
            "table hashed: id 50, expected 0 <= id < 50",
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
            "keys_per_table: 2 tables with 2 keys in all, expected 3 tables and 2 keys",
        ),
        "negative size": (
            None,
            request,
            good.replace(b"[2,0,0]", b"[3,-1,0]"),
            "keys_per_table.1: given -1",
        ),
        "sizes of text": (
            None,
            request,
            good.replace(b"[2,0,0]", b'["a"]'),
            "keys_per_table.0: given 'a'",
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
    with ShardGroup([address], GROUPS) as group, fl.connect(f"grpc://{address}") as client:
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
        (StreamHeader(99, "read", "s", "t", 0, "fp32").to_json(), "protocol 99: this shard uses 9"),
        (StreamHeader(PROTOCOL, "drop", "s", "t", 0, "fp32").to_json(), "call 'drop': expected one of: read"),
        (StreamHeader(PROTOCOL, "read", "s", "t", 0, "fp8").to_json(), "precision 'fp8': expected one of"),
        (StreamHeader(PROTOCOL, "read", "s", "u", 0, "fp32").to_json(), "table group 'u': expected one of: t"),
        (StreamHeader(PROTOCOL, "read", "x", "t", 0, "fp32").to_json(), "serves another session, of run default"),
    ],
)
def test_a_garbage_command_is_refused(serve: Serve, command: bytes, message: str) -> None:
    address = serve()
    with ShardGroup([address], GROUPS, session="s") as group, fl.connect(f"grpc://{address}") as client:
        writer, reader = client.do_exchange(fl.FlightDescriptor.for_command(command))
        with suppress(fl.FlightError, StopIteration):
            writer.begin(read_schema(with_counts=False))
            reader.read_chunk()
        with pytest.raises(fl.FlightError) as error:
            writer.close()
        assert message in str(error.value)
        with pytest.raises(fl.FlightError, match=r"ticket: given .* expected JSON"):
            client.do_get(fl.Ticket(b"\x80garbage")).read_all()
        for body, text in (
            (b"{", "open: given b'{', expected JSON"),
            (RUN_IS_A_NUMBER, "open: run: given 1, expected"),
        ):
            with pytest.raises(fl.FlightError, match=text):
                list(client.do_action(fl.Action("open", body)))
        with pytest.raises(fl.FlightError, match="action 'sudo': expected one of: open"):
            list(client.do_action(fl.Action("sudo", b"{}")))
        read(group.store("t"), all_keys())


@pytest.mark.parametrize("field", ["gradients", "id", "num_rows", "step"])
def test_an_update_that_would_spoil_rows_is_refused_by_name_and_changes_nothing(serve: Serve, field: str) -> None:
    with ShardGroup([serve()], GROUPS) as group:
        store = group.store("t")
        keys, gradients = batch(np.random.default_rng(0))
        store.update(keys, gradients).result()
        before = read(store, all_keys())
        bad, bad_keys = gradients.copy(), Keys(keys.tables, keys.ids.copy(), keys.counts)
        if field == "gradients":
            bad[1, 2] = np.inf
        elif field == "id":
            bad_keys.ids[1] = bad_keys.ids[0]
        if field in ("gradients", "id"):
            with pytest.raises(ShardError, match=rf"shard 0 .*: {field}: "):
                store.update(bad_keys, bad).result()
            store.step -= 1
        else:
            sent = {"step": 2, "num_rows": 1, "keys_per_table": [0, 0, 0]} | {field: -1}
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


def test_trainers_that_mean_different_tables_are_told_what_differs(serve: Serve) -> None:
    address = serve()
    with (
        ShardGroup([address], GROUPS, num_trainers=2, session="s"),
        pytest.raises(ShardError, match=r"shard 0 .*: open: trainers disagree on step: the first sent 0, this one 7"),
    ):
        ShardGroup([address], GROUPS, num_trainers=2, session="s", step=7)
    other = {"t": TableGroupSpec([table.model_copy(update={"embedding_dim": 8}) for table in TABLES], seed=3)}
    with (
        ShardGroup([address], GROUPS, num_trainers=2, session="u"),
        pytest.raises(
            ShardError,
            match=r"disagree on table_groups\.t\.spec\.tables\.0\.embedding_dim: the first sent 4, this one 8",
        ),
    ):
        ShardGroup([address], other, num_trainers=2, session="u")


def test_a_busy_shard_refuses_another_run_and_lets_its_own_begin_anew(serve: Serve) -> None:
    address = serve()
    keys, gradients = batch(np.random.default_rng(0))
    with ShardGroup([address], GROUPS, run="news") as group:
        before = read(group.store("t"), keys)
        group.store("t").update(keys, gradients).result()
        with pytest.raises(ShardError, match="busy with run news with 1 trainers"):
            ShardGroup([address], GROUPS, run="ads")
        with ShardGroup([address], GROUPS, run="news") as again:
            assert (read(again.store("t"), keys) == before).all()
            with pytest.raises(ShardLost, match="another session has begun"):
                group.store("t").update(keys, gradients).result()


def test_a_restarted_shard_says_that_it_has_forgotten(serve: Serve) -> None:
    server = ShardServer(Shard(), "127.0.0.1:0")
    with ShardGroup([f"127.0.0.1:{server.port}"], GROUPS) as group:
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
        ShardGroup(["127.0.0.1:1"], GROUPS, num_trainers=2)


def test_who_waits_for_a_shard_says_so_once_and_gives_up_in_time(serve: Serve) -> None:
    said: list[str] = []
    wait_for_shards([serve()], wait_s=0.0, on_message=said.append)
    assert said == []
    with pytest.raises(ShardLost, match=r"shard 1 \(127\.0\.0\.1:1\): cannot be reached: .*; waited 0\.3 s"):
        wait_for_shards([serve(), "127.0.0.1:1"], wait_s=0.3, on_message=said.append)
    assert said == ["waiting for shard 1 (127.0.0.1:1)"]
