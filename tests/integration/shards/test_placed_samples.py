"""Trainers that exchange samples train every sample once, and end as trainers that train what they have read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch
from served_tables import Serve
from test_micro_batches import State, assert_equal_up_to_rounding, batches, model_of, state_of
from torch import Tensor, nn
from trainers import QueuePeers, run_trainers

from headrace.embeddings import embedding_bags
from headrace.embeddings.shards.group import ShardGroup
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.tables.seen_keys import SeenKeys
from headrace.errors import HeadraceError
from headrace.placement.lookahead import Lookahead
from headrace.placement.moves import Moves
from headrace.placement.resident_store import ResidentStore
from headrace.placement.samples import sample_exchange
from headrace.placement.samples.sample_exchange import SampleExchange
from headrace.tensors import Batch, InverseKeyedJaggedTensor
from headrace.training.sharded import exchange_of
from headrace.training.step import TrainingStep

Float32s = npt.NDArray[np.float32]
Parts = list[list[Batch]]
"""The batch of each trainer in each step."""


def in_order(sizes: Sequence[int] = (24, 24)) -> Parts:
    """Batches of 48 samples, of which each trainer reads so many; the last one has fewer, and not equally many."""
    ends = np.cumsum([0, *sizes]).tolist()
    found = batches()
    parts = [[batch.slice(a, b) for a, b in pairwise(ends)] for batch in found]
    last = found[-1].slice(0, 2 * len(sizes) + 1)
    rest = [len(last) * rank // len(sizes) for rank in range(len(sizes) + 1)]
    parts[-1] = [last.slice(a, b) for a, b in pairwise(rest)]
    return parts


class Average:
    """Averages the gradients of trainers in threads, in their order."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=20)
        self._given: list[tuple[list[Tensor], int]] = [([], 0)] * size

    def of(self, rank: int) -> Callable[[Sequence[Tensor], int], int]:
        def average(parameters: Sequence[Tensor], num_rows: int) -> int:
            grads = [torch.zeros_like(each) if each.grad is None else each.grad * num_rows for each in parameters]
            self._given[rank] = grads, num_rows
            self._barrier.wait()
            total = sum(count for _, count in self._given)
            of_all = zip(*(given for given, _ in self._given), strict=True)
            means = [sum(grads[1:], grads[0].clone()) / total for grads in of_all]
            self._barrier.wait()
            for parameter, mean in zip(parameters, means, strict=True):
                parameter.grad = mean
            return total

        return average


@dataclass
class Trained:
    """What a trainer ended with."""

    state: State
    batches: list[Batch]
    moves: Moves
    peak_bytes: int


def train_all(
    serve: Serve,
    parts: Parts,
    *,
    places: bool,
    ahead: int = 5,
    num_rows: int = 10_000,
    verify: bool = False,
    memory_bytes: int = 1 << 20,
) -> list[Trained]:
    """Train with one trainer for each part, each of which knows some batches ahead."""
    num_trainers, addresses = len(parts[0]), [serve()]
    average, barrier = Average(num_trainers), threading.Barrier(num_trainers, timeout=20)

    def train(rank: int, peers: QueuePeers) -> Trained:
        numba.set_num_threads(1)
        model = model_of("dlrm", waits=False)
        ((name, bags),) = embedding_bags(model).items()
        specs = {name: TableGroupSpec(bags.tables, 1)}
        with ShardGroup(addresses, specs, trainer=rank, num_trainers=num_trainers, session="s") as group:
            fresh = {"version": 0, "window_starts": [0], "seen": SeenKeys(1 << 12), "peers": peers}
            store = ResidentStore(group.store(name), memory_bytes=0, tells_keys=not places, verify=verify, **fresh)
            store._residency.capacity = num_rows
            store._rows.grow(num_rows)
            layouts = {name: bags.key_layout}
            bags.use_store(store)
            samples = exchange_of({name: store}, layouts, peers, memory_bytes=memory_bytes) if places else None
            own = [step[rank] for step in parts]
            trained, peak_bytes = train_own(model, own, average.of(rank), samples, ahead)
            store.flush()
            barrier.wait()
            moves = Moves.of([store], None if samples is None else samples.moved)
            return Trained(state_of(model, [store]), trained, moves, peak_bytes)

    return run_trainers(num_trainers, train)


def train_own(
    model: nn.Module,
    own: list[Batch],
    average: Callable[[Sequence[Tensor], int], int],
    samples: SampleExchange | None,
    ahead: int,
) -> tuple[list[Batch], int]:
    """Make the steps of a trainer; returns what it has trained, and the most bytes of samples ahead."""
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=0.1), precision="fp32", average=average)
    lookahead = Lookahead(list(embedding_bags(model).values()), max(1, ahead), samples=samples)
    found, peak_bytes = [], 0
    for number, batch in enumerate(own):
        ready = own[number + 1 : number + 1 + ahead]
        with lookahead.training(batch, ready) as parts:
            found += [part for part, _ in step.train_parts(parts, len(batch))]
        peak_bytes = max(peak_bytes, 0 if samples is None else samples.num_bytes)
    return found, peak_bytes


def trained_at_once(parts: Parts) -> State:
    """All steps in one process, on the global batches."""
    model = model_of("dlrm", waits=False)
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=0.1), precision="fp32")
    for number, batch in enumerate(batches()):
        step(batch.slice(0, sum(map(len, parts[number]))))
    (bags,) = embedding_bags(model).values()
    return state_of(model, [bags.store])  # type: ignore[list-item]


def samples_of(batch: Batch) -> dict[int, tuple[object, ...]]:
    """All that a batch has of each row."""
    lists: dict[str, list[list[int]]] = {}
    for group in batch.sparse:
        lists |= group.to_lists()
    columns = batch.dense.tolist(), batch.labels.tolist()
    return {
        row: (*(column[place] for column in columns), *(lists[name][place] for name in sorted(lists)))
        for place, row in enumerate(batch.row_ids.tolist())
    }


@pytest.mark.parametrize(
    ("sizes", "ahead", "num_rows"), [((24, 24), 5, 10_000), ((24, 24), 0, 150), ((16,) * 3, 3, 90)]
)
def test_every_sample_of_a_step_is_trained_once_and_parameters_are_those_of_one_process(
    serve: Serve, sizes: tuple[int, ...], ahead: int, num_rows: int
) -> None:
    """Also with room for few rows, and if batches are known only when they are trained; reads are verified."""
    parts = in_order(sizes)
    found = train_all(serve, parts, places=True, ahead=ahead, num_rows=num_rows, verify=True)
    for number, read in enumerate(parts):
        expected = {row: sample for part in read for row, sample in samples_of(part).items()}
        trained = [samples_of(each.batches[number]) for each in found]
        assert [len(part) for part in trained] == [len(part) for part in read]
        assert {row: sample for part in trained for row, sample in part.items()} == expected
        assert all(list(part) == sorted(part) for part in trained), "in the order of the global batch"
        assert all(isinstance(each.batches[number].sparse[1], InverseKeyedJaggedTensor) for each in found)
    assert sum(each.moves.num_moved_samples for each in found) > 100
    assert_equal_up_to_rounding(trained_at_once(parts), found[0].state)


def test_a_run_is_repeated_bit_for_bit_and_so_is_its_assignment(serve: Serve) -> None:
    """However far ahead batches are known, and however many rows there is room for; and by trainers that read the
    samples as they were placed."""
    first, *_ = found = train_all(serve, in_order(), places=True)
    again, *_ = train_all(serve, in_order(), places=True, ahead=1, num_rows=150)
    as_placed = [[each.batches[number] for each in found] for number in range(len(first.batches))]
    plain, *_ = train_all(serve, as_placed, places=False)
    for other in (again, plain):
        assert other.state.keys() == first.state.keys()
        assert {name for name in first.state if not np.array_equal(first.state[name], other.state[name])} == set()


def test_fewer_rows_move_and_what_moves_instead_is_counted(serve: Serve) -> None:
    placed, plain = (train_all(serve, in_order(), places=places) for places in (True, False))

    def total(trained: list[Trained], *names: str) -> int:
        return sum(getattr(each.moves, f"num_{name}_bytes") for each in trained for name in names)

    rows = "state", "value", "gradient"
    assert total(placed, *rows) < 0.8 * total(plain, *rows)
    assert total(placed, "sample") > 0
    assert total(plain, "sample") == 0
    kinds = (*rows, "sample", "key", "fetched", "returned")
    assert sum(each.moves.num_bytes for each in placed) == total(placed, *kinds)
    moved, of = (sum(getattr(each.moves, f"num_{name}_samples") for each in placed) for name in ("moved", "placed"))
    assert 0 < moved < of
    assert "of the samples went to another trainer" in str(placed[0].moves)
    assert "of the samples" not in str(plain[0].moves)


def test_bytes_are_those_that_were_sent(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [0, 0]
    send = QueuePeers.send

    def count(self: QueuePeers, target: int, data: npt.NDArray[np.uint8], *, tag: int) -> None:
        sent[self.rank] += len(data)
        send(self, target, data, tag=tag)

    pack, packed = sample_exchange.pack_samples, []

    def pack_and_count(batch: Batch) -> npt.NDArray[np.uint8]:
        packed.append(pack(batch))
        return packed[-1]

    monkeypatch.setattr(QueuePeers, "send", count)
    monkeypatch.setattr(sample_exchange, "pack_samples", pack_and_count)
    found = train_all(serve, in_order(), places=True)
    assert sum(each.moves.num_sample_bytes for each in found) == sum(8 + len(data) for data in packed)
    for each, num_bytes in zip(found, sent, strict=True):
        moves = each.moves
        of_rows = moves.num_state_bytes + moves.num_value_bytes + moves.num_gradient_bytes
        assert of_rows + moves.num_key_bytes + moves.num_sample_bytes == num_bytes


def test_batches_are_told_ahead_as_far_as_there_is_memory(serve: Serve) -> None:
    few, many = (
        max(each.peak_bytes for each in train_all(serve, in_order(), places=True, ahead=10, memory_bytes=num_bytes))
        for num_bytes in (8_000, 1 << 20)
    )
    assert few < 4_000 + 4_000 < many, "half of the memory, and the batches that are told before it is full"


def test_samples_with_other_keys_than_told_are_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that sends other samples than those of the plan is noticed."""
    take = sample_exchange.take_samples

    def take_others(batch: Batch, places: npt.NDArray[np.int64]) -> Batch:
        return take(batch, (places + 1) % len(batch))

    monkeypatch.setattr(sample_exchange, "take_samples", take_others)
    with pytest.raises(HeadraceError, match="keys of a batch are not those that trainers have told"):
        train_all(serve, in_order(), places=True)
