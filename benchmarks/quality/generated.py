"""Generated logs whose true probabilities are known, so that the best NE that any model can reach is known too.

`headrace generate` is not used, because the defaults were measured on its logs. Each function draws the columns of one
log and the effects that add up to the log-odds of a click; effects are then scaled to the same spread in all logs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.logs.generate.teacher import calibrate, click_probability

__all__ = ["GENERATED", "generate_rows"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Drawn = tuple[dict[str, Any], Floats]
"""Columns by name, and the effects [N] of each row."""

SIGNAL = 1.15
"""Standard deviation of the log-odds; the best NE is then about 0.85 at a label rate of 0.2."""

START_MS = 1_700_000_000_000
ROW_MS = 250


def generate_rows(name: str, num_rows: int, seed: int = 11) -> tuple[pa.Table, Floats]:
    """The rows of a log of `GENERATED`, and their true probabilities [N]."""
    draw, label_rate = GENERATED[name]
    rng = np.random.default_rng((seed, list(GENERATED).index(name)))
    columns, effects = draw(rng, num_rows)
    probability = click_probability(effects, calibrate(effects, signal=SIGNAL, label_rate=label_rate))
    labels = (rng.random(num_rows) < probability).astype(np.int8)
    time = START_MS + ROW_MS * np.arange(num_rows)
    return pa.table({"time": time, "click": labels, **columns}), probability


def few_features(rng: np.random.Generator, num_rows: int) -> Drawn:
    """Two ids with a product, and one price with a long tail that is sometimes missing."""
    ad, place = zipf(rng, 500, num_rows), zipf(rng, 20, num_rows)
    price = rng.lognormal(3, 1.5, num_rows)
    missing = rng.random(num_rows) < 0.1
    effects = effect(rng, ad) + 0.7 * effect(rng, place) + 0.7 * product(rng, ad, place)
    effects += np.where(missing, 0.8, 0.6 * (np.log(price) - 3) / 1.5)
    return {"ad": ids(ad, 1), "place": ids(place, 2), "price": pa.array(price.round(2), mask=missing)}, effects


def new_ids(rng: np.random.Generator, num_rows: int) -> Drawn:
    """Every fifth row brings a new item, which is shown about five times; most of the effect is in its category."""
    item = np.arange(num_rows) // 5 - rng.geometric(1 / 40, num_rows)
    item -= item.min()
    category_of = zipf(rng, 50, int(item.max()) + 1)
    category, user = category_of[item], zipf(rng, 20_000, num_rows, 0.6)
    score = rng.normal(size=num_rows)
    effects = effect(rng, category) + 0.3 * effect(rng, item) + 0.3 * effect(rng, user) + 0.5 * score
    columns = {"user": ids(user, 3), "item": ids(item, 4), "category": ids(category, 5), "score": score.round(3)}
    return columns, effects


def drift(rng: np.random.Generator, num_rows: int) -> Drawn:
    """The effect of each id turns into its opposite from the first row to the last, and the label rate moves."""
    turn = np.pi * np.arange(num_rows) / num_rows
    effects = 0.5 * np.sin(2 * turn)
    columns: dict[str, Any] = {}
    for number, size in enumerate((10, 30, 100, 300, 1000, 3000)):
        drawn = zipf(rng, size, num_rows)
        effects += np.cos(turn) * effect(rng, drawn) + np.sin(turn) * effect(rng, drawn)
        columns[f"id{number}"] = ids(drawn, 10 + number)
    for number in range(2):
        values = rng.normal(size=num_rows)
        effects += 0.7 * values
        columns[f"x{number}"] = values.round(3)
    return columns, effects


def no_lists(rng: np.random.Generator, num_rows: int) -> Drawn:
    """Ids of 4 to 50,000 values, numbers of every shape, and products of both."""
    drawn = [zipf(rng, size, num_rows) for size in (4, 12, 50, 200, 1000, 5000, 20_000, 50_000)]
    effects = 0.7 * product(rng, drawn[0], drawn[2])
    for values, weight in zip(drawn, (0.5, 0.6, 0.6, 0.6, 0.5, 0.4, 0.3, 0.2), strict=True):
        effects += weight * effect(rng, values)
    normal, flat = rng.normal(size=num_rows), rng.random(num_rows)
    amount = rng.lognormal(2, 2, num_rows)
    count = np.where(rng.random(num_rows) < 0.7, 0, rng.geometric(0.1, num_rows))
    age, unknown = rng.integers(18, 80, num_rows), rng.random(num_rows) < 0.3
    effects += 0.5 * normal * effect(rng, drawn[1]) + 0.4 * (np.log(amount) - 2) / 2
    effects += 0.4 * np.log1p(count) + 3 * (flat - 0.5) ** 2 + np.where(unknown, -0.5, (age - 49) / 60)
    columns = {f"id{number}": ids(values, 20 + number) for number, values in enumerate(drawn)}
    columns |= {"normal": normal.round(3), "flat": flat.round(4), "amount": amount.round(2), "count": count}
    return columns | {"age": pa.array(age, mask=unknown)}, effects


def only_lists(rng: np.random.Generator, num_rows: int) -> Drawn:
    """Three lists, some empty; two hold ids of the same kind, and what they have in common matters."""
    columns: dict[str, Any] = {}
    effects, pairs = np.zeros(num_rows), {}
    effects_of = {"topics": rng.normal(size=300), "words": rng.normal(size=3000)}
    for name, kind, mean_length in (("liked", "topics", 6), ("shown", "topics", 4), ("words", "words", 12)):
        lengths = rng.poisson(mean_length, num_rows)
        rows = np.repeat(np.arange(num_rows), lengths)
        of_kind = effects_of[kind]
        values = zipf(rng, len(of_kind), len(rows), 0.8)
        effects += np.bincount(rows, of_kind[values], num_rows) / np.sqrt(mean_length)
        pairs[name] = rows * len(of_kind) + values
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        columns[name] = pa.ListArray.from_arrays(offsets, pa.array(ids(values, 31 if kind == "words" else 30)))
    rows_in_common = pairs["shown"][np.isin(pairs["shown"], pairs["liked"])] // 300
    effects += 1.5 * (np.bincount(rows_in_common, minlength=num_rows) > 0)
    return columns, effects


GENERATED: dict[str, tuple[Callable[[np.random.Generator, int], Drawn], float]] = {
    "few-features": (few_features, 0.2),
    "new-ids": (new_ids, 0.1),
    "drift": (drift, 0.25),
    "no-lists": (no_lists, 0.2),
    "only-lists": (only_lists, 0.2),
}
"""By name, how columns are drawn, and the label rate."""


def zipf(rng: np.random.Generator, size: int, count: int, exponent: float = 1.05) -> Ints:
    """Draw numbers below `size`, of which few are frequent."""
    weights = np.arange(1, size + 1, dtype=np.float64) ** -exponent
    return rng.choice(size, count, p=weights / weights.sum())


def effect(rng: np.random.Generator, values: Ints) -> Floats:
    """One normal effect for each value."""
    return rng.normal(size=int(values.max()) + 1)[values]


def product(rng: np.random.Generator, left: Ints, right: Ints) -> Floats:
    """Product of two-dimensional normal vectors of each side's values, of variance 1."""
    left_vectors, right_vectors = rng.normal(size=(2, int(max(left.max(), right.max())) + 1, 2))
    return np.sum(left_vectors[left] * right_vectors[right], axis=1) / np.sqrt(2)


def ids(values: Ints, kind: int) -> Ints:
    """Ids that look like hashes: 47 bits, different for each kind."""
    mixed = (values.astype(np.uint64) + np.uint64(kind << 32)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(17)).astype(np.int64)
