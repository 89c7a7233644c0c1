"""The thread plan: torch, Numba, Arrow and the pipeline's workers share the effective CPUs.

A step and the pipeline take turns on the CPUs far more than they compete: while the step waits for a batch its threads
sleep, and while batches are ready the workers do. So the step may use every CPU, each worker is one thread and no more,
and Arrow's own pool gets only what workers leave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numba
import pyarrow as pa
import torch

from headrace.resources import effective_cpus

__all__ = ["ThreadPlan", "Threads", "plan_threads", "use_threads"]


@dataclass(frozen=True)
class ThreadPlan:
    """How many threads each part of the process uses.

    Attributes:
        step: torch's and Numba's, which take turns within a training step.
        workers: Of the pipeline, one thread each.
        arrow: Of Arrow's own pool, for user functions that let Arrow be parallel.
        reason: One line: why so many.
    """

    step: int
    workers: int
    arrow: int
    reason: str


def plan_threads(cpus: float, *, step_threads: int | None = None, workers: int = 0) -> ThreadPlan:
    """Decide the threads of each part.

    The step's threads decide the order of sums in matrix products, and so the last bits of the parameters. Therefore
    they follow from CPUs and job file alone, never from what the tuner does to the workers.

    Args:
        cpus: Effective CPUs, see `headrace.resources.effective_cpus`.
        step_threads: What the job file asks for; None for the CPUs, rounded down.
        workers: Workers the pipeline has now.
    """
    whole = max(1, int(cpus))
    arrow = max(1, whole - workers)
    if step_threads is None:
        reason = f"the step takes the {cpus:g} effective CPUs"
    elif step_threads > whole:
        reason = f"training.threads: {step_threads}, but only {cpus:g} effective CPUs: they will wait for each other"
    else:
        reason = f"training.threads: {step_threads} of {cpus:g} effective CPUs"
    if workers:
        reason += f"; {workers} workers use what it leaves idle, Arrow's pool has {arrow}"
    return ThreadPlan(step_threads or whole, workers, arrow, reason)


def apply_plan(plan: ThreadPlan) -> None:
    """Make the calling thread's torch and Numba, and the process's Arrow, use the threads of a plan."""
    torch.set_num_threads(plan.step)
    numba.set_num_threads(min(plan.step, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    pa.set_cpu_count(plan.arrow)


def use_threads(num_threads: int | None) -> int:
    """Plan and apply the threads of a training step without a pipeline.

    Args:
        num_threads: Threads, or None for the effective CPUs of this process (rounded down, at least 1).

    Returns:
        The number of threads the step now uses.
    """
    plan = plan_threads(effective_cpus().count, step_threads=num_threads)
    apply_plan(plan)
    return plan.step


class Threads:
    """Keeps a running job at its plan while CPUs and workers change.

    It has no thread of its own: the training loop calls `update` between steps, because Numba's and torch's numbers
    belong to the thread that calls them.

    Attributes:
        plan: In force, or None before the first `update`.
    """

    def __init__(
        self,
        step_threads: int | None,
        *,
        cpus: Callable[[], float] = lambda: effective_cpus().count,
        apply: Callable[[ThreadPlan], None] = apply_plan,
    ) -> None:
        """Remember what is asked for.

        Args:
            step_threads: Threads of a step; None for the CPUs.
            cpus: Reads the effective CPUs.
            apply: Carries a plan out.
        """
        self.plan: ThreadPlan | None = None
        self._step_threads, self._cpus, self._apply = step_threads, cpus, apply

    def update(self, workers: int = 0) -> ThreadPlan | None:
        """Plan anew; a plan that differs is applied and returned, else None.

        Args:
            workers: Workers the pipeline has now.
        """
        plan = plan_threads(self._cpus(), step_threads=self._step_threads, workers=workers)
        if self.plan is not None and (plan.step, plan.arrow) == (self.plan.step, self.plan.arrow):
            return None
        self._apply(plan)
        self.plan = plan
        return plan
