"""A batch owns its unique keys: found once, and kept wherever the batch goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from headrace.tensors import Batch, BatchKeys, Group, InverseKeyedJaggedTensor, KeyedJaggedTensor, Keys
from headrace.tensors.jagged_ids import collect_ids

LISTS = {"a": [[1, 2], [2], []], "b": [[7], [7], [8]]}


@dataclasses.dataclass(frozen=True)
class PlainFinder:
    """All features share a table; an id is its key. Counts its calls."""

    feature_names: tuple[str, ...] = ("a", "b", "c")
    calls: list[tuple[str, ...]] = dataclasses.field(default_factory=list, compare=False)

    def find(self, sparse: Sequence[Group], feature_names: tuple[str, ...]) -> BatchKeys:
        self.calls.append(feature_names)
        ids = collect_ids(sparse, feature_names)
        used = np.zeros(len(ids.values), dtype=np.int64)
        for feature, _ in enumerate(feature_names):
            used[ids.value_firsts[feature] : ids.value_lasts[feature]] = 1
        if len(ids.multiplicities):
            used *= ids.multiplicities
        unique, inverse = np.unique(ids.values[used > 0], return_inverse=True)
        everywhere = np.full(len(ids.values), -1, dtype=np.int32)
        everywhere[used > 0] = inverse
        counts = np.bincount(inverse, weights=used[used > 0], minlength=len(unique)).astype(np.int32)
        keys = Keys(np.zeros(len(unique), np.int32), unique, counts)
        return BatchKeys(feature_names, ids, keys, everywhere, np.array([0, len(unique)]))


def batch_of(sparse: tuple[Group, ...]) -> Batch:
    rows = sparse[0].stride
    return Batch(torch.arange(rows, dtype=torch.float32)[:, None], sparse, torch.zeros(rows, 1), torch.arange(rows))


def plain() -> Batch:
    return batch_of((KeyedJaggedTensor.from_lists(LISTS), KeyedJaggedTensor.from_lists({"c": [[9], [], [2]]})))


def deduplicated() -> Batch:
    unique = KeyedJaggedTensor.from_lists({"a": [[1, 2], [3]], "b": [[7], []]})
    group = InverseKeyedJaggedTensor.of_unique(unique, torch.tensor([0, 0, 1], dtype=torch.int32))
    return batch_of((group, KeyedJaggedTensor.from_lists({"c": [[9], [], [2]]})))


def counts(batch: Batch, finder: PlainFinder) -> dict[int, int]:
    (part,) = batch.unique_keys[finder]
    return dict(zip(part.keys.ids.tolist(), part.keys.counts.tolist(), strict=True))


def test_keys_are_found_at_the_first_question_and_kept() -> None:
    batch, finder = plain(), PlainFinder()
    (found,) = batch.keys_of(finder)
    assert batch.keys_of(PlainFinder()) == (found,), "an equal finder finds the same"
    assert finder.calls == [("a", "b", "c")]
    assert counts(batch, finder) == {1: 1, 2: 3, 7: 2, 8: 1, 9: 1}


def test_keys_stay_with_a_batch_that_moves() -> None:
    finder = PlainFinder()
    batch = plain().with_keys([finder])
    for moved in (batch.to("cpu"), batch.to("meta"), dataclasses.replace(batch, dense=torch.zeros(3, 1))):
        assert moved.keys_of(finder) is batch.keys_of(finder)
    assert len(finder.calls) == 1


def test_a_batch_that_is_given_other_ids_forgets_the_keys_of_those_before() -> None:
    finder = PlainFinder()
    batch = plain().with_keys([finder])
    other = dataclasses.replace(batch, sparse=deduplicated().sparse)
    assert not other.unique_keys
    other.keys_of(finder)
    assert counts(other, finder) == {1: 2, 2: 3, 3: 1, 7: 2, 9: 1}
    assert counts(batch, finder) == {1: 1, 2: 3, 7: 2, 8: 1, 9: 1}


@pytest.mark.parametrize("make", [plain, deduplicated])
def test_other_rows_have_the_keys_of_their_own_ids(make: object) -> None:
    finder = PlainFinder()
    batch = make().with_keys([finder])  # type: ignore[operator]
    for rows, part in (([0, 1, 2], batch.expand()), ([1, 2], batch.slice(1, 3)), ([2, 0, 2], None)):
        part = batch.take(torch.tensor(rows)) if part is None else part
        lists = {key: ids for group in part.sparse for key, ids in group.to_lists().items()}
        whole = {key: ids for group in batch.sparse for key, ids in group.to_lists().items()}
        assert lists == {key: [ids[row] for row in rows] for key, ids in whole.items()}
        assert part.row_ids.tolist() == rows
        assert part.dense[:, 0].tolist() == rows
        flat = [value for ids in lists.values() for row in ids for value in row]
        assert counts(part, finder) == {value: flat.count(value) for value in flat}


def test_feature_groups_bring_their_keys_into_the_joined_batch() -> None:
    whole, finder = plain(), PlainFinder()
    parts = [dataclasses.replace(whole, sparse=(group,)).with_keys([finder]) for group in whole.sparse]
    joined = Batch.join(parts)
    assert [part.feature_names for part in joined.keys_of(finder)] == [("a", "b"), ("c",)]
    assert joined.keys == whole.keys
    assert len(finder.calls) == 2
    alone = Batch.join(parts[:1])
    with pytest.raises(Exception, match="feature c: not in the batch, which has: a, b"):
        alone.keys_of(finder)


def test_the_bytes_of_a_batch_count_its_keys_but_no_memory_twice() -> None:
    finder = PlainFinder(("a", "b"))
    one_group = batch_of((KeyedJaggedTensor.from_lists(LISTS),))
    (part,) = one_group.with_keys([finder]).keys_of(finder)
    own = part.keys.tables.nbytes + part.keys.ids.nbytes + part.keys.counts.nbytes + part.inverse.nbytes + 16
    assert one_group.with_keys([finder]).num_bytes == one_group.num_bytes + own, "ids are those of the batch"
    two_groups = plain()
    (part,) = two_groups.with_keys([PlainFinder()]).keys_of(PlainFinder())
    assert part.ids.num_bytes == part.ids.values.nbytes + part.ids.firsts.nbytes + part.ids.lasts.nbytes
    assert two_groups.with_keys([PlainFinder()]).num_bytes == two_groups.num_bytes + part.num_bytes
