"""`OpenOptions`: the validated arguments of `Pipeline.open`; and the grouping of stages into worker calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from headrace.errors import ConfigError
from headrace.messages import shorten_list
from headrace.pipeline.engine.decisions import DecisionRecorder
from headrace.pipeline.logical_plan import Executor, LogicalPlan, Stage
from headrace.pipeline.transformations.slices import Rebatch
from headrace.registry import TUNERS
from headrace.resources import Memory, effective_cpus, effective_memory, parse_bytes

__all__ = ["DEFAULT_MEMORY_SHARE", "MAX_WORKERS", "OpenOptions", "StageGroup", "make_groups", "memory_budget"]

DEFAULT_MEMORY_SHARE = 0.25
"""Share of the memory limit for elements in flight; the model, its embeddings and the page cache need the rest."""

MAX_WORKERS = 256
"""Upper limit for any number of workers."""


@dataclass(frozen=True)
class OpenOptions:
    """The validated arguments of `Pipeline.open`.

    Attributes:
        num_workers: Number of threads that run stages.
        stage_workers: Worker limits of single stages, by name.
        memory_bytes: Memory budget of the ledger.
        memory: Memory limits of this process.
        executor: Executor of stages that do not name one.
        epoch: Epoch, part of all random seeds.
        rank: Rank of this reader.
        num_ranks: Number of readers.
        decisions: Receives automatic decisions.
        tuner: A tuning policy or its name; "none" keeps all settings fixed.
    """

    num_workers: int
    stage_workers: Mapping[str, int]
    memory_bytes: int
    memory: Memory
    executor: Executor
    epoch: int
    rank: int
    num_ranks: int
    decisions: DecisionRecorder | None = None
    tuner: Any = "none"

    @classmethod
    def check(
        cls,
        plan: LogicalPlan,
        *,
        workers: int | Mapping[str, int] | None,
        memory_bytes: int | str | None,
        executor: Executor,
        epoch: int,
        rank: int,
        num_ranks: int,
        decisions: DecisionRecorder | None,
        tuner: Any = None,
    ) -> OpenOptions:
        """Validate arguments, with defaults taken from the machine.

        Raises:
            ConfigError: An argument is invalid; the message names it, the given and the expected value.
        """
        if executor not in ("thread", "process", "inline"):
            raise ConfigError(f'open: executor: given {executor!r}, expected "thread", "process" or "inline"')
        if not 0 <= rank < num_ranks:
            raise ConfigError(f"open: rank: given {rank} of num_ranks {num_ranks}, expected 0 <= rank < num_ranks")
        if num_ranks > 1 and not any(stage.kind == "batch" for stage in plan.stages):
            raise ConfigError(
                "open: num_ranks: ranks share the rows of each batch, but the pipeline has no batch stage"
            )
        if epoch < 0:
            raise ConfigError(f"open: epoch: given {epoch}, expected a whole number from 0 on")
        stage_workers = dict(workers) if isinstance(workers, Mapping) else {}
        names = ["source", *(stage.name for stage in plan.stages)]
        for name, count in stage_workers.items():
            if name not in names:
                raise ConfigError(f"open: workers: no stage named {name!r}; there are {shorten_list(names)}")
            _check_workers(f"workers.{name}", count)
        total = effective_cpus().num_threads if workers is None or isinstance(workers, Mapping) else workers
        _check_workers("workers", total)
        memory = effective_memory()
        budget = memory_budget(memory_bytes, memory)
        total = max(total, sum(stage_workers.values()))
        if tuner is None:  # setting workers disables tuning
            tuner = "auto" if workers is None else "none"
        elif not isinstance(tuner, str) and not callable(getattr(tuner, "decide", None)):
            given = type(tuner).__name__
            raise ConfigError(f"open: tuner: given {given}, expected the name of a policy, or a policy object")
        elif isinstance(tuner, str) and tuner not in ("auto", "none"):
            TUNERS.find(tuner, where="open")  # reject an unknown name here, not later in a thread
        if executor == "inline":
            tuner = "none"
        return cls(total, stage_workers, budget, memory, executor, epoch, rank, num_ranks, decisions, tuner)


def memory_budget(memory_bytes: int | str | None, memory: Memory | None = None) -> int:
    """Memory budget for elements in flight: the given size ("4GiB"), or for None a share of the effective memory limit.

    Raises:
        ConfigError: The value is not a positive number of bytes.
    """
    if memory_bytes is None:
        return int((memory or effective_memory()).limit_bytes * DEFAULT_MEMORY_SHARE)
    budget = parse_bytes(memory_bytes, where="open: memory_bytes")
    if budget <= 0:
        raise ConfigError(f"open: memory_bytes: given {memory_bytes!r}, expected more than 0")
    return budget


@dataclass(frozen=True)
class StageGroup:
    """Consecutive stages that one worker call applies to an element.

    Attributes:
        stages: One or more stages.
        executor: Executor of the stages.
        rebatch: How the stream is regrouped before them, or None.
        timeout_s: Maximum seconds of a call, or None.
    """

    stages: tuple[Stage, ...]
    executor: Literal["thread", "process"]
    rebatch: Rebatch | None
    timeout_s: float | None

    @property
    def name(self) -> str:
        """The names of the stages, joined by "+"."""
        return "+".join(stage.name for stage in self.stages)


def make_groups(plan: LogicalPlan, options: OpenOptions) -> tuple[StageGroup, ...]:
    """Group neighbouring stages, so that elements are handed over less often and stay in the CPU's cache.

    A stage with its own timeout or number of workers forms a group by itself. Regrouping rows, or a different executor,
    starts a new group.
    """
    groups: list[StageGroup] = []
    last_batch = max((i for i, stage in enumerate(plan.stages) if stage.kind == "batch"), default=-1)
    joins = False
    for index, stage in enumerate(plan.stages):
        rebatch = stage.transformation.rebatch
        if rebatch is not None and index == last_batch:
            rebatch = replace(rebatch, num_ranks=options.num_ranks, rank=options.rank)
        default = options.executor if stage.transformation.can_use_processes else "thread"
        executor: Literal["thread", "process"] = "process" if (stage.executor or default) == "process" else "thread"
        alone = stage.timeout_s is not None or stage.name in options.stage_workers
        if joins and not alone and rebatch is None and groups[-1].executor == executor:
            groups[-1] = replace(groups[-1], stages=(*groups[-1].stages, stage))
        else:
            groups.append(StageGroup((stage,), executor, rebatch, stage.timeout_s))
        joins = not alone
    return tuple(groups)


def _check_workers(name: str, count: object) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_WORKERS:
        raise ConfigError(f"open: {name}: given {count!r}, expected a whole number from 1 to {MAX_WORKERS}")
