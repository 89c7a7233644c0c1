"""`batch_prefetch`: prefetches whole batches on background threads, independently of the step, like tf.data."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.scheduling.policies.base import Decision, PullStrategy, SchedulerView, nothing
from headrace.scheduling.policies.strategies import AT_ONCE

__all__ = ["BATCH_PREFETCH", "BatchPrefetch"]


@dataclass(frozen=True)
class BatchPrefetch:
    """Prepares up to `num_ahead` batches, `num_threads` at once, even while training work runs.

    Attributes:
        num_ahead: Number of batches to prefetch.
        num_threads: Number of batches prepared at once, each on one thread; 0 for one thread per core.
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
        return nothing("all batches ahead are ready or in progress")


BATCH_PREFETCH = BatchPrefetch()
