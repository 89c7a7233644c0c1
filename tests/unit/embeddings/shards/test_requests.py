"""Every number from the network has bounds, every body a type, and what is wrong is one line with the field's name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from headrace.embeddings import AdamConfig, TableConfig
from headrace.embeddings.shards.plan import ROW_WISE, ShardingPlan
from headrace.embeddings.shards.requests import MAX_LINE, EndWindowRequest, OpenRequest, SaveRequest
from headrace.embeddings.shards.table_group import FIRST_BYTES, TableGroupSpec, make_part
from headrace.embeddings.shards.wire import PROTOCOL, ReadHeader, StreamHeader, UpdateHeader
from headrace.embeddings.tables.lifecycle.importance import ImportanceConfig
from headrace.embeddings.tables.make_group import BudgetSpec
from headrace.errors import ShardError

SPEC = TableGroupSpec(
    [
        TableConfig(name="a", num_embeddings=50, embedding_dim=4),
        TableConfig(name="b", kind="collisionless", evict_after=3, embedding_dim=4),
    ],
    seed=3,
)
GOOD = OpenRequest("run", "s", 0, 2, {"t": (SPEC, ShardingPlan(2, (ROW_WISE, 1)))}, 5, None, True, 1, "client")


def changed(path: str, value: Any) -> bytes:
    """The good request with another value at "table_groups.t.spec.seed"."""
    body = json.loads(json.dumps(GOOD.to_dict()))
    *way, last = path.split(".")
    place = body
    for key in way:
        place = place[int(key) if isinstance(place, list) else key]
    place[int(last) if isinstance(place, list) else last] = value
    return json.dumps(body).encode()


def test_a_request_survives_json() -> None:
    assert OpenRequest.from_json(json.dumps(GOOD.to_dict()).encode()) == GOOD
    budget, plan = BudgetSpec(5000, ImportanceConfig(half_life_rows=None)), ShardingPlan(2, (ROW_WISE, 1), 4)
    limited = dataclasses.replace(GOOD, table_groups={"t": (dataclasses.replace(SPEC, budget=budget), plan)})
    assert OpenRequest.from_json(json.dumps(limited.to_dict()).encode()) == limited


@pytest.mark.parametrize("protocol", [None, 2, PROTOCOL + 1])
def test_another_version_is_refused_for_that_alone(protocol: int | None) -> None:
    body = {"run": "run", "tables": {}, "protocol": protocol}
    shown = "2 or earlier" if protocol is None else protocol
    message = f"^protocol {shown}: this shard uses {PROTOCOL}; use the same version of headrace$"
    with pytest.raises(ShardError, match=message):
        OpenRequest.from_json(json.dumps({key: value for key, value in body.items() if value is not None}).encode())
    if protocol is not None:
        with pytest.raises(ShardError, match=message):
            StreamHeader.from_json(json.dumps({"protocol": protocol, "call": "read", "table": "t"}).encode())


@pytest.mark.parametrize("value", [-1, 2**64, 1.5, "1", None, True, [], {}, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "path",
    [
        "num_trainers",
        "step",
        "shard",
        "table_groups.t.spec.tables.0.embedding_dim",
        "table_groups.t.plan.num_shards",
        "table_groups.t.plan.owners.0",
    ],
)
def test_a_number_of_an_open_request_that_is_none_is_refused_with_its_name(path: str, value: Any) -> None:
    if (path, value) == ("table_groups.t.plan.owners.0", ROW_WISE):
        return
    with pytest.raises(ShardError, match=rf"^open: {path}: given .+, expected ") as caught:
        OpenRequest.from_json(changed(path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("num_trainers", 30_000_000, "num_trainers: given 30000000, expected less than or equal to 4096"),
        ("num_trainers", 0, "num_trainers: given 0, expected greater than or equal to 1"),
        (
            "table_groups.t.spec.tables.0.embedding_dim",
            0,
            "table_groups.t.spec.tables.0.embedding_dim: given 0, expected greater than or equal to 1",
        ),
        (
            "table_groups.t.spec.tables.0.embedding_dim",
            10**6,
            "embedding_dim: given 1000000, expected less than or equal to 8192",
        ),
        ("step", -5, "step: given -5, expected greater than or equal to 0"),
        ("checkpoint", 10**9, "checkpoint: given 1000000000, expected less than or equal to 99999999"),
        ("trainer", 2, "trainer: given 2, expected 0 <= trainer < 2"),
        (
            "table_groups",
            3,
            "table_groups: given 3, expected a valid dictionary|table_groups: given 3, expected an object",
        ),
        ("table_groups", {}, "table_groups: given {}, expected"),
        ("table_groups", {"../../x": 1}, "table_groups"),
        ("table_groups.t", [], "table_groups.t: given"),
        ("table_groups.t.spec.tables", "ab", "table_groups.t.spec.tables: given 'ab'"),
        ("table_groups.t.spec.tables.0", ["a"], "table_groups.t.spec.tables.0: given ['a'], expected"),
        ("table_groups.t.spec.tables.0", {"embedding_dim": 4}, "table_groups.t.spec.tables.0.name: missing"),
        ("table_groups.t.spec.tables.0.name", "", "table_groups.t.spec.tables.0.name: given '', expected"),
        ("table_groups.t.spec.tables.1.name", "a", "table_groups.t: tables: 'a' occurs 2 times"),
        ("table_groups.t.spec.tables.1.embedding_dim", 8, "tables.b.embedding_dim: given 8, expected 4, as in table a"),
        (
            "table_groups.t.spec.tables.0.num_embeddings",
            2**50,
            "tables.a.num_embeddings: given 1125899906842624, exp",
        ),
        ("table_groups.t.spec.tables.0.num_embeddings", 0, "tables.a: num_embeddings: given 0"),
        (
            "table_groups.t.spec.tables.0.init_scale",
            1e999,
            "tables.a.init_scale: given inf, expected a finite number",
        ),
        (
            "table_groups.t.spec.tables.0.optimizer",
            {"kind": "sgd", "lr": float("inf")},
            "tables.a.optimizer.lr: given inf, expected a finite number",
        ),
        (
            "table_groups.t.spec.tables.0.optimizer",
            {"kind": "adam"},
            "tables.b: rowwise_adagrad on fp32 rows, expected",
        ),
        ("table_groups.t.plan.owners", [0], "table_groups.t: shard 0 of 2, 1 owners for 2 tables"),
        ("table_groups.t.plan.owners", [0, 7], "table_groups.t: sharding plan: 2 shards, owners"),
        ("table_groups.t.plan.num_partitions", 1, "table_groups.t: sharding plan: 2 shards, owners"),
        ("table_groups.t.spec.budget", {"num_bytes": 0, "retention": {}}, "spec.budget.num_bytes: given 0"),
        (
            "table_groups.t.spec.budget",
            {"num_bytes": 9, "retention": {"kind": "os:getcwd"}},
            "table_groups.t: budget.retention.kind: given 'os:getcwd', expected importance or cafe",
        ),
        (
            "table_groups.t.spec.budget",
            {"num_bytes": 9, "retention": {"kind": "frequency", "counts": "/etc/passwd"}},
            "table_groups.t: budget.retention.kind: given 'frequency', expected importance or cafe",
        ),
        (
            "table_groups.t.spec.budget",
            {"num_bytes": 9, "retention": {"kind": "importance", "margin": float("inf")}},
            "table_groups.t: budget.retention.margin: given inf, expected a finite number",
        ),
        ("shard", 2, "table_groups.t: shard 2 of 2"),
        ("session", "a\nb", "session: given"),
        ("run", "x" * 10_000, "run: given"),
        ("colour", "red", "colour: unknown"),
    ],
)
def test_what_an_open_request_must_not_say(path: str, value: Any, message: str) -> None:
    with pytest.raises(ShardError) as caught:
        OpenRequest.from_json(changed(path, value))
    line = str(caught.value)
    assert line.startswith("open: ")
    assert any(part in line for part in message.split("|")), line
    assert len(line) <= MAX_LINE
    assert "\n" not in line


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x80\x04garbage", "expected JSON"),
        (b"{", "given b'{', expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"3", "given int, expected a JSON object"),
        (b"{}", "session: missing|protocol 2 or earlier"),
        (b" " * (17 << 20), "given 17825792 bytes, expected at most 16777216"),
    ],
)
def test_a_body_that_is_no_object_is_refused(body: bytes, message: str) -> None:
    for parse in (
        OpenRequest.from_json,
        lambda data: SaveRequest.from_json("save", data),
        lambda data: EndWindowRequest.from_json("end_window", data),
    ):
        with pytest.raises(ShardError) as caught:
            parse(body)
        assert any(part in str(caught.value) for part in message.split("|"))


@pytest.mark.parametrize("field", ["step", "window"])
@pytest.mark.parametrize("value", [-1, 2**60, "1", 1.0, None])
def test_numbers_of_other_actions_have_bounds_too(field: str, value: Any) -> None:
    body = json.dumps({"session": "s", "window": 1, "step": 1} | {field: value}).encode()
    with pytest.raises(ShardError, match=rf"^end_window: {field}: given "):
        EndWindowRequest.from_json("end_window", body)


@pytest.mark.parametrize(
    ("header", "field", "value"),
    [
        (UpdateHeader(1, 8, [2]), "num_rows", -1),
        (UpdateHeader(1, 8, [2]), "num_rows", 2**40),
        (UpdateHeader(1, 8, [2]), "step", 0),
        (UpdateHeader(1, 8, [2]), "step", 2**60),
        (UpdateHeader(1, 8, [2], 0.5), "lr_factor", -0.5),
        (UpdateHeader(1, 8, [2], 0.5), "lr_factor", float("inf")),
        (UpdateHeader(1, 8, [2], 0.5), "lr_factor", "half"),
        (ReadHeader(0, True, [2]), "after", 2**70),
        (ReadHeader(0, True, [2]), "seen", 1),
        (ReadHeader(0, True, [2]), "keys_per_table", "all"),
        (StreamHeader(PROTOCOL, "read", "s", "t", 0, "fp32"), "trainer", -1),
        (StreamHeader(PROTOCOL, "read", "s", "t", 0, "fp32"), "session", ["s"]),
    ],
)
def test_fields_of_headers_have_bounds_and_types(header: Any, field: str, value: Any) -> None:
    assert type(header).from_json(header.to_json()) == header
    body = json.dumps(json.loads(header.to_json()) | {field: value}).encode()
    with pytest.raises(ShardError, match=rf"^{type(header).__name__}: {field}: given .+, expected "):
        type(header).from_json(body)


@pytest.mark.parametrize("field", ["call", "precision"])
def test_what_a_stream_is_not_for_is_one_short_line(field: str) -> None:
    header = dataclasses.replace(StreamHeader(PROTOCOL, "read", "s", "t", 0, "fp32"), **{field: "x" * 10_000})
    with pytest.raises(ShardError, match=rf"^{field} 'x+\.\.\.: expected ") as caught:
        header.check()
    assert len(str(caught.value)) < 200


def test_a_group_of_many_wide_tables_begins_small() -> None:
    wide = TableConfig(num_embeddings=10**9, embedding_dim=1_024, optimizer=AdamConfig())
    tables = [wide.model_copy(update={"name": str(n)}) for n in range(1_000)]
    rows = make_part(TableGroupSpec(tables, 0), ShardingPlan(1, (ROW_WISE,) * 1_000), 0)
    assert rows.num_bytes < 2 * FIRST_BYTES
