"""`VirtualEngine`: the engine's own rules on a virtual clock, so that rates can be tested without measuring time.

`PipelineState` decides what starts, as in a running pipeline; here events of a simulated machine carry it out instead
of threads. So a test can compare what the simulator or a policy expects with what the engine would do, exactly, on a
machine of any load.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import cast

from headrace.pipeline.engine.build import build_tunables
from headrace.pipeline.engine.counters import GroupNow, PipelineCounters, Recorder, count_waits
from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.lanes import StageLane, Work
from headrace.pipeline.engine.ledger import Ledger
from headrace.pipeline.engine.position import Position
from headrace.pipeline.engine.source_lane import SourceLane
from headrace.pipeline.engine.state import PipelineState
from headrace.pipeline.transformations.chain import StageUse
from headrace.resources import Resources
from headrace.simulation import PipelineSpec, StageSpec
from headrace.tuning.live import observation_of
from headrace.tuning.observation import Observation
from headrace.tuning.space import Space, workers_of

__all__ = ["VirtualEngine"]

SOURCE = StageSpec(name="source", cpu_s=1e-6)
"""Reading takes next to nothing, so the stages of the spec decide."""
ELEMENT_BYTES = 1000


class VirtualEngine:
    """A pipeline of the engine with service times of a spec, whose stages take and give one element each.

    It is a `Job`: a policy can drive it. Times are constant, whatever `StageSpec.distribution` says.

    Attributes:
        cpus: CPUs of the machine; may be changed between runs.
        time_s: The virtual clock.
        taken: Number of the split of every element the consumer took, in the order it took them.
    """

    def __init__(self, spec: PipelineSpec, cpus: int, *, num_splits: int = 1 << 20) -> None:
        """A pipeline at rest at time 0, one worker a stage."""
        self.cpus, self.time_s = cpus, 0.0
        self.taken: list[int] = []
        self._spec, self._num_splits = spec, num_splits
        self._stages = (SOURCE, *spec.stages)
        lanes = [StageLane(stage.name, 1, rebatcher=None, in_threads=True, copies=0) for stage in spec.stages]
        self._state = PipelineState(
            SourceLane(1, num_splits, 0, 0),
            lanes,
            Ledger(1 << 40),
            num_workers=1 << 10,
            num_prefetch=2,
            read_ahead_bytes=0,
            report=lambda reason: None,
        )
        self._recorder = Recorder([stage.name for stage in self._stages], lambda: self.time_s)
        self._tunables = build_tunables(self._state, 1 << 40, setattr)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._line: deque[Work] = deque()  # of those that wait for a CPU
        self._cpus_busy = 0
        self._consumer_since, self._consumer_busy = 0.0, False
        self._observed_s = 0.0

    # ---- as a job

    @property
    def space(self) -> Space:
        """Workers of the spec's stages, prefetch, and the threads they share."""
        stages = {workers_of(stage.name) for stage in self._spec.stages}
        knobs = Space.from_tunables(self._tunables.values()).knobs
        return Space(tuple(knob for knob in knobs if knob.name in stages or knob.stage is None))

    def apply(self, values: Mapping[str, int]) -> None:
        """Set tunables, by name."""
        for name, value in values.items():
            self._tunables[name].set(value)

    def observe(self) -> Observation:
        """The window since the last call, without the source."""
        window_s, self._observed_s = self.time_s - self._observed_s, self.time_s
        values = {name: tunable.value for name, tunable in self._tunables.items()}
        seen = observation_of(
            self.counters(window_s),
            values,
            cast(Resources, _Machine(self.cpus)),
            time_s=self.time_s,
            memory_used_bytes=0,
        )
        return replace(seen, stages=seen.stages[1:])

    # ---- as a pipeline

    def counters(self, window_s: float) -> PipelineCounters:
        """What the stages did over about the last seconds."""
        lanes = self._state.lanes
        now = {
            lane.name: GroupNow(lane.name, self._state.limit(index), lane.num_running, lane.queue_depth)
            for index, lane in enumerate(lanes)
        }
        return PipelineCounters(*self._recorder.read(window_s, now))

    def set_workers(self, stage: str, workers: int) -> None:
        """Elements of a stage that may be worked on at once."""
        self._tunables[workers_of(stage)].set(workers)

    def run(self, duration_s: float) -> int:
        """Let virtual time pass; returns the elements the consumer took meanwhile."""
        until, before = self.time_s + duration_s, len(self.taken)
        self._start_what_can()
        while self._events and self._events[0][0] <= until:
            time, _, happen = heapq.heappop(self._events)
            self._pass_to(time)
            happen()
            self._start_what_can()
        self._pass_to(until)
        return len(self.taken) - before

    def close(self) -> None:
        """Nothing runs outside of `run`."""

    def _pass_to(self, time: float) -> None:
        passed, self.time_s = time - self.time_s, time
        count_waits(self._recorder.stages, self._state, [(stage.name,) for stage in self._stages], passed)
        self._recorder.tick(time)

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.time_s + seconds, next(self._number), happen))

    def _start_what_can(self) -> None:
        """The consumer first, then the engine's choice of work, then CPUs in the order they were asked for."""
        while not self._consumer_busy and (element := self._state.take()) is not None:
            self._consume(element)
        while (work := self._state.next_work(self.time_s)) is not None:
            self._after(self._stages[work.lane].io_s, lambda work=work: self._line.append(work))  # type: ignore[misc]
        while self._line and self._cpus_busy < self.cpus:
            work = self._line.popleft()
            self._cpus_busy += 1
            self._after(self._stages[work.lane].cpu_s, lambda work=work: self._finish(work))  # type: ignore[misc]

    def _finish(self, work: Work) -> None:
        self._cpus_busy -= 1
        if work.lane == 0 and work.source_batch == 0:  # a split is one element; the read after it finds its end
            before, after = Position(work.split, 0), Position(work.split, 1)
            work.element = Element(None, 1, (work.split, 0), before, after, splits=(work.split,))
        self._state.finished(work, num_bytes=ELEMENT_BYTES if work.element is not None else 0)
        if work.element is not None:
            stage = self._stages[work.lane]
            use = StageUse(stage.cpu_s, self.time_s - work.started_s, 1, 1, ELEMENT_BYTES)
            self._recorder.stages[stage.name].add(use, ELEMENT_BYTES)

    def _consume(self, element: Element) -> None:
        self.taken.append(element.splits[0])
        waited_s = self.time_s - self._consumer_since
        if self._spec.consumer_s <= 0.0:
            self._consumed(waited_s)
            return
        self._consumer_busy = True
        self._after(self._spec.consumer_s, lambda: self._consumed(waited_s))

    def _consumed(self, waited_s: float) -> None:
        self._consumer_busy, self._consumer_since = False, self.time_s
        self._recorder.delivered(1, waited_s, self._spec.consumer_s)


class _Machine:
    """The parts of `Resources` that an observation reads."""

    def __init__(self, cpus: int) -> None:
        self.count = float(cpus)
        self.limit_bytes = 1 << 40

    @property
    def cpus(self) -> _Machine:
        return self

    @property
    def memory(self) -> _Machine:
        return self
