"""Tune a pipeline with your own policy, first in the simulator, then on a running pipeline.

python examples/own_policy.py
"""

import numpy as np
import pyarrow as pa

from headrace.pipeline import read_arrow
from headrace.simulation import Machine, PipelineSpec, StageSpec
from headrace.tuning import Observation, Proposal, Space, make_policy, run_trial
from headrace.tuning.space import workers_of


class FeedTheSlowest:
    """Adds a worker to the stage whose workers are the least idle, while the consumer waits."""

    def start(self, space: Space, observation: Observation) -> Proposal:
        self.space = space
        return Proposal(reason="nothing has been measured yet")

    def decide(self, observation: Observation) -> Proposal:
        if observation.starved_s < 0.05 * observation.window_s:
            return Proposal(reason="the consumer is never kept waiting")
        slowest = max(observation.stages, key=lambda stage: stage.wall_s / (stage.workers * observation.window_s))
        knob = workers_of(slowest.name)
        if slowest.workers >= observation.cpus or knob not in self.space:
            return Proposal(reason=f"{slowest.name} already has one worker per CPU")
        return Proposal({knob: slowest.workers + 1}, f"{slowest.name} has the least idle workers")


def simulate() -> dict[str, int]:
    """Elements delivered by each policy in two virtual minutes, on a machine that grows from 8 to 16 CPUs."""
    stages = (StageSpec(name="read", cpu_s=0.02, io_s=0.05), StageSpec(name="clean", cpu_s=0.20))
    machine = Machine.schedule([8, 16], phase_s=60)
    policies = {
        "one_per_stage": lambda: make_policy("one_per_stage"),
        "FeedTheSlowest": FeedTheSlowest,
        "auto": lambda: make_policy("auto"),
    }
    return {
        name: run_trial(make, PipelineSpec(stages=stages), machine, duration_s=120).delivered
        for name, make in policies.items()
    }


def run_live(num_rows: int = 300_000) -> tuple[int, list[str]]:
    """Run a real pipeline with the policy; returns its rows and the decisions."""
    table = pa.table({"x": np.arange(num_rows)})

    def clean(rows: pa.RecordBatch) -> pa.RecordBatch:
        np.sort(np.random.default_rng(0).random((50, 20_000)), axis=1)  # NumPy releases the GIL
        return rows

    with read_arrow(table).batch(1_000).map(clean).open(tuner=FeedTheSlowest()) as batches:
        rows = sum(batch.num_rows for batch in batches)
        return rows, [str(decision) for decision in batches.decisions]


if __name__ == "__main__":
    for name, delivered in simulate().items():
        print(f"{name}: {delivered} elements in two minutes, simulated")
    rows, decisions = run_live()
    print(f"{rows} rows, live")
    print("\n".join(decisions))
