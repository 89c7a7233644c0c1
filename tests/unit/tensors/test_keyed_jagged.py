"""`KeyedJaggedTensor` holds what it was given, and its validator finds each kind of damage."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import MissingExtra
from headrace.tensors import KeyedJaggedTensor, validate


@st.composite
def id_lists(draw: st.DrawFn) -> dict[str, list[list[int]]]:
    rows = draw(st.integers(0, 5))
    keys = draw(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=4, unique=True))
    ids = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)
    return {key: draw(st.lists(ids, min_size=rows, max_size=rows)) for key in keys}


@given(lists=id_lists())
def test_lists_come_back_as_they_were_given(lists: dict[str, list[list[int]]]) -> None:
    tensor = KeyedJaggedTensor.from_lists(lists)
    validate(tensor)
    assert tensor.to_lists() == lists


@given(lists=id_lists())
def test_the_part_of_a_feature_is_that_feature(lists: dict[str, list[list[int]]]) -> None:
    tensor = KeyedJaggedTensor.from_lists(lists)
    for key, rows in lists.items():
        part = tensor[key]
        validate(part)
        assert part.to_lists() == {key: rows}


def test_the_drawn_example_is_stored_as_the_docstring_says() -> None:
    tensor = KeyedJaggedTensor.from_lists({"clicked": [[10, 11], [], [12]], "category": [[7], [8], [9, 9]]})
    assert tensor.values.tolist() == [10, 11, 12, 7, 8, 9, 9]
    assert tensor.lengths.tolist() == [2, 0, 1, 1, 1, 2]
    assert tensor.offsets.tolist() == [0, 2, 2, 3, 4, 5, 7]
    assert tensor.stride == 3
    assert tensor.num_bytes == 7 * 8 + 6 * 4 + 7 * 8


def test_moving_to_a_device_keeps_everything() -> None:
    tensor = KeyedJaggedTensor.from_lengths(
        ["a"], torch.tensor([1, 2]), torch.tensor([2, 0], dtype=torch.int32), torch.tensor([0.5, 2.0])
    )
    moved = tensor.to("cpu")
    validate(moved)
    assert moved.to_lists() == {"a": [[1, 2], []]}
    assert moved.weights is not None
    assert moved.weights.tolist() == [0.5, 2.0]


GOOD = KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]], "b": [[], [4]]})


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"values": GOOD.values.int()}, TypeError, "values is torch.int32, expected torch.int64"),
        ({"keys": ("a", "a")}, ValueError, "given twice: a"),
        ({"stride": 3}, ValueError, "lengths has 4 entries, expected keys x stride = 2 x 3 = 6"),
        ({"offsets": GOOD.offsets + 1}, ValueError, "offsets must be the cumulative lengths"),
        ({"values": GOOD.values[:-1]}, ValueError, "values has 3 ids, expected the sum of lengths = 4"),
        ({"lengths": -GOOD.lengths}, ValueError, "lengths must not be negative, given -2"),
        ({"weights": torch.ones(3)}, ValueError, "weights has 3 entries, expected one per id = 4"),
    ],
)
def test_the_validator_says_what_is_wrong(change: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said.replace("(", r"\(")):
        validate(dataclasses.replace(GOOD, **change))  # type: ignore[arg-type]


def test_torchrec_tensors_convert_both_ways_where_torchrec_is_installed() -> None:
    try:
        import torchrec  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match=r"pip install 'headrace\[bench\]'"):
            GOOD.to_torchrec()
        return
    there_and_back = KeyedJaggedTensor.from_torchrec(GOOD.to_torchrec())
    validate(there_and_back)
    assert there_and_back.to_lists() == GOOD.to_lists()
