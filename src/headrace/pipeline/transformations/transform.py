"""`Transform`: turns record batches into batches of tensors with a feature plan.

Memory: a batch of tensors is charged its own `num_bytes`. The rows it was made from are released.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from headrace.errors import ConfigError
from headrace.pipeline.transformations.transformation import BadRows, Transformation

__all__ = ["Plan", "Transform"]


class Plan(Protocol):
    """Argument of `Pipeline.transform`: a `headrace.features.FeaturePlan`, or any object with this method."""

    def apply(self, batch: pa.RecordBatch) -> Any:
        """Convert a record batch to tensors, normally a `headrace.tensors.Batch`. Must be thread-safe."""
        ...


@dataclass(frozen=True)
class Transform(Transformation):
    """Turns a record batch into tensors.

    Attributes:
        plan: The feature plan.
        bad_rows: How to handle rows on which the plan raises.
    """

    plan: Plan
    bad_rows: BadRows = "fail"

    kind: ClassVar[str] = "transform"

    def __post_init__(self) -> None:
        if not callable(getattr(self.plan, "apply", None)):
            given = type(self.plan).__name__
            raise ConfigError(f"transform: given {given}, expected a plan with a method apply(record_batch)")

    @property
    def label(self) -> str:
        return type(self.plan).__name__

    def __call__(self, payload: pa.RecordBatch, seed: tuple[int, ...]) -> Any:
        return self.plan.apply(payload)
