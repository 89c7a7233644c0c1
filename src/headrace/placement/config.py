"""The `placement:` section of a job file."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from headrace.config import Config
from headrace.resources.quantities import parse_bytes

__all__ = ["PlacementConfig"]


class PlacementConfig(Config):
    """Where the rows of shards are while they are trained. Results do not depend on it.

    As YAML, a policy alone is just its name::

        placement: none
        placement: {policy: lookahead, memory: 2GiB}
    """

    policy: Literal["auto", "none", "lookahead"] = "auto"
    """`lookahead` fetches a row once, trains it in a trainer, and returns it when its room is needed or a checkpoint is
    due; several trainers exchange rows. `none` reads and updates rows in the shards in every step. auto is `lookahead`
    with shards and everything else at its default (`scheduler`, and in `cluster`, precisions and staleness), if reading
    rows from the shards takes longer than keeping them costs, which is measured at the start. Between machines, several
    trainers also need `trusted_network`."""
    memory: str = "512MiB"
    """Memory for resident rows, with optimizer state and index, per table group and trainer."""
    window: int = Field(default=32, ge=0)
    """Batches whose keys are looked at ahead, if the pipeline's memory holds so many. 0 for none, with one trainer: a
    step then waits for the rows that it misses, and those stay longest that are used most often."""
    split: Literal["whole", "popular_first", "fewest_missing_first"] = "whole"
    """How a step with `window: 0` splits its batch into micro-batches, to train some while rows of others are fetched:
    not at all; rows of the batch that miss nothing first (Hotline); or up to four micro-batches, those that miss the
    fewest first. Gradients are one update. A split changes parameters by the rounding of float32 sums, and `whole` not
    at all."""
    samples: Literal["in_order", "by_cost"] = "in_order"
    """Which of several trainers trains which sample of a global batch. `in_order`: each trains the samples that it has
    read. `by_cost`: each trains those that use rows which it keeps, so that fewer rows move between trainers; samples
    move instead. The global batch keeps its samples, and parameters change by the rounding of float32 sums."""
    trusted_network: bool = False
    """Whether several trainers may exchange rows and samples between machines. As with the gradients of the dense part,
    nothing encrypts them. Trainers on one machine, whose shards have loopback addresses, need no permission."""

    verify: bool = False
    """Train every row a second time without placement, in the trainer's memory, and compare what is read and what is
    returned."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_a_policy(cls, values: Any) -> Any:
        return {"policy": values} if isinstance(values, str) else values

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, value: str) -> str:
        parse_bytes(value, where="placement.memory")
        return value

    @model_validator(mode="after")
    def _samples_need_kept_rows(self) -> Self:
        if self.samples != "in_order" and self.policy == "none":
            raise ValueError(f"samples {self.samples} needs policy lookahead or auto, given policy none")
        return self

    @model_validator(mode="after")
    def _a_split_needs_no_window(self) -> Self:
        if self.split != "whole" and self.window:
            raise ValueError(f"split {self.split} needs window 0, given window {self.window}")
        return self

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return parse_bytes(self.memory)
