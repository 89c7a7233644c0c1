"""`InTune`: the agent of arXiv 2308.08500, a DQN trained offline on simulated jobs and fine-tuned online.

It starts from the even split; in each step every stage gets -5, -1, 0, +1 or +5 CPUs. The paper does not specify layer
widths, discount, exploration and the reward's formula; those chosen here are in `dqn.py` and `reward.py`. The weights
in `weights/` were trained by `scripts/train_intune.py`, one file per pipeline length.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load

from headrace.errors import ConfigError
from headrace.tuning.dqn import DqnConfig, DqnLearner, Heads
from headrace.tuning.features import View, features, num_features, step_workers
from headrace.tuning.observation import Observation
from headrace.tuning.policies.base import Proposal
from headrace.tuning.policies.even import even_split
from headrace.tuning.reward import reward
from headrace.tuning.space import Space

__all__ = ["InTune", "load_weights", "weights_name"]

LENGTHS = range(3, 8)
"""Pipeline lengths with trained weights."""
EXPLORATION = 0.02
"""Share of random choices during online tuning."""


def weights_name(num_stages: int, view: View, heads: Heads) -> str:
    """File name of trained weights."""
    return f"{view}_{heads}_{num_stages}.safetensors"


def load_weights(num_stages: int, view: View, heads: Heads) -> dict[str, torch.Tensor]:
    """Load trained weights from the package.

    Raises:
        ConfigError: There are no weights for this length.
    """
    folder = resources.files("headrace.tuning.policies") / "weights"
    files = {length: folder / weights_name(length, view, heads) for length in LENGTHS}
    there = [str(length) for length, file in files.items() if file.is_file()]
    if str(num_stages) not in there:
        raise ConfigError(
            f"tuner intune: no trained weights for {num_stages} stages ({view}, {heads}), expected a pipeline with "
            f"{', '.join(there) or 'no'} stages; train weights with scripts/train_intune.py"
        )
    return load(files[num_stages].read_bytes())


class InTune:
    """The InTune agent; see the module docstring."""

    def __init__(
        self,
        *,
        view: View = "stages",
        heads: Heads = "factored",
        weights: dict[str, torch.Tensor] | None = None,
        exploration: float = EXPLORATION,
        online: bool = True,
        seed: int = 0,
    ) -> None:
        """Configure the agent.

        Args:
            view: "published": the paper's six factors, which do not distinguish stages; "stages": also the counters of
                each stage, without which the agent does not reach the even split.
            heads: "joint": 5^n actions as in the paper; "factored": one head per stage.
            weights: Trained weights; None to load those of the package.
            exploration: Share of random choices.
            online: Whether to continue learning.
            seed: Seed of exploration and replay.
        """
        self._view, self._heads, self._weights = view, heads, weights
        self._exploration, self._online, self._seed = exploration, online, seed

    def start(self, space: Space, observation: Observation) -> Proposal:
        """Start with the even split."""
        self._space = space
        num_stages = len(list(space.worker_knobs()))
        config = DqnConfig(learning_rate=1e-4)  # a tenth of the training rate, for fine-tuning
        self._learner = DqnLearner(
            num_features(num_stages, self._view), num_stages, self._heads, config, seed=self._seed
        )
        self._learner.load_weights(self._weights or load_weights(num_stages, self._view, self._heads))
        self._before: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None
        self._target = 0.0
        return Proposal(even_split(space, observation.cpus), f"{observation.cpus:g} CPUs divided evenly")

    def decide(self, observation: Observation) -> Proposal:
        """Learn from the last choice's result, and choose the next."""
        state = features(observation, self._view)
        self._learn(observation, state)
        action = self._learner.act(state, self._exploration)
        self._before = (state, action)
        values = step_workers(self._space, observation, self._learner.choices(action))
        changed = {name: value for name, value in values.items() if value != observation.values.get(name)}
        if not changed:
            return Proposal(reason="the agent prefers no change")
        return Proposal(changed, f"the agent prefers this change at {observation.rate_per_s:.4g} per second")

    def _learn(self, observation: Observation, state: NDArray[np.float32]) -> None:
        busy = sum(stage.busy_s for stage in observation.stages)
        if observation.delivered and busy > 0:
            # The maximum rate of the CPUs; the consumer may need less.
            possible = min(observation.cpus * observation.delivered / busy, observation.consumer_rate_per_s)
            self._target = max(self._target, possible)
        if self._online and self._before is not None and self._target > 0:
            earned = reward(observation.rate_per_s, observation.memory_ratio, self._target)
            self._learner.remember(*self._before, earned, state)
            self._learner.learn()


def published() -> InTune:
    """InTune with only the factors of its paper."""
    return InTune(view="published")
