"""Where rows live can be said before there are any, and a table is not made for nothing."""

import numpy as np
import torch

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig, LocalStore, TableConfig, TableGroup
from headrace.tensors import KeyedJaggedTensor

BATCH = (KeyedJaggedTensor.from_lists({"a": [[1, 2], [3]]}),)


def test_bags_with_another_store_have_no_table() -> None:
    elsewhere = LocalStore(TableGroup({"a": TableConfig(num_embeddings=50)}, 4, seed=1))
    bags = EmbeddingBags(EmbeddingsConfig(default=TableConfig(num_embeddings=50)), ["a"], 4, seed=1)
    bags.use_store(elsewhere)
    assert bags.table is None
    bags(BATCH).sum().backward()
    bags.apply_gradients()
    assert elsewhere.step == elsewhere.table.step == 1


def test_a_store_in_front_of_the_table_leaves_the_table_in_place() -> None:
    bags = EmbeddingBags(EmbeddingsConfig(), ["a"], 4, seed=1)
    table = bags.table
    bags.store = LocalStore(TableGroup(bags.spaces, 4, seed=2))
    assert bags.table is table
    assert not torch.equal(bags(BATCH), EmbeddingBags(EmbeddingsConfig(), ["a"], 4, seed=1)(BATCH))


def test_rows_in_this_process_have_the_updates_of_all_steps() -> None:
    bags = EmbeddingBags(EmbeddingsConfig(), ["a"], 4, seed=1)
    keys = bags.lookup(BATCH).parts[0].found.keys
    assert np.array_equal(bags.store.read(keys, after=0).result(), bags.store.read(keys).result())
