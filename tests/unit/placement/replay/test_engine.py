"""The replay: hand-counted traffic, and what it says about policies that make mistakes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from streams import random_stream, run, stream_of

from headrace.errors import ConfigError
from headrace.placement.replay import (
    NEVER,
    SHARD,
    Action,
    Drop,
    InvalidPlan,
    Kind,
    Knowledge,
    Move,
    PlacementPolicy,
    Plan,
    RowBytes,
    Setting,
    replay,
    zipf_stream,
)
from headrace.placement.replay.policies.lookahead import Lookahead
from headrace.placement.replay.policies.none import NoCache
from headrace.placement.replay.stream import GlobalBatch, Int8s

# Two trainers, one sample each: row 0 at both, then at trainer 0 alone, then at trainer 1 alone.
SHARED = [[[0, 1], [0, 2]], [[0], [3]], [[1], [0]]]


def test_rows_and_bytes_of_no_cache_are_counted_by_hand() -> None:
    result = run(SHARED, NoCache, trainers=2)
    traffic = result.traffic
    assert traffic.rows(Kind.READ) == 8
    assert traffic.rows(Kind.GRADIENT) == 6  # those of the last step move after training
    assert traffic.final_rows() == 2
    assert traffic.bytes() == 8 * (8 + 64) + 6 * (12 + 64)
    assert traffic.critical_bytes() == traffic.bytes()
    assert traffic.link_bytes() == 4 * (8 + 64)
    assert traffic.received[0, :, Kind.READ, 1].tolist() == [2, 2, 0]
    assert traffic.sent[1, :, Kind.GRADIENT, 1].tolist() == [2, 2, 0]
    assert (result.num_reads, result.num_stale, result.num_lost) == (8, 0, 0)


def test_the_fewest_transfers_are_counted_by_hand() -> None:
    # Row 0: two copies and a gradient, none (trainer 0 collects), one. Rows 1, 2, 3: one each, and row 1 stays.
    assert run(SHARED, NoCache, trainers=2).least_transfers == (2 + 1) + 0 + 1 + 3
    # At trainer 1 next, then at trainer 0: the second collects.
    assert run([[[0], [0]], [[1], [0]], [[0], [1]]], NoCache, trainers=2).least_transfers == 3 + (0 + 1) + (1 + 1)


def test_prices_of_kinds() -> None:
    assert RowBytes(64, 4).by_kind().tolist() == [72, 88, 88, 76, 64, 88, 16]


def test_next_uses_and_distinct_rows_of_a_stream() -> None:
    stream = stream_of([[[3, 1]], [[2, 1]], [[3]]])
    assert [batch.rows.tolist() for batch in stream.batches] == [[3, 1], [2, 1], [3]]
    assert [batch.next_use.tolist() for batch in stream.batches] == [[2, 1], [NEVER, NEVER], [NEVER]]
    assert stream.num_used == 3
    assert stream.distinct_rows(1).tolist() == [2, 2, 1]
    assert stream.distinct_rows(2).tolist() == [3, 3]
    assert stream.distinct_rows(9).tolist() == [3]


def test_batches_of_a_stream_have_equal_sizes() -> None:
    with pytest.raises(ConfigError, match=r"stream: batches of \[1, 2\] samples, expected one or more of equal size"):
        stream_of([[[0]], [[0], [1]]])


class Sabotaged(Lookahead):
    """Lookahead that leaves out the first movement of a kind, or fetches the row from the shards instead."""

    name = "sabotaged"
    kind = Kind.HAND_OVER
    fetches = False
    done = False

    def plan(self, known: Knowledge) -> Plan:
        plan = super().plan(known)
        return Plan(self._without(plan.before), self._without(plan.during))

    def finish(self) -> Sequence[Action]:
        return self._without(super().finish())

    def _without(self, actions: Sequence[Action]) -> list[Action]:
        kept: list[Action] = []
        for action in actions:
            if isinstance(action, Move) and action.kind == self.kind and len(action.rows) and not self.done:
                self.done = True
                if self.fetches:
                    kept.append(Move(Kind.FETCH, SHARD, action.target, action.rows))
            else:
                kept.append(action)
        return kept


def sabotaged(kind: Kind, *, fetches: bool = False) -> type[PlacementPolicy]:
    return type("SabotagedOnce", (Sabotaged,), {"kind": kind, "fetches": fetches})


def test_a_fetch_in_place_of_a_hand_over_is_a_stale_read() -> None:
    result = run([[[0], [1]], [[1], [0]]], sabotaged(Kind.HAND_OVER, fetches=True), trainers=2)
    assert (result.num_stale, result.most_missing) == (1, 1)
    assert result.num_lost == 1  # the outdated row is written back


def test_a_skipped_hand_over_leaves_nothing_to_write_back() -> None:
    with pytest.raises(InvalidPlan, match="trainer 1 is the source of a WRITE_BACK, but does not hold row 0"):
        run([[[0], [1]], [[1], [0]]], sabotaged(Kind.HAND_OVER), trainers=2)


def test_a_lost_write_back_is_found_in_the_end() -> None:
    result = run(SHARED, sabotaged(Kind.WRITE_BACK), trainers=2)
    assert result.num_stale == 0
    assert result.num_lost > 0


def test_a_skipped_gradient_is_a_stale_read_and_a_lost_update() -> None:
    result = run([[[0], [0]], [[0], [1]]], sabotaged(Kind.GRADIENT), trainers=2)
    assert (result.num_stale, result.most_missing, result.num_lost) == (1, 1, 1)


class Early(NoCache):
    """Reads rows while the step before still computes."""

    name = "early"

    def plan(self, known: Knowledge) -> Plan:
        plan = super().plan(known) if known.now.number == 0 else Plan()
        if known.next is None:
            return plan
        rows = known.next.of(0)
        return Plan(plan.before, [Move(Kind.READ, SHARD, 0, rows)])


def test_a_read_before_the_updates_of_the_step_before_is_stale() -> None:
    result = run([[[0]], [[0, 1]]], Early)
    assert (result.num_stale, result.most_missing) == (0, 0)  # a trainer knows its own unsent updates
    result = run([[[0], [0]], [[0], [1]]], Early, trainers=2)
    assert result.num_stale == 2  # row 0 at trainer 0, and row 1, which trainer 1 does not have
    assert result.most_missing == 1


class Unfair(NoCache):
    name = "unfair"

    def assign(self, batch: GlobalBatch) -> Int8s:
        return np.zeros(batch.num_samples, dtype=np.int8)


def test_every_trainer_has_an_equal_share_of_the_samples() -> None:
    with pytest.raises(InvalidPlan, match=r"step 0: trainers get \[2, 0\] samples, expected equal shares"):
        run([[[0], [1]]], Unfair, trainers=2)


class Hoarder(NoCache):
    name = "hoarder"

    def plan(self, known: Knowledge) -> Plan:
        plan = super().plan(known)
        return Plan([action for action in plan.before if not isinstance(action, Drop)])


def test_the_memory_bound_is_enforced() -> None:
    with pytest.raises(InvalidPlan, match="trainer 0 holds 3 rows, expected at most 2"):
        run([[[0, 1]], [[2]]], Hoarder, capacity=2)


def test_settings_that_cannot_work_are_refused() -> None:
    stream = random_stream(0, 3, 4, 2, 50)
    setting = Setting(stream.num_rows, 1, 4)
    with pytest.raises(ConfigError, match="trainers: given 63, expected 1 to 62"):
        replay(stream, NoCache, replace(setting, num_trainers=63))
    with pytest.raises(ConfigError, match="batch: given 4 samples for 3 trainers, expected an equal share"):
        replay(stream, NoCache, replace(setting, num_trainers=3))
    with pytest.raises(ConfigError, match="window: given 0 batches, expected at least 1"):
        replay(stream, NoCache, replace(setting, window=0))
    with pytest.raises(
        ConfigError, match=r"cache: given 1 rows, expected at least \d, which a trainer reads in step 0"
    ):
        replay(stream, NoCache, replace(setting, capacity=1))


def test_zipf_streams_repeat_with_the_seed_are_skewed_and_drift() -> None:
    first, second = (zipf_stream(num_batches=4, num_samples=500, num_ids=1000, num_features=2) for _ in range(2))
    assert all((a.values == b.values).all() for a, b in zip(first.batches, second.batches, strict=True))
    assert first.num_used == first.num_rows
    values = np.concatenate([batch.values for batch in first.batches])
    assert np.bincount(values).max() > 200  # 4,000 draws, of which the most frequent id of a feature has 13 %
    drifting = zipf_stream(num_batches=4, num_samples=500, num_ids=1000, num_features=2, drift=100)
    assert drifting.num_used > first.num_used
