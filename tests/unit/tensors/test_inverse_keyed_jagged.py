"""`InverseKeyedJaggedTensor` expands to exactly the plain tensor, however its groups were found."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import MissingExtra
from headrace.tensors import Batch, InverseKeyedJaggedTensor, KeyedJaggedTensor, validate, validate_batch

Lists = dict[str, list[list[int]]]


def same(one: KeyedJaggedTensor, other: KeyedJaggedTensor) -> bool:
    """Equal in every part, weights bit for bit."""
    pairs = [(one.values, other.values), (one.lengths, other.lengths), (one.offsets, other.offsets)]
    if (one.weights is None) != (other.weights is None):
        return False
    if one.weights is not None and other.weights is not None:
        pairs.append((one.weights.view(torch.int32), other.weights.view(torch.int32)))
    alike = all(first.dtype == second.dtype and torch.equal(first, second) for first, second in pairs)
    return alike and one.keys == other.keys and one.stride == other.stride


@st.composite
def repeating(draw: st.DrawFn) -> KeyedJaggedTensor:
    """Random groups: few distinct rows, in any order; also empty lists, no rows, one row, all equal, none equal."""
    keys = draw(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3, unique=True))
    ids = st.lists(st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)]) | st.integers(0, 9), max_size=4)
    kinds = draw(st.integers(1, 5))
    distinct = [[draw(ids) for _ in keys] for _ in range(kinds)]
    shape = draw(st.sampled_from(["random", "sorted", "all equal", "none equal"]))
    rows = draw(st.lists(st.integers(0, kinds - 1), max_size=12))
    chosen = {"sorted": sorted(rows), "all equal": [0] * len(rows)}.get(shape, rows)
    table = [distinct[number] for number in chosen]
    if shape == "none equal":
        table = [[[*ids, 100 + at] for ids in row] for at, row in enumerate(table)]
    plain = KeyedJaggedTensor.from_lists({key: [row[f] for row in table] for f, key in enumerate(keys)})
    if draw(st.booleans()):
        weights = st.sampled_from([0.0, -0.0, 0.5, float("nan")])
        size = plain.values.numel()
        drawn = draw(st.lists(weights, min_size=size, max_size=size))
        plain = dataclasses.replace(plain, weights=torch.tensor(drawn, dtype=torch.float32))
    return plain


def as_slices(tensor: InverseKeyedJaggedTensor) -> InverseKeyedJaggedTensor:
    """The same rows as slices of a buffer with ids before and behind them that nobody has."""
    assert tensor.offsets is not None
    values = torch.cat([torch.tensor([-7]), tensor.values, torch.tensor([-8])])
    weights = tensor.weights
    weights = None if weights is None else torch.cat([torch.ones(1), weights, torch.ones(1)])
    starts = tensor.offsets[:-1] + 1
    return dataclasses.replace(tensor, values=values, weights=weights, offsets=None, starts=starts)


def rows_of(tensor: KeyedJaggedTensor) -> list[str]:
    """Each row's lists and weights, as text that can be compared (NaN equals NaN)."""
    bits = [0] * tensor.values.numel() if tensor.weights is None else tensor.weights.view(torch.int32).tolist()
    bounds, values = tensor.offsets.tolist(), list(zip(tensor.values.tolist(), bits, strict=True))
    features = range(len(tensor.keys))
    return [
        str([values[bounds[f * tensor.stride + row] : bounds[f * tensor.stride + row + 1]] for f in features])
        for row in range(tensor.stride)
    ]


@given(plain=repeating())
def test_expanding_gives_back_the_plain_tensor_exactly(plain: KeyedJaggedTensor) -> None:
    for order in ("any", "adjacent"):
        grouped = InverseKeyedJaggedTensor.from_keyed_jagged(plain, order=order)  # type: ignore[arg-type]
        validate(grouped)
        validate(grouped.unique)
        assert same(grouped.expand(), plain)
        sliced = as_slices(grouped)
        validate(sliced)
        assert same(sliced.expand(), plain)
        assert same(sliced.unique, grouped.unique)
        assert sliced.to_lists() == plain.to_lists()


@given(plain=repeating())
def test_hashing_finds_each_distinct_row_once_and_comparing_neighbours_each_run_once(plain: KeyedJaggedTensor) -> None:
    rows = rows_of(plain)
    assert InverseKeyedJaggedTensor.from_keyed_jagged(plain).unique_stride == len(set(rows))
    runs = sum(at == 0 or rows[at - 1] != row for at, row in enumerate(rows))
    assert InverseKeyedJaggedTensor.from_keyed_jagged(plain, order="adjacent").unique_stride == runs


@given(plain=repeating(), data=st.data())
def test_slices_of_rows_put_together_again_are_the_whole(plain: KeyedJaggedTensor, data: st.DataObject) -> None:
    grouped = InverseKeyedJaggedTensor.from_keyed_jagged(plain)
    cut = data.draw(st.integers(0, plain.stride))
    parts = [grouped.rows(0, cut), grouped.rows(cut, plain.stride)]
    for changed in (parts, [as_slices(part) for part in parts], [parts[0], as_slices(parts[1])]):
        whole = InverseKeyedJaggedTensor.concat(changed)
        validate(whole)
        assert same(whole.expand(), plain)
    compacted = [part.compact() for part in parts]
    for part, small in zip(parts, compacted, strict=True):
        validate(small)
        assert same(small.expand(), part.expand())
        assert small.unique_stride == len(set(rows_of(part.expand())))
    assert same(InverseKeyedJaggedTensor.concat(compacted).expand(), plain)


@given(plain=repeating())
def test_the_part_of_a_feature_is_that_feature(plain: KeyedJaggedTensor) -> None:
    grouped = InverseKeyedJaggedTensor.from_keyed_jagged(plain)
    for key in plain.keys:
        for whole in (grouped, as_slices(grouped)):
            validate(whole[key])
            assert same(whole[key].expand(), plain[key])


@given(plain=repeating())
def test_the_way_over_a_device_without_kernels_gives_the_same(plain: KeyedJaggedTensor) -> None:
    from headrace.tensors.inverse_keyed_jagged import _gather_on_device

    sliced = as_slices(InverseKeyedJaggedTensor.from_keyed_jagged(plain))
    assert sliced.starts is not None
    assert same(_gather_on_device(sliced, sliced.starts, sliced.inverse_lookup), plain)


WATCHED = {"watched": [[10, 11], [10, 11], [10, 11], [12]], "liked": [[7], [7], [], [7]]}


def test_the_drawn_example_is_stored_as_the_docstring_says() -> None:
    tensor = InverseKeyedJaggedTensor.from_keyed_jagged(KeyedJaggedTensor.from_lists(WATCHED))
    assert tensor.values.tolist() == [10, 11, 10, 11, 12, 7, 7]
    assert tensor.lengths.tolist() == [2, 2, 1, 1, 0, 1]
    assert tensor.offsets is not None
    assert tensor.offsets.tolist() == [0, 2, 4, 5, 6, 6, 7]
    assert tensor.inverse_lookup.tolist() == [0, 0, 1, 2]
    assert tensor.inverse_lookup.dtype == torch.int32
    assert (tensor.stride, tensor.unique_stride) == (4, 3)
    assert tensor.num_bytes == 7 * 8 + 6 * 4 + 7 * 8 + 4 * 4


def shifting() -> InverseKeyedJaggedTensor:
    return InverseKeyedJaggedTensor(
        ("history",),
        torch.tensor([1, 2, 3, 4]),
        torch.tensor([3, 3, 2], dtype=torch.int32),
        None,
        torch.tensor([0, 1, 1, 2], dtype=torch.int32),
        3,
        starts=torch.tensor([0, 1, 2]),
    )


def test_lists_that_shift_are_overlapping_slices_of_one_buffer() -> None:
    tensor = shifting()
    validate(tensor)
    assert tensor.to_lists() == {"history": [[1, 2, 3], [2, 3, 4], [2, 3, 4], [3, 4]]}
    assert tensor.unique.to_lists() == {"history": [[1, 2, 3], [2, 3, 4], [3, 4]]}
    moved = tensor.to("cpu")
    assert moved.to_lists() == tensor.to_lists()
    assert moved.num_bytes == 4 * 8 + 3 * 4 + 3 * 8 + 4 * 4


def test_a_batch_holds_both_kinds_of_groups() -> None:
    grouped = InverseKeyedJaggedTensor.from_keyed_jagged(KeyedJaggedTensor.from_lists(WATCHED))
    plain = KeyedJaggedTensor.from_lists({"shown": [[1], [2], [3], [4]]})
    batch = Batch(torch.zeros(4, 1), (plain, grouped), torch.zeros(4, 1), torch.arange(4))
    validate_batch(batch)
    assert batch.keys == ("shown", "watched", "liked")
    assert batch.num_bytes == 4 * 4 + 4 * 4 + 4 * 8 + plain.num_bytes + grouped.num_bytes
    expanded = batch.expand()
    validate_batch(expanded)
    assert [group.to_lists() for group in expanded.sparse] == [plain.to_lists(), WATCHED]
    assert batch.to("cpu").sparse[1].to_lists() == WATCHED
    with pytest.raises(ValueError, match="has 3 rows, row_ids has 4"):
        validate_batch(dataclasses.replace(batch, sparse=(grouped.rows(0, 3),)))


GOOD = InverseKeyedJaggedTensor.from_keyed_jagged(KeyedJaggedTensor.from_lists(WATCHED))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"inverse_lookup": torch.tensor([0, 0, 1, 3], dtype=torch.int32)},
            ValueError,
            "unique row 3, expected 0 to 2",
        ),
        ({"inverse_lookup": torch.tensor([0, -1], dtype=torch.int32)}, ValueError, "unique row -1, expected 0 to 2"),
        ({"inverse_lookup": torch.tensor([0])}, TypeError, "inverse_lookup is torch.int64, expected torch.int32"),
        ({"unique_stride": 4}, ValueError, "keys x unique_stride = 2 x 4 = 8"),
        ({"starts": torch.zeros(6, dtype=torch.int64)}, ValueError, "given both of offsets and starts"),
        ({"offsets": None}, ValueError, "given neither of offsets and starts"),
        ({"offsets": GOOD._starts}, ValueError, "offsets must be the cumulative lengths"),
        ({"offsets": None, "starts": torch.zeros(5, dtype=torch.int64)}, ValueError, "starts has 5 entries"),
        (
            {"offsets": None, "starts": torch.full((6,), 6)},
            ValueError,
            "list 0 is at 6 to 8, expected within the 7 values",
        ),
        ({"weights": torch.ones(3)}, ValueError, "weights has 3 entries, expected one per id = 7"),
    ],
)
def test_the_validator_says_what_is_wrong(change: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        validate(dataclasses.replace(GOOD, **change))  # type: ignore[arg-type]


def test_parts_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="no parts"):
        InverseKeyedJaggedTensor.concat([])
    with pytest.raises(ValueError, match="keys watched, liked and watched, expected the same"):
        InverseKeyedJaggedTensor.concat([GOOD, GOOD["watched"]])
    with pytest.raises(ValueError, match="some parts of watched, liked have weights"):
        InverseKeyedJaggedTensor.concat([GOOD, dataclasses.replace(GOOD, weights=torch.ones(7))])


def test_torchrec_tensors_with_variable_batch_convert_both_ways_where_torchrec_is_installed() -> None:
    try:
        import torchrec  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match=r"pip install 'headrace\[bench\]'"):
            GOOD.to_torchrec()
        return
    weighted = dataclasses.replace(GOOD, weights=torch.arange(7, dtype=torch.float32))
    for tensor in (GOOD, weighted, shifting()):
        theirs = tensor.to_torchrec()
        assert theirs.stride() == tensor.stride
        assert theirs.stride_per_key() == [tensor.unique_stride] * len(tensor.keys)
        (back,) = InverseKeyedJaggedTensor.from_torchrec(theirs)
        validate(back)
        assert same(back.expand(), tensor.expand())


def test_torchrec_keys_with_other_inverse_indices_become_groups_of_their_own() -> None:
    try:
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor as TorchRecTensor
    except ImportError:
        pytest.skip("torchrec is not installed")
    theirs = TorchRecTensor(
        keys=["a", "b", "c"],
        values=torch.tensor([1, 2, 3, 4, 5, 6]),
        lengths=torch.tensor([1, 1, 2, 0, 1, 1]),
        stride_per_key_per_rank=[[2], [2], [2]],
        inverse_indices=(["a", "b", "c"], torch.tensor([[0, 1, 1], [0, 1, 1], [0, 0, 1]])),
    )
    first, second = InverseKeyedJaggedTensor.from_torchrec(theirs)
    assert first.to_lists() == {"a": [[1], [2], [2]], "b": [[3, 4], [], []]}
    assert second.to_lists() == {"c": [[5], [5], [6]]}
