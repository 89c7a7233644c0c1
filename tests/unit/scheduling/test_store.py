"""The store that a scheduler puts in front of another one answers as that would."""

import numpy as np

from headrace.embeddings import Keys, LocalStore, TableConfig, TableGroup
from headrace.scheduling.store import PendingRead, StepStore


def keys_of(*ids: int) -> Keys:
    return Keys(np.zeros(len(ids), np.int32), np.array(ids), np.ones(len(ids), np.int32))


def sent(store: StepStore, keys: Keys) -> PendingRead:
    """A read ahead that has arrived."""
    read = store.prepare(keys)
    store.send([(read, None)], 1, lambda error: None)
    read.finish()
    return read


def test_what_was_read_ahead_is_read_again_where_ids_were_evicted_meanwhile() -> None:
    rows = TableGroup([TableConfig(name="a", num_embeddings=50, embedding_dim=4)], seed=0)
    store = StepStore(LocalStore(rows), 4)
    first = rows.read(keys_of(1, 2, 3))
    store.update(keys_of(1, 2, 3), np.ones((3, 4), np.float32))
    touched, others = keys_of(1, 2), keys_of(3)
    reads = [sent(store, keys) for keys in (touched, others)]
    assert store.evict(keys_of(2)).result() == 1
    np.testing.assert_array_equal(store.read(touched).result()[1], first[1])
    assert store.read(others) is reads[1].rows
    for read in reads:
        read.verify()
