"""Columns of requests: keys once each, counts, ids and gradients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings import Keys, TableConfig
from headrace.embeddings.ops.key_sets import first_repeated_key
from headrace.embeddings.shards.request_checks import (
    check_gradients,
    check_keys,
    first_row_not_finite,
)
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.errors import ShardError

IDS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 6)


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 2), IDS), max_size=60))
def test_the_first_key_that_came_before_is_found(pairs: list[tuple[int, int]]) -> None:
    expected = next((u for u, pair in enumerate(pairs) if pair in pairs[:u]), -1)
    tables = np.array([table for table, _ in pairs], dtype=np.int32)
    assert first_repeated_key(tables, np.array([key for _, key in pairs], dtype=np.int64)) == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_number_that_is_not_finite_is_found(bad: float) -> None:
    rows = np.full((5, 3), np.finfo(np.float32).max, dtype=np.float32)
    assert first_row_not_finite(rows.view(np.uint32)) == -1
    rows[2, 1] = rows[4, 0] = bad
    assert first_row_not_finite(rows.view(np.uint32)) == 2


def test_what_is_wrong_is_named_with_its_field_table_and_id() -> None:
    users = TableConfig(name="users", num_embeddings=50, embedding_dim=2)
    spec = TableGroupSpec([users, TableConfig(name="items", kind="collisionless", embedding_dim=2)], 0)

    def keys(ids: list[int], counts: list[int]) -> Keys:
        return Keys(np.array([0, 1, 1], np.int32), np.array(ids), np.array(counts, np.int32))

    check_keys(keys([49, -7, 2**60], [0, 1, 2]), spec)
    with pytest.raises(ShardError, match="table users: id 50, expected 0 <= id < 50"):
        check_keys(keys([50, 1, 2], [1, 1, 1]), spec)
    with pytest.raises(ShardError, match="count: given -3 for id 2 of table items, expected 0 or more"):
        check_keys(keys([0, 1, 2], [1, 1, -3]), spec)
    with pytest.raises(ShardError, match="id: 5 occurs twice in table items, expected no duplicates"):
        check_keys(keys([5, 5, 5], [1, 1, 1]), spec)
    gradients = np.zeros((3, 2), np.float32)
    check_gradients(keys([0, 1, 2], [1, 1, 1]), gradients, spec)
    gradients[1, 1] = np.nan
    with pytest.raises(ShardError, match="gradients: given infinity or NaN for id 1 of table items, expected finite"):
        check_gradients(keys([0, 1, 2], [1, 1, 1]), gradients, spec)
