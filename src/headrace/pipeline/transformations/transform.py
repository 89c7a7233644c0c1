"""`Transform`: turns record batches into batches of tensors with a feature plan.

Memory: a batch of tensors is charged with the bytes it says it has. The rows it was made from are let go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from headrace.errors import ConfigError
from headrace.pipeline.transformations.transformation import BadRows, Transformation

__all__ = ["Plan", "Transform"]


class Plan(Protocol):
    """What `Pipeline.transform` accepts: `headrace.features.FeaturePlan`, or anything with this method."""

    def apply(self, batch: pa.RecordBatch) -> Any:
        """Tensors of a record batch, normally a `headrace.tensors.Batch`; called by several threads at once."""
        ...


@dataclass(frozen=True)
class Transform(Transformation):
    """Turns a record batch into tensors.

    Attributes:
        plan: Computes them.
        bad_rows: What to do with rows it raises on.
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
