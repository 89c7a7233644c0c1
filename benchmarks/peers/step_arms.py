"""The arms of the step benchmark, and their processes.

`python -m peers.step_arms ARM SHAPE` runs one arm. It reads commands from standard input, one per line, and answers
each with a line of JSON:

    time N      make N steps: {"seconds", "loss"}, the seconds per step and the loss of the last step
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from importlib import import_module
from itertools import cycle
from typing import Any

from peers.answers import open_answers
from peers.step_work import Shape

__all__ = ["ARMS", "OURS", "PEERS", "StepArm"]


@dataclass(frozen=True)
class StepArm:
    """A training step and its settings.

    Attributes:
        name: Name shown in tables.
        module: Module of this package with the training step.
        settings: Keyword arguments of the module's `make`.
        package: Package that must be installed.
        quick: Whether the arm is measured with `--quick`.
        bags: Whether the arm supports features with several ids per row.
    """

    name: str
    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    package: str = "torch"
    quick: bool = True
    bags: bool = True


OURS = (
    StepArm("headrace, auto", "step_ours", {"precision": "auto"}),
    StepArm("headrace, fp32", "step_ours", {"precision": "fp32"}),
)
DLRM_CODE = "torch, a table a feature, fp32"
PEERS = (
    StepArm(DLRM_CODE, "step_torch", {"embeddings": "tables", "bf16": False}),
    StepArm("torch, a table a feature, bf16", "step_torch", {"embeddings": "tables", "bf16": True}),
    StepArm("torch, one table, fp32", "step_torch", {"embeddings": "one_table", "bf16": False}, quick=False),
    StepArm("torch, one table, bf16", "step_torch", {"embeddings": "one_table", "bf16": True}),
    StepArm(
        "torch, one table, bf16, compiled",
        "step_torch",
        {"embeddings": "one_table", "bf16": True, "compiled": True},
        quick=False,
    ),
    StepArm("torchrec, FBGEMM, fp32", "step_torch", {"embeddings": "fbgemm", "bf16": False}, "fbgemm_gpu", quick=False),
    StepArm("torchrec, FBGEMM, bf16", "step_torch", {"embeddings": "fbgemm", "bf16": True}, "fbgemm_gpu"),
    StepArm(
        "torchrec, FBGEMM, bf16, compiled",
        "step_torch",
        {"embeddings": "fbgemm", "bf16": True, "compiled": True},
        "fbgemm_gpu",
        quick=False,
    ),
    StepArm("Keras, fp32", "step_keras", {"bf16": False}, "tensorflow", quick=False, bags=False),
    StepArm("Keras, bf16", "step_keras", {"bf16": True}, "tensorflow", bags=False),
    StepArm("Keras, fp32, XLA", "step_keras", {"bf16": False, "jit": True}, "tensorflow", quick=False, bags=False),
)
ARMS = {arm.name: arm for arm in (*OURS, *PEERS)}


def main() -> None:
    """Train as requested until the input ends."""
    name, text = sys.argv[1:]
    answer = open_answers()
    arm = ARMS[name]
    shape = Shape.from_json(text)
    code = import_module(f"peers.{arm.module}").make(shape, **arm.settings)
    batches = cycle([code.prepare(raw) for raw in shape.batches()])

    answer({"ready": True})
    for line in sys.stdin:
        count = int(line.split()[1])
        begin = time.perf_counter()
        for _ in range(count):
            loss = code.run(next(batches))
        answer({"seconds": (time.perf_counter() - begin) / count, "loss": loss})


if __name__ == "__main__":
    main()
