"""Encodings: exact ones give the same bits, the others stay within their bounds, whatever the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.embeddings.changes.encoding import decode_column, encode_column

RNG = np.random.default_rng(5)
ROWS = np.float32(10.0) ** RNG.integers(-30, 30, (400, 1)).astype(np.float32) * RNG.normal(size=(400, 7))
WEIGHTS = np.concatenate([ROWS, np.zeros((1, 7)), np.full((1, 7), 1e-40)]).astype(np.float32)


def round_trip(column: np.ndarray, **options: Any) -> np.ndarray:
    about, data = encode_column(column, **options)
    return decode_column(about, data, len(column))


@pytest.mark.parametrize(
    "column",
    [
        RNG.integers(-(2**63), 2**63 - 1, 100),
        np.array([-(2**63), 2**63 - 1, 0]),
        np.full(9, -7, np.int32),
        RNG.integers(0, 300, 1000).astype(np.int32),
        np.empty(0, np.int64),
        WEIGHTS,
        RNG.integers(0, 2**16, (50, 3)).astype(np.uint16),
        np.zeros((5000, 1), np.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_sorted", [False, True])
def test_exact_encodings_give_the_same_bits(column: np.ndarray, is_sorted: bool) -> None:
    again = round_trip(column, is_sorted=is_sorted)
    assert again.dtype == column.dtype
    np.testing.assert_array_equal(again, column)


def test_int8_is_within_a_part_of_the_greatest_weight_of_a_row() -> None:
    greatest = np.abs(WEIGHTS).max(axis=1, keepdims=True)
    error = np.abs(round_trip(WEIGHTS, as_floats="int8") - WEIGHTS)
    assert (error <= np.maximum(greatest / 253, 127 * 2.0**-126)).all()


@pytest.mark.parametrize("floats", ["int8", "bf16"])
def test_decoded_numbers_are_encoded_as_the_same_bytes(floats: Any) -> None:
    about, data = encode_column(WEIGHTS, as_floats=floats)
    decoded = decode_column(about, data, len(WEIGHTS))
    again, same = encode_column(decoded, as_floats=floats)
    assert (again, bytes(same)) == (about, bytes(data))


def test_bf16_is_within_a_part_of_each_number() -> None:
    again = round_trip(WEIGHTS, as_floats="bf16")
    large = np.abs(WEIGHTS) > 1e-37
    assert (np.abs(again - WEIGHTS)[large] <= np.abs(WEIGHTS)[large] / 256).all()


def test_numbers_that_are_not_finite_stay_so() -> None:
    rows = np.array([[np.nan, 1], [np.inf, 1], [-np.inf, np.nan], [1, 2]], np.float32)
    assert np.isnan(round_trip(rows, as_floats="int8")).any(axis=1).tolist() == [True, True, True, False]
    np.testing.assert_array_equal(round_trip(rows, as_floats="bf16"), rows)
