"""Entries of a parameter are found again by what they belong to."""

import numpy as np
import pytest

from headrace.models.feature_axes import FeatureAxis, carry_over, inputs, new_inputs, num_kept, outputs


def test_columns_follow_their_features_and_new_ones_keep_the_initial_value() -> None:
    saved, initial = np.array([[1, 2, 3], [4, 5, 6]]), np.full((2, 3), -1)
    was, now = inputs(["a", "b", "c"]), inputs(["c", "new", "a"])
    assert carry_over(saved, initial, was, now).tolist() == [[3, -1, 1], [6, -1, 4]]
    assert new_inputs((2, 3), was, now).tolist() == [[False, True, False]] * 2
    assert num_kept(*was, *now) == 2
    assert (initial == -1).all(), "a copy"


def test_rows_and_columns_of_a_square_matrix_follow_their_features() -> None:
    saved, initial = np.array([[11, 12], [21, 22]]), np.full((3, 3), -1)
    was, now = ["a", "b"], ["b", "new", "a"]
    axes = outputs(was) + inputs(was), outputs(now) + inputs(now)
    assert carry_over(saved, initial, *axes).tolist() == [[22, -1, 21], [-1, -1, -1], [12, -1, 11]]
    assert new_inputs((3, 3), *axes).tolist() == [[False, True, False]] * 3


def test_an_array_that_does_not_depend_on_features_is_kept() -> None:
    assert carry_over(np.array([1.0, 2.0]), np.zeros(2), (), ()).tolist() == [1, 2]
    assert carry_over(np.array(3), np.array(0), (), ()).tolist() == 3


@pytest.mark.parametrize(("was", "now"), [([], ["a"]), (["a"], []), (["a"], ["b"])])
def test_nothing_may_be_left(was: list[str], now: list[str]) -> None:
    initial = np.full((2, len(now)), 7)
    assert (carry_over(np.ones((2, len(was))), initial, inputs(was), inputs(now)) == initial).all()


def test_an_input_may_lie_along_the_first_axis() -> None:
    axes = (FeatureAxis(0, ["a"]),), (FeatureAxis(0, ["new", "a"]),)
    assert new_inputs((2, 3), *axes).tolist() == [[True] * 3, [False] * 3]
