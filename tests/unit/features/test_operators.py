"""Each fused operator against its plain definition, on random Arrow columns."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import plain_operators as plain
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_columns import Drawn, columns, list_columns

from headrace.features import FeaturePlan
from headrace.logs.schema import Schema
from headrace.tensors import validate_batch

EXAMPLES = settings(max_examples=60, deadline=None)
BORDERS = st.lists(st.integers(-50, 50) | st.floats(-1e6, 1e6), min_size=1, max_size=40, unique=True).map(sorted)

SCHEMA = Schema.from_dict(
    {
        "labels": ["y"],
        "dense": ["number"],
        "ids": ["id", {"name": "string", "type": "string"}],
        "id_lists": [{"name": "ids", "weights": "numbers"}, {"name": "strings", "type": "string"}],
        "timestamp": {"name": "time", "unit": "s"},
    },
    where="schema",
)


def apply(section: str, column: str, drawn: Drawn, ops: list[Any]) -> Any:
    """The rows a chain of operators makes of a column: floats, or lists of ids."""
    size = len(drawn.array)
    plan = FeaturePlan.from_config({section: {"f": {"from": column, "ops": ops}}}, SCHEMA)
    batch = pa.record_batch({column: drawn.array, "y": pa.array(np.zeros(size)), "__row_id": ROW_IDS[:size]})
    result = plan.apply(batch)
    validate_batch(result)
    return result.dense[:, 0].tolist() if section == "dense" else result.sparse[0].to_lists()["f"]


ROW_IDS = pa.array(np.random.default_rng(0).integers(0, 2**63, 4000))


def expect_numbers(drawn: Drawn, ops: list[Any], meaning: Callable[[Any], float | None]) -> None:
    given_rows = [None if row is None else float(row) for row in drawn.rows]
    expected = [meaning(row) for row in given_rows]
    # What no operator fills is 0 in the end.
    expected = [0.0 if value is None or math.isnan(value) else value for value in expected]
    assert apply("dense", "number", drawn, ops) == pytest.approx(expected, rel=2e-6, abs=1e-37)


@EXAMPLES
@given(columns("number"), st.floats(-1e6, 1e6, width=32))
def test_fill_replaces_null_and_nan(drawn: Drawn, value: float) -> None:
    expect_numbers(drawn, [{"fill": value}], plain.fill(value))


@EXAMPLES
@given(columns("number"))
def test_is_null_tells_null_and_nan_from_numbers(drawn: Drawn) -> None:
    expect_numbers(drawn, ["is_null"], plain.is_null)
    expect_numbers(drawn, [{"clamp": {"min": 1, "max": 1}}, "is_null", {"standardize": {"mean": 1, "std": 2}}],
                   lambda x: (plain.is_null(x) - 1) / 2)  # fmt: skip


@EXAMPLES
@given(columns("id"))
def test_is_null_tells_rows_without_an_id(drawn: Drawn) -> None:
    assert apply("dense", "id", drawn, ["is_null"]) == [float(row is None) for row in drawn.rows]


@EXAMPLES
@given(columns("number"), st.sampled_from([0.0, -3.5, 2020.0]), st.sampled_from([0.25, 1.0, 1e4]))
def test_standardize_keeps_null(drawn: Drawn, mean: float, std: float) -> None:
    expected = [0.0 if row is None or math.isnan(row) else (float(row) - mean) / std for row in drawn.rows]
    got = apply("dense", "number", drawn, [{"standardize": {"mean": mean, "std": std}}])
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-3)


def test_standardize_tells_large_numbers_apart() -> None:
    years = Drawn(pa.array([2019, 2020, 2024], pa.int16()), [])
    assert apply("dense", "number", years, [{"standardize": {"mean": 2020, "std": 2}}]) == [-0.5, 0.0, 2.0]
    seconds = Drawn(pa.array([1_700_000_000, 1_700_000_007], pa.int64()), [])
    assert apply("dense", "number", seconds, [{"standardize": {"mean": 1.7e9, "std": 7}}]) == [0.0, 1.0]


@EXAMPLES
@given(columns("number"), st.floats(-100, 0), st.floats(0, 100))
def test_clamp_limits_numbers(drawn: Drawn, low: float, high: float) -> None:
    expect_numbers(drawn, [{"clamp": {"min": low, "max": high}}], plain.maybe(lambda x: min(max(x, low), high)))


@EXAMPLES
@given(columns("number"))
def test_log1p_keeps_the_sign(drawn: Drawn) -> None:
    expect_numbers(drawn, ["log1p"], plain.maybe(plain.log1p))


@EXAMPLES
@given(columns("number"))
def test_log1p_without_sign_is_null_below_minus_one(drawn: Drawn) -> None:
    meaning = plain.maybe(lambda x: math.log1p(x) if x > -1 else None if x < -1 else -math.inf)
    expect_numbers(drawn, [{"log1p": {"signed": False}}], meaning)


def test_log1p_is_within_two_units_in_the_last_place() -> None:
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.integers(-38, 38, 4000)
    numbers = (rng.uniform(-1, 1, 4000) * scale).astype(np.float32)
    got = np.array(apply("dense", "number", Drawn(pa.array(numbers), []), ["log1p"]), np.float32)
    exact = np.sign(numbers) * np.log1p(np.abs(numbers.astype(np.float64)))
    assert np.all(np.abs(got - exact) <= 2 * np.spacing(np.abs(exact).astype(np.float32)))


@EXAMPLES
@given(columns("number"), st.sampled_from([0, 0.5, 1, 2, -1]))
def test_box_cox(drawn: Drawn, power: float) -> None:
    ops = [{"clamp": {"min": 0.01, "max": 1e4}}, {"box_cox": power}]
    meaning = plain.maybe(lambda x: plain.box_cox(min(max(x, 0.01), 1e4), power))
    given_rows = [None if row is None else float(row) for row in drawn.rows]
    expected = [0.0 if (value := meaning(row)) is None else value for row in given_rows]
    assert apply("dense", "number", drawn, ops) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("power", "expected"), [(0.5, [0, -2, 2]), (0, [0, -100, math.log(4)])])
def test_box_cox_below_zero_is_null_and_at_zero_the_limit(power: float, expected: list[float]) -> None:
    drawn = Drawn(pa.array([-1.0, 0.0, 4.0]), [])
    ops = [{"box_cox": power}, {"clamp": {"min": -100}}]
    assert apply("dense", "number", drawn, ops) == pytest.approx(expected)


@EXAMPLES
@given(columns("number"), st.sampled_from([1e-6, 0.1]))
def test_logit_limits_the_probability(drawn: Drawn, epsilon: float) -> None:
    expected = plain.maybe(lambda x: plain.logit(x, epsilon))
    given_rows = [None if row is None else float(row) for row in drawn.rows]
    want = [0.0 if (v := expected(r)) is None else v for r in given_rows]
    got = apply("dense", "number", drawn, [{"logit": epsilon}])
    assert got == pytest.approx(want, rel=1e-5, abs=1e-6)


@EXAMPLES
@given(columns("number"), BORDERS, st.booleans())
def test_bucketize_counts_the_borders_below(drawn: Drawn, borders: list[float], doubled: bool) -> None:
    borders = sorted(borders + borders[::2]) if doubled else borders
    expected = [[] if (x := plain.maybe(float)(r)) is None else [plain.bucketize(x, borders)] for r in drawn.rows]
    assert apply("sparse", "number", drawn, [{"bucketize": borders}]) == expected


@pytest.mark.parametrize("spread", ["even", "long tail", "negative", "both signs", "one", "huge"])
def test_bucketize_finds_every_border_and_its_neighbours(spread: str) -> None:
    rng = np.random.default_rng(1)
    borders = {
        "even": np.linspace(-3, 7, 1000),
        "long tail": rng.lognormal(0, 4, 3000),
        "negative": -rng.lognormal(0, 4, 1000),
        "both signs": rng.standard_cauchy(1000),
        "one": np.array([3.5]),
        "huge": np.array([-1.7e308, -1.0, -0.0, 5e-324, 1e-300, 1.7e308]),
    }[spread]
    borders = np.unique(borders)
    near = [np.nextafter(borders, -np.inf), np.nextafter(borders, np.inf)]
    numbers = np.concatenate([[-np.inf, np.inf, 1e300, -1e300, 0.0, -0.0], borders, *near])
    drawn = Drawn(pa.array(numbers), [])
    drawn.array = drawn.array.slice(0, min(len(numbers), 4000))
    got = apply("sparse", "number", drawn, [{"bucketize": borders.tolist()}])
    assert [ids[0] for ids in got] == np.searchsorted(borders, numbers[:4000]).tolist()


@EXAMPLES
@given(columns("number"), BORDERS)
def test_one_hot_has_a_one_where_the_bucket_is(drawn: Drawn, borders: list[float]) -> None:
    plan = FeaturePlan.from_config(
        {"dense": {"a": {"from": "number"}, "f": {"from": "number", "ops": [{"one_hot": borders}]}}}, SCHEMA
    )
    batch = plan.apply(pa.record_batch({"number": drawn.array, "y": pa.array(np.zeros(len(drawn.array)))}))
    assert plan.dense_names == ("a", *(f"f_{bucket}" for bucket in range(len(borders) + 1)))
    for row, ones in zip(drawn.rows, batch.dense[:, 1:].tolist(), strict=True):
        number = plain.maybe(float)(row)
        expected = [0.0] * (len(borders) + 1)
        if number is not None:
            expected[plain.bucketize(number, borders)] = 1.0
        assert ones == expected


@EXAMPLES
@given(columns("number"))
def test_cast_cuts_numbers_off_towards_zero(drawn: Drawn) -> None:
    expected = [[] if (x := plain.maybe(float)(r)) is None else [math.trunc(x)] for r in drawn.rows]
    assert apply("sparse", "number", drawn, [{"cast": "id"}]) == expected


@EXAMPLES
@given(columns("id"))
def test_cast_makes_numbers_of_ids(drawn: Drawn) -> None:
    expected = [0.0 if row is None else float(row) for row in drawn.rows]
    assert apply("dense", "id", drawn, [{"cast": "number"}]) == pytest.approx(expected)


def expect_ids(column: str, drawn: Drawn, ops: list[Any], meaning: Callable[[int], int]) -> None:
    expected = [[meaning(id_) for id_ in row] for row in plain.listed(drawn.rows)]
    assert apply("sparse", column, drawn, ops) == expected


RANGES = st.integers(1, 10) | st.integers(1, 2**63 - 1) | st.sampled_from([2**k for k in range(63)])


@EXAMPLES
@given(columns("id"), RANGES, st.integers(-(2**63), 2**63 - 1))
def test_hash_of_ids(drawn: Drawn, range_: int, salt: int) -> None:
    expect_ids("id", drawn, [{"hash": {"range": range_, "salt": salt}}], lambda i: plain.sigrid_hash(i, range_, salt))


@EXAMPLES
@given(list_columns("id"), RANGES)
def test_hash_of_lists(drawn: Drawn, range_: int) -> None:
    expect_ids("ids", drawn, [{"hash": range_}], lambda i: plain.sigrid_hash(i, range_))


def test_hash_gives_the_published_values() -> None:
    # The worked example of torcharrow's SigridHashTest: salt 0, range 100.
    drawn = Drawn(pa.array(range(1, 17)), [])
    expected = [60, 54, 54, 9, 4, 91, 11, 67, 79, 2, 25, 92, 98, 83, 66, 2]
    assert apply("sparse", "id", drawn, [{"hash": {"range": 100}}]) == [[id_] for id_ in expected]


@EXAMPLES
@given(columns("id"), RANGES)
def test_positive_modulus_is_never_negative(drawn: Drawn, modulus: int) -> None:
    expect_ids("id", drawn, [{"positive_modulus": modulus}], lambda i: i % modulus)


@EXAMPLES
@given(list_columns("id"), st.integers(-9, 0), st.integers(0, 9))
def test_clamp_limits_ids(drawn: Drawn, low: int, high: int) -> None:
    expect_ids("ids", drawn, [{"clamp": {"min": low, "max": high}}], lambda i: min(max(i, low), high))


@EXAMPLES
@given(columns("id"))
def test_fill_gives_rows_without_an_id_one(drawn: Drawn) -> None:
    expected = [[-7 if row is None else row] for row in drawn.rows]
    assert apply("sparse", "id", drawn, [{"fill": -7}]) == expected


MAPS = st.dictionaries(st.integers(-5, 5) | st.integers(-(2**63), 2**63 - 1), st.integers(0, 99), max_size=8)


@EXAMPLES
@given(list_columns("id"), MAPS)
def test_map_id_looks_ids_up(drawn: Drawn, mapping: dict[int, int]) -> None:
    ops = [{"map_id": {"mapping": mapping, "default": 1000}}]
    expect_ids("ids", drawn, ops, lambda i: mapping.get(i, 1000))


@EXAMPLES
@given(list_columns("id"), MAPS)
def test_map_id_without_default_drops_ids(drawn: Drawn, mapping: dict[int, int]) -> None:
    expected = [[mapping[i] for i in row if i in mapping] for row in plain.listed(drawn.rows)]
    assert apply("sparse", "ids", drawn, [{"map_id": {"mapping": mapping, "default": None}}]) == expected


@EXAMPLES
@given(list_columns("string"))
def test_strings_in_lists_are_hashed_alike_in_columns_and_maps(drawn: Drawn) -> None:
    texts = sorted({text for row in drawn.rows if row for text in row if text})
    mapping = {text: position for position, text in enumerate(texts)}
    expected = [[mapping[text] for text in row if text] for row in plain.listed(drawn.rows)]  # empty text is null
    assert apply("sparse", "strings", drawn, [{"map_id": {"mapping": mapping, "default": None}}]) == expected


@EXAMPLES
@given(columns("string"))
def test_strings_become_the_lower_63_bits_of_their_hash(drawn: Drawn) -> None:
    expected = [[plain.string_id(text)] if text else [] for text in drawn.rows]
    assert apply("sparse", "string", drawn, []) == expected


def test_strings_of_every_length_are_hashed_whole() -> None:
    texts = [("0123456789abcdefghijklmnopqrstuvwxyz" * 3)[:size] for size in range(1, 100)]
    drawn = Drawn(pa.array(texts), texts)
    assert apply("sparse", "string", drawn, []) == [[plain.string_id(text)] for text in texts]


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        ("abc", 0x44BC2CF5AD770999),
        ("Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
    ],
)
def test_strings_are_hashed_by_xxhash64(text: str, digest: int) -> None:
    assert plain.xxh64(text.encode()) == digest
    assert apply("sparse", "string", Drawn(pa.array([text]), []), []) == [[digest & (2**63 - 1)]]


@EXAMPLES
@given(list_columns("id"), st.integers(1, 7))
def test_first_x_skips_null_ids(drawn: Drawn, count: int) -> None:
    expected = [row[:count] for row in plain.listed(drawn.rows)]
    assert apply("sparse", "ids", drawn, [{"first_x": count}]) == expected


@EXAMPLES
@given(list_columns("number"), st.integers(1, 7))
def test_first_x_counts_null_numbers(drawn: Drawn, count: int) -> None:
    expected = []
    for row in drawn.rows:
        numbers = [
            plain.maybe(lambda x: float(np.float32(x)))(x) for x in (row or [])[:count]
        ]  # as the log reader does
        expected.append([math.trunc(x) for x in numbers if x is not None])
    assert apply("sparse", "numbers", drawn, [{"first_x": count}, {"cast": "id"}]) == expected


@EXAMPLES
@given(list_columns("id"), st.integers(1, 4), st.integers(1, 4))
def test_first_x_after_ids_were_dropped_counts_those_left(drawn: Drawn, before: int, after: int) -> None:
    mapping = {i: i for i in range(-3, 4)}
    ops = [{"first_x": before}, {"map_id": {"mapping": mapping, "default": None}}, {"first_x": after}, {"hash": 1000}]
    expected = []
    for row in plain.listed(drawn.rows):
        kept = [i for i in row[:before] if i in mapping][:after]
        expected.append([plain.sigrid_hash(i, 1000) for i in kept])
    assert apply("sparse", "ids", drawn, ops) == expected


@EXAMPLES
@given(list_columns("id"))
def test_enumerate_gives_positions(drawn: Drawn) -> None:
    rows = plain.listed(drawn.rows)
    assert apply("sparse", "ids", drawn, ["enumerate"]) == [list(range(len(row))) for row in rows]
    both = [[plain.joined(at, i) for at, i in enumerate(row)] for row in rows]
    assert apply("sparse", "ids", drawn, [{"enumerate": {"joined": True}}]) == both


@EXAMPLES
@given(list_columns("id"), st.sampled_from([0, 0.3, 1]), st.integers(0, 5))
def test_sampling_keeps_whole_rows(drawn: Drawn, probability: float, seed: int) -> None:
    ids = ROW_IDS.to_pylist()
    expected = [
        row if plain.in_sample(ids[at], seed, probability) else [] for at, row in enumerate(plain.listed(drawn.rows))
    ]
    ops = [{"sampling": {"probability": probability, "seed": seed}}]
    assert apply("sparse", "ids", drawn, ops) == expected


def test_sampling_makes_numbers_null_for_the_same_rows() -> None:
    numbers = Drawn(pa.array(np.ones(4000, np.float32)), [])
    kept = apply("dense", "number", numbers, [{"sampling": 0.25}])
    assert 0.22 < sum(kept) / 4000 < 0.28
    ids = apply("sparse", "id", Drawn(pa.array(np.ones(4000, np.int64)), []), [{"sampling": 0.25}])
    assert [len(row) for row in ids] == kept


ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"])
MOMENTS = st.lists(st.none() | st.integers(0, 4_000_000_000), max_size=20)


@EXAMPLES
@given(MOMENTS, ZONES, st.sampled_from(["s", "ms", "us", "ns"]))
def test_local_hour_knows_daylight_saving_time(moments: list[int | None], zone: str, unit: str) -> None:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    exact = [None if moment is None else moment * per_second + per_second - 1 for moment in moments]
    drawn = Drawn(pa.array(exact, pa.int64()), [])
    expected = [[] if moment is None else [plain.local_hour(moment, per_second, zone)] for moment in exact]
    assert apply("sparse", "id", drawn, [{"local_hour": {"timezone": zone, "unit": unit}}]) == expected


@pytest.mark.parametrize("second", [1_521_939_600, 1_540_688_400])  # Berlin 2018: to summer time and back
def test_local_hour_changes_in_the_second_of_the_transition(second: int) -> None:
    moments = [second - 1, second]
    drawn = Drawn(pa.array(moments), [])
    expected = [[plain.local_hour(moment, 1, "Europe/Berlin")] for moment in moments]
    assert expected[0] != [(expected[1][0] - 1) % 24]
    assert apply("sparse", "time", drawn, [{"local_hour": "Europe/Berlin"}]) == expected


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_arrow_timestamps_carry_their_own_unit(unit: str) -> None:
    moments = [0, 1_500_000_000, None]
    array = pa.array(moments, pa.timestamp("s")).cast(pa.timestamp(unit))
    assert apply("sparse", "time", Drawn(array, []), [{"local_hour": "UTC"}]) == [[0], [2], []]


def test_lists_much_longer_than_a_block_are_whole() -> None:
    rng = np.random.default_rng(3)
    rows = [rng.integers(-99, 99, size).tolist() for size in (5000, 0, 1, 1023, 1024, 1025, 3, 70_000)]
    drawn = Drawn(pa.array(rows, pa.list_(pa.int32())), rows)
    expect_ids("ids", drawn, [{"hash": 1000}], lambda i: plain.sigrid_hash(i, 1000))
    assert apply("sparse", "ids", drawn, [{"first_x": 2000}]) == [row[:2000] for row in rows]
    mapping = {i: i for i in range(50)}
    kept = [[i for i in row if i in mapping] for row in rows]
    assert apply("sparse", "ids", drawn, [{"map_id": {"mapping": mapping, "default": None}}]) == kept


def test_many_rows_cross_blocks() -> None:
    rng = np.random.default_rng(4)
    numbers = rng.normal(size=3001).astype(np.float32)
    array = pa.array(numbers, mask=rng.random(3001) < 0.3).slice(3)
    drawn = Drawn(array, array.to_pylist())
    expect_numbers(drawn, [{"fill": 2}, "log1p"], lambda x: plain.log1p(plain.fill(2)(x)))
    expected = [[] if row is None else [plain.bucketize(row, [-1, 0, 1])] for row in drawn.rows]
    assert apply("sparse", "number", drawn, [{"bucketize": [-1, 0, 1]}]) == expected
    lists = [list(range(int(size))) for size in rng.integers(0, 9, 3001)]
    expect_ids("ids", Drawn(pa.array(lists, pa.list_(pa.int64())), lists), [], lambda i: i)


@pytest.mark.parametrize(
    ("array", "section", "column", "expected"),
    [
        (pa.nulls(2), "dense", "number", [0, 0]),
        (pa.nulls(2), "sparse", "id", [[], []]),
        (pa.nulls(2), "sparse", "ids", [[], []]),
        (pa.array([[], [None]]), "sparse", "ids", [[], []]),
    ],
)
def test_columns_without_any_value_are_null(array: pa.Array, section: str, column: str, expected: list[Any]) -> None:
    assert apply(section, column, Drawn(array, []), []) == expected


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([1.5, None], pa.float16()), [1.5, 0]),
        (pa.array([1, None], pa.decimal128(5, 2)), [1, 0]),
        (pa.array([1, None], pa.uint64()), [1, 0]),
    ],
)
def test_rarer_number_types_are_read(array: pa.Array, expected: list[float]) -> None:
    assert apply("dense", "number", Drawn(array, []), []) == expected


def test_string_views_and_binary_are_hashed_as_strings_are() -> None:
    expected = apply("sparse", "string", Drawn(pa.array(["abc", None]), []), [])
    for type_ in (pa.string_view(), pa.binary(), pa.large_binary()):
        assert apply("sparse", "string", Drawn(pa.array(["abc", None], type_), []), []) == expected


def test_lists_of_dictionaries_are_decoded() -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([1, 0, None, 1], pa.int8()), pa.array(["a", "b"]))
    offsets = pa.array([0, 1, None, 2, 4], pa.int32())
    array = pa.ListArray.from_arrays(offsets, words)
    plain_lists = pa.array([["b"], ["a"], None, [None, "b"]])
    assert array.to_pylist() == plain_lists.to_pylist()
    for start in range(3):
        got = apply("sparse", "strings", Drawn(array.slice(start), []), [])
        assert got == apply("sparse", "strings", Drawn(plain_lists.slice(start), []), [])


def test_fixed_size_lists_are_read() -> None:
    rows = [[1, 2, 3], None, [4, None, 6], [7, 8, 9]]
    array = pa.array(rows, pa.list_(pa.int64(), 3))
    assert apply("sparse", "ids", Drawn(array, rows), []) == [[1, 2, 3], [], [4, 6], [7, 8, 9]]
    assert apply("sparse", "ids", Drawn(array.slice(2), rows), [{"first_x": 2}]) == [[4, 6], [7, 8]]
