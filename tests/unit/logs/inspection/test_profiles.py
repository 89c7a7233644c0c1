"""Column statistics on small columns with known answers."""

import numpy as np
import pyarrow as pa
import pytest

from headrace.logs.inspection.profiles import ColumnProfile, kind_of


def profile_of(*batches: pa.Array) -> ColumnProfile:
    profile = ColumnProfile("x", batches[0].type)
    for batch in batches:
        profile.update(batch)
    return profile


def test_numbers_are_summed_up_over_batches() -> None:
    profile = profile_of(pa.array([3, None, 1], pa.int32()), pa.array([0, 7], pa.int32()))
    assert (profile.num_rows, profile.num_nulls, profile.null_ratio) == (5, 1, 0.2)
    assert (profile.min, profile.max, profile.mean) == (0, 7, 2.75)
    assert profile.num_zero_or_one == 2
    assert profile.num_backward == 2
    assert profile.ids.num_distinct() == 4


def test_moments_of_logs_are_those_of_all_batches() -> None:
    numbers = [-3.0, 0.0, 1e9, None, 2.5, 2.5]
    logs = [-np.log(4), 0, np.log1p(1e9), np.log(3.5), np.log(3.5)]
    profile = profile_of(pa.array(numbers[:2]), pa.array(numbers[2:5]), pa.array([None], pa.float64()), pa.array([2.5]))
    assert profile.log_moments == pytest.approx((np.mean(logs), np.std(logs)))
    years = profile_of(pa.array([2023] * 10_000), pa.array([2024] * 10_000))
    assert years.log_moments[1] == pytest.approx((np.log1p(2024) - np.log1p(2023)) / 2)


def test_values_that_are_not_finite_are_counted_apart() -> None:
    profile = profile_of(pa.array([1.0, float("nan"), float("inf"), 2.0, None]), pa.array([float("nan")]))
    assert (profile.num_not_finite, profile.mean, profile.max) == (3, 1.5, 2.0)
    assert profile.is_whole
    assert not profile_of(pa.array([1.5])).is_whole


def test_lists_tell_their_lengths_and_elements() -> None:
    lists = [[1, 2, 3], [], None, [1], [9] * 100]
    for kind in (pa.list_(pa.int64()), pa.large_list(pa.int64())):
        profile = profile_of(pa.array(lists, kind), pa.array([[1, 1]], kind))
        assert profile.mean_length == pytest.approx(106 / 5)
        assert (profile.percentile_length(50), profile.percentile_length(99), profile.max_length) == (2, 100, 100)
        assert profile.ids.num_distinct() == 4
        assert profile.num_nulls == 1


def test_sliced_lists_count_their_own_elements_only() -> None:
    profile = profile_of(pa.array([[1, 2], [3], [4, 5, 6]]).slice(1, 1))
    assert (profile.mean_length, profile.ids.num_distinct()) == (1.0, 1)


def test_the_skew_of_a_column_is_exact_where_ids_are_few() -> None:
    ids = np.repeat(np.arange(200), [900, 100, *[5] * 198])
    assert profile_of(pa.array(ids)).ids.top_share() == pytest.approx(1000 / len(ids))


def test_files_that_disagree_about_the_type_are_noticed() -> None:
    profile = ColumnProfile("x", pa.string(), types=[pa.int64(), pa.string()])
    assert profile.to_dict()["type"] == "int64 / string"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (pa.int8(), "int"),
        (pa.bool_(), "bool"),
        (pa.float16(), "float"),
        (pa.large_string(), "string"),
        (pa.timestamp("us", "UTC"), "time"),
        (pa.date32(), "time"),
        (pa.dictionary(pa.int32(), pa.string()), "string"),
        (pa.list_(pa.list_(pa.int8())), "list of list of int"),
        (pa.struct([("a", pa.int8())]), "other"),
    ],
)
def test_types_have_a_kind(kind: pa.DataType, name: str) -> None:
    assert kind_of(kind) == name
    profile_of(pa.nulls(3, kind))
