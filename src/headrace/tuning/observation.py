"""`Observation`: all a policy sees, the same for a simulated and for a live pipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Observation", "StageObservation"]


@dataclass(frozen=True, kw_only=True)
class StageObservation:
    """One stage over a window.

    Attributes:
        name: The stage; several fused ones joined by "+".
        workers: Elements it may work on at once, now.
        services: Elements finished in the window.
        busy_s: CPU seconds in the window.
        wall_s: Wall seconds from begin to end of services, added up over workers: CPU, blocking, waiting for a CPU.
        wait_input_s: Worker seconds without an element to work on.
        wait_output_s: Worker seconds held back because enough is done ahead or no memory is left.
        wait_memory_s: Seconds, not of each worker, in which there was no memory for another result.
        bytes_out: Bytes given.
        queue_depth: Elements ready for the next stage, now.
        visit_ratio: Services for each element delivered to the consumer; 0 while unknown.
        in_processes: Whether its workers are processes.
        left: Items that no worker of the source has begun; None where it is not known, and for other stages.
        queued_s: Seconds of services that its worker processes were ready without a CPU; 0 if unknown, and for threads,
            of which `Observation.queued_s` has the sum.
        reads: Whether it reads from storage or a network; None to go by its place: the first stage does.
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
    """A pipeline and its machine over a window.

    Attributes:
        time_s: Seconds since the job began.
        window_s: Seconds the counts cover.
        stages: From the source on.
        values: Every tunable's value now, by name.
        delivered: Elements the consumer took in the window.
        consumer_s: Seconds the consumer worked in the window.
        starved_s: Seconds it waited.
        cpus: CPUs this process may use now.
        memory_limit_bytes: Memory this process may use now.
        memory_used_bytes: Memory in use now.
        machine_busy_ratio: Share of all CPUs that is busy with anything, other processes included; 0 if unknown.
        budget_bytes: What elements in flight may hold, the ledger's budget; 0 if there is none.
        in_flight_bytes: What they hold now.
        queued_s: Seconds in the window that the threads of stages were ready without a CPU; 0 if unknown.
        gil_wait_s: Mean seconds a thread that wakes up waits for Python's lock; 0 if unknown.
        memory_bytes_per_s: Memory bandwidth, measured once at the start; only InTune's state has it.
        cpu_hz: Clock of the CPUs; only InTune's state has it.
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
        """Elements delivered in a second."""
        return self.delivered / self.window_s if self.window_s > 0 else 0.0

    @property
    def memory_ratio(self) -> float:
        """Share of the memory in use."""
        return self.memory_used_bytes / self.memory_limit_bytes if math.isfinite(self.memory_limit_bytes) else 0.0

    @property
    def consumer_rate_per_s(self) -> float:
        """Elements the consumer could take in a second, from its own time between requests; infinite if unknown."""
        return self.delivered / self.consumer_s if self.consumer_s > 0 and self.delivered else math.inf
