"""A whole job with its model and tables on a GPU: the losses of the CPU, and checkpoints both can go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.training import JobConfig, Trainer, TrainResult

if not torch.cuda.is_available():
    pytest.skip("no GPU here", allow_module_level=True)


def train(folder: Path, run: str, device: str, memory: str = "device", **training: Any) -> TrainResult:
    job = JobConfig.from_dict(
        {
            "run": run,
            "data": {"path": "logs"},
            "pipeline": {"tuner": "none"},
            "embeddings": {"default": {"kind": "collisionless", "num_embeddings": 64}, "memory": memory},
            "model": {"kind": "dlrm", "embedding_dim": 8, "bottom": [8], "top": [16]},
            "training": {"batch_size": 128, "precision": "fp32", "device": device} | training,
        },
        where="job",
    ).resolve(folder)
    return Trainer(job).run()


@pytest.mark.parametrize("memory", ["device", "host"])
def test_a_job_on_a_gpu_ends_with_the_loss_of_the_cpu(tmp_path: Path, memory: str) -> None:
    generate_logs(GenerateConfig(rows=3000, windows=2, users=100, items=80, seed=5), tmp_path / "logs")
    on_cpu, on_gpu = train(tmp_path, "cpu", "cpu"), train(tmp_path, "gpu", "cuda", memory)
    assert on_gpu.step == on_cpu.step
    losses = [[window.scores["click"].log_loss for window in result.windows] for result in (on_cpu, on_gpu)]
    assert losses[1] == pytest.approx(losses[0], abs=5e-4)


def test_a_run_begun_on_a_gpu_goes_on_on_the_cpu(tmp_path: Path) -> None:
    generate_logs(GenerateConfig(rows=2000, windows=1, users=100, items=80, seed=5), tmp_path / "logs")
    assert train(tmp_path, "run", "cuda").windows
    generate_logs(GenerateConfig(rows=1000, windows=1, users=100, items=80, seed=6), tmp_path / "logs" / "later")
    assert train(tmp_path, "run", "cpu").windows
