"""Movements of each policy on streams that are small enough to count by hand."""

import pytest
from streams import Batches, run

from headrace.errors import ConfigError
from headrace.placement.replay import Kind, ReplayResult
from headrace.placement.replay.policies import het_gmp
from headrace.placement.replay.policies.hot_tier import HotTier
from headrace.registry import PLACEMENT_POLICIES


def moved(result: ReplayResult) -> dict[str, tuple[int, int]]:
    """Rows that a step waited for, and others, by kind; those after training count as others."""
    rows = result.traffic.received.sum(axis=(0, 1))
    return {kind.name.lower(): (round(rows[kind, 1]), round(rows[kind, 0])) for kind in Kind if rows[kind].any()}


def counted(
    name: str, batches: Batches, *, trainers: int = 1, window: int = 10, capacity: int | None = None
) -> dict[str, tuple[int, int]]:
    result = run(batches, PLACEMENT_POLICIES[name], trainers=trainers, window=window, capacity=capacity)
    assert (result.num_stale, result.num_lost) == (0, 0) or "het_" in name
    return moved(result)


# Row 0 is used by trainer 0, then by trainer 1 in the next step, then by both, then by trainer 0.
PASSED_ON: Batches = [[[0], [1]], [[2], [0]], [[0], [0]], [[0], [3]]]


def test_none() -> None:
    assert counted("none", PASSED_ON, trainers=2) == {"read": (8, 0), "gradient": (6, 2)}


def test_lru_evicts_the_least_recently_used() -> None:
    # Room for 2: row 2 evicts row 0, and row 0 evicts row 1, although row 1 comes next.
    batches = [[[0]], [[1]], [[2]], [[0]], [[1]]]
    assert counted("lru", batches, capacity=2) == {"fetch": (5, 0), "write_back": (3, 2)}


def test_lru_of_several_trainers_goes_through_the_shards() -> None:
    # Row 0: fetched, written back and fetched, written back by its writer and fetched by the other reader, pushed by
    # both and fetched. Rows 1, 2 and 3 are fetched, and written back in the end with row 0.
    assert counted("lru", PASSED_ON, trainers=2) == {"fetch": (7, 0), "write_back": (2, 4), "gradient": (2, 0)}


def test_belady_evicts_the_farthest_next_use() -> None:
    batches = [[[0]], [[1]], [[2]], [[0]], [[1]]]
    # Row 2 evicts row 1, which comes after row 0; row 1 evicts row 2.
    assert counted("belady", batches, capacity=2) == {"fetch": (4, 0), "write_back": (2, 2)}


def test_belady_is_a_limit_for_one_trainer() -> None:
    with pytest.raises(ConfigError, match="belady: is a limit for one trainer, given 2"):
        counted("belady", PASSED_ON, trainers=2)


def test_lookahead_keeps_what_is_used_next() -> None:
    # The first fetches wait. Row 1 is fetched during step 0. Row 2 has no later use: read, and its gradient sent.
    batches = [[[0]], [[1]], [[2]], [[0]], [[1]]]
    result = counted("lookahead", batches, capacity=3)
    assert result == {"fetch": (1, 1), "read": (0, 1), "gradient": (0, 1), "write_back": (0, 2)}


def test_lookahead_hands_over_directly() -> None:
    # Row 0: fetched, handed over, copied to the other reader, and its gradient sent to the next reader: all of them
    # right after an update. Rows 2 and 3 have no other use: read ahead, and their gradients sent.
    result = counted("lookahead", PASSED_ON, trainers=2)
    assert result == {
        "fetch": (2, 0), "read": (0, 2), "hand_over": (2, 0), "gradient": (1, 2), "write_back": (0, 2)
    }  # fmt: skip


def test_lookahead_keeps_rows_without_a_known_use_unless_it_sees_the_end() -> None:
    batches = [[[0]], [[1]], [[2]], [[3]], [[1]]]
    # With a window of one batch, rows 1 and 2 have no known other use, but stay. Row 3 comes when the end is in sight.
    assert counted("lookahead", batches, window=1)["fetch"] == (1, 2)
    assert counted("lookahead", batches, window=4)["fetch"] == (1, 1)


def test_lookahead_moves_rows_that_rest_while_a_step_computes() -> None:
    # Row 0 rests during step 1, so its gradient and its hand-over to trainer 2 need no step to wait.
    batches = [[[0], [0], [1]], [[2], [3], [4]], [[5], [6], [0]]]
    result = counted("lookahead", batches, trainers=3)
    assert result["gradient"] == (0, 1 + 5)  # with those of rows 2 to 6, which have one use
    assert result["hand_over"] == (0, 1)


def test_lookahead_passes_rows_through_the_shards_if_trainers_have_no_room_to_swap_them() -> None:
    batches = [[[0, 1], [2, 3]], [[2, 3], [0, 1]], [[0, 1], [2, 3]]]
    assert counted("lookahead", batches, trainers=2)["hand_over"] == (8, 0)
    result = counted("lookahead", batches, trainers=2, capacity=2)
    assert result == {"fetch": (4 + 8, 0), "write_back": (8, 4)}


def test_lookahead_reduces_rows_of_all_trainers_together() -> None:
    # 2 (W - 1) rows for each of two steps with a successor that everybody reads; in the end gradients go to one.
    batches = [[[0], [0], [0]]] * 3
    result = counted("lookahead", batches, trainers=3)
    assert result == {"fetch": (3, 0), "all_reduce": (8, 0), "gradient": (0, 2), "write_back": (0, 1)}


def test_lookahead_places_samples_where_their_rows_are() -> None:
    batches = [[[0, 1], [2, 3]], [[2, 3], [0, 1]], [[3, 4], [1, 5]]]
    unplaced, placed = (counted(name, batches, trainers=2) for name in ("lookahead", "lookahead_placed"))
    assert unplaced["hand_over"] == (4 + 0, 0)  # in the last step both rows are where they were
    assert placed == {"fetch": (4, 0), "read": (0, 2), "gradient": (0, 2), "write_back": (0, 4)}


def test_bagpipe_replicates_rows_with_a_later_use() -> None:
    # Row 0 is used again in the window: both trainers fetch it, and all-reduce it twice. Its second use is the last in
    # the window, but two samples share it, so it is not private. Rows 1, 2: one sample, no later use: private.
    batches = [[[0], [1]], [[0, 2], [0]]]
    result = counted("bagpipe", batches, trainers=2)
    assert result == {"fetch": (3, 1), "all_reduce": (2, 2), "write_back": (0, 3)}


def test_bagpipe_forgets_rows_beyond_its_window() -> None:
    batches = [[[9]], [[0]], [[1]], [[2]], [[0]]]
    assert counted("bagpipe", batches, window=3) == {"fetch": (1, 3), "write_back": (0, 4)}
    assert counted("bagpipe", batches, window=2) == {"fetch": (1, 4), "write_back": (0, 5)}


def test_bagpipe_needs_room_for_its_window() -> None:
    batches = [[[0, 1]], [[2, 3]], [[0, 1]]]
    with pytest.raises(
        ConfigError, match="bagpipe: needs more than 4 rows of cache for a window of 10 batches, given 3"
    ):
        counted("bagpipe", batches, capacity=3)


def test_herald_assigns_samples_to_the_trainer_that_holds_their_rows() -> None:
    batches = [[[0, 1], [2, 3]], [[2, 3], [0, 1]]]
    assert counted("lru", batches, trainers=2)["fetch"] == (8, 0)
    assert counted("herald", batches, trainers=2) == {"fetch": (4, 0), "write_back": (0, 4)}


def test_herald_pushes_rows_with_several_writers_for_every_later_reader() -> None:
    # Both trainers update row 0; only trainer 0 reads it next, and has to pull it, because it misses an update.
    result = counted("herald", [[[0], [0]], [[0], [1]]], trainers=2)
    assert result == {"fetch": (4, 0), "gradient": (2, 0), "write_back": (0, 2)}


def test_herald_does_not_count_copies_that_miss_an_update() -> None:
    # Trainers 0 and 1 both update rows 0 and 1, so their copies are outdated, and row 5 at trainer 2 decides.
    batches = [[[0, 1], [0, 1], [5]], [[0, 1, 5], [7], [8]]]
    assert counted("herald", batches, trainers=3)["fetch"] == (2 + 2 + 1 + 2 + 1 + 1, 0)


def test_het_pulls_a_row_that_is_more_than_its_bound_behind() -> None:
    # Trainer 1 updates row 0 seven times while trainer 0 has other rows.
    batches = [[[0], [0]], *([[1], [0]] for _ in range(7)), [[0], [1]]]
    exact, loose = (counted(name, batches, trainers=2) for name in ("het_0", "het_5"))
    assert exact["read"] == (6, 0)  # rows 0 and 1 at both, row 0 again at each when the other has updated it
    # Trainer 1 pushes after 6 updates. They are more than 5, so trainer 0 pulls row 0, but trainer 1 never does.
    assert loose["read"] == (5, 0)
    assert loose["check"] == exact["check"] == (14, 0)
    assert loose["gradient"][0] < exact["gradient"][0]


def test_fae_trains_normal_samples_first() -> None:
    # Two batches of one sample: nothing is in its sample of inputs, so no row is hot.
    assert counted("fae", [[[0]], [[0]]]) == {"read": (2, 0), "gradient": (1, 1)}
    result = run([[[0], [0]]] * 200 + [[[1], [0]]], PLACEMENT_POLICIES["fae"], trainers=2, capacity=1)
    rows = moved(result)
    assert rows["fetch"] == (2, 0)  # row 0, by both, before the hot batches
    assert rows["read"] == (2, 0)  # one normal batch: row 1, and row 0 of the hot sample that fills it up
    assert rows["write_back"] == (0, 1)
    assert not result.keeps_batches


def test_fec_reads_early_what_the_step_does_not_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HotTier, "period", 100)
    # Row 0 is updated in between, row 2 is not.
    result = counted("fec", [[[0], [1]], [[0], [2]]], trainers=2)
    assert result == {"read": (3, 1), "gradient": (1, 3)}


def test_fec_reduces_popular_rows_as_if_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HotTier, "period", 2)
    # After two steps row 0 is in the tier, which is all-reduced after each of the two others.
    result = counted("fec", [[[0], [0]]] * 4, trainers=2)
    assert result == {"read": (4, 0), "gradient": (4, 0), "fetch": (2, 0), "all_reduce": (2, 2), "write_back": (0, 1)}


def test_hotline_hides_reads_behind_popular_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HotTier, "period", 1)
    # Room for a tier of two rows, 0 and 1. In step 1 the trainer has a popular sample, in step 2 it has none.
    result = counted("hotline", [[[0, 1], [0]], [[0, 1], [2]], [[3], [3]]], capacity=5)
    assert result["read"] == (2 + 1, 1)


def test_het_gmp_reads_rows_of_other_trainers() -> None:
    # One row that all samples use: remote for one of two trainers, which reads and updates it in each of 16 steps.
    result = counted("het_gmp", [[[0], [0]]] * 16, trainers=2)
    assert result == {"read": (16, 0), "gradient": (15, 1)}


def test_het_gmp_separates_samples_without_common_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # Four groups of samples, each with its own eight rows, of which a sample uses three.
    batches = [[[8 * ((s + 3 * b) % 4) + (s + b + i) % 8 for i in range(3)] for s in range(8)] for b in range(60)]
    reads = []
    for num_sweeps in (0, 5):
        monkeypatch.setattr(het_gmp, "NUM_SWEEPS", num_sweeps)
        reads.append(counted("het_gmp", batches, trainers=2)["read"][0])
    assert reads[1] < reads[0] / 3
