"""`InTune`: the learning agent of arXiv 2308.08500: a DQN trained offline on simulated jobs, tuned online on the job.

It starts from the even split; every step each stage gets one of -5, -1, 0, +1, +5 CPUs. The paper leaves open the
widths, the discount, exploration and the reward's formula; ours are in `dqn.py` and `reward.py`. The weights in
`weights/` were made by `scripts/train_intune.py`, one file for each pipeline length.
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
"""Pipeline lengths there may be weights for."""
EXPLORATION = 0.02
"""Share of random choices while tuning online."""


def weights_name(num_stages: int, view: View, heads: Heads) -> str:
    """File name of trained weights."""
    return f"{view}_{heads}_{num_stages}.safetensors"


def load_weights(num_stages: int, view: View, heads: Heads) -> dict[str, torch.Tensor]:
    """Weights from the package.

    Raises:
        ConfigError: There are none for this length.
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
    """See the top of this file."""

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
        """Describe the agent.

        Args:
            view: "published": the paper's six factors, which tell no stage from another; "stages": with our counters
                of each stage, without which it does not reach the even split.
            heads: "joint": 5^n actions as in the paper; "factored": one head a stage.
            weights: Trained weights; None for those of the package.
            exploration: Share of random choices.
            online: Go on learning.
            seed: Of exploration and replay.
        """
        self._view, self._heads, self._weights = view, heads, weights
        self._exploration, self._online, self._seed = exploration, online, seed

    def start(self, space: Space, observation: Observation) -> Proposal:
        """The even split."""
        self._space = space
        num_stages = len(list(space.worker_knobs()))
        config = DqnConfig(learning_rate=1e-4)  # a tenth of what it was trained with: it knows the trade already
        self._learner = DqnLearner(
            num_features(num_stages, self._view), num_stages, self._heads, config, seed=self._seed
        )
        self._learner.load_weights(self._weights or load_weights(num_stages, self._view, self._heads))
        self._before: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None
        self._target = 0.0
        return Proposal(even_split(space, observation.cpus), f"{observation.cpus:g} CPUs divided evenly")

    def decide(self, observation: Observation) -> Proposal:
        """Learn from what the last choice led to, and choose."""
        state = features(observation, self._view)
        self._learn(observation, state)
        action = self._learner.act(state, self._exploration)
        self._before = (state, action)
        values = step_workers(self._space, observation, self._learner.choices(action))
        changed = {name: value for name, value in values.items() if value != observation.values.get(name)}
        if not changed:
            return Proposal(reason="nothing, because the agent values no change highest")
        return Proposal(changed, f"the agent values this change highest at {observation.rate_per_s:.4g} a second")

    def _learn(self, observation: Observation, state: NDArray[np.float32]) -> None:
        busy = sum(stage.busy_s for stage in observation.stages)
        if observation.delivered and busy > 0:
            # What the CPUs could give at most; the consumer may want less.
            possible = min(observation.cpus * observation.delivered / busy, observation.consumer_rate_per_s)
            self._target = max(self._target, possible)
        if self._online and self._before is not None and self._target > 0:
            earned = reward(observation.rate_per_s, observation.memory_ratio, self._target)
            self._learner.remember(*self._before, earned, state)
            self._learner.learn()


def published() -> InTune:
    """InTune with the factors of its paper alone."""
    return InTune(view="published")
