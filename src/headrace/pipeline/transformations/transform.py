"""`Transform`: turns record batches into batches of tensors with a feature plan.

Memory: a batch of tensors is charged its own `num_bytes`. The rows it was made from are released.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import pyarrow as pa

from headrace.errors import ConfigError
from headrace.pipeline.transformations.transformation import BadRows, Transformation

__all__ = ["Plan", "SegmentPlans", "Transform"]


class Plan(Protocol):
    """Argument of `Pipeline.transform`: a `headrace.features.FeaturePlan`, or any object with this method."""

    def apply(self, batch: pa.RecordBatch) -> Any:
        """Convert a record batch to tensors, normally a `headrace.tensors.Batch`. Must be thread-safe."""
        ...


class SegmentPlans(Protocol):
    """A feature plan for each segment of a stream; see `from_sources`."""

    def plan_of(self, segment: int) -> Plan:
        """The plan for the rows of a segment that is being read; must be thread-safe."""
        ...


@dataclass(frozen=True)
class Transform(Transformation):
    """Turns a record batch into tensors.

    Attributes:
        plan: The feature plan, or one per segment.
        bad_rows: How to handle rows on which the plan raises.
    """

    plan: Plan | SegmentPlans
    bad_rows: BadRows = "fail"

    kind: ClassVar[str] = "transform"

    def __post_init__(self) -> None:
        if not any(callable(getattr(self.plan, name, None)) for name in ("apply", "plan_of")):
            given = type(self.plan).__name__
            raise ConfigError(f"transform: given {given}, expected a plan with a method apply(record_batch)")

    @property
    def label(self) -> str:
        return type(self.plan).__name__

    def of_segment(self, segment: int) -> Transform:
        plan_of = getattr(self.plan, "plan_of", None)
        return self if plan_of is None else Transform(plan_of(segment), self.bad_rows)

    def __call__(self, payload: pa.RecordBatch, seed: tuple[int, ...]) -> Any:
        return cast(Plan, self.plan).apply(payload)
