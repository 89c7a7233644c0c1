"""Train the agent of the policy `intune` on simulated jobs and write its weights into the package.

    python scripts/train_intune.py --stages 5 --steps 30000

One CPU thread, a few minutes for each length. Every 3000 steps the agent is tried, without exploring, on the same 8
jobs that it is not trained on; the best of these agents is kept. The weights that are shipped were made with
seed 0; steps and seed are in the metadata of each file.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from headrace.tuning.dqn import DqnLearner
from headrace.tuning.env import TuningEnv
from headrace.tuning.episodes import draw_job
from headrace.tuning.features import num_features
from headrace.tuning.policies import intune

TRY_EVERY = 3000
NUM_JOBS = 8
WEIGHTS = Path(intune.__file__).parent / "weights"


def train(num_stages: int, view: str, heads: str, steps: int, seed: int) -> dict[str, torch.Tensor]:
    """Train one agent; exploration falls from 1 to 0.05 over the first 60 % of the steps.

    Returns:
        The weights that did best when tried.
    """
    best: tuple[float, dict[str, torch.Tensor]] = (-1.0, {})
    env = TuningEnv(functools.partial(draw_job, num_stages), num_stages, view=view, heads=heads)  # type: ignore[arg-type]
    learner = DqnLearner(num_features(num_stages, view), num_stages, heads, seed=seed)  # type: ignore[arg-type]
    state, _ = env.reset(seed=seed)
    earned, began = 0.0, time.monotonic()
    for step in range(1, steps + 1):
        action = learner.act(state, max(0.05, 1.0 - step / (0.6 * steps)))
        next_state, gained, _, truncated, _ = env.step(action[0] if heads == "joint" else action)
        learner.remember(state, action, gained, next_state)
        learner.learn()
        state, earned = next_state, earned + gained
        if truncated:
            state, _ = env.reset()
        if step % TRY_EVERY == 0:
            tried = try_out(learner, num_stages, view, heads)
            if tried > best[0]:
                best = tried, {name: values.clone() for name, values in learner.network.state_dict().items()}
            print(
                f"{num_stages} stages, step {step}: reward {earned / TRY_EVERY:.3f} exploring, {tried:.3f} when tried, "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
            earned = 0.0
    return best[1]


def try_out(learner: DqnLearner, num_stages: int, view: str, heads: str) -> float:
    """Mean reward on jobs kept for this, without exploring."""
    env = TuningEnv(functools.partial(draw_job, num_stages), num_stages, view=view, heads=heads)  # type: ignore[arg-type]
    rewards = []
    for job in range(NUM_JOBS):
        state, _ = env.reset(seed=1_000_000 + job)
        truncated = False
        while not truncated:
            action = learner.act(state, 0.0)
            state, gained, _, truncated, _ = env.step(action[0] if heads == "joint" else action)
            rewards.append(gained)
    return sum(rewards) / len(rewards)


def main() -> None:
    """Train each length asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, nargs="+", default=list(intune.LENGTHS))
    parser.add_argument("--view", choices=["published", "stages"], default="published")
    parser.add_argument("--heads", choices=["joint", "factored"], default="factored")
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for num_stages in options.stages:
        trained = train(num_stages, options.view, options.heads, options.steps, options.seed)
        path = options.out / intune.weights_name(num_stages, options.view, options.heads)
        # Half precision: the choice depends on the order of values, not on their last digits.
        weights = {name: values.half().contiguous() for name, values in trained.items()}
        save_file(weights, path, metadata={"steps": str(options.steps), "seed": str(options.seed)})
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
