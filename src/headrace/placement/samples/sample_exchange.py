"""`SampleExchange`: trains other samples of a global batch at each trainer than the ones it has read.

Trainers tell each other the keys of the samples in their next batches, plan who trains which (`SamplePlanner`), and
send each other the samples that move, while batches before are trained, so that nobody waits::

    round r         round r + 1        round r + 2            round r + 3
    batch b is      its keys are       it is planned by all,  the samples that move
    ready           told               its rows are known     are sent: it can be trained
                                       to the stores

A global batch keeps its samples, and is trained in one step, so a checkpoint counts each of them once, wherever it was
trained: what is on its way for later steps is read again after a restart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from headrace.embeddings.keys import KeyLayout, Keys
from headrace.errors import HeadraceError
from headrace.placement.key_entries import KeyEntries
from headrace.placement.message_rounds import NOTHING, MessageRounds
from headrace.placement.peers import Bytes, MessageKind, Peers
from headrace.placement.samples.packed_numbers import NumberReader, pack_numbers
from headrace.placement.samples.packed_samples import (
    form_of,
    join_samples,
    pack_samples,
    sample_bytes,
    take_samples,
    unpack_samples,
)
from headrace.placement.samples.planning import SamplePlan, SamplePlanner, ToldBatch
from headrace.placement.samples.sample_keys import SampleKeys
from headrace.tensors import Batch, BatchKeys

__all__ = ["MovedSamples", "SampleExchange"]

Int64s = npt.NDArray[np.int64]


@dataclass
class MovedSamples:
    """What a trainer has sent to others.

    Attributes:
        key_bytes: Bytes of the keys of its samples.
        sample_bytes: Bytes of samples.
        moved: Samples that others train instead.
        samples: Samples of its own batches, as far as they are planned.
    """

    key_bytes: int = 0
    sample_bytes: int = 0
    moved: int = 0
    samples: int = 0


@dataclass(eq=False)
class _Planned:
    """A global batch that is not trained yet.

    Attributes:
        plan: Who trains its samples.
        parts: Samples that others have sent.
        is_complete: Whether all of them are here.
    """

    plan: SamplePlan
    parts: dict[int, Bytes] = field(default_factory=dict)
    is_complete: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of the plan and of the samples."""
        return self.plan.num_bytes + sum(map(len, self.parts.values()))


class SampleExchange:
    """One trainer's part of the exchange of samples. Not thread-safe.

    Args:
        peers: The trainers.
        layouts: The key layouts of the tables, in the order of the planner's prices.
        planner: Plans all batches; the same at all trainers.
        memory_bytes: Memory for what is known of batches on their way, and for samples that have come. One batch always
            fits.

    Attributes:
        moved: What was sent so far.
    """

    def __init__(
        self, peers: Peers, layouts: Sequence[KeyLayout], planner: SamplePlanner, *, memory_bytes: int
    ) -> None:
        self.moved = MovedSamples()
        self.layouts = tuple(layouts)
        self._rank, self._size = peers.rank, peers.size
        self._planner = planner
        self._memory_bytes = memory_bytes
        self._rounds = MessageRounds(peers, MessageKind.SAMPLES)
        self._batches: deque[Batch] = deque()  # of this trainer, told and not trained
        self._new: list[ToldBatch] = []  # of this trainer, not in a message yet
        self._next: list[ToldBatch] = []  # in the message of the next round
        self._told: list[deque[ToldBatch]] = [deque() for _ in range(peers.size)]  # by each trainer, not planned
        self._planned: deque[_Planned] = deque()
        self._unsent: list[_Planned] = []  # whose samples are not in a message yet
        self._sent_next: list[_Planned] = []  # whose samples are in the message of the next round
        self._sent_now: list[_Planned] = []  # whose samples are in the message of this round
        self._next_sample_bytes = 0
        self._largest_bytes = 0  # of a batch that was complete

    @property
    def num_bytes(self) -> int:
        """Bytes of what is known of batches on their way, and of the samples that have come."""
        return sum(each.num_bytes for each in self._planned)

    @property
    def has_room(self) -> bool:
        """Whether another batch may be told within the memory; the next one may in any case.

        Batches whose samples have not come yet count as much as the largest one so far, and a second one waits until
        that is known.
        """
        num_coming = len(self._batches) - sum(each.is_complete for each in self._planned)
        if not self._largest_bytes:
            return not self._batches
        return self.num_bytes + num_coming * self._largest_bytes < self._memory_bytes

    @property
    def num_told_keys(self) -> int:
        """Keys of this trainer's batches that are told, but not planned."""
        told = [*self._new, *self._next, *self._told[self._rank]]
        return sum(len(keys.keys) for each in told for keys in each.keys)

    def add(self, batch: Batch) -> None:
        """Tell the others the next batch of this trainer, from the next round on."""
        keys = tuple(SampleKeys.of(batch.keys_of(layout)[0]) for layout in self.layouts)
        self._batches.append(batch)
        self._new.append(ToldBatch(keys, sample_bytes(batch), form_of(batch)))

    def learn(self) -> list[SamplePlan]:
        """Plan the batches that all trainers have told; waits until the next one to train is here.

        Returns:
            The new plans, in order.
        """
        plans = self._finish() if self._rounds.is_running else []
        while not (self._planned and self._planned[0].is_complete):
            self._start()
            plans += self._finish()
        self._start()
        return plans

    def take(self) -> Batch:
        """The batch that this trainer trains next: the samples of the plan, in the order of the global batch.

        Raises:
            HeadraceError: Samples have other keys than those that were told.
        """
        planned, own = self._planned.popleft(), self._batches.popleft()
        assert planned.is_complete
        plan, parts = planned.plan, []
        for source in range(self._size):
            places = plan.samples(source, self._rank)
            if source == self._rank and len(places) == len(own) == plan.shares[self._rank]:
                return self._with_keys(replace(own, unique_keys=dict(own.unique_keys)), plan)
            if len(places):
                is_own = source == self._rank
                parts.append(take_samples(own, places) if is_own else unpack_samples(planned.parts[source], own))
        return self._with_keys(join_samples(parts), plan)

    def _with_keys(self, batch: Batch, plan: SamplePlan) -> Batch:
        """The batch with unique keys in the order in which all trainers know them."""
        for layout, parts in zip(self.layouts, plan.keys, strict=True):
            (found,) = batch.keys_of(layout)
            batch.unique_keys[layout] = (_in_order(found, parts[self._rank]),)
        return batch

    def _start(self) -> None:
        told = np.concatenate([NOTHING, *map(self._pack_told, self._new)])
        self._told[self._rank] += self._next
        self._next, self._new = self._new, []
        header = np.array([len(told)], dtype="<i8").view(np.uint8)
        following, num_bytes = {}, 0
        for other in self._rounds.others:
            samples = np.concatenate([NOTHING, *(self._pack_samples(each, other) for each in self._unsent)])
            following[other] = np.concatenate([header, told, samples])
            num_bytes += len(samples)
        self._sent_now, self._sent_next, self._unsent = self._sent_next, self._unsent, []
        self._rounds.start(following)
        self.moved.sample_bytes, self._next_sample_bytes = self.moved.sample_bytes + self._next_sample_bytes, num_bytes
        self.moved.key_bytes = self._rounds.num_bytes - self.moved.sample_bytes

    def _pack_told(self, told: ToldBatch) -> Bytes:
        header = pack_numbers(np.array([told.num_samples, told.sample_bytes, told.form]))
        keys = [keys.pack(len(layout.kinds)) for keys, layout in zip(told.keys, self.layouts, strict=True)]
        return np.concatenate([header, *keys])

    def _pack_samples(self, planned: _Planned, target: int) -> Bytes:
        """The samples of this trainer's part of a batch that another trains, after their length."""
        places = planned.plan.samples(self._rank, target)
        if not len(places):
            return NOTHING
        batch = self._batches[self._planned.index(planned)]
        data = pack_samples(take_samples(batch, places))
        return np.concatenate([np.array([len(data)], dtype="<i8").view(np.uint8), data])

    def _finish(self) -> list[SamplePlan]:
        """Wait for the messages of the round; returns the plans of the batches that are known now."""
        for source, message in self._rounds.finish().items():
            if not len(message):  # the first one
                continue
            reader = NumberReader(message)
            end = 8 + int(reader.take_bytes(8).view("<i8")[0])
            while reader.place < end:
                self._told[source].append(self._unpack_told(reader))
            for planned in self._sent_now:
                if len(planned.plan.samples(source, self._rank)):
                    (length,) = reader.take_bytes(8).copy().view("<i8").tolist()
                    planned.parts[source] = reader.take_bytes(length).copy()
        for planned in self._sent_now:
            planned.is_complete = True
            self._largest_bytes = max(self._largest_bytes, planned.num_bytes)
        plans = []
        for _ in range(min(map(len, self._told))):
            plan = self._planner.plan([told.popleft() for told in self._told])
            plans.append(plan)
            self._unsent.append(_Planned(plan))
            self._planned.append(self._unsent[-1])
            self.moved.samples += int(plan.shares[self._rank])
            self.moved.moved += int(plan.shares[self._rank]) - len(plan.samples(self._rank, self._rank))
        return plans

    def _unpack_told(self, reader: NumberReader) -> ToldBatch:
        num_samples, of_sample, form = reader.take_numbers(3).tolist()
        keys = tuple(SampleKeys.unpack(reader, len(layout.kinds), num_samples) for layout in self.layouts)
        return ToldBatch(keys, of_sample, form)


def _in_order(found: BatchKeys, keys: Keys) -> BatchKeys:
    """The keys of a batch in a given order."""
    entries = KeyEntries(len(keys))
    entries.add(keys)  # numbered from 1
    places = entries.find(found.keys) - 1
    if len(found.keys) != len(keys) or (keys.counts[places] != found.keys.counts).any() or (places < 0).any():
        raise HeadraceError("samples: keys of a batch are not those that trainers have told, expected the same")
    return replace(found, keys=keys, inverse=np.take(places, found.inverse, mode="clip"))
