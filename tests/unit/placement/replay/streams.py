"""Small streams for tests: batches written as lists of samples, each a list of rows."""

from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import strategies as st

from headrace.placement.replay import PlacementPolicy, ReplayResult, RowStream, Setting, replay

Batches = Sequence[Sequence[Sequence[int]]]


def stream_of(batches: Batches) -> RowStream:
    samples = []
    for batch in batches:
        starts = np.cumsum([0, *map(len, batch)]).astype(np.int64)
        samples.append((starts, np.array([row for sample in batch for row in sample], dtype=np.int32)))
    return RowStream.of(samples, 1 + max(row for batch in batches for sample in batch for row in sample))


def run(
    batches: Batches | RowStream,
    policy: Callable[[Setting], PlacementPolicy],
    *,
    trainers: int = 1,
    window: int = 10,
    capacity: int | None = None,
) -> ReplayResult:
    stream = batches if isinstance(batches, RowStream) else stream_of(batches)
    setting = Setting(stream.num_rows, trainers, stream.num_samples, window, capacity)
    return replay(stream, policy, setting)


def random_stream(seed: int, num_batches: int, num_samples: int, num_features: int, num_ids: int) -> RowStream:
    """Few ids, some far more frequent than others, so that trainers share many rows."""
    random = np.random.default_rng(seed)
    ids = (num_ids * random.random((num_batches, num_samples, num_features)) ** 3).astype(np.int64)
    return stream_of([[sorted(set(sample)) for sample in batch] for batch in ids.tolist()])


@st.composite
def settings_of_streams(draw: st.DrawFn) -> tuple[RowStream, int, int, int | None]:
    """A stream, a number of trainers, a window, and a cache between the smallest possible one and all rows."""
    trainers = draw(st.integers(1, 4))
    stream = random_stream(
        draw(st.integers(0, 10**6)),
        draw(st.integers(1, 12)),
        trainers * draw(st.integers(1, 6)),
        draw(st.integers(1, 4)),
        draw(st.sampled_from([3, 10, 40, 200])),
    )
    slices = [stream.of_trainer(trainer, trainers) for trainer in range(trainers)]
    least = max(len(batch.rows) for own in slices for batch in own.batches)
    capacity = draw(st.one_of(st.none(), st.integers(least, least + 20)))
    return stream, trainers, draw(st.integers(1, 6)), capacity
