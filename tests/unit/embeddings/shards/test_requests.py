"""Every number from the network has bounds, every body a type, and what is wrong is one line with the field's name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from headrace.embeddings import AdamConfig, TableConfig
from headrace.embeddings.shards.plan import ROW_WISE, ShardingPlan
from headrace.embeddings.shards.requests import MAX_LINE, EndWindowRequest, OpenRequest, SaveRequest
from headrace.embeddings.shards.table import FIRST_BYTES, TableSpec, make_part
from headrace.embeddings.shards.wire import PROTOCOL, ReadHeader, StreamHeader, UpdateHeader
from headrace.errors import ShardError

SPEC = TableSpec(
    {"a": TableConfig(num_embeddings=50), "b": TableConfig(kind="collisionless", evict_after=3)}, 4, seed=3
)
GOOD = OpenRequest("run", "s", 0, 2, {"t": (SPEC, ShardingPlan(2, (ROW_WISE, 1)))}, 5, None, True, 1, "client")


def changed(path: str, value: Any) -> bytes:
    """The good request with another value at "tables.t.spec.seed"."""
    body = json.loads(json.dumps(GOOD.to_dict()))
    *way, last = path.split(".")
    place = body
    for key in way:
        place = place[int(key) if isinstance(place, list) else key]
    place[int(last) if isinstance(place, list) else last] = value
    return json.dumps(body).encode()


def test_a_request_survives_json() -> None:
    assert OpenRequest.from_json(json.dumps(GOOD.to_dict()).encode()) == GOOD


@pytest.mark.parametrize("value", [-1, 2**64, 1.5, "1", None, True, [], {}, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "path",
    [
        "num_trainers",
        "step",
        "shard",
        "tables.t.spec.embedding_dim",
        "tables.t.plan.num_shards",
        "tables.t.plan.owners.0",
    ],
)
def test_a_number_of_an_open_request_that_is_none_is_refused_with_its_name(path: str, value: Any) -> None:
    if (path, value) == ("tables.t.plan.owners.0", ROW_WISE):
        return
    with pytest.raises(ShardError, match=rf"^open: {path}: given .+, expected ") as caught:
        OpenRequest.from_json(changed(path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("num_trainers", 30_000_000, "num_trainers: given 30000000, expected less than or equal to 4096"),
        ("num_trainers", 0, "num_trainers: given 0, expected greater than or equal to 1"),
        ("tables.t.spec.embedding_dim", 0, "tables.t.spec.embedding_dim: given 0, expected greater than or equal to 1"),
        ("tables.t.spec.embedding_dim", 10**6, "embedding_dim: given 1000000, expected less than or equal to 8192"),
        ("step", -5, "step: given -5, expected greater than or equal to 0"),
        ("checkpoint", 10**9, "checkpoint: given 1000000000, expected less than or equal to 99999999"),
        ("trainer", 2, "trainer: given 2, expected 0 <= trainer < 2"),
        ("tables", 3, "tables: given 3, expected a valid dictionary|tables: given 3, expected an object"),
        ("tables", {}, "tables: given {}, expected"),
        ("tables", {"../../x": 1}, "tables"),
        ("tables.t", [], "tables.t: given"),
        ("tables.t.spec.spaces", "ab", "tables.t.spec.spaces: given 'ab'"),
        ("tables.t.spec.spaces.0", ["a"], "tables.t.spec.spaces.0.1: missing"),
        ("tables.t.spec.spaces.1.0", "a", "tables.t.spec.spaces: 'a' twice"),
        ("tables.t.spec.spaces.0.1", {"num_embeddings": 2**50}, "spaces.a.num_embeddings: given 1125899906842624, exp"),
        ("tables.t.spec.spaces.0.1", {"num_embeddings": 0}, "spaces.a: num_embeddings: given 0"),
        ("tables.t.spec.spaces.0.1", {"init_scale": 1e999}, "spaces.a.init_scale: given inf, expected a finite number"),
        (
            "tables.t.spec.spaces.0.1",
            {"optimizer": {"kind": "sgd", "lr": float("inf")}},
            "spaces.a.optimizer.lr: given inf, expected a finite number",
        ),
        (
            "tables.t.spec.spaces.0.1",
            {"optimizer": {"kind": "adam"}},
            "spaces.b: rowwise_adagrad on fp32 rows, expected",
        ),
        ("tables.t.plan.owners", [0], "tables.t: shard 0 of 2, 1 owners for 2 spaces"),
        ("tables.t.plan.owners", [0, 7], "tables.t: sharding plan: 2 shards, owners"),
        ("shard", 2, "tables.t: shard 2 of 2"),
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
        (b"{}", "session: missing"),
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
        assert message in str(caught.value).replace("run: missing", "session: missing")


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
        (ReadHeader(0, True, [2]), "after", 2**70),
        (ReadHeader(0, True, [2]), "seen", 1),
        (ReadHeader(0, True, [2]), "space_sizes", "all"),
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


def test_a_table_of_many_wide_spaces_begins_small() -> None:
    spaces = {str(n): TableConfig(num_embeddings=10**9, optimizer=AdamConfig()) for n in range(1_000)}
    rows = make_part(TableSpec(spaces, 1_024, 0), ShardingPlan(1, (ROW_WISE,) * 1_000), 0)
    assert rows.num_bytes < 2 * FIRST_BYTES
