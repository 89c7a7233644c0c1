"""What holds for every placement policy on random streams, and facts about some of them on fixed ones."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from streams import random_stream, run, settings_of_streams

from headrace.errors import ConfigError
from headrace.placement.replay import Kind, ReplayResult, RowStream, Setting
from headrace.placement.replay.policies import het_gmp
from headrace.placement.replay.policies.hot_tier import HotTier
from headrace.registry import PLACEMENT_POLICIES

EXACT = [name for name in PLACEMENT_POLICIES if name not in ("het_5", "het_100")]


@pytest.fixture(autouse=True, scope="module")
def _tiers_are_chosen_often_and_half_of_the_remote_rows_have_mirrors() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HotTier, "period", 2)
        patch.setattr(het_gmp, "MIRROR_RATIO", 0.5)
        yield


def replayed(name: str, stream: RowStream, trainers: int, window: int, capacity: int | None) -> ReplayResult | None:
    """The result; None if the policy does not support the setting."""
    try:
        return run(stream, PLACEMENT_POLICIES[name], trainers=trainers, window=window, capacity=capacity)
    except ConfigError as error:
        if name in str(error) or "expected at least" in str(error):  # other batches may need more memory
            return None
        raise


@pytest.mark.parametrize("name", EXACT)
@given(settings_of_streams())
@settings(max_examples=60)
@example((random_stream(1, 8, 8, 3, 10), 4, 1, 10))
def test_exact_policies_read_fresh_rows_lose_nothing_and_keep_the_memory_bound(
    name: str, given_: tuple[RowStream, int, int, int | None]
) -> None:
    result = replayed(name, *given_)
    if result is not None:
        assert (result.num_stale, result.num_lost) == (0, 0)
        assert given_[3] is None or result.most_resident <= given_[3]


@pytest.mark.parametrize("name", ["het_5", "het_100"])
@given(settings_of_streams())
@settings(max_examples=40)
def test_het_stays_within_its_bound_and_loses_nothing(
    name: str, given_: tuple[RowStream, int, int, int | None]
) -> None:
    stream, trainers, window, capacity = given_
    result = replayed(name, stream, trainers, window, capacity)
    assert result is not None
    bound = PLACEMENT_POLICIES[name](Setting(stream.num_rows, trainers, stream.num_samples)).most_missing()
    assert result.most_missing <= bound == trainers * int(name.removeprefix("het_"))
    assert result.num_lost == 0


def samples_of(stream: RowStream) -> list[tuple[int, ...]]:
    return sorted(
        tuple(batch.values[begin:end].tolist())
        for batch in stream.batches
        for begin, end in zip(batch.starts, batch.starts[1:], strict=False)
    )


@pytest.mark.parametrize("name", list(PLACEMENT_POLICIES))
@given(st.integers(0, 100), st.integers(1, 3))
@settings(max_examples=15)
def test_policies_train_on_all_samples_and_those_that_keep_batches_do_not_touch_the_stream(
    name: str, seed: int, trainers: int
) -> None:
    stream = random_stream(seed, 5, 6, 3, 20)
    policy = PLACEMENT_POLICIES[name](Setting(stream.num_rows, trainers, 6))
    try:
        prepared = policy.prepare(stream)
    except ConfigError:
        return
    assert (prepared is stream) == policy.keeps_batches
    assert samples_of(prepared) == samples_of(stream)
    assert {batch.num_samples for batch in prepared.batches} == {6}


def test_on_a_fixed_stream_more_knowledge_moves_fewer_bytes() -> None:
    stream = random_stream(5, 60, 8, 4, 300)
    moved = {
        name: result.traffic.bytes()
        for name in PLACEMENT_POLICIES
        if (result := replayed(name, stream, 2, 20, None)) is not None
    }
    assert moved["lookahead_placed"] < moved["lookahead"] < moved["bagpipe"] < moved["none"]
    assert moved["lookahead"] < moved["lru"] < moved["none"]
    assert moved["lookahead_placed"] < moved["herald"] < moved["lru"]
    assert moved["het_100"] < moved["het_5"] < moved["het_0"]
    assert moved["fec"] < moved["none"]
    assert moved["het_gmp"] < moved["none"]


def test_lookahead_needs_the_fewest_transfers_without_a_memory_bound() -> None:
    for trainers in (1, 2, 4):
        result = run(random_stream(3, 40, 8, 3, 60), PLACEMENT_POLICIES["lookahead"], trainers=trainers)
        traffic = result.traffic
        gradients = traffic.rows(Kind.GRADIENT) + traffic.received[-1, :, Kind.GRADIENT].sum()
        gradients -= traffic.rows(Kind.READ)  # those of rows that are not kept are their return to the shards
        moved = traffic.rows(Kind.READ, Kind.FETCH, Kind.HAND_OVER, Kind.ALL_REDUCE) + gradients
        assert moved == result.least_transfers


@pytest.mark.parametrize("capacity", [25, 40, 80])
def test_no_policy_misses_less_than_belady(capacity: int) -> None:
    stream = random_stream(4, 60, 6, 3, 200)
    misses = {
        name: result.traffic.rows(Kind.READ, Kind.FETCH)
        for name in ("belady", "lookahead", "lru", "none")
        if (result := replayed(name, stream, 1, 15, capacity)) is not None
    }
    assert misses["belady"] <= misses["lookahead"] < misses["none"]
    assert misses["belady"] < misses["lru"] < misses["none"]


@given(st.integers(0, 50), st.integers(0, 40))
@settings(max_examples=20)
def test_lookahead_moves_no_more_bytes_than_no_cache(seed: int, spare: int) -> None:
    stream = random_stream(seed, 20, 6, 3, 100)
    capacity = max(len(batch.rows) for batch in stream.batches) + spare
    moved = []
    for name in ("none", "lookahead"):
        result = replayed(name, stream, 1, 5, capacity)
        assert result is not None
        moved.append(result.traffic.bytes() + result.traffic.final_bytes())
    assert moved[1] <= moved[0] + np.int64(24 * capacity)  # the rows in the cache end with a write-back of their state
