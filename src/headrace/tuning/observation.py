"""`Observation`: the input of a policy, the same for simulated and live pipelines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Observation", "StageObservation"]


@dataclass(frozen=True, kw_only=True)
class StageObservation:
    """Measurements of one stage over a window.

    Attributes:
        name: Name of the stage; fused stages are joined by "+".
        workers: Current maximum of elements processed at once.
        services: Elements finished in the window.
        busy_s: CPU seconds in the window.
        wall_s: Wall seconds of services, summed over workers: computing, blocking and waiting for a CPU.
        wait_input_s: Worker seconds spent waiting for input.
        wait_output_s: Worker seconds held back because enough results are ready or there is no memory.
        wait_memory_s: Seconds (not summed over workers) without memory for another result.
        bytes_out: Output bytes.
        queue_depth: Elements ready for the next stage now.
        visit_ratio: Services per element delivered to the consumer; 0 while unknown.
        in_processes: Whether its workers are processes.
        left: Splits of the source that no worker has started; None if unknown, and for other stages.
        queued_s: Seconds of services in which its worker processes were runnable but had no CPU; 0 if unknown, and for
            threads, whose sum is `Observation.queued_s`.
        reads: Whether it reads from storage or a network; None to assume that only the first stage does.
    """

    name: str
    workers: int
    services: int
    busy_s: float
    wall_s: float
    wait_input_s: float = 0.0
    wait_output_s: float = 0.0
    wait_memory_s: float = 0.0
    bytes_out: float = 0.0
    queue_depth: int = 0
    visit_ratio: float = 1.0
    in_processes: bool = False
    reads: bool | None = None
    left: int | None = None
    queued_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Measurements of a pipeline and its machine over a window.

    Attributes:
        time_s: Seconds since the job started.
        window_s: Length of the window in seconds.
        stages: Stages in order, starting with the source.
        values: Current values of all tunables, by name.
        delivered: Elements that the consumer took in the window.
        consumer_s: Seconds the consumer was busy in the window.
        starved_s: Seconds the consumer waited for elements in the window.
        cpus: CPUs that this process may use now.
        memory_limit_bytes: Memory that this process may use now.
        memory_used_bytes: Memory in use now.
        machine_busy_ratio: Utilisation of all CPUs, including other processes; 0 if unknown.
        budget_bytes: Memory budget of elements in flight; 0 if there is none.
        in_flight_bytes: Bytes of elements in flight now.
        queued_s: Seconds in the window in which stage threads were runnable but had no CPU; 0 if unknown.
        gil_wait_s: Mean seconds that a waking thread waits for the GIL; 0 if unknown.
        memory_bytes_per_s: Memory bandwidth, measured once at the start; only used by InTune.
        cpu_hz: CPU clock; only used by InTune.
    """

    time_s: float
    window_s: float
    stages: tuple[StageObservation, ...]
    values: Mapping[str, int] = field(default_factory=dict)
    delivered: int = 0
    consumer_s: float = 0.0
    starved_s: float = 0.0
    cpus: float = 1.0
    memory_limit_bytes: float = math.inf
    memory_used_bytes: float = 0.0
    machine_busy_ratio: float = 0.0
    budget_bytes: float = 0.0
    in_flight_bytes: float = 0.0
    queued_s: float = 0.0
    gil_wait_s: float = 0.0
    memory_bytes_per_s: float = 1e10
    cpu_hz: float = 3e9

    @property
    def rate_per_s(self) -> float:
        """Elements delivered per second."""
        return self.delivered / self.window_s if self.window_s > 0 else 0.0

    @property
    def memory_ratio(self) -> float:
        """Fraction of the memory limit in use."""
        return self.memory_used_bytes / self.memory_limit_bytes if math.isfinite(self.memory_limit_bytes) else 0.0

    @property
    def consumer_rate_per_s(self) -> float:
        """Elements per second that the consumer could take, from the time between its requests; infinite if unknown."""
        return self.delivered / self.consumer_s if self.consumer_s > 0 and self.delivered else math.inf
