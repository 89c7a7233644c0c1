"""New batches of the same samples, for policies that train in another order than the log's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.placement.replay.stream import GlobalBatch, Int32s, Int64s, RowStream

__all__ = ["concatenate_samples", "reorder_samples", "sums_of_samples"]


def concatenate_samples(stream: RowStream) -> tuple[Int64s, Int32s]:
    """Starts int64 [S + 1] and rows int32 [N] of all S samples of a stream."""
    values = np.concatenate([batch.values for batch in stream.batches])
    lengths = np.concatenate([np.diff(batch.starts) for batch in stream.batches])
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), values


def reorder_samples(stream: RowStream, order: npt.NDArray[np.int64]) -> RowStream:
    """A stream with the same batch size, whose samples are those of `stream` in another order.

    Args:
        stream: The stream.
        order: int64 [S], positions of the samples in `stream`.
    """
    starts, values = concatenate_samples(stream)
    size = stream.num_samples
    chosen = (order[begin : begin + size] for begin in range(0, len(order), size))
    return RowStream.of((_take(starts, values, samples) for samples in chosen), stream.num_rows)


def sums_of_samples(batch: GlobalBatch, numbers: npt.NDArray[np.bool_]) -> Int64s:
    """int64 [B], how many rows of each sample are True in bool [rows of the stream]."""
    return _sums(batch.starts, batch.values, numbers)


@kernel()
def _sums(starts: Int64s, values: Int32s, numbers: npt.NDArray[np.bool_]) -> Int64s:
    out = np.zeros(len(starts) - 1, dtype=np.int64)
    for sample in range(len(out)):
        for place in range(starts[sample], starts[sample + 1]):
            out[sample] += numbers[values[place]]
    return out


@kernel()
def _take(starts: Int64s, values: Int32s, samples: Int64s) -> tuple[Int64s, Int32s]:
    out_starts = np.zeros(len(samples) + 1, dtype=np.int64)
    for i in range(len(samples)):
        out_starts[i + 1] = out_starts[i] + starts[samples[i] + 1] - starts[samples[i]]
    out = np.empty(out_starts[-1], dtype=np.int32)
    for i in range(len(samples)):
        out[out_starts[i] : out_starts[i + 1]] = values[starts[samples[i]] : starts[samples[i] + 1]]
    return out_starts, out
