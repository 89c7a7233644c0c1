"""The thread plan, which divides the effective CPUs among torch, Numba, Arrow and pipeline workers.

The training step and the pipeline mostly take turns on the CPUs: while the step waits for a batch its threads sleep,
and while batches are ready the workers sleep. So the step may use all CPUs, each worker is a single thread, and Arrow's
pool gets only the CPUs that workers leave free.
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
    """Numbers of threads in the process.

    Attributes:
        step: Threads of torch and Numba, which take turns within a training step.
        workers: Pipeline workers, one thread each.
        arrow: Threads of Arrow's pool, for user functions that use parallel Arrow operations.
        reason: The reason in one line.
    """

    step: int
    workers: int
    arrow: int
    reason: str


def plan_threads(cpus: float, *, step_threads: int | None = None, workers: int = 0) -> ThreadPlan:
    """Decide the numbers of threads.

    The step's threads determine the order of sums in matrix products, and so the last bits of the parameters. So they
    depend only on CPUs and job file, never on the tuner's number of workers.

    Args:
        cpus: Effective CPUs, see `headrace.resources.effective_cpus`.
        step_threads: Setting of the job file; None for the CPUs, rounded down.
        workers: Current number of pipeline workers.
    """
    whole = max(1, int(cpus))
    arrow = max(1, whole - workers)
    if step_threads is None:
        reason = f"the step uses the {cpus:g} effective CPUs"
    elif step_threads > whole:
        reason = f"training.threads: {step_threads}, but only {cpus:g} effective CPUs: threads will wait for each other"
    else:
        reason = f"training.threads: {step_threads} of {cpus:g} effective CPUs"
    if workers:
        reason += f"; {workers} workers use its idle time, Arrow's pool has {arrow}"
    return ThreadPlan(step_threads or whole, workers, arrow, reason)


def apply_plan(plan: ThreadPlan) -> None:
    """Apply a plan to torch and Numba in the calling thread, and to Arrow in the process."""
    torch.set_num_threads(plan.step)
    numba.set_num_threads(min(plan.step, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    pa.set_cpu_count(plan.arrow)


def use_threads(num_threads: int | None) -> int:
    """Plan and apply the threads of a training step without a pipeline.

    Args:
        num_threads: Number of threads; None for the effective CPUs of this process (rounded down, at least 1).

    Returns:
        The number of threads of the step.
    """
    plan = plan_threads(effective_cpus().count, step_threads=num_threads)
    apply_plan(plan)
    return plan.step


class Threads:
    """Updates the thread plan of a running job when CPUs or workers change.

    It has no thread of its own: the training loop calls `update` between steps, because settings of Numba and torch
    apply to the calling thread.

    Attributes:
        plan: The current plan, or None before the first `update`.
    """

    def __init__(
        self,
        step_threads: int | None,
        *,
        cpus: Callable[[], float] = lambda: effective_cpus().count,
        apply: Callable[[ThreadPlan], None] = apply_plan,
    ) -> None:
        """Store the settings.

        Args:
            step_threads: Threads of a step; None for the CPUs.
            cpus: Reads the effective CPUs.
            apply: Applies a plan.
        """
        self.plan: ThreadPlan | None = None
        self._step_threads, self._cpus, self._apply = step_threads, cpus, apply

    def update(self, workers: int = 0) -> ThreadPlan | None:
        """Plan again; applies and returns a changed plan, else returns None.

        Args:
            workers: Current number of pipeline workers.
        """
        plan = plan_threads(self._cpus(), step_threads=self._step_threads, workers=workers)
        if self.plan is not None and (plan.step, plan.arrow) == (self.plan.step, self.plan.arrow):
            return None
        self._apply(plan)
        self.plan = plan
        return plan
