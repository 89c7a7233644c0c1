"""Builds the state machine of a pipeline, and the tunables that change its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from headrace.logs.source import Source
from headrace.pipeline.engine.decisions import Decisions
from headrace.pipeline.engine.lanes import StageLane
from headrace.pipeline.engine.ledger import Ledger
from headrace.pipeline.engine.options import MAX_WORKERS, OpenOptions, StageGroup
from headrace.pipeline.engine.position import Position
from headrace.pipeline.engine.rebatcher import Rebatcher
from headrace.pipeline.engine.source_lane import SourceLane
from headrace.pipeline.engine.state import PipelineState
from headrace.pipeline.engine.tuners import Tunable
from headrace.pipeline.logical_plan import LogicalPlan

__all__ = ["build_state", "build_tunables", "first_bytes"]

MAX_PREFETCH = 1024
"""Maximum prefetched batches; normally the memory budget is reached long before."""

READ_AHEAD_SHARE = 0.5
MAX_READ_AHEAD_BYTES = 256 << 20
"""Default read-ahead: splits read before their turn may hold the smaller of this share of the budget and this size."""


def build_state(
    plan: LogicalPlan,
    groups: Sequence[StageGroup],
    options: OpenOptions,
    position: Position,
    decisions: Decisions,
    *,
    element_bytes: int,
) -> PipelineState:
    """Build empty lanes for a pipeline that starts at a position; `element_bytes` is what `first_bytes` returns."""
    source = SourceLane(
        options.stage_workers.get("source"),
        len(plan.sources[position.segment]),
        position.split,
        position.source_batch,
        segment=position.segment,
        num_segments=len(plan.sources),
        first_bytes=element_bytes,
    )
    lanes = []
    num_rebatches = 0
    for group in groups:
        rebatcher = None
        if group.rebatch is not None:
            rebatcher = Rebatcher(group.rebatch, position.before(num_rebatches), *position.rebatches[num_rebatches])
            num_rebatches += 1
        own_limit = options.stage_workers.get(group.stages[0].name)
        in_threads = group.executor == "thread"
        copies = 0 if in_threads else 1  # a worker process receives a copy of its input
        lanes.append(StageLane(group.name, own_limit, rebatcher=rebatcher, in_threads=in_threads, copies=copies))
    return PipelineState(
        source,
        lanes,
        Ledger(options.memory_bytes),
        num_workers=options.num_workers,
        num_prefetch=plan.num_prefetch,
        read_ahead_bytes=min(int(options.memory_bytes * READ_AHEAD_SHARE), MAX_READ_AHEAD_BYTES),
        report=lambda reason: decisions.record("memory ledger", {}, reason),
    )


def build_tunables(
    state: PipelineState, limit_bytes: int, change: Callable[[object, str, int], None]
) -> Mapping[str, Tunable]:
    """All settings that may change while a pipeline runs, by name.

    Args:
        state: Holds the settings.
        limit_bytes: Memory that this process may use.
        change: Sets an attribute of an object to a value, thread-safely.
    """
    return {tunable.name: tunable for tunable in _tunables(state, limit_bytes, change)}


def _tunables(state: PipelineState, limit_bytes: int, change: Callable[[object, str, int], None]) -> Iterator[Tunable]:
    def number(owner: object, attribute: str, name: str, low: int, high: int, unit: str) -> Tunable:
        get, set_ = partial(getattr, owner, attribute), partial(change, owner, attribute)
        return Tunable(name, min=low, max=high, unit=unit, get=get, set=set_)

    yield number(state, "num_workers", "workers", 1, MAX_WORKERS, "workers")
    for index, lane in enumerate(state.lanes):
        # A lane without a limit of its own may use as many workers as there are threads.
        get, set_ = partial(state.limit, index), partial(change, lane, "own_limit")
        yield Tunable(f"{lane.name}.workers", min=1, max=MAX_WORKERS, unit="workers", get=get, set=set_)
    yield number(state, "num_prefetch", "prefetch", 0, MAX_PREFETCH, "elements")
    yield number(state, "read_ahead_bytes", "read_ahead", 0, limit_bytes, "bytes")
    yield number(state.ledger, "budget_bytes", "memory", 1, limit_bytes, "bytes")


def first_bytes(source: Source, split: int) -> int:
    """The source's own estimate of the bytes of a source batch, if it has one; later estimates are learned."""
    estimate = getattr(source, "estimate_bytes", None)
    return int(estimate(split)) if estimate is not None and split < len(source) else 0
