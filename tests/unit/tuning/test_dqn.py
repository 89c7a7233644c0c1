"""The learner solves tasks whose optimum is known, and the shipped agent is better than what it must beat."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from headrace.errors import ConfigError
from headrace.simulation import Machine, PipelineSpec, StageSpec, published_machine, published_pipeline
from headrace.tuning import make_policy, run_trial
from headrace.tuning.dqn import DqnConfig, DqnLearner, Heads, joint_action
from headrace.tuning.features import STEPS
from headrace.tuning.policies.intune import InTune

FAST = DqnConfig(hidden=32, discount=0.0, warm_up=64, learning_rate=3e-3)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_joint_action_and_its_digits() -> None:
    assert joint_action(0, 3) == [0, 0, 0]
    assert joint_action(124, 3) == [4, 4, 4]
    assert joint_action(1 * 25 + 2 * 5 + 3, 3) == [1, 2, 3]


@pytest.mark.parametrize("heads", ["joint", "factored"])
def test_the_learner_finds_the_right_choice_for_each_state(heads: Heads) -> None:
    """Two stages; the state says which choice is right for each; the reward is the share that was right."""
    random = np.random.default_rng(0)
    learner = DqnLearner(10, 2, heads, FAST, seed=0)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        right = random.integers(5, size=2)
        return np.eye(5, dtype=np.float32)[right].ravel(), right

    for step in range(1000):
        state, right = draw()
        action = learner.act(state, max(0.1, 1 - step / 700))
        earned = float(np.mean(np.array(learner.choices(action)) == right))
        learner.remember(state, action, earned, state)
        learner.learn()
    tests = [draw() for _ in range(100)]
    hits = [np.mean(np.array(learner.choices(learner.act(state, 0.0))) == right) for state, right in tests]
    assert np.mean(hits) > 0.9


def test_the_learner_looks_ahead() -> None:
    """A step that costs now leads to a state that pays: with discount the learner takes it, without it does not."""
    for discount, wanted in ((0.9, True), (0.0, False)):
        config = DqnConfig(hidden=16, discount=discount, warm_up=64, learning_rate=3e-3, target_every=25)
        learner, random = DqnLearner(2, 1, "factored", config, seed=1), np.random.default_rng(0)
        here, there = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
        for _ in range(600):
            at_there = random.random() < 0.5
            action = random.integers(5, size=1)
            goes = bool(action[0] == 4) or at_there
            earned = 0.5 if at_there else (-0.1 if action[0] == 4 else 0.0)
            learner.remember(there if at_there else here, action, earned, there if goes else here)
            learner.learn()
        assert (learner.act(here, 0.0)[0] == 4) is np.bool_(wanted)


def test_runs_are_reproducible_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    losses = []
    for _ in range(2):
        learner, random = DqnLearner(3, 2, "factored", FAST, seed=5), np.random.default_rng(0)
        for _ in range(80):
            state = random.random(3, dtype=np.float32)
            learner.remember(state, learner.act(state, 0.5), float(state[0]), state)
            loss = learner.learn()
        losses.append(loss)
    assert losses[0] == losses[1] is not None
    assert torch.rand(1) == expected


@pytest.mark.parametrize("seed", range(5))
def test_the_shipped_agent_beats_the_even_split_and_autotune(seed: int) -> None:
    spec, machine = published_pipeline(1.0), published_machine(60.0)
    delivered = {
        name: run_trial(make, spec, machine, duration_s=300, tick_s=1.0).delivered
        for name, make in {
            "intune": lambda: InTune(seed=seed),
            "even": lambda: make_policy("even"),
            "autotune": lambda: make_policy("autotune"),
        }.items()
    }
    assert delivered["intune"] > delivered["even"]
    assert delivered["intune"] > delivered["autotune"]


def test_a_length_without_weights_is_refused_with_a_way_out() -> None:
    stages = tuple(StageSpec(name=f"s{i}", cpu_s=0.1) for i in range(2))
    with pytest.raises(
        ConfigError, match=r"no trained weights for 2 stages .* train weights with scripts/train_intune.py"
    ):
        run_trial(InTune, PipelineSpec(stages=stages), Machine.fixed(4), duration_s=1)


def test_steps_are_the_published_ones() -> None:
    assert STEPS == (-5, -1, 0, 1, 5)
