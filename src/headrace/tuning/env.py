"""`TuningEnv`: a Gymnasium environment for tuning a simulated or live pipeline. Needs the extra `[tune]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ConfigError, MissingExtra
from headrace.tuning.adapter import Job
from headrace.tuning.dqn import Heads, joint_action
from headrace.tuning.features import STEPS, View, features, num_features, step_workers
from headrace.tuning.observation import Observation
from headrace.tuning.policies.even import even_split
from headrace.tuning.reward import reward

try:
    import gymnasium
    from gymnasium import spaces
except ImportError as error:
    raise MissingExtra("gymnasium", "tune") from error

__all__ = ["Episode", "SteppedJob", "TuningEnv"]


class SteppedJob(Job, Protocol):
    """A job whose time advances on request: virtual time in the simulator, a sleep for a live pipeline."""

    def run(self, duration_s: float) -> Any:
        """Advance the time."""
        ...

    def close(self) -> None:
        """End the episode."""
        ...


Episode = Callable[[np.random.Generator], tuple[SteppedJob, float]]
"""Creates the job of an episode; returns it with the rate in elements per second that earns the full reward."""


class TuningEnv(gymnasium.Env[NDArray[np.float32], Any]):
    """Observation: `features`. Action: for each stage one of -5, -1, 0, +1, +5 workers. Reward: `reward`.

    An episode starts at an even split of the CPUs and is truncated after `max_steps` windows; it never terminates.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        episode: Episode,
        num_stages: int,
        *,
        view: View = "published",
        heads: Heads = "factored",
        window_s: float = 1.0,
        max_steps: int = 60,
    ) -> None:
        """Create the environment.

        Args:
            episode: Creates the job of each episode from the environment's random generator.
            num_stages: Number of stages with adjustable workers, the same in every episode.
            view: The observed features; see `features`.
            heads: "joint": one of 5^n actions (`Discrete`); "factored": one of 5 per stage (`MultiDiscrete`).
            window_s: Seconds per step.
            max_steps: Steps per episode.
        """
        self._episode, self._num_stages, self._view, self._heads = episode, num_stages, view, heads
        self._window_s, self._max_steps = window_s, max_steps
        self._job: SteppedJob | None = None
        size = num_features(num_stages, view)
        self.observation_space = spaces.Box(-10.0, 10.0, (size,), np.float32)
        self.action_space = (
            spaces.Discrete(len(STEPS) ** num_stages)
            if heads == "joint"
            else spaces.MultiDiscrete([len(STEPS)] * num_stages)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode; returns after the even split has run for one window."""
        super().reset(seed=seed)
        self.close()
        job, self._target = self._episode(self.np_random)
        self._job = job
        job.apply(even_split(job.space, job.observe().cpus))
        job.run(self._window_s)
        self._last, self._steps = job.observe(), 0
        return self._features(self._last), self._info()

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Change workers and run for one window."""
        choices = (
            joint_action(int(action), self._num_stages) if self._heads == "joint" else [int(each) for each in action]
        )
        if self._job is None:
            raise ConfigError("TuningEnv: step: called before reset, or after close")
        self._job.apply(step_workers(self._job.space, self._last, choices))
        self._job.run(self._window_s)
        self._last = self._job.observe()
        self._steps += 1
        earned = reward(self._last.rate_per_s, self._last.memory_ratio, self._target)
        return self._features(self._last), earned, False, self._steps >= self._max_steps, self._info()

    def close(self) -> None:
        """End the episode and stop its job. Idempotent."""
        job, self._job = self._job, None
        if job is not None:
            job.close()

    def _features(self, observation: Observation) -> NDArray[np.float32]:
        return np.clip(features(observation, self._view), -10.0, 10.0)

    def _info(self) -> dict[str, Any]:
        return {"rate_per_s": self._last.rate_per_s, "values": dict(self._last.values), "cpus": self._last.cpus}
