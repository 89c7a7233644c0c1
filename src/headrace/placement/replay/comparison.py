"""Compares policies on one stream, for several cache sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from headrace.errors import ConfigError
from headrace.placement.replay.copies import InvalidPlan
from headrace.placement.replay.engine import ReplayResult, replay
from headrace.placement.replay.miss_ratio import MissCurve, miss_curve
from headrace.placement.replay.policy import PlacementPolicy, Setting
from headrace.placement.replay.stream import RowStream
from headrace.registry import PLACEMENT_POLICIES

__all__ = [
    "CacheNeeds",
    "Comparison",
    "cache_needs",
    "compare_policies",
    "curve_sizes",
    "default_policies",
    "find_policy",
    "result_values",
]


@dataclass(frozen=True)
class Comparison:
    """Results of policies on a stream.

    Attributes:
        results: Results, by cache size and then in the order of the policies.
        refusals: Why some policies do not support a setting.
    """

    results: list[ReplayResult]
    refusals: list[str]


@dataclass(frozen=True)
class CacheNeeds:
    """What cache one trainer needs.

    Attributes:
        curve: Misses by cache size.
        window: Number of batches W of a window.
        window_rows: Most distinct rows that a window uses.
        resident_rows: Fewest rows of cache that miss no row whose last use is at most W batches before.
    """

    curve: MissCurve
    window: int
    window_rows: int
    resident_rows: int


def default_policies(num_trainers: int) -> list[str]:
    """Names of the policies that are worth a comparison: what is published, its limits, and ours."""
    if num_trainers == 1:
        return ["none", "lru", "belady", "bagpipe", "lookahead"]
    return ["none", "lru", "bagpipe", "herald", "lookahead", "lookahead_placed"]


def find_policy(name: str) -> type[PlacementPolicy]:
    """The class of a policy, by name or import path.

    Raises:
        ConfigError: There is no such policy.
    """
    policy = PLACEMENT_POLICIES.find(name, where="--policy")
    if not (isinstance(policy, type) and issubclass(policy, PlacementPolicy)):
        raise ConfigError(f"--policy: given {name}, expected a subclass of headrace.placement.replay.PlacementPolicy")
    return policy


def compare_policies(
    stream: RowStream,
    names: Sequence[str],
    setting: Setting,
    capacities: Sequence[int | None] = (None,),
    *,
    on_step: Callable[[int], None] = lambda num_steps: None,
) -> Comparison:
    """Replay policies.

    Args:
        stream: The stream.
        names: Names of policies, or import paths.
        setting: The setting, without a cache size.
        capacities: Rows of cache per trainer; None for no limit.
        on_step: Called with the number of steps done, of all replays together.

    Raises:
        ConfigError: A name is unknown, no policy supports a setting, or a policy plans something impossible.
    """
    found = Comparison([], [])
    policies = {name: find_policy(name) for name in names}
    for number, (capacity, (name, policy)) in enumerate(product(capacities, policies.items())):
        num_done = number * len(stream)
        try:
            one = replace(setting, capacity=capacity)
            found.results.append(replay(stream, policy, one, on_step=partial(_add_steps, on_step, num_done)))
        except ConfigError as error:
            if str(error) not in found.refusals:
                found.refusals.append(str(error))
        except InvalidPlan as error:
            raise ConfigError(f"--policy {name}: planned what cannot be done: {error}") from error
        on_step(num_done + len(stream))
    if not found.results:
        raise ConfigError("; ".join(found.refusals))
    return found


def _add_steps(on_step: Callable[[int], None], num_done: int, num_steps: int) -> None:
    on_step(num_done + num_steps)


def curve_sizes(stream: RowStream, num_sizes: int, *, geometric: bool) -> list[int]:
    """Cache sizes from the smallest that works up to all rows of a stream."""
    least = max(len(batch.rows) for batch in stream.batches)
    spaced = np.geomspace if geometric else np.linspace
    return sorted({int(size) for size in np.ceil(spaced(least, max(least, stream.num_used), num_sizes))})


def cache_needs(stream: RowStream, num_trainers: int, window: int, num_sizes: int, *, geometric: bool) -> CacheNeeds:
    """What the first of several trainers needs, with a curve of `num_sizes` sizes."""
    own = stream if num_trainers == 1 else stream.of_trainer(0, num_trainers)
    curve = miss_curve(own, curve_sizes(own, num_sizes, geometric=geometric))
    return CacheNeeds(curve, window, int(own.distinct_rows(window).max()), int(own.resident_rows(window).max()))


def result_values(result: ReplayResult) -> dict[str, Any]:
    """A result as plain values for JSON: counts per step, and totals that end in `_total`."""
    return {
        "policy": result.policy,
        "cache_rows": result.setting.capacity,
        "steps": result.num_steps,
        "reads": result.num_reads / result.num_steps,
        "rows_total": result.traffic.rows(),
        "bytes_total": result.traffic.bytes(),
        "final_rows_total": result.traffic.final_rows(),
        "final_bytes_total": result.traffic.final_bytes(),
        "least_transfers_total": result.least_transfers,
        "stale_reads_total": result.num_stale,
        "most_missing_updates": result.most_missing,
        "lost_updates_total": result.num_lost,
        "most_resident_rows": result.most_resident,
        "keeps_batches": result.keeps_batches,
        **result.traffic.to_dict(),
    }
