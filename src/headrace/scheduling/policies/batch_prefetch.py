"""`batch_prefetch`: whole batches ahead on background threads that know nothing of the step, as tf.data does it."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.scheduling.policies.base import Decision, PullStrategy, SchedulerView, nothing
from headrace.scheduling.policies.strategies import AT_ONCE

__all__ = ["BATCH_PREFETCH", "BatchPrefetch"]


@dataclass(frozen=True)
class BatchPrefetch:
    """Up to `num_ahead` batches are made ready, `num_threads` at once, also while training work runs.

    Attributes:
        num_ahead: Batches made ready ahead of the step.
        num_threads: Batches in the making at once, each on one thread; 0 for one thread a core.
    """

    name: str = "batch_prefetch"
    num_ahead: int = 2
    num_threads: int = 0
    strategies: tuple[PullStrategy, ...] = (AT_ONCE,)

    def num_workers(self, num_cores: int, free_cores: int) -> int:
        """See `Policy`: threads compete with training work for cores."""
        return self.num_threads or num_cores

    def choose(self, now: SchedulerView) -> Decision:
        """See `Policy`."""
        for batch in range(now.current, min(now.current + self.num_ahead, now.last_read) + 1):
            operator = now.next_features(batch)
            if operator is None or now.is_running(batch):
                continue
            if not now.fits(operator):
                return nothing("the byte budget is used up")
            ahead = batch - now.current
            return Decision(operator, f"{ahead} ahead" if ahead else "the next to train")
        return nothing("all batches ahead are done or in the making")


BATCH_PREFETCH = BatchPrefetch()
