"""The state of a simulated pipeline as flat arrays for compiled code."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.simulation.spec import PipelineSpec

__all__ = ["State", "new_state"]

# Maximum finished services per stage; also bounds workers + buffer of a stage. A power of two.
RING = 8192
# Maximum running services of the pipeline, and pending events: each worker has at most one of each.
MAX_RECORDS = 16384

# Columns of `State.params`, per stage: values of its `StageSpec`.
(CPU_S, IO_S, DIST, SPREAD, CONTENTION, NUM_IN, NUM_OUT, OUT_BYTES, BYTES_DIST, BYTES_SPREAD, SCRATCH) = range(11)
(DRIFT_FACTOR, DRIFT_START, DRIFT_END, NUM_PARAMS) = range(11, 15)

# Columns of `State.counts`, per stage.
(WORKERS, BUFFER, BUSY, ACTIVE, STARTED, IN_ORDER, TAKEN, BLOCKED, FINISHED, NUM_COUNTS) = range(10)

# Values of BLOCKED: why an idle worker cannot start.
ON_INPUT, ON_OUTPUT, ON_MEMORY, ON_THREAD = range(4)

# Columns of `State.sums`, per stage: totals since the start.
(SUM_CPU, SUM_IO, SUM_WALL, SUM_WAIT_IN, SUM_WAIT_OUT, SUM_WAIT_MEMORY, SUM_WAIT_THREAD) = range(7)
(SUM_BYTES, SUM_QUEUE, SINCE, ESTIMATE, NUM_SUMS) = range(7, 12)

# Entries of `State.clock`: floats of the pipeline.
(NOW, LIVE_BYTES, RESERVED, PEAK_BYTES, LIMIT, LEDGER, PAUSED_UNTIL, CONSUMER_S, CONSUMER_SPREAD) = range(9)
(CONSUMER_HOLDS, CONSUMER_SINCE, CONSUMER_BUSY_S, CONSUMER_WAIT_S, NUM_CLOCK) = range(9, 14)

# Entries of `State.total`: integers of the pipeline.
(HEAP_SIZE, NUM_FREE, CPUS, CPUS_BUSY, LINE_HEAD, LINE_TAIL, DELIVERED, OUT_OF_MEMORY, CONSUMER_BUSY) = range(9)
(CONSUMER_DIST, EVENT_NUMBER, THREADS, THREADS_BUSY, NUM_TOTAL) = range(9, 14)

# Columns of `State.times`, per running service.
(BEGAN, CPU_NEEDED, CPU_BEGAN, IN_BYTES, CHARGED, NUM_TIMES) = range(6)


class State(NamedTuple):
    """The mutable state of a simulated pipeline.

    S is the number of stages. `rows` holds stage, sequence number and phase (1: blocking, 2: on a CPU) of a service.
    """

    params: NDArray[np.float64]  # [S, NUM_PARAMS]
    counts: NDArray[np.int64]  # [S, NUM_COUNTS]
    sums: NDArray[np.float64]  # [S, NUM_SUMS]
    done: NDArray[np.bool_]  # [S, RING] finished, by sequence number
    sizes: NDArray[np.float64]  # [S, RING] output bytes
    clock: NDArray[np.float64]  # [NUM_CLOCK]
    total: NDArray[np.int64]  # [NUM_TOTAL]
    random: NDArray[np.uint64]  # [1]
    heap_times: NDArray[np.float64]  # [MAX_RECORDS]
    heap_order: NDArray[np.int64]  # [MAX_RECORDS] breaks ties, for reproducible runs
    heap_what: NDArray[np.int64]  # [MAX_RECORDS] running service, or CONSUMER_DONE, or WAKE
    rows: NDArray[np.int64]  # [MAX_RECORDS, 3]
    times: NDArray[np.float64]  # [MAX_RECORDS, NUM_TIMES]
    free: NDArray[np.int64]  # [MAX_RECORDS] stack of unused service numbers
    line: NDArray[np.int64]  # [MAX_RECORDS] ring of services waiting for a CPU


def new_state(spec: PipelineSpec, seed: int) -> State:
    """Create the state of an idle pipeline at time 0 with one worker per stage, on one CPU with unlimited memory."""
    num_stages = len(spec.stages)
    state = State(
        params=np.zeros((num_stages, NUM_PARAMS)),
        counts=np.zeros((num_stages, NUM_COUNTS), np.int64),
        sums=np.zeros((num_stages, NUM_SUMS)),
        done=np.zeros((num_stages, RING), np.bool_),
        sizes=np.zeros((num_stages, RING)),
        clock=np.zeros(NUM_CLOCK),
        total=np.zeros(NUM_TOTAL, np.int64),
        random=np.array([seed * 2 + 1], np.uint64),
        heap_times=np.zeros(MAX_RECORDS),
        heap_order=np.zeros(MAX_RECORDS, np.int64),
        heap_what=np.zeros(MAX_RECORDS, np.int64),
        rows=np.zeros((MAX_RECORDS, 3), np.int64),
        times=np.zeros((MAX_RECORDS, NUM_TIMES)),
        free=np.arange(MAX_RECORDS, dtype=np.int64),
        line=np.zeros(MAX_RECORDS, np.int64),
    )
    for row, stage in zip(state.params, spec.stages, strict=True):
        drift = stage.drift
        row[[CPU_S, IO_S, DIST, SPREAD]] = stage.cpu_s, stage.io_s, stage.distribution, stage.spread
        row[[CONTENTION, NUM_IN, NUM_OUT]] = stage.contention, stage.num_inputs, stage.num_outputs
        row[[OUT_BYTES, BYTES_DIST, BYTES_SPREAD]] = stage.output_bytes, stage.bytes_distribution, stage.bytes_spread
        row[SCRATCH] = stage.scratch_bytes
        row[[DRIFT_FACTOR, DRIFT_START, DRIFT_END]] = (
            (1.0, math.inf, math.inf) if drift is None else (drift.factor, drift.start_s, drift.end_s)
        )
    state.counts[:, WORKERS] = 1
    state.counts[:, BUFFER] = [stage.buffer for stage in spec.stages]
    state.sums[:, ESTIMATE] = [stage.output_bytes + stage.scratch_bytes for stage in spec.stages]
    state.clock[[LIVE_BYTES, PEAK_BYTES]] = spec.base_bytes
    state.clock[LIMIT] = math.inf
    state.clock[LEDGER] = math.inf if spec.ledger_bytes is None else spec.ledger_bytes + spec.base_bytes
    state.clock[[CONSUMER_S, CONSUMER_SPREAD]] = spec.consumer_s, spec.consumer_spread
    state.total[[NUM_FREE, THREADS, CPUS, CONSUMER_DIST]] = MAX_RECORDS, MAX_RECORDS, 1, spec.consumer_distribution
    return state
