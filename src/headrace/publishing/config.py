"""`PublishConfig`: the section `training.publish` of a job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headrace.config import Config, whole_number_or

__all__ = ["PublishConfig"]


class PublishConfig(Config):
    """Publishing of versions for servers while training."""

    every_s: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Seconds between versions; if writing one takes longer, the next one is later and has more changes."""
    weights: Literal["exact", "int8"] = "exact"
    """int8 publishes float32 rows with one byte per number, with an error of up to 1/253 of the row's maximum."""
    keep: int = Field(default=100, ge=2)
    """Number of newest versions to keep; a replica that has an older one fetches all rows."""
    base_every: Annotated[int | Literal["auto"], whole_number_or("auto", at_least=1)] = "auto"
    """Versions after which segments are merged into a new base; `auto` merges when they have half its bytes."""
