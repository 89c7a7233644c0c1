"""`PipelineSimulator`: simulates a pipeline on a virtual clock, with changing workers, buffers, CPUs and memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from headrace.errors import ConfigError
from headrace.simulation import state as s
from headrace.simulation.kernel import advance, pause_until
from headrace.simulation.spec import Machine, PipelineSpec
from headrace.simulation.state import new_state

__all__ = ["PipelineSimulator", "SimulatedStage", "SimulatedTotals"]


@dataclass(frozen=True)
class SimulatedStage:
    """Totals of a stage since the start, and its current state.

    Attributes:
        services: Finished services.
        busy_s: CPU seconds spent.
        blocked_s: Seconds blocked on I/O, without a CPU.
        wall_s: Wall seconds of services, including the wait for a CPU.
        wait_input_s: Worker seconds spent waiting for input.
        wait_output_s: Worker seconds without a free output slot.
        wait_memory_s: Worker seconds spent waiting for memory.
        wait_thread_s: Worker seconds in which all threads were busy with other stages.
        bytes_out: Output bytes.
        queue_s: Time integral of the number of elements ready for the next stage.
        queue_depth: Elements ready for the next stage now.
        workers: Current number of workers.
        buffer: Finished elements that it may hold, in addition to those in progress.
    """

    services: int
    busy_s: float
    blocked_s: float
    wall_s: float
    wait_input_s: float
    wait_output_s: float
    wait_memory_s: float
    wait_thread_s: float
    bytes_out: float
    queue_s: float
    queue_depth: int
    workers: int
    buffer: int


@dataclass(frozen=True)
class SimulatedTotals:
    """Totals of the pipeline since the start.

    Attributes:
        time_s: The virtual clock.
        delivered: Elements that the consumer took.
        consumer_s: Seconds the consumer was busy.
        starved_s: Seconds the consumer waited.
        live_bytes: Current memory use.
        peak_bytes: Peak memory use.
        stages: Totals of each stage, starting with the source.
    """

    time_s: float
    delivered: int
    consumer_s: float
    starved_s: float
    live_bytes: float
    peak_bytes: float
    stages: tuple[SimulatedStage, ...]


class PipelineSimulator:
    """A simulated pipeline on a machine. Equal specs, machines, seeds and calls give equal runs.

    CPUs are granted to services in order of request. If CPUs are removed, running services keep theirs until they end.
    Elements leave each stage in the order in which they entered.
    """

    def __init__(self, spec: PipelineSpec, machine: Machine, *, seed: int = 0) -> None:
        """Create an idle pipeline at time 0 with one worker per stage."""
        self.spec = spec
        self.machine = machine
        self._state = new_state(spec, seed)
        self._index = {stage.name: i for i, stage in enumerate(spec.stages)}
        self._follow_machine()

    @property
    def time_s(self) -> float:
        """The virtual clock."""
        return float(self._state.clock[s.NOW])

    @property
    def out_of_memory(self) -> bool:
        """Whether memory was exceeded; then the pipeline stops until it is relaunched."""
        return bool(self._state.total[s.OUT_OF_MEMORY])

    def set_workers(self, stage: str, workers: int) -> None:
        """Change the workers of a stage; surplus workers end after their current service."""
        spec = self.spec.stages[self._stage(stage)]
        if not 1 <= workers <= spec.max_workers:
            raise ConfigError(f"stage {stage!r}: given {workers} workers, expected 1 to {spec.max_workers}")
        # The wait sums are current, because `advance` updates them before it returns.
        self._state.counts[self._stage(stage), s.WORKERS] = workers

    def set_buffer(self, stage: str, elements: int) -> None:
        """Change how many finished elements a stage may hold, in addition to those in progress."""
        if not 0 <= elements < s.RING:
            raise ConfigError(f"stage {stage!r}: given a buffer of {elements}, expected 0 to {s.RING - 1}")
        self._state.counts[self._stage(stage), s.BUFFER] = elements

    def set_threads(self, threads: int) -> None:
        """Limit the total number of running services; services nearest the consumer start first."""
        if not 1 <= threads <= s.MAX_RECORDS:
            raise ConfigError(f"given {threads} threads, expected 1 to {s.MAX_RECORDS}")
        self._state.total[s.THREADS] = threads

    def run(self, duration_s: float) -> int:
        """Advance the time; ends early if memory runs out.

        Returns:
            Number of elements delivered to the consumer.
        """
        before, until = int(self._state.total[s.DELIVERED]), self.time_s + duration_s
        while self.time_s < until and not self.out_of_memory:
            next_phase = min((p.start_s for p in self.machine.phases if p.start_s > self.time_s), default=math.inf)
            advance(self._state, min(next_phase, until))
            self._follow_machine()
        return int(self._state.total[s.DELIVERED]) - before

    def relaunch(self, downtime_s: float) -> None:
        """Stop and restart the job: work in flight is repeated after the downtime."""
        state = self._state
        state.counts[:, [s.BUSY, s.ACTIVE, s.STARTED, s.IN_ORDER, s.TAKEN, s.BLOCKED]] = 0
        state.done[:] = False
        state.free[:] = np.arange(len(state.free))
        state.total[[s.HEAP_SIZE, s.CPUS_BUSY, s.LINE_HEAD, s.LINE_TAIL, s.CONSUMER_BUSY]] = 0
        state.total[[s.OUT_OF_MEMORY, s.THREADS_BUSY]] = 0
        state.total[s.NUM_FREE] = len(state.free)
        state.clock[s.LIVE_BYTES] = self.spec.base_bytes
        state.clock[s.RESERVED] = 0.0
        state.clock[s.CONSUMER_SINCE] = self.time_s
        pause_until(state, self.time_s + downtime_s)

    def totals(self) -> SimulatedTotals:
        """Totals since the start, across relaunches."""
        state, clock = self._state, self._state.clock
        stages = [
            SimulatedStage(
                services=int(counts[s.FINISHED]),
                busy_s=float(sums[s.SUM_CPU]),
                blocked_s=float(sums[s.SUM_IO]),
                wall_s=float(sums[s.SUM_WALL]),
                wait_input_s=float(sums[s.SUM_WAIT_IN]),
                wait_output_s=float(sums[s.SUM_WAIT_OUT]),
                wait_memory_s=float(sums[s.SUM_WAIT_MEMORY]),
                wait_thread_s=float(sums[s.SUM_WAIT_THREAD]),
                bytes_out=float(sums[s.SUM_BYTES]),
                queue_s=float(sums[s.SUM_QUEUE]),
                queue_depth=int(counts[s.IN_ORDER] * row[s.NUM_OUT] - counts[s.TAKEN]),
                workers=int(counts[s.WORKERS]),
                buffer=int(counts[s.BUFFER]),
            )
            for counts, sums, row in zip(state.counts, state.sums, state.params, strict=True)
        ]
        since = self.time_s - float(clock[s.CONSUMER_SINCE])
        works = bool(state.total[s.CONSUMER_BUSY])
        return SimulatedTotals(
            time_s=self.time_s,
            delivered=int(state.total[s.DELIVERED]),
            consumer_s=float(clock[s.CONSUMER_BUSY_S]) + (since if works else 0.0),
            starved_s=float(clock[s.CONSUMER_WAIT_S]) + (0.0 if works else since),
            live_bytes=float(clock[s.LIVE_BYTES]),
            peak_bytes=float(clock[s.PEAK_BYTES]),
            stages=tuple(stages),
        )

    def _stage(self, name: str) -> int:
        if name not in self._index:
            raise ConfigError(f"stage: given {name!r}, expected one of {', '.join(self._index)}")
        return self._index[name]

    def _follow_machine(self) -> None:
        phase = self.machine.at(self.time_s)
        self._state.total[s.CPUS] = phase.cpus
        self._state.clock[s.LIMIT] = phase.memory_bytes
