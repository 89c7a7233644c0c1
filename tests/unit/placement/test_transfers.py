"""The plan of several trainers against serial steps: every read has all updates before it, and no row is lost.

A row is a number here: how many gradients it has. Each trainer decides for itself, and only the plan's own words
move numbers, so a wrong decision is a wrong number.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings import Keys
from headrace.placement.joining import Prices
from headrace.placement.residency import Placing, Residency
from headrace.placement.transfers import gradients_to, hand_over, values_for

Pair = tuple[int, int]
Parts = list[list[Pair]]
CHEAP_MOVES, CHEAP_USES = Prices(1, 2), Prices(100, 1)

Fault = Literal["stale values", "lost hand-over", "lost return", "lost gradient"]


def keys_of(pairs: list[Pair]) -> Keys:
    tables, ids = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Keys(tables.astype(np.int32), ids.copy(), np.ones(len(pairs), dtype=np.int32))


def pairs_of(keys: Keys) -> list[Pair]:
    return list(zip(keys.tables.tolist(), keys.ids.tolist(), strict=True))


class Trainers:
    """Trainers that keep rows, with numbers for rows."""

    def __init__(self, num_trainers: int, capacity: int, prices: Prices, fault: Fault | None = None) -> None:
        self.size, self.fault = num_trainers, fault
        self.plans = [Residency(capacity, num_trainers, trainer, prices) for trainer in range(num_trainers)]
        self.rows: list[dict[int, tuple[Pair, int | None]]] = [{} for _ in range(num_trainers)]
        self.shards: dict[Pair, int] = {}
        self.seen: set[Pair] = set()
        self.serial: Counter[Pair] = Counter()
        self.is_new: dict[int, np.ndarray] = {}
        self.launched: set[tuple[int, bool]] = set()
        self.states: list[
            tuple[int, int, int, tuple[Pair, int | None]]
        ] = []  # on their way: batch, trainer, row, state
        self.values: dict[tuple[int, int, int], int | None] = {}  # by batch, trainer and place
        self.counts: Counter[str] = Counter()

    def announce(self, parts: Parts) -> None:
        for plan in self.plans:
            plan.announce(*map(keys_of, parts))

    def prepare(self, now: int) -> None:
        for batch in range(now, min(self.plans[0].num_announced, now + 4)):
            if batch in self.is_new:
                continue
            placings = [plan.place(batch) for plan in self.plans]
            if placings[0] is None:
                assert placings == [None] * self.size
                assert batch > now
                break
            assert all(
                np.array_equal(getattr(placings[0], name), getattr(placing, name))
                for placing in placings
                for name in ("places", "rows", "came_from", "leaving")
            )
            self._move(batch, placings[0])
        self.launch(now, late=True)
        self.launch(now + 1, late=False)

    def step(self, parts: Parts) -> None:
        now = self.plans[0].num_trained
        self.prepare(now)
        arrived = [state for state in self.states if state[0] <= now]
        self.states = [state for state in self.states if state[0] > now]
        for _, trainer, row, state in arrived:
            self.rows[trainer][row] = state
        for trainer, pairs in enumerate(parts):
            for place, pair in enumerate(pairs):
                assert self._read(now, trainer, place, pair) == self.serial[pair], (now, trainer, pair)
        announced = self.plans[0].announced(now)
        self.serial.update(pair for pairs in parts for pair in pairs)
        assert announced.rows is not None
        for reader, pairs in enumerate(parts):
            for owner in range(self.size):
                for place in gradients_to(announced, owner, reader, self.size):
                    row = int(announced.rows[announced.places[reader][place]]) // self.size
                    pair, number = self.rows[owner][row]
                    assert pair == pairs[place]
                    assert number is not None
                    self.counts["gradients"] += owner != reader
                    if not (self.fault == "lost gradient" and owner != reader):
                        self.rows[owner][row] = pair, number + 1
        self.launch(now + 1, late=True)
        for plan in self.plans:
            plan.finish()

    def give_all_back(self) -> dict[Pair, int]:
        """All rows in the shards, as before a checkpoint."""
        for _, trainer, row, state in self.states:
            self.rows[trainer][row] = state
        found = dict(self.shards)
        for rows in self.rows:
            found |= {pair: number for pair, number in rows.values() if number is not None}
        return {pair: number for pair, number in found.items() if number}

    def launch(self, batch: int, *, late: bool) -> None:
        if batch not in self.is_new or (batch, late) in self.launched:
            return
        self.launched.add((batch, late))
        announced = self.plans[0].announced(batch)
        keys = self.plans[0].keys_of(announced.entries)
        phases = [late]
        if self.fault == "stale values" and (batch, False) in self.launched:  # all values early
            phases = [] if late else [False, True]
        for source, target, phase in product(range(self.size), range(self.size), phases):
            if source != target:
                sent = values_for(announced, self.is_new[batch], source, target, self.size, late=phase)
                for place, row in zip(sent.places.tolist(), sent.rows.tolist(), strict=True):
                    pair, number = self.rows[source][row]
                    assert pair == pairs_of(keys)[announced.places[target][place]]
                    self.values[batch, target, place] = number
                    self.counts["values"] += 1
        for source in range(self.size):
            for target in set(range(self.size)) - {source}:
                moves = hand_over(announced, source, target, self.size, late=late)
                for place, before, after in zip(*map(np.ndarray.tolist, moves), strict=True):
                    state = self.rows[source].pop(before)
                    assert state[0] == pairs_of(keys)[place]
                    self.counts["hand-overs"] += 1
                    if self.fault != "lost hand-over":
                        self.states.append((batch, target, after, state))

    def _move(self, batch: int, placing: Placing) -> None:
        announced, plan = self.plans[0].announced(batch), self.plans[0]
        for slot, pair in zip(placing.leaving.tolist(), pairs_of(placing.left), strict=True):
            found, number = self.rows[slot % self.size].pop(slot // self.size)
            assert found == pair
            assert number is not None
            if self.fault != "lost return":
                self.shards[pair] = number
            self.counts["returns"] += 1
        keys = pairs_of(plan.keys_of(announced.entries))
        self.is_new[batch] = np.zeros(len(keys), dtype=np.bool_)
        for place, slot, came_from in zip(
            *map(np.ndarray.tolist, (placing.places, placing.rows, placing.came_from)), strict=True
        ):
            rows, row, pair = self.rows[slot % self.size], slot // self.size, keys[place]
            assert row not in rows, "the row is in use"
            if came_from:
                assert self.rows[came_from % self.size][came_from // self.size][0] == pair
                rows[row] = pair, None
            else:
                self.is_new[batch][place] = pair not in self.seen
                rows[row] = pair, self.shards.get(pair, 0)
                self.counts["fetches"] += pair in self.seen
            assert len(rows) <= plan.capacity
        self.seen.update(pairs_of(placing.left))

    def _read(self, batch: int, trainer: int, place: int, pair: Pair) -> int | None:
        announced = self.plans[0].announced(batch)
        assert announced.rows is not None
        position = announced.places[trainer][place]
        slot = int(announced.rows[position])
        if slot % self.size == trainer:
            found, number = self.rows[trainer][slot // self.size]
            assert found == pair
            return number
        return 0 if self.is_new[batch][position] else self.values.get((batch, trainer, place))


def train(
    seed: int, num_trainers: int, capacity: int, ahead: int, *, prices: Prices = CHEAP_MOVES, fault: Fault | None = None
) -> Trainers:
    rng = np.random.default_rng(seed)
    batches = [
        [
            sorted({(int(rng.integers(2)), int(rng.zipf(1.3) % 30 + number // 5)) for _ in range(rng.integers(0, 12))})
            for _ in range(num_trainers)
        ]
        for number in range(40)
    ]
    trainers = Trainers(num_trainers, capacity, prices, fault)
    for now, parts in enumerate(batches):
        while trainers.plans[0].num_announced < min(now + ahead, len(batches)):
            trainers.announce(batches[trainers.plans[0].num_announced])
        trainers.step(parts)
    assert trainers.give_all_back() == dict(trainers.serial)
    return trainers


@settings(max_examples=80)
@given(
    seed=st.integers(0, 10_000),
    num_trainers=st.integers(2, 4),
    capacity=st.sampled_from([1, 8, 15, 40, 200]),
    ahead=st.integers(1, 8),
    move_bytes=st.integers(1, 40),
)
def test_every_read_has_all_updates_before_it(
    seed: int, num_trainers: int, capacity: int, ahead: int, move_bytes: int
) -> None:
    train(seed, num_trainers, capacity, ahead, prices=Prices(move_bytes, 16))


def test_rows_move_in_every_way() -> None:
    counts = train(1, 3, 12, 6).counts
    assert counts.keys() == {"values", "hand-overs", "returns", "fetches", "gradients"}
    assert min(counts.values()) > 20
    assert (+train(1, 3, 1000, 6).counts).keys() == {"values", "hand-overs", "gradients"}  # nothing through the shards


def test_rows_move_if_that_costs_less() -> None:
    """Two trainers use a row in turn, which is in no other's way."""
    for num_uses, move_bytes, hand_overs in ((1, 15, 1), (1, 17, 0), (2, 31, 1), (2, 33, 0)):
        trainers = Trainers(2, 10, Prices(move_bytes, 16))
        batches: list[Parts] = [[[(0, 1)], []], *[[[], [(0, 1)]]] * num_uses]
        for parts in batches:
            trainers.announce(parts)
        for parts in batches:
            trainers.step(parts)
        assert trainers.counts["hand-overs"] == hand_overs
        assert trainers.counts["gradients"] == (0 if hand_overs else num_uses)


def test_prices_decide_what_moves() -> None:
    states, uses = (train(3, 3, 1000, 6, prices=prices).counts for prices in (CHEAP_MOVES, CHEAP_USES))
    assert states["hand-overs"] > 50
    assert uses["hand-overs"] == 0
    assert uses["gradients"] > states["gradients"]


@pytest.mark.parametrize("fault", ["stale values", "lost hand-over", "lost return", "lost gradient"])
def test_the_model_finds_a_broken_plan(fault: Fault) -> None:
    train(2, 3, 12, 6)
    with pytest.raises(AssertionError):
        train(2, 3, 12, 6, fault=fault)
