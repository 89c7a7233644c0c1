import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.embeddings.ops.hashing import mix64, multiply_shift, name_seed, unit_float
from headrace.embeddings.tables.index.hashed import hashed_row

UINT64 = st.integers(0, 2**64 - 1)


@given(x=UINT64, size=UINT64)
def test_multiply_shift_is_the_high_half_of_the_128_bit_product(x: int, size: int) -> None:
    assert int(multiply_shift(np.uint64(x), np.uint64(size))) == (x * size) >> 64


@given(key=st.integers(-(2**63), 2**63 - 1), salt=UINT64, size=st.integers(1, 2**62))
def test_hashed_rows_lie_in_the_table_also_beyond_two_to_the_32(key: int, salt: int, size: int) -> None:
    assert 0 <= int(hashed_row(key, np.uint64(salt), size)) < size


def test_mix64_gives_the_published_numbers_of_splitmix64() -> None:
    golden, state, given = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(5):
        state = (state + golden) % 2**64
        given.append(int(mix64(np.uint64(state))))
    # From the reference implementation at prng.di.unimi.it, seed 1234567.
    assert given == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_ids_spread_evenly_over_hashed_rows() -> None:
    rows = np.array([hashed_row(key, np.uint64(7), 64) for key in range(64_000)])
    counts = np.bincount(rows, minlength=64)
    # Binomial with mean 1000 and deviation 31: six deviations.
    assert counts.min() > 810
    assert counts.max() < 1190


def test_unit_floats_are_uniform_in_zero_to_one() -> None:
    drawn = np.array([unit_float(np.uint64(3), np.uint64(i)) for i in range(20_000)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.01
    assert abs(drawn.var() - 1 / 12) < 0.005


def test_name_seeds_tell_names_apart_also_where_they_join_to_the_same_text() -> None:
    assert len({name_seed(0, "ab", "c"), name_seed(0, "a", "bc"), name_seed(1, "ab", "c"), name_seed(0, "abc")}) == 4
