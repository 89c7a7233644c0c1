"""`VirtualEngine`: the engine's scheduling rules on a virtual clock, to test rates without measuring time.

`PipelineState` decides which work starts, as in a running pipeline, but simulated events replace the threads. So tests
can compare the expectations of a simulator or policy with the engine's behaviour exactly, on a machine under any load.
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
"""Reading takes hardly any time, so that the spec's stages determine the rate."""
ELEMENT_BYTES = 1000


class VirtualEngine:
    """An engine pipeline with the service times of a spec, whose stages map one element to one.

    It is a `Job`, so a policy can drive it. Times are constant, regardless of `StageSpec.distribution`.

    Attributes:
        cpus: CPUs of the machine; may be changed between runs.
        time_s: The virtual clock.
        taken: Split number of each element that the consumer took, in order.
    """

    def __init__(self, spec: PipelineSpec, cpus: int, *, num_splits: int = 1 << 20) -> None:
        """Create an idle pipeline at time 0 with one worker per stage."""
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
        self._line: deque[Work] = deque()  # waiting for a CPU
        self._cpus_busy = 0
        self._consumer_since, self._consumer_busy = 0.0, False
        self._observed_s = 0.0

    # ---- as a job

    @property
    def space(self) -> Space:
        """Workers of the spec's stages, prefetch, and shared threads."""
        stages = {workers_of(stage.name) for stage in self._spec.stages}
        knobs = Space.from_tunables(self._tunables.values()).knobs
        return Space(tuple(knob for knob in knobs if knob.name in stages or knob.stage is None))

    def apply(self, values: Mapping[str, int]) -> None:
        """Set tunables by name."""
        for name, value in values.items():
            self._tunables[name].set(value)

    def observe(self) -> Observation:
        """Measure the window since the last call, without the source."""
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
        """Counters of the stages over about the last `window_s` seconds."""
        lanes = self._state.lanes
        now = {
            lane.name: GroupNow(lane.name, self._state.limit(index), lane.num_running, lane.queue_depth)
            for index, lane in enumerate(lanes)
        }
        return PipelineCounters(*self._recorder.read(window_s, now))

    def set_workers(self, stage: str, workers: int) -> None:
        """Set the maximum elements of a stage processed at once."""
        self._tunables[workers_of(stage)].set(workers)

    def run(self, duration_s: float) -> int:
        """Advance the virtual time; returns the number of elements that the consumer took."""
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
        """Do nothing: the engine only runs in `run`."""

    def _pass_to(self, time: float) -> None:
        passed, self.time_s = time - self.time_s, time
        count_waits(self._recorder.stages, self._state, [(stage.name,) for stage in self._stages], passed)
        self._recorder.tick(time)

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.time_s + seconds, next(self._number), happen))

    def _start_what_can(self) -> None:
        """Start the consumer first, then the engine's choice of work, then grant CPUs in order of request."""
        while not self._consumer_busy and (element := self._state.take()) is not None:
            if not element.ends_segment:
                self._consume(element)
        while (work := self._state.next_work(self.time_s)) is not None:
            self._after(self._stages[work.lane].io_s, lambda work=work: self._line.append(work))  # type: ignore[misc]
        while self._line and self._cpus_busy < self.cpus:
            work = self._line.popleft()
            self._cpus_busy += 1
            self._after(self._stages[work.lane].cpu_s, lambda work=work: self._finish(work))  # type: ignore[misc]

    def _finish(self, work: Work) -> None:
        self._cpus_busy -= 1
        if work.lane == 0 and work.source_batch == 0:  # a split is one element; the next read finds its end
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
    """The attributes of `Resources` that an observation reads."""

    def __init__(self, cpus: int) -> None:
        self.count = float(cpus)
        self.limit_bytes = 1 << 40

    @property
    def cpus(self) -> _Machine:
        return self

    @property
    def memory(self) -> _Machine:
        return self
