"""Where rows live can be said before there are any, and tables are not made for nothing."""

import numpy as np
import torch

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig, LocalStore, TableConfig, TableGroup
from headrace.tensors import KeyedJaggedTensor

BATCH = (KeyedJaggedTensor.from_lists({"a": [[1, 2], [3]]}),)


def test_bags_with_another_store_have_no_table() -> None:
    elsewhere = LocalStore(TableGroup([TableConfig(name="a", num_embeddings=50, embedding_dim=4)], seed=1))
    bags = EmbeddingBags(EmbeddingsConfig(default=TableConfig(num_embeddings=50)), ["a"], 4, seed=1)
    bags.use_store(elsewhere)
    assert bags.table_group is None
    bags(BATCH).sum().backward()
    bags.apply_gradients()
    assert elsewhere.step == elsewhere.table_group.step == 1


def test_a_store_in_front_of_the_table_leaves_the_table_in_place() -> None:
    bags = EmbeddingBags(EmbeddingsConfig(), ["a"], 4, seed=1)
    group = bags.table_group
    bags.store = LocalStore(TableGroup(bags.tables, seed=2))
    assert bags.table_group is group
    assert not torch.equal(bags(BATCH), EmbeddingBags(EmbeddingsConfig(), ["a"], 4, seed=1)(BATCH))


def test_ids_that_a_store_evicts_begin_anew() -> None:
    bags = EmbeddingBags(EmbeddingsConfig(), ["a"], 4, seed=1)
    keys, first = bags.lookup(BATCH).parts[0].found.keys, bags(BATCH)
    first.sum().backward()
    bags.apply_gradients()
    assert not torch.equal(bags(BATCH), first)
    assert bags.store.evict(keys).result() == len(keys)
    assert torch.equal(bags(BATCH), first)


def test_rows_in_this_process_have_the_updates_of_all_steps() -> None:
    bags = EmbeddingBags(EmbeddingsConfig(), ["a"], 4, seed=1)
    keys = bags.lookup(BATCH).parts[0].found.keys
    assert np.array_equal(bags.store.read(keys, after=0).result(), bags.store.read(keys).result())
