"""`SimulatedJob`: a simulated pipeline as a tunable `Job`."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.simulation import Machine, PipelineSimulator, PipelineSpec, SimulatedTotals
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.space import PREFETCH, THREADS, Knob, Space, workers_of

__all__ = ["SimulatedJob"]

MAX_PREFETCH = 4096
ALL_THREADS = 8192
"""More threads than any pipeline has workers, so effectively unlimited."""


class SimulatedJob:
    """A simulated pipeline as a tunable job.

    Attributes:
        simulator: The simulator.
        num_failures: How often it ran out of memory.
    """

    def __init__(self, spec: PipelineSpec, machine: Machine, *, seed: int = 0, restart_s: float = 30.0) -> None:
        """Start at time 0 with one worker per stage.

        Args:
            spec: The pipeline.
            machine: CPUs and memory over time.
            seed: Seed of service times and sizes.
            restart_s: Downtime in seconds after running out of memory or a relaunch.
        """
        self.simulator = PipelineSimulator(spec, machine, seed=seed)
        self.num_failures = 0
        self._restart_s = restart_s
        self._last = self.simulator.totals()
        workers = (Knob(workers_of(each.name), 1, each.max_workers, "workers") for each in spec.stages)
        prefetch = Knob(PREFETCH, 0, MAX_PREFETCH, "elements")
        self._space = Space((*workers, prefetch, Knob(THREADS, 1, ALL_THREADS, "workers")))
        self._threads = ALL_THREADS

    @property
    def space(self) -> Space:
        """Workers of every stage, prefetch after the last one, and threads."""
        return self._space

    def apply(self, values: Mapping[str, int]) -> None:
        """Set knobs by name."""
        for name, value in values.items():
            knob = self._space[name]
            if knob.stage is not None:
                self.simulator.set_workers(knob.stage, knob.clip(value))
            elif name == PREFETCH:
                self.simulator.set_buffer(self.simulator.spec.stages[-1].name, knob.clip(value))
            else:
                self._threads = knob.clip(value)
                self.simulator.set_threads(self._threads)

    def run(self, duration_s: float) -> int:
        """Advance the time; running out of memory costs a restart, in this call or the next.

        Returns:
            Elements delivered.
        """
        until, delivered = self.simulator.time_s + duration_s, 0
        while self.simulator.time_s < until:
            delivered += self.simulator.run(until - self.simulator.time_s)
            if self.simulator.out_of_memory:
                self.num_failures += 1
                self.relaunch()
        return delivered

    def close(self) -> None:
        """Do nothing: the simulation only runs in `run`."""

    def relaunch(self) -> None:
        """Stop and restart the job, with the downtime `restart_s`."""
        self.simulator.relaunch(self._restart_s)

    def observe(self) -> Observation:
        """Measure the window since the last call."""
        before, self._last = self._last, self.simulator.totals()
        return self._difference(before, self._last)

    def _difference(self, before: SimulatedTotals, after: SimulatedTotals) -> Observation:
        delivered = after.delivered - before.delivered
        stages = []
        for spec, old, new in zip(self.simulator.spec.stages, before.stages, after.stages, strict=True):
            held = (new.wait_output_s + new.wait_memory_s) - (old.wait_output_s + old.wait_memory_s)
            stages.append(
                StageObservation(
                    name=spec.name,
                    workers=new.workers,
                    services=new.services - old.services,
                    busy_s=new.busy_s - old.busy_s,
                    wall_s=new.wall_s - old.wall_s,
                    wait_input_s=new.wait_input_s - old.wait_input_s,
                    wait_output_s=held,
                    bytes_out=new.bytes_out - old.bytes_out,
                    queue_depth=new.queue_depth,
                    visit_ratio=(new.services - old.services) / delivered if delivered else 0.0,
                )
            )
        values = {workers_of(stage.name): stage.workers for stage in stages}
        phase = self.simulator.machine.at(after.time_s)
        return Observation(
            time_s=after.time_s,
            window_s=after.time_s - before.time_s,
            stages=tuple(stages),
            values={**values, PREFETCH: after.stages[-1].buffer, THREADS: self._threads},
            delivered=delivered,
            consumer_s=after.consumer_s - before.consumer_s,
            starved_s=after.starved_s - before.starved_s,
            cpus=phase.cpus,
            memory_limit_bytes=phase.memory_bytes,
            memory_used_bytes=after.live_bytes,
        )
