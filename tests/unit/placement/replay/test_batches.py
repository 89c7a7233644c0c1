"""Row streams of batches of features: the same keys as in training, each row once per sample."""

import pytest
import torch

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig, KeyLayout
from headrace.errors import ConfigError
from headrace.placement.replay.batches import stream_of_batches
from headrace.tensors import Batch, InverseKeyedJaggedTensor, KeyedJaggedTensor


def layout(tables: dict[str, list[str]]) -> KeyLayout:
    config = {
        "default": {"kind": "collisionless"},
        "tables": {name: {"feature_names": features} for name, features in tables.items()},
    }
    names = [feature for features in tables.values() for feature in features]
    return EmbeddingBags(EmbeddingsConfig.from_dict(config, where="test"), names, 4, seed=0).key_layout


def batch(*groups: KeyedJaggedTensor | InverseKeyedJaggedTensor) -> Batch:
    size = groups[0].stride
    return Batch(torch.zeros(size, 0), groups, torch.zeros(size, 1), torch.arange(size))


def samples(stream: object, number: int) -> list[list[int]]:
    found = stream.batches[number]  # type: ignore[attr-defined]
    return [found.values[a:b].tolist() for a, b in zip(found.starts, found.starts[1:], strict=False)]


def test_features_that_share_a_table_share_rows_and_others_do_not() -> None:
    item = KeyedJaggedTensor.from_lists({"item": [[7], [9]], "history": [[9, 5, 9], []], "user": [[7], [2]]})
    stream = stream_of_batches([batch(item)], layout({"items": ["item", "history"], "users": ["user"]}))
    # Rows: items 5, 7, 9 and users 2, 7.
    assert stream.num_rows == 5
    assert samples(stream, 0) == [[1, 2, 0, 4], [2, 3]]


def test_rows_have_the_same_number_in_all_batches() -> None:
    batches = [batch(KeyedJaggedTensor.from_lists({"item": [[id_], [-3]]})) for id_ in (2**62, 11, 2**62)]
    stream = stream_of_batches(batches, layout({"items": ["item"]}))
    assert [samples(stream, number) for number in range(3)] == [[[2], [0]], [[1], [0]], [[2], [0]]]
    assert stream.batches[0].next_use.tolist() == [2, 1]


def test_deduplicated_features_count_for_every_sample() -> None:
    unique = KeyedJaggedTensor.from_lists({"history": [[4, 6], [5]]})
    history = InverseKeyedJaggedTensor.of_unique(unique, torch.tensor([0, 1, 0]))
    item = KeyedJaggedTensor.from_lists({"item": [[6], [], [1]]})
    stream = stream_of_batches([batch(item, history)], layout({"items": ["item", "history"]}))
    assert samples(stream, 0) == [[3, 1], [2], [0, 1, 3]]


def test_no_batches_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"stream: batches of \[\] samples"):
        stream_of_batches([], layout({"items": ["item"]}))
