"""Which part a column is guessed to play, and why."""

import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import ConfigError
from headrace.logs.inspection.guesses import Guess, guess_parts, make_schema, parts_of_schema, words_of
from headrace.logs.inspection.profiles import ColumnProfile
from headrace.logs.inspection.schema_yaml import schema_to_yaml
from headrace.logs.schema import Schema

NUM_ROWS = 2_000
RANDOM = np.random.default_rng(0)
BINARY = RANDOM.integers(0, 2, NUM_ROWS)
SMALL = RANDOM.integers(0, 40, NUM_ROWS)
HASHES = RANDOM.integers(-(2**62), 2**62, 300)[RANDOM.integers(0, 300, NUM_ROWS)]
TIMES_S = 1_700_000_000 + np.sort(RANDOM.integers(0, 10**6, NUM_ROWS))
TEXTS = [f"t{number}" for number in SMALL]
LISTS = [[1, 2]] * NUM_ROWS


def guesses_of(columns: dict[str, object]) -> dict[str, Guess]:
    profiles = []
    for name, values in columns.items():
        array = values if isinstance(values, pa.Array) else pa.array(values)
        profile = ColumnProfile(name, array.type)
        profile.update(array)
        profiles.append(profile)
    return {guess.name: guess for guess in guess_parts(profiles)}


@pytest.mark.parametrize(
    ("name", "values", "part", "because"),
    [
        ("click", BINARY, "label", "named like a label, with 0 and 1"),
        ("is_clicked", BINARY.astype(bool), "label", "named like a label"),
        ("label", SMALL, "label", "numbers other than 0 and 1"),
        ("click_count", SMALL, "dense", "named like a number"),
        ("premium", BINARY, "dense", "only 0 and 1"),
        ("age", SMALL, "dense", "named like a number"),
        ("age_group", SMALL, "id", "named like an id"),
        ("item_price", SMALL, "dense", "named like a number"),
        ("userId", SMALL, "id", "named like an id"),
        ("user_id", np.where(SMALL < 5, np.nan, SMALL), "id", "integers stored as floats"),
        ("item_score", SMALL / 7, "dense", "numbers"),
        ("C14", HASHES, "id", "named like an id"),
        ("I2", SMALL, "dense", "named like a number"),
        ("x", HASHES, "id", "more than 32 bits"),
        ("x", RANDOM.integers(0, 500, NUM_ROWS), "id", "few gaps"),
        ("x", SMALL, "dense", "integers"),
        ("x", pa.array(TEXTS).dictionary_encode(), "id", "text"),
        ("x", TEXTS, "id", "text"),
        ("x", LISTS, "id_list", "lists of integers"),
        ("x", [["a"]] * NUM_ROWS, "id_list", "lists of strings"),
        ("x", [[0.5]] * NUM_ROWS, "ignored", "lists of float are not ids"),
        ("x", [{"a": 1}] * NUM_ROWS, "ignored", "is not a number, text or list"),
        ("x", pa.nulls(NUM_ROWS, pa.int64()), "ignored", "only nulls"),
        ("x", TIMES_S * 1000, "timestamp", "numbers like ms since 1970"),
        ("event_time", TIMES_S, "timestamp", "named like a time, counts s since 1970"),
        ("when", pa.array(TIMES_S).cast(pa.timestamp("s")), "timestamp", "type timestamp[s]"),
        ("session_id", HASHES, "session_id", "named like a session"),
        ("session_key", TIMES_S * 1000, "session_id", "named like a session"),
        ("session_start", TIMES_S * 1000, "timestamp", "numbers like ms since 1970"),
        ("session_length", SMALL, "dense", "named like a number"),
        ("row_id", np.arange(NUM_ROWS), "row_id", "different in every row"),
        ("event_id", [f"e{number}" for number in range(NUM_ROWS)], "ignored", "nothing to learn"),
        ("sample_weight", SMALL / 7, "weight", "never negative"),
    ],
)
def test_a_column_is_guessed_with_its_reason(name: str, values: object, part: str, because: str) -> None:
    guess = guesses_of({"target": BINARY, name: values})[name]
    assert guess.part == part
    assert because in guess.reason


def test_a_label_with_a_few_strays_is_still_a_label_of_zero_and_one() -> None:
    strays = BINARY.copy()
    strays[:3] = 7
    guess = guesses_of({"click": strays})["click"]
    assert guess.part == "label"
    assert guess.reason.endswith("(except in 3 rows)")
    assert dict(guess.options) == {}


def test_without_a_name_the_first_column_of_zeros_and_ones_is_the_label() -> None:
    guesses = guesses_of({"x": SMALL / 7, "zero": 0 * BINARY, "a": BINARY, "b": BINARY})
    assert [guess.part for guess in guesses.values()] == ["dense", "dense", "label", "dense"]


def test_a_named_timestamp_goes_before_numbers_that_look_like_times() -> None:
    guesses = guesses_of({"begin": TIMES_S * 1000, "timestamp": TIMES_S * 1000, "click": BINARY})
    assert guesses["timestamp"].part == "timestamp"
    assert guesses["begin"] == Guess("begin", "ignored", "another timestamp: timestamp is used")


def test_the_start_of_a_session_is_no_feature_beside_the_time_of_a_row() -> None:
    guesses = guesses_of({"click": BINARY, "session_start": TIMES_S * 1000, "click_timestamp": TIMES_S * 1000})
    assert guesses["click_timestamp"].part == "timestamp"
    assert str(guesses["session_start"].reason) == "another timestamp: click_timestamp is used"


def test_the_guesses_make_a_schema_that_reads_back_from_yaml(tmp_path: object) -> None:
    guesses = guesses_of(
        {
            "click": BINARY,
            "price": SMALL / 7,
            "user": HASHES,
            "country": TEXTS,
            "history": LISTS,
            "history_weights": [[0.5, 0.25]] * NUM_ROWS,
            "ts": TIMES_S,
            "session": HASHES,
        }
    ).values()
    schema = make_schema(guesses, where="logs")
    assert [column.name for column in schema.labels] == ["click"]
    assert [column.name for column in schema.dense] == ["price"]
    assert [(column.name, column.type) for column in schema.ids] == [("user", "int"), ("country", "string")]
    assert [(column.name, column.weights) for column in schema.id_lists] == [("history", "history_weights")]
    assert schema.timestamp is not None
    assert (schema.timestamp.name, schema.timestamp.unit, schema.session_id) == ("ts", "s", "session")
    text = schema_to_yaml(schema, guesses)
    assert "labels: [click]" in text
    assert "#   user: id, named like an id" in text
    path = tmp_path / "schema.yaml"  # type: ignore[operator]
    path.write_text(text)
    assert Schema.from_yaml(path) == schema
    again = parts_of_schema(schema, [guess.name for guess in guesses])
    assert [guess.part for guess in again] == [guess.part for guess in guesses]


def test_a_log_without_a_label_has_no_schema() -> None:
    with pytest.raises(ConfigError, match=r"logs: no column looks like a label .*given price; write a schema by hand"):
        make_schema(guesses_of({"price": SMALL / 7}).values(), where="logs")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("userId", ["user", "id"]),
        ("user_id", ["user", "id"]),
        ("C14", ["c"]),
        ("HTTPHost2", ["http", "host"]),
        ("", []),
    ],
)
def test_names_are_split_into_words(name: str, words: list[str]) -> None:
    assert words_of(name) == words
