"""Rows arrive within the stated error, wherever they are taken from and put."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headrace.embeddings.shards.precision import PRECISIONS, Precision, decode, encode, row_bytes

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


def travel(rows: np.ndarray, precision: Precision) -> np.ndarray:
    out = np.empty_like(rows)
    decode(*encode(rows, None, precision), None, precision, out)
    return out


@settings(max_examples=80, deadline=None)
@given(rows=arrays(np.float32, (4, 5), elements=FLOATS))
def test_errors_stay_within_their_bounds(rows: np.ndarray) -> None:
    exact = rows.astype(np.float64)
    assert (travel(rows, "fp32") == rows).all()
    assert (np.abs(travel(rows, "bf16") - exact) <= 2**-8 * np.abs(exact)).all()
    bound = np.abs(exact).max(axis=1, keepdims=True) / 254
    assert (np.abs(travel(rows, "int8") - exact) <= bound * (1 + 1e-5) + 1e-38).all()


def test_bf16_rounds_as_torch_does_and_keeps_what_is_not_finite() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    rows[0, :4] = [np.nan, np.inf, -np.inf, 3.4e38]
    expected = torch.from_numpy(rows).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(travel(rows, "bf16"), expected)


def test_an_int8_row_that_is_not_finite_arrives_as_nan_and_zeros_stay_zero() -> None:
    rows = np.array([[np.inf, 1], [np.nan, 1], [0, 0]], np.float32)
    assert np.isnan(travel(rows, "int8")[:2]).all()
    assert (travel(rows, "int8")[2] == 0).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_are_taken_from_and_put_to_places(precision: Precision) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    data, scales = encode(rows, np.array([2, 0]), precision)
    assert data.shape == (2, row_bytes(precision, 3))
    out = np.full((5, 3), -1, np.float32)
    decode(data, scales, np.array([4, 1]), precision, out)
    np.testing.assert_allclose(out[[4, 1]], rows[[2, 0]], atol=0.05)
    assert (out[[0, 2, 3]] == -1).all()
