import numpy as np

from headrace.embeddings.ops.hashing import name_seeds
from headrace.embeddings.storage.first_values import fill_rows

SEEDS = name_seeds(5, ["users", "items"], "rows")
SCALES = np.array([0.5, 2.0], dtype=np.float32)


def rows_of(ids: list[int], table: int) -> np.ndarray:
    weights = np.zeros((len(ids), 8), dtype=np.float32)
    where = np.arange(len(ids), dtype=np.int64)
    fill_rows(weights, where, np.full(len(ids), table, dtype=np.int32), np.array(ids, dtype=np.int64), SEEDS, SCALES)
    return weights


def test_a_row_depends_on_seed_table_and_id_but_not_on_where_or_when_it_is_filled() -> None:
    forward, backward = rows_of([3, -9, 2**62], 1), rows_of([2**62, -9, 3], 1)
    np.testing.assert_array_equal(forward, backward[::-1])
    assert not np.array_equal(forward[0], rows_of([3], 0)[0])
    assert not np.array_equal(forward[0], forward[1])


def test_first_values_are_uniform_within_the_scale() -> None:
    drawn = rows_of(list(range(4000)), 1)
    assert drawn.min() >= -2
    assert drawn.max() < 2
    assert abs(drawn.mean()) < 0.03
    assert abs(drawn.var() - 4 / 3) < 0.03
