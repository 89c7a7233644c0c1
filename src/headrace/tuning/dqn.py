"""Deep Q-learning (DQN) over worker counts: network, replay memory and learner, after Mnih et al. 2015 and InTune.

There are two kinds of actions for n stages with 5 choices each: *joint*, one output per each of the 5^n combinations,
as published; and *factored*, 5 outputs per stage whose values are averaged (Tavakoli et al. 2018), which stays small as
n grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headrace.tuning.features import STEPS

__all__ = ["DqnConfig", "DqnLearner", "Heads", "QNetwork", "joint_action"]

Heads = Literal["joint", "factored"]


@dataclass(frozen=True, kw_only=True)
class DqnConfig:
    """Hyperparameters. InTune publishes none, so these are common defaults, checked on the tests' tiny environment.

    Attributes:
        hidden: Width of both hidden layers.
        discount: Discount factor of the next window's value.
        learning_rate: Learning rate of Adam.
        batch_size: Transitions per update.
        replay_size: Capacity of the replay memory, in transitions.
        warm_up: Transitions before the first update.
        target_every: Updates between copies to the target network.
    """

    hidden: int = 64
    discount: float = 0.8
    learning_rate: float = 1e-3
    batch_size: int = 64
    replay_size: int = 20_000
    warm_up: int = 200
    target_every: int = 200


class QNetwork(nn.Module):
    """Three linear layers with ReLU between: state [B, D] -> values [B, heads, choices]."""

    def __init__(self, num_features: int, num_stages: int, heads: Heads, hidden: int) -> None:
        super().__init__()
        self.shape = (1, len(STEPS) ** num_stages) if heads == "joint" else (num_stages, len(STEPS))
        self.layers = nn.Sequential(
            nn.Linear(num_features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, self.shape[0] * self.shape[1]),
        )

    def forward(self, state_BD: torch.Tensor) -> torch.Tensor:
        """Q-values of every choice of every head."""
        values: torch.Tensor = self.layers(state_BD)
        return values.view(-1, *self.shape)


def joint_action(number: int, num_stages: int) -> list[int]:
    """Decode a joint action into one choice per stage: the digits of its number in base 5, first stage first."""
    choices = []
    for _ in range(num_stages):
        number, choice = divmod(number, len(STEPS))
        choices.append(choice)
    return choices[::-1]


class DqnLearner:
    """The DQN agent: acts, stores transitions and learns. Seeded and cheap enough for one CPU thread."""

    def __init__(
        self, num_features: int, num_stages: int, heads: Heads, config: DqnConfig | None = None, *, seed: int = 0
    ) -> None:
        """Start with a random network; see `load_weights`."""
        self.config = config or DqnConfig()
        self.num_stages, self.heads = num_stages, heads
        self._random = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = QNetwork(num_features, num_stages, heads, self.config.hidden)
            self._target = QNetwork(num_features, num_stages, heads, self.config.hidden)
        self._target.load_state_dict(self.network.state_dict())
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=self.config.learning_rate)
        size, num_heads = self.config.replay_size, self.network.shape[0]
        self._states = np.zeros((size, num_features), np.float32)
        self._next_states = np.zeros((size, num_features), np.float32)
        self._actions = np.zeros((size, num_heads), np.int64)
        self._rewards = np.zeros(size, np.float32)
        self._remembered, self._updates = 0, 0

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Load trained weights."""
        self.network.load_state_dict({name: values.float() for name, values in weights.items()})
        self._target.load_state_dict(self.network.state_dict())

    def act(self, state: NDArray[np.float32], exploration: float) -> NDArray[np.int64]:
        """The best known choice of each head, or a random one with probability `exploration`; int64 [heads]."""
        num_heads, num_choices = self.network.shape
        with torch.inference_mode():
            best = self.network(torch.from_numpy(state[None])).argmax(-1)[0].numpy()
        explores = self._random.random(num_heads) < exploration
        return np.where(explores, self._random.integers(num_choices, size=num_heads), best).astype(np.int64)

    def choices(self, action: NDArray[np.int64]) -> list[int]:
        """An index into `STEPS` for each stage."""
        return joint_action(int(action[0]), self.num_stages) if self.heads == "joint" else [int(a) for a in action]

    def remember(
        self, state: NDArray[np.float32], action: NDArray[np.int64], reward: float, next_state: NDArray[np.float32]
    ) -> None:
        """Store a transition, replacing the oldest if the memory is full. There are no terminal states."""
        at = self._remembered % self.config.replay_size
        self._states[at], self._actions[at], self._rewards[at], self._next_states[at] = (
            state,
            action,
            reward,
            next_state,
        )
        self._remembered += 1

    def learn(self) -> float | None:
        """Run one update on a sample of transitions; returns the loss, or None while there are too few."""
        if self._remembered < max(self.config.warm_up, self.config.batch_size):
            return None
        held = min(self._remembered, self.config.replay_size)
        rows = self._random.integers(held, size=self.config.batch_size)
        states, next_states = torch.from_numpy(self._states[rows]), torch.from_numpy(self._next_states[rows])
        actions, rewards = torch.from_numpy(self._actions[rows]), torch.from_numpy(self._rewards[rows])
        with torch.no_grad():
            # Double Q-learning: the network chooses the action, the target network evaluates it.
            chosen = self.network(next_states).argmax(-1, keepdim=True)
            future = self._target(next_states).gather(-1, chosen)[..., 0].mean(-1)
            wanted = (rewards + self.config.discount * future)[:, None]
        values = self.network(states).gather(-1, actions[..., None])[..., 0]
        loss = nn.functional.smooth_l1_loss(values, wanted.expand_as(values))
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._updates += 1
        if self._updates % self.config.target_every == 0:
            self._target.load_state_dict(self.network.state_dict())
        return float(loss.detach())
