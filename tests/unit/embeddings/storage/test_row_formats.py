"""Rows in bf16, fp16 and int8: exact where a number fits, else one of two neighbours, on average the number itself."""

from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings import Keys, SGDConfig, TableConfig, TableGroup
from headrace.embeddings.storage.row_formats import (
    FORMATS,
    as_tensor,
    round_row,
    storage_dtype,
    stored_width,
    to_float32,
    widen_row,
)
from headrace.errors import CheckpointError

TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16}
HALVES = pytest.mark.parametrize("row_format", ["bf16", "fp16"])
ROUNDED = pytest.mark.parametrize("row_format", ["bf16", "fp16", "int8"])


def stored(values: np.ndarray, row_format: str, counters: range = range(1)) -> torch.Tensor:
    """Each row of the result: the values [dim], rounded with another counter."""
    rows = np.zeros((len(counters), stored_width(row_format, len(values))), dtype=storage_dtype(row_format))
    for row, counter in enumerate(counters):
        used_up = values.astype(np.float32)
        round_row(rows, row, FORMATS[row_format], used_up, used_up.view(np.uint32), np.uint64(5), counter)
    return as_tensor(rows, row_format)


@HALVES
@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=9))
@settings(max_examples=100, deadline=None)
def test_numbers_that_fit_are_kept_and_read_back_bit_for_bit(row_format: str, bits: list[int]) -> None:
    rows = np.array([bits], dtype=np.uint16)
    exact = as_tensor(rows, row_format).float()
    if not exact.isfinite().all():
        return
    out = np.empty(len(bits), dtype=np.float32)
    widen_row(rows, 0, FORMATS[row_format], out, out.view(np.uint32))
    np.testing.assert_array_equal(out, exact[0].numpy())
    np.testing.assert_array_equal(stored(out, row_format).float()[0].numpy(), exact[0].numpy())


@HALVES
@given(values=st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=9), counter=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_a_number_becomes_one_of_its_two_neighbours(row_format: str, values: list[float], counter: int) -> None:
    given_ = np.array(values, dtype=np.float32)
    nearest = torch.from_numpy(given_).to(TORCH[row_format])
    found = stored(given_, row_format, range(counter, counter + 1))[0]
    steps = (found.view(torch.int16).int() - nearest.view(torch.int16).int()).abs()
    crosses_zero = (found.float() == 0) | (nearest.float() == 0)
    assert ((steps <= 1) | crosses_zero).all()
    exact = torch.from_numpy(given_)
    gap = torch.maximum(exact.abs() * (2.0**-7 if row_format == "bf16" else 2.0**-10), torch.tensor(2.0**-24))
    assert ((found.float() - exact).abs() <= gap).all(), "within one step of the format"


@ROUNDED
@pytest.mark.parametrize("value", [1.003, -0.3333, 1e-4, 3e-7, 1234.5])
def test_rounding_is_right_on_average(row_format: str, value: float) -> None:
    num = 4000
    values = np.full(8, value, dtype=np.float32)
    found = to_float32(stored(values, row_format, range(num)), row_format).double().numpy()
    sigma = found.std() / np.sqrt(found.size)
    assert sigma > 0, "both neighbours occur"
    assert abs(found.mean() - np.float32(value)) < 4.5 * sigma  # once in 150000 seeds, and the seed is fixed


def test_what_does_not_fit_is_clamped_and_what_is_no_number_stays_none() -> None:
    values = np.array([1e6, -1e6, 65519.0, np.inf, np.nan, 0.0, -0.0], dtype=np.float32)
    half = stored(values, "fp16").float()[0]
    assert half[:4].tolist() == [65504.0, -65504.0, 65504.0, 65504.0]
    assert half[4].isnan()
    assert half[5:].tolist() == [0.0, 0.0]
    greatest = np.finfo(np.float32).max
    brain = stored(np.array([greatest, -greatest, np.inf, -np.inf, np.nan], dtype=np.float32), "bf16").float()[0]
    assert brain[:2].isfinite().all()
    assert brain[2:4].tolist() == [np.inf, -np.inf]
    assert brain[4].isnan()


INT8_ROWS = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=9)


@given(values=INT8_ROWS, counter=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_an_int8_row_is_within_a_step_of_its_scale_and_is_then_kept_exactly(values: list[float], counter: int) -> None:
    exact = np.array(values, dtype=np.float32)
    rows = stored(exact, "int8", range(counter, counter + 1))
    found = to_float32(rows, "int8")[0].numpy()
    step = 2.0 ** float(rows[0, -1])
    greatest = np.abs(exact).max()
    assert greatest <= 127 * step
    assert greatest > 63.5 * step or step == 2.0**-126, "a smaller scale would do"
    assert (np.abs(found.astype(np.float64) - exact) < step).all()
    again = to_float32(stored(found, "int8", range(counter + 1, counter + 2)), "int8")[0].numpy()
    np.testing.assert_array_equal(again, found)


@given(numbers=st.lists(st.integers(-127, 127), min_size=1, max_size=9), exponent=st.integers(-126, 121))
@settings(max_examples=100, deadline=None)
def test_a_kernel_widens_int8_rows_to_what_torch_does(numbers: list[int], exponent: int) -> None:
    rows, out = np.array([[*numbers, exponent]], dtype=np.int8), np.empty(len(numbers), dtype=np.float32)
    widen_row(rows, 0, FORMATS["int8"], out, out.view(np.uint32))
    np.testing.assert_array_equal(out, np.array(numbers) * 2.0**exponent)
    np.testing.assert_array_equal(to_float32(torch.from_numpy(rows), "int8")[0].numpy(), out)


def test_an_int8_row_is_finite_if_its_numbers_are_and_otherwise_a_row_of_nans() -> None:
    greatest = np.finfo(np.float32).max
    limit = np.float32(127 * 2.0**121)
    for values, expected in (
        ([greatest, -greatest, 1.0], [limit, -limit, 0.0]),
        ([0.0, -0.0, 0.0], [0.0, 0.0, 0.0]),
        ([np.inf, 1.0, 2.0], [np.nan] * 3),
        ([1.0, 2.0, np.nan], [np.nan] * 3),
    ):
        rows = stored(np.array(values, dtype=np.float32), "int8")
        out = np.empty(3, dtype=np.float32)
        widen_row(rows.numpy(), 0, FORMATS["int8"], out, out.view(np.uint32))
        np.testing.assert_allclose(out, expected, rtol=0, atol=2.0**-8)
        np.testing.assert_array_equal(to_float32(rows, "int8")[0].numpy(), out)


def group_of(row_format: Any, **options: Any) -> TableGroup:
    table = TableConfig(name="s", embedding_dim=8, kind="hashed", num_embeddings=50, rows=row_format, **options)
    return TableGroup([table], seed=3)


def keys(num: int) -> Keys:
    return Keys(np.zeros(num, np.int32), np.arange(num), np.ones(num, np.int32))


@ROUNDED
def test_small_updates_add_up_where_rounding_to_nearest_would_stand_still(row_format: Any) -> None:
    t = group_of(row_format, init_scale=0.0, optimizer=SGDConfig(lr=1.0))
    t.update(keys(50), np.full((50, 8), -1.0, dtype=np.float32))
    assert (t.read(keys(50)) == 1.0).all()
    for _ in range(100):
        t.update(keys(50), np.full((50, 8), -1e-4, dtype=np.float32))  # a tenth of fp16's step at 1, 1/78 of bf16's
    moved = t.read(keys(50)).astype(np.float64) - 1
    assert abs(moved.mean() - 0.01) < 3.5 * moved.std() / np.sqrt(moved.size)


@HALVES
def test_rows_of_16_bits_take_half_the_bytes_and_begin_near_those_of_32(row_format: Any) -> None:
    halves, full = group_of(row_format), group_of("fp32")
    assert halves.storage.weights.nbytes * 2 == full.storage.weights.nbytes
    assert halves.weights.dtype == TORCH[row_format]
    np.testing.assert_allclose(halves.read(keys(50)), full.read(keys(50)), rtol=2**-7, atol=2**-24)


def test_int8_rows_take_a_byte_per_number_and_one_for_the_scale_and_begin_near_those_of_32_bits() -> None:
    small, full = group_of("int8"), group_of("fp32")
    assert small.storage.weights.shape == (len(full.weights), 9)
    assert small.storage.weights.dtype == np.int8
    assert small.storage.num_bytes < 0.4 * full.storage.num_bytes
    scales = np.abs(full.read(keys(50))).max(axis=1, keepdims=True)
    assert (np.abs(small.read(keys(50)) - full.read(keys(50))) <= scales / 63.5).all()


@ROUNDED
def test_training_is_the_same_for_any_number_of_threads_and_goes_on_the_same_after_a_resume(row_format: Any) -> None:
    def train(t: TableGroup, steps: range) -> None:
        for step in steps:
            t.update(keys(50), np.random.default_rng(step).normal(size=(50, 8)).astype(np.float32))

    groups = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        groups.append(group_of(row_format))
        train(groups[-1], range(6))
    resumed = group_of(row_format)
    first = group_of(row_format)
    train(first, range(3))
    resumed.load_state_dict(first.state_dict())
    train(resumed, range(3, 6))
    for other in (groups[1], resumed):
        for name, column in groups[0].state_dict().items():
            np.testing.assert_array_equal(column, other.state_dict()[name], err_msg=name)


def test_a_saved_table_of_another_format_of_rows_is_refused_with_both_sides() -> None:
    for saved, loading in (("bf16", "fp32"), ("fp32", "bf16"), ("fp16", "bf16"), ("bf16", "int8")):
        t = group_of(saved)
        t.update(keys(3), np.ones((3, 8), dtype=np.float32))
        with pytest.raises(CheckpointError, match=rf"s\.rows was saved as {saved}, but the job says {loading}"):
            group_of(loading).load_state_dict(t.state_dict())
