"""The compiled event loop of the simulator: services start when input, an output slot, memory and a CPU are
available."""

from __future__ import annotations

import numpy as np

from headrace.compiling import kernel
from headrace.simulation import state as s
from headrace.simulation.state import State

__all__ = ["advance", "pause_until", "start_what_can"]

CONSUMER_DONE = -1
WAKE = -2
# A reservation follows the largest recent output, which decays by this share per service (half after 700).
ESTIMATE_DECAY = 0.999


@kernel()
def _uniform(state: State) -> float:
    """Uniform in (0, 1), by splitmix64."""
    state.random[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state.random[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float((float(z >> np.uint64(11)) + 0.5) / 9007199254740992.0)


@kernel()
def _draw(state: State, mean: float, distribution: int, spread: float) -> float:
    """Draw a sample with the given mean; see `Distribution`."""
    if mean <= 0.0 or distribution == 0:
        return mean
    if distribution == 1:
        return float(-mean * np.log(_uniform(state)))
    if distribution == 2:
        variance = np.log(1.0 + spread * spread)
        normal = np.sqrt(-2.0 * np.log(_uniform(state))) * np.cos(2.0 * np.pi * _uniform(state))
        return float(mean * np.exp(np.sqrt(variance) * normal - 0.5 * variance))
    return float(mean * (spread - 1.0) / spread * _uniform(state) ** (-1.0 / spread))


@kernel()
def _push(state: State, time: float, what: int) -> None:
    size = state.total[s.HEAP_SIZE]
    order = state.total[s.EVENT_NUMBER]
    state.total[s.EVENT_NUMBER] += 1
    state.total[s.HEAP_SIZE] += 1
    times, orders, whats = state.heap_times, state.heap_order, state.heap_what
    here = size
    while here > 0:
        parent = (here - 1) >> 1
        if times[parent] <= time:  # ties: older first
            break
        times[here], orders[here], whats[here] = times[parent], orders[parent], whats[parent]
        here = parent
    times[here], orders[here], whats[here] = time, order, what


@kernel()
def _pop(state: State) -> int:
    """Pop the earliest event from the heap."""
    times, orders, whats = state.heap_times, state.heap_order, state.heap_what
    what = whats[0]
    state.total[s.HEAP_SIZE] -= 1
    size = state.total[s.HEAP_SIZE]
    time, order, moved = times[size], orders[size], whats[size]
    here = 0
    while True:
        child = 2 * here + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            times[right] < times[child] or (times[right] == times[child] and orders[right] < orders[child])
        ):
            child = right
        if time < times[child] or (time == times[child] and order < orders[child]):
            break
        times[here], orders[here], whats[here] = times[child], orders[child], whats[child]
        here = child
    times[here], orders[here], whats[here] = time, order, moved
    return int(what)


@kernel()
def _available(state: State, stage: int) -> int:
    """Number of elements ready for the next stage."""
    counts = state.counts[stage]
    return int(counts[s.IN_ORDER] * int(state.params[stage, s.NUM_OUT]) - counts[s.TAKEN])


@kernel()
def _account(state: State, stage: int) -> None:
    """Update a stage's waiting sums to the current time; called before any change that affects them."""
    sums, counts = state.sums[stage], state.counts[stage]
    elapsed = state.clock[s.NOW] - sums[s.SINCE]
    sums[s.SINCE] = state.clock[s.NOW]
    sums[s.SUM_QUEUE] += elapsed * _available(state, stage)
    idle = max(counts[s.WORKERS] - counts[s.BUSY], 0)
    sums[s.SUM_WAIT_IN + counts[s.BLOCKED]] += elapsed * idle


@kernel()
def _take(state: State, stage: int, num_elements: int) -> float:
    """Take ready elements; returns their bytes."""
    _account(state, stage)
    num_out = int(state.params[stage, s.NUM_OUT])
    held = 0.0
    for _ in range(num_elements):
        service = state.counts[stage, s.TAKEN] // num_out
        held += state.sizes[stage, service % s.RING] / num_out
        state.counts[stage, s.TAKEN] += 1
    return held


@kernel()
def _must_go_on(state: State, stage: int) -> bool:
    """Whether later stages cannot continue unless this one does, so that memory must not block it."""
    num_stages = state.counts.shape[0]
    for later in range(stage + 1, num_stages):
        if state.counts[later, s.BUSY] > 0 or _available(state, later - 1) >= int(state.params[later, s.NUM_IN]):
            return False
    return state.counts[stage, s.BUSY] == 0 and _available(state, num_stages - 1) == 0


@kernel()
def _moved_on(state: State, stage: int) -> int:
    """Number of services whose elements have moved on, in order, to the queue of the next stage."""
    counts, num_out = state.counts[stage], int(state.params[stage, s.NUM_OUT])
    room = 0
    if stage + 1 < state.counts.shape[0]:
        room = (state.counts[stage + 1, s.WORKERS] + 1) * int(state.params[stage + 1, s.NUM_IN])
    return int(min(counts[s.IN_ORDER], (counts[s.TAKEN] + room) // num_out))


@kernel()
def _why_blocked(state: State, stage: int) -> int:
    """Why an idle worker of a stage cannot start: one of ON_INPUT, ON_OUTPUT, ON_MEMORY, ON_THREAD, or -1."""
    counts, clock = state.counts[stage], state.clock
    if stage == 0:
        if clock[s.NOW] < clock[s.PAUSED_UNTIL]:
            return s.ON_INPUT
    elif _available(state, stage - 1) < int(state.params[stage, s.NUM_IN]):
        return s.ON_INPUT
    places = min(counts[s.WORKERS] + counts[s.BUFFER], s.RING)
    if counts[s.STARTED] - _moved_on(state, stage) >= places:
        return s.ON_OUTPUT
    wanted = clock[s.LIVE_BYTES] + clock[s.RESERVED] + state.sums[stage, s.ESTIMATE]
    if wanted > clock[s.LEDGER] and not _must_go_on(state, stage):
        return s.ON_MEMORY
    if state.total[s.THREADS_BUSY] >= state.total[s.THREADS]:
        return s.ON_THREAD
    return -1


@kernel()
def _scale(state: State, stage: int) -> float:
    """Current drift factor of the mean service time, as in `StageSpec.scale_at`."""
    row, now = state.params[stage], state.clock[s.NOW]
    if now < row[s.DRIFT_START]:
        return 1.0
    if now >= row[s.DRIFT_END]:
        return float(row[s.DRIFT_FACTOR])
    share = (now - row[s.DRIFT_START]) / (row[s.DRIFT_END] - row[s.DRIFT_START])
    return float(1.0 + (row[s.DRIFT_FACTOR] - 1.0) * share)


@kernel()
def _charge(state: State, num_bytes: float) -> None:
    clock = state.clock
    clock[s.LIVE_BYTES] += num_bytes
    clock[s.PEAK_BYTES] = max(clock[s.PEAK_BYTES], clock[s.LIVE_BYTES])
    if clock[s.LIVE_BYTES] > clock[s.LIMIT]:
        state.total[s.OUT_OF_MEMORY] = 1


@kernel()
def _begin(state: State, stage: int) -> None:
    """Start a service: take its input, reserve its output, then block or wait for a CPU."""
    row, now = state.params[stage], state.clock[s.NOW]
    in_bytes = _take(state, stage - 1, int(row[s.NUM_IN])) if stage > 0 else 0.0
    state.total[s.NUM_FREE] -= 1
    service = state.free[state.total[s.NUM_FREE]]
    number = state.counts[stage, s.STARTED]
    state.counts[stage, s.STARTED] += 1
    state.counts[stage, s.BUSY] += 1
    state.total[s.THREADS_BUSY] += 1
    state.done[stage, number % s.RING] = False
    scale = _scale(state, stage)
    blocking = _draw(state, row[s.IO_S] * scale, int(row[s.DIST]), row[s.SPREAD])
    state.rows[service, 0], state.rows[service, 1] = stage, number
    times = state.times[service]
    times[s.BEGAN] = now
    times[s.CPU_NEEDED] = _draw(state, row[s.CPU_S] * scale, int(row[s.DIST]), row[s.SPREAD])
    times[s.IN_BYTES] = in_bytes
    times[s.CHARGED] = state.sums[stage, s.ESTIMATE]
    state.clock[s.RESERVED] += times[s.CHARGED]
    _charge(state, row[s.SCRATCH])
    if blocking > 0.0:
        state.rows[service, 2] = 1
        _push(state, now + blocking, service)
    else:
        _join_line(state, service)


@kernel()
def _join_line(state: State, service: int) -> None:
    state.line[state.total[s.LINE_TAIL] % s.MAX_RECORDS] = service
    state.total[s.LINE_TAIL] += 1


@kernel()
def _grant_cpus(state: State) -> None:
    """Grant free CPUs to waiting services in order of request."""
    total = state.total
    while total[s.CPUS_BUSY] < total[s.CPUS] and total[s.LINE_HEAD] < total[s.LINE_TAIL]:
        service = state.line[total[s.LINE_HEAD] % s.MAX_RECORDS]
        total[s.LINE_HEAD] += 1
        total[s.CPUS_BUSY] += 1
        stage = state.rows[service, 0]
        state.counts[stage, s.ACTIVE] += 1
        others = state.counts[stage, s.ACTIVE] - 1
        needed = state.times[service, s.CPU_NEEDED] * (1.0 + state.params[stage, s.CONTENTION] * others)
        state.times[service, s.CPU_BEGAN] = state.clock[s.NOW]
        state.rows[service, 2] = 2
        _push(state, state.clock[s.NOW] + needed, service)


@kernel()
def _finish(state: State, service: int) -> None:
    """Finish a service: free its worker, CPU and input, charge its output, and pass on elements in order."""
    now, total = state.clock[s.NOW], state.total
    stage, number = state.rows[service, 0], state.rows[service, 1]
    row, counts, sums, times = state.params[stage], state.counts[stage], state.sums[stage], state.times[service]
    _account(state, stage)
    total[s.CPUS_BUSY] -= 1
    total[s.THREADS_BUSY] -= 1
    counts[s.ACTIVE] -= 1
    counts[s.BUSY] -= 1
    counts[s.FINISHED] += 1
    sums[s.SUM_CPU] += now - times[s.CPU_BEGAN]
    sums[s.SUM_WALL] += now - times[s.BEGAN]
    size = _draw(state, row[s.OUT_BYTES], int(row[s.BYTES_DIST]), row[s.BYTES_SPREAD])
    sums[s.SUM_BYTES] += size
    sums[s.ESTIMATE] = max(sums[s.ESTIMATE] * ESTIMATE_DECAY, size + row[s.SCRATCH])
    state.clock[s.RESERVED] -= times[s.CHARGED]
    _charge(state, size)  # before the input is freed, because both exist now
    state.clock[s.LIVE_BYTES] -= times[s.IN_BYTES] + row[s.SCRATCH]
    state.sizes[stage, number % s.RING] = size
    state.done[stage, number % s.RING] = True
    while counts[s.IN_ORDER] < counts[s.STARTED] and state.done[stage, counts[s.IN_ORDER] % s.RING]:
        counts[s.IN_ORDER] += 1
    state.free[total[s.NUM_FREE]] = service
    total[s.NUM_FREE] += 1


@kernel()
def _feed_consumer(state: State) -> None:
    """Give the idle consumer an element if there is one."""
    last = state.counts.shape[0] - 1
    clock, total = state.clock, state.total
    # A consumer without service time takes all elements at once.
    while total[s.CONSUMER_BUSY] == 0 and _available(state, last) > 0:
        clock[s.CONSUMER_WAIT_S] += clock[s.NOW] - clock[s.CONSUMER_SINCE]
        clock[s.CONSUMER_SINCE] = clock[s.NOW]
        held = _take(state, last, 1)
        total[s.DELIVERED] += 1
        works = _draw(state, clock[s.CONSUMER_S], int(total[s.CONSUMER_DIST]), clock[s.CONSUMER_SPREAD])
        if works > 0.0:
            total[s.CONSUMER_BUSY] = 1
            clock[s.CONSUMER_HOLDS] = held
            _push(state, clock[s.NOW] + works, CONSUMER_DONE)
        else:
            clock[s.LIVE_BYTES] -= held


@kernel()
def start_what_can(state: State) -> None:
    """Start everything that can start now: the consumer first, then stages from last to first."""
    _feed_consumer(state)
    for stage in range(state.counts.shape[0] - 1, -1, -1):
        _account(state, stage)
        blocked = s.ON_INPUT
        while state.counts[stage, s.BUSY] < state.counts[stage, s.WORKERS]:
            blocked = _why_blocked(state, stage)
            if blocked >= 0 or state.total[s.OUT_OF_MEMORY]:
                break
            _begin(state, stage)
        state.counts[stage, s.BLOCKED] = max(blocked, 0)
    _grant_cpus(state)


@kernel()
def pause_until(state: State, time: float) -> None:
    """Block the source until a time (a job being relaunched)."""
    state.clock[s.PAUSED_UNTIL] = time
    _push(state, time, WAKE)


@kernel()
def advance(state: State, until: float) -> None:
    """Process events up to a time, or until memory runs out, and set the clock."""
    clock, total = state.clock, state.total
    start_what_can(state)
    while total[s.HEAP_SIZE] > 0 and state.heap_times[0] <= until and not total[s.OUT_OF_MEMORY]:
        clock[s.NOW] = state.heap_times[0]
        what = _pop(state)
        if what == CONSUMER_DONE:
            total[s.CONSUMER_BUSY] = 0
            clock[s.LIVE_BYTES] -= clock[s.CONSUMER_HOLDS]
            clock[s.CONSUMER_BUSY_S] += clock[s.NOW] - clock[s.CONSUMER_SINCE]
            clock[s.CONSUMER_SINCE] = clock[s.NOW]
        elif what >= 0 and state.rows[what, 2] == 1:
            state.sums[state.rows[what, 0], s.SUM_IO] += clock[s.NOW] - state.times[what, s.BEGAN]
            _join_line(state, what)
        elif what >= 0:
            _finish(state, what)
        start_what_can(state)
    if not total[s.OUT_OF_MEMORY]:
        clock[s.NOW] = until
    for stage in range(state.counts.shape[0]):
        _account(state, stage)
