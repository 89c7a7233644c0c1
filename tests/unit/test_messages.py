"""Lists in messages stay short, and JSON is JSON whatever the numbers are."""

import json
import math

import numpy as np
import pytest
import torch

from headrace.config import Config
from headrace.errors import ConfigError
from headrace.logs import Schema
from headrace.logs.checks import check_names
from headrace.messages import MAX_CHARACTERS, shorten_list, to_json


def test_a_long_list_ends_in_the_number_of_names_left_out() -> None:
    assert shorten_list(["a", "b"]) == "a, b"
    text = shorten_list(f"column_{number}" for number in range(3000))
    assert text.startswith("column_0, column_1, ")
    assert text.endswith(" more")
    assert len(text) < MAX_CHARACTERS + 20


def test_a_name_of_any_length_or_of_several_lines_stays_one_short_word() -> None:
    assert shorten_list(["x" * 5000, "a\nb", ""]) == "x" * 117 + '..., "a\\nb", ""'


def test_errors_about_wide_schemas_are_short() -> None:
    schema = Schema.from_dict({"labels": ["click"], "dense": [f"number_{n}" for n in range(3000)]}, where="schema")
    with pytest.raises(ConfigError, match=r"column x is not in the schema, which has .* more$") as caught:
        check_names(schema, ("x",))
    assert len(str(caught.value)) < 2 * MAX_CHARACTERS


def test_a_value_of_any_length_is_shown_by_its_beginning() -> None:
    class Sizes(Config):
        num_rows: int

    with pytest.raises(ConfigError, match=r"^job: num_rows: given 'xxx") as caught:
        Sizes.from_dict({"num_rows": "x" * 10_000}, where="job")
    assert len(str(caught.value)) < MAX_CHARACTERS


@pytest.mark.parametrize("number", [math.nan, -math.inf, np.float32("nan"), np.float64("inf"), torch.tensor(math.nan)])
def test_what_is_no_finite_number_is_null_wherever_it_lies(number: object) -> None:
    values = {"a": number, "b": [1.5, number, {"c": (number,)}], "d": np.array([1.0, math.nan]), 2: True}
    expected = {"a": None, "b": [1.5, None, {"c": [None]}], "d": [1.0, None], "2": True}
    for text in (to_json(values), to_json(values, indent=2)):
        assert json.loads(text, parse_constant=pytest.fail) == expected


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    assert to_json([np.int64(3), np.float32(0.5), torch.tensor([1, 2])]) == "[3,0.5,[1,2]]"
