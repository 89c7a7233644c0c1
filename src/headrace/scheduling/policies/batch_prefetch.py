"""`batch_prefetch`: whole batches ahead on background threads that know nothing of the step, as tf.data does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.scheduling.cost import Costs
from headrace.scheduling.policies.base import Choice, Situation, nothing
from headrace.scheduling.policies.rules import WHOLE, as_declared
from headrace.scheduling.probing import Mode

__all__ = ["BatchPrefetch"]


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
    modes: tuple[Mode, ...] = (WHOLE,)

    def num_workers(self, num_cores: int, free_cores: int) -> int:
        """See `Policy`: threads compete with training work for cores."""
        return self.num_threads or num_cores

    def order(self, costs: Costs, num_cores: int) -> Sequence[int]:
        """See `Policy`."""
        return as_declared(costs)

    def choose(self, now: Situation) -> Choice:
        """See `Policy`."""
        for batch in range(now.current, min(now.current + self.num_ahead, now.last_read) + 1):
            group = now.next_group(batch)
            if group is None or now.is_running(batch):
                continue
            if not now.fits(batch, group):
                return nothing("the byte budget is used up")
            return Choice(batch, group, f"{batch - now.current} ahead" if batch > now.current else "the next to train")
        return nothing("all batches ahead are done or in the making")
