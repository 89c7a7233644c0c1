"""Learning-rate schedules: one factor for all learning rates, as a function of the rows trained on since the run began.

An incremental trainer has no last step, so a schedule cannot end in one; rates decay to a floor, or in cycles. Rows are
counted over all trainers, so a schedule does not depend on the batch size, on windows, or on how often a run is
resumed.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from headrace.errors import ConfigError
from headrace.messages import to_json
from headrace.registry import LEARNING_RATE_SCHEDULES, NamedConfig, Registry

__all__ = ["LearningRateScheduleConfig", "schedule_messages"]

KEY = "training.learning_rate_schedule"


class LearningRateScheduleConfig(NamedConfig):
    """Base class of learning-rate schedules; jobs refer to your own by its import path, see `ModelConfig`.

    Your own defines `decay`; the warm-up multiplies it.
    """

    registry: ClassVar[Registry[type[LearningRateScheduleConfig]]] = LEARNING_RATE_SCHEDULES

    warm_up_rows: int = Field(default=0, ge=0)
    """Rows over which the factor grows linearly, as in Goyal et al., 2017; 0 for no warm-up."""
    warm_up_from: float = Field(default=0.1, gt=0, le=1)
    """Factor of the first step of a warm-up."""

    @model_validator(mode="after")
    def _a_first_factor_needs_a_warm_up(self) -> Self:
        if "warm_up_from" in self.changed() and not self.warm_up_rows:
            raise ValueError("warm_up_from is only for schedules with warm_up_rows, given none")
        return self

    def factor(self, num_rows: int) -> float:
        """The factor of all learning rates in the step after `num_rows` rows.

        Args:
            num_rows: Rows that all trainers have trained on since the run began.

        Raises:
            ConfigError: `decay` returned something else than a finite number >= 0.
        """
        decayed = float(self.decay(num_rows))
        if not (math.isfinite(decayed) and decayed >= 0):
            raise ConfigError(f"{KEY}: {self.kind} gives {decayed} after {num_rows:,} rows, expected a number >= 0")
        if num_rows >= self.warm_up_rows:
            return decayed
        return decayed * (self.warm_up_from + (1.0 - self.warm_up_from) * num_rows / self.warm_up_rows)

    def decay(self, num_rows: int) -> float:
        """The factor without the warm-up; a pure function, because a resumed run asks again."""
        raise NotImplementedError(f"{type(self).__name__}.decay")


class Constant(LearningRateScheduleConfig):
    """The rates of the job, after the warm-up."""

    kind: Literal["constant"]

    def decay(self, num_rows: int) -> float:
        """See `LearningRateScheduleConfig`."""
        return 1.0


class InverseSquareRoot(LearningRateScheduleConfig):
    """Decays with the square root of the rows (Vaswani et al., "Attention Is All You Need", 2017, section 5.3)."""

    kind: Literal["inverse_square_root"]
    after_rows: int = Field(gt=0)
    """Rows before the decay begins; after four times as many, the factor is 1/2."""
    min_factor: float = Field(default=0.1, ge=0, le=1)
    """Smallest factor."""

    def decay(self, num_rows: int) -> float:
        """See `LearningRateScheduleConfig`."""
        return max(self.min_factor, math.sqrt(self.after_rows / max(num_rows, self.after_rows)))


class StepDecay(LearningRateScheduleConfig):
    """Decays by a constant factor every so many rows."""

    kind: Literal["step_decay"]
    every_rows: int = Field(gt=0)
    """Rows between two decays."""
    decay_factor: float = Field(default=0.5, gt=0, lt=1)
    """Factor of each decay."""
    min_factor: float = Field(default=0.1, ge=0, le=1)
    """Smallest factor."""

    def decay(self, num_rows: int) -> float:
        """See `LearningRateScheduleConfig`."""
        return max(self.min_factor, self.decay_factor ** (num_rows // self.every_rows))


class Cosine(LearningRateScheduleConfig):
    """Decays along a cosine, and restarts every `cycle_rows` rows (Loshchilov and Hutter, "SGDR", 2017)."""

    kind: Literal["cosine"]
    cycle_rows: int = Field(gt=0)
    """Rows of a cycle."""
    min_factor: float = Field(default=0.1, ge=0, le=1)
    """Factor at the end of a cycle."""

    def decay(self, num_rows: int) -> float:
        """See `LearningRateScheduleConfig`."""
        done = num_rows % self.cycle_rows / self.cycle_rows
        return self.min_factor + (1.0 - self.min_factor) * 0.5 * (1.0 + math.cos(math.pi * done))


def schedule_messages(
    schedule: LearningRateScheduleConfig | None, before: dict[str, Any] | None, num_rows: int
) -> list[str]:
    """Lines for the user about the schedule with which a run starts or is resumed.

    Args:
        schedule: The job's schedule.
        before: The schedule at the checkpoint, as plain values; None without one.
        num_rows: Rows trained on since the run began.
    """
    now = None if schedule is None else schedule.model_dump(mode="json")
    lines = []
    if num_rows and before != now:
        lines.append(f"{KEY} was {_text(before)}, is now {_text(now)}; rows still count from the first of the run")
    if schedule is not None:
        lines.append(
            f"learning rates are {schedule.factor(num_rows):.3g} times the job's after {num_rows:,} rows: {_text(now)}"
        )
    return lines


def _text(schedule: dict[str, Any] | None) -> str:
    return "none" if schedule is None else to_json(schedule)
