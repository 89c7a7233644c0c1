"""`Herald`: caches on a parameter server, with samples assigned to the trainers that hold their rows."""

from __future__ import annotations

from headrace.placement.replay.assignment import assign_by_hits
from headrace.placement.replay.policies.lru import LRU
from headrace.placement.replay.stream import GlobalBatch, Int8s

__all__ = ["Herald"]


class Herald(LRU):
    """Herald (NSDI'24; rules from `laia/src/laia_scheduler.cc` and `mini_lru_cache.h` of HKUST-SING/herald).

    - Samples of a global batch are assigned one by one to the trainer with room whose LRU cache has valid copies of
      most of their rows; ties rotate with the batch.
    - A row is pushed when a sample at another trainer will read it, and pulled by that trainer, always through the
      parameter server.

    The plan of the artifact loses updates of rows that several trainers updated in a step, and skips rows that are not
    in the current batch. Here the rule is the corrected one: rows with several writers are pushed by all of them and
    pulled by every later reader; rows with one writer are pushed only when another trainer reads next.
    """

    name = "herald"

    def assign(self, batch: GlobalBatch) -> Int8s:
        # Copies that several trainers updated in the last step are outdated at each of them.
        valid = self._cached.copy()
        valid[:, self._shared_rows()] = False
        return assign_by_hits(batch, valid, batch.number % self.setting.num_trainers)
