"""Miss-ratio curves agree with replays of every size, and what a window needs is counted by hand."""

import numpy as np
import pytest
from streams import random_stream, run, stream_of

from headrace.placement.replay import Kind
from headrace.placement.replay.comparison import cache_needs, curve_sizes
from headrace.placement.replay.miss_ratio import lru_distances, miss_curve
from headrace.registry import PLACEMENT_POLICIES


def test_stack_distances_by_hand() -> None:
    # Before batch 2, from the most recent: 1, 2, 0. Before batch 3: 3, 0, 1, 2.
    stream = stream_of([[[0]], [[2, 1]], [[0, 3]], [[2]]])
    assert lru_distances(stream).tolist() == [0, 0, 0, 3, 0, 4]


@pytest.mark.parametrize("seed", range(4))
def test_the_curve_has_the_misses_of_a_replay_at_every_size(seed: int) -> None:
    stream = random_stream(seed, 30, 5, 3, 60)
    sizes = list(range(max(len(batch.rows) for batch in stream.batches), stream.num_used + 3))
    curve = miss_curve(stream, sizes)
    for name, misses in (("lru", curve.lru), ("belady", curve.belady)):
        replayed = [
            run(stream, PLACEMENT_POLICIES[name], capacity=size).traffic.rows(Kind.FETCH) for size in sizes[::5]
        ]
        assert misses[::5].tolist() == replayed
        assert (np.diff(misses) <= 0).all()
    assert (curve.belady <= curve.lru).all()
    assert curve.lru[-1] == curve.belady[-1] == curve.num_distinct == stream.num_used
    assert curve.num_reads == sum(len(batch.rows) for batch in stream.batches)


def test_rows_that_a_window_keeps_by_hand() -> None:
    stream = stream_of([[[0, 1]], [[2]], [[0, 3]], [[1, 3]]])
    # Row 0 waits in step 1, row 1 in steps 1 and 2, row 3 never.
    assert stream.resident_rows(3).tolist() == [2, 3, 3, 2]
    assert stream.resident_rows(2).tolist() == [2, 2, 2, 2]
    assert stream.resident_rows(1).tolist() == [2, 1, 2, 2]


def test_a_cache_of_the_rows_that_a_window_keeps_misses_only_what_the_window_does_not_show() -> None:
    stream = random_stream(7, 40, 5, 3, 100)
    needed = int(stream.resident_rows(40).max())
    curve = miss_curve(stream, [needed - 1, needed])
    assert curve.belady[1] == stream.num_used < curve.belady[0]


def test_needs_are_those_of_one_trainer() -> None:
    stream = random_stream(2, 10, 8, 3, 100)
    both, one = (cache_needs(stream, trainers, 5, 4, geometric=True) for trainers in (1, 2))
    assert one.curve.num_reads < both.curve.num_reads
    assert one.window_rows < both.window_rows
    own = stream.of_trainer(0, 2)
    assert own.num_samples == 4
    assert all((a.values[: len(b.values)] == b.values).all() for a, b in zip(stream.batches, own.batches, strict=True))
    assert curve_sizes(own, 4, geometric=False)[-1] == own.num_used
