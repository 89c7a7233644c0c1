"""Compiles the kernels of shards and their clients; optimizers' kernels are those of a table group in one process."""

from __future__ import annotations

import numpy as np

from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.shards.merging import TrainerUpdate, merge_updates
from headrace.embeddings.shards.plan import make_plan
from headrace.embeddings.shards.precision import PRECISIONS, decode, encode
from headrace.embeddings.shards.request_checks import check_gradients, check_keys, check_states
from headrace.embeddings.shards.state_wire import StateWire, pack_ids_only, unpack_ids_only
from headrace.embeddings.shards.table_group import TableGroupSpec, load_part, make_part, parts_of
from headrace.embeddings.shards.wire import (
    keys_of,
    pack_ids,
    pack_rows,
    read_keys,
    read_rows,
    read_schema,
    update_schema,
)
from headrace.embeddings.tables.seen_keys import SeenKeys
from headrace.embeddings.tables.table_group import TableGroup

__all__ = ["warm_up_shard"]

DIM = 8


def warm_up_shard() -> None:
    """Run a read and an update of two trainers, as they arrive from the network, in every precision."""
    tables = [TableConfig(name="warm up", num_embeddings=64, embedding_dim=DIM)]
    spec, plan = TableGroupSpec(tables, seed=0), make_plan(tables, 1)
    group = make_part(spec, plan, 0)
    sent = Keys(np.zeros(4, np.int32), np.arange(4), np.ones(4, np.int32))
    every = make_plan(tables, 2).route(sent).order
    for with_counts in (True, False):
        request = pack_ids(sent, with_counts=with_counts)
        assert request.schema == read_schema(with_counts=with_counts)
        keys = read_keys(request, [4], 1)
        check_keys(keys, spec)
        rows = group.read(keys)
    for precision in PRECISIONS:
        data, scales = encode(rows, every, precision)
        message = pack_rows(sent, data, scales, update_schema(precision, DIM))
        for places in (None, every):
            decode(*read_rows(message), places, precision, rows)
        update = TrainerUpdate(read_keys(message, [4], 1), rows, num_rows=1)
        check_gradients(update.keys, update.gradients, spec)
        group.update(update.keys, update.gradients)
        group.update(*merge_updates([update, update]))
    load_part(group, parts_of(group, spec), spec, plan, 0)
    _move_states(group, spec, sent)


def _move_states(group: TableGroup, spec: TableGroupSpec, sent: Keys) -> None:
    """Fetch the states of keys, and put them back, as they arrive from the network."""
    ids = unpack_ids_only(pack_ids_only(sent.ids), len(sent))
    wire, keys = StateWire(spec), keys_of(ids, [len(ids)], 1)
    check_keys(keys, spec)
    answer = wire.pack(group.states(keys), len(keys), keys.ids)
    ids, states = wire.unpack(answer, len(keys))
    keys = keys_of(ids, [len(ids)], 1)
    check_states(keys, states, spec, version=group.version)
    group.set_states(keys, states, step=group.step, version=group.version)
    group.index.waiting(keys)
    group.index.set_waiting(keys.take(states.waiting), states.sightings, states.last_seen)
    seen = SeenKeys(64)
    seen.add(group.index.keys())
    seen.contains(keys)
