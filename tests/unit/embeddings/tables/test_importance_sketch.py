"""What is known of ids without a row: few bytes each, right on average, and moved without a look at all rows."""

import numpy as np

from headrace.embeddings import Keys
from headrace.embeddings.tables.lifecycle.importance import EXAMINED, ImportanceConfig, ImportanceRetention
from headrace.embeddings.tables.lifecycle.importance_sketch import SLOTS, slot_of, values_of


def retention_of(num_rows: int = 1, num_candidates: int = SLOTS, seed: int = 0) -> ImportanceRetention:
    config = ImportanceConfig(half_life_rows=None, admission=1e9)
    return ImportanceRetention(config, 1, num_rows, num_candidates, first_row=1, seed=seed)


def observe(retention: ImportanceRetention, ids: list[int], *, step: int, norm: float = 1.0) -> None:
    keys = Keys(np.zeros(len(ids), np.int32), np.array(ids, np.int64), np.ones(len(ids), np.int32))
    norms = np.full(len(ids), norm, dtype=np.float32)
    retention.observe(keys, np.zeros(len(ids), np.int64), norms, step=step, num_rows=8)


def estimate(retention: ImportanceRetention, key: int) -> float:
    first, tag = slot_of(retention.tags, 0, key)
    bucket = slice(first, first + SLOTS)
    return float(values_of(retention.values)[bucket][retention.tags[bucket] == tag].sum())


def test_estimates_of_ids_that_share_a_full_bucket_are_right_on_average() -> None:
    """A new id replaces the weakest one, of 3 occurrences, in a quarter of cases, and then has its sum: 4."""
    full, found = retention_of(), []
    for step in range(3):
        observe(full, list(range(SLOTS)), step=step)
    for seed in range(400):
        retention = retention_of(seed=seed)
        retention.load(full.columns(), Keys(*(np.empty(0, kind) for kind in "iqi")), np.empty(0, np.int64))
        observe(retention, [999], step=3)
        found.append(estimate(retention, 999))
    assert set(np.unique(found)) == {0.0, 4.0}
    assert abs(np.mean(found) - 1) < 0.26  # three standard errors


def test_an_importance_that_grows_by_little_is_right_on_average_in_16_bits() -> None:
    """bf16 has 8 bits: 512 + 1 would stay 512 for ever if it was rounded to the nearest number."""
    found = []
    for seed in range(40):
        retention = retention_of(seed=seed)
        first, tag = slot_of(retention.tags, 0, 7)
        retention.tags[first], retention.values[first] = tag, np.float32([512]).view(np.uint32)[0] >> 16
        for step in range(16):
            observe(retention, [7], step=step)
        found.append(estimate(retention, 7))
    assert abs(np.mean(found) - 528) < 3.3  # three standard errors


def test_an_id_without_a_row_takes_six_bytes_and_no_more_are_tracked_than_there_are_rows() -> None:
    retention = retention_of(num_rows=1_000, num_candidates=1_000)
    assert retention.tags.nbytes + retention.values.nbytes == 6 * 1_000
    observe(retention, list(range(5_000)), step=1)
    assert np.count_nonzero(retention.tags) <= 1_000


def test_a_step_looks_at_64_rows_for_each_id_that_wants_one() -> None:
    retention = ImportanceRetention(ImportanceConfig(admission=0), 1, 4_000, 800, first_row=1, seed=0)
    keys = Keys(np.zeros(4_000, np.int32), np.arange(4_000), np.ones(4_000, np.int32))
    rows = np.zeros(4_000, np.int64)
    retention.admit(keys, rows)
    retention.observe(keys, rows, np.ones(4_000, np.float32), step=1, num_rows=8)
    before = retention._hand
    observe(retention, [5_000, 5_001, 5_002], step=2, norm=5.0)
    assert retention._hand - before == 3 * EXAMINED
