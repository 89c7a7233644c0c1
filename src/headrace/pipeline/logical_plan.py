"""`LogicalPlan`: the definition of a pipeline, sources followed by stages, as immutable data for the engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from headrace.errors import ConfigError
from headrace.logs.source import Sources
from headrace.pipeline.transformations.transformation import Transformation

__all__ = ["Executor", "LogicalPlan", "Stage"]

Executor = Literal["thread", "process", "inline"]
"""Where a stage runs: in threads of this process, in worker processes (for Python that holds the GIL), or in the thread
of the consumer."""


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline.

    Attributes:
        name: Unique in the pipeline.
        transformation: What it does to each element.
        executor: Where it runs, or None for the default passed to `open`.
        timeout_s: Maximum seconds for one element.
    """

    name: str
    transformation: Transformation
    executor: Executor | None = None
    timeout_s: float | None = None

    @property
    def kind(self) -> str:
        """Name of the `Pipeline` method that adds this kind of stage."""
        return self.transformation.kind

    @property
    def label(self) -> str:
        """The name of the stage and of the user's function, if any, for error messages."""
        function = self.transformation.label
        return f"stage {self.name}" + (f" ({function})" if function else "")


@dataclass(frozen=True)
class LogicalPlan:
    """One or several sources, read in order, followed by stages.

    Each source is a *segment* of the stream. Batches never contain rows of two segments, and shuffle blocks, batch
    numbers and random numbers start again with each, so the batches of a segment are those of a pipeline over its
    source alone.

    Attributes:
        sources: Where rows are read from, at least one.
        stages: Stages in data order.
        num_prefetch: Batches to prepare ahead of the consumer.
        session: Session id column, if known.
    """

    sources: Sources
    stages: tuple[Stage, ...] = ()
    num_prefetch: int = 2
    session: str | None = None

    def signature(self, segment: int = 0) -> tuple[str, ...]:
        """The stages that determine row order in a segment; a saved position is valid only for an equal signature."""
        stages = (stage.transformation.signature for stage in self.stages)
        return (f"source of {len(self.sources[segment])} items", *(part for part in stages if part))

    @property
    def num_rebatches(self) -> int:
        """Number of stages that regroup rows."""
        return sum(stage.transformation.rebatch is not None for stage in self.stages)

    @property
    def has_tensors(self) -> bool:
        """Whether batches are tensors rather than rows."""
        return any(stage.kind == "transform" for stage in self.stages)

    def add(
        self,
        transformation: Transformation,
        *,
        name: str = "",
        executor: Executor | None = None,
        timeout_s: float | None = None,
    ) -> LogicalPlan:
        """The plan with one more stage.

        Args:
            transformation: What the stage does.
            name: Stage name; if empty, the name of its kind, numbered from the second on.
            executor: Where the stage runs.
            timeout_s: Maximum seconds for one element.

        Raises:
            ConfigError: An argument is invalid, or the stage cannot follow those before it.
        """
        kind = transformation.kind
        if self.has_tensors and kind != "to_device":
            raise ConfigError(f"{kind}: cannot follow transform, whose output is tensors; put it before transform")
        if executor not in (None, "thread", "process"):
            raise ConfigError(f'{kind}: executor: given {executor!r}, expected "thread" or "process"')
        if transformation.bad_rows not in (None, "fail", "drop", "quarantine"):
            given = transformation.bad_rows
            raise ConfigError(f'{kind}: bad_rows: given {given!r}, expected "fail", "drop" or "quarantine"')
        if timeout_s is not None and not timeout_s > 0:
            raise ConfigError(f"{kind}: timeout_s: given {timeout_s!r}, expected a number of seconds above 0")
        taken = {"source", *(stage.name for stage in self.stages)}
        if name in taken or "+" in name or "." in name:
            raise ConfigError(f'{kind}: name: given {name!r}, expected a unique name without "+" and "."')
        if not name:
            names = (kind, *(f"{kind}{number}" for number in range(2, len(taken) + 2)))
            name = next(free for free in names if free not in taken)
        return replace(self, stages=(*self.stages, Stage(name, transformation, executor, timeout_s)))
