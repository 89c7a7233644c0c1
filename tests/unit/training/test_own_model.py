"""A job trains, resumes, scores and exports a model of the user's own, as the documentation writes it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import ConfigError
from headrace.logs import list_files
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.scoring import ExportedModel, export_model
from headrace.scoring.scorer import Scorer
from headrace.training import JobConfig, Trainer

PAGE = Path(__file__).parents[3] / "docs" / "models.md"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobConfig]:
    path = list(sys.path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (code,) = (block for block in blocks if block.startswith("# my_models.py"))
    (tmp_path / "my_models.py").write_text(code)
    generate_logs(GenerateConfig(rows=600, windows=2, users=40, items=30, seed=3), tmp_path / "logs")
    (tmp_path / "job.yaml").write_text(
        "run: run\ndata: {path: logs}\npipeline: {executor: inline, tuner: none}\n"
        "model: {kind: my_models:TwoTowersConfig, embedding_dim: 4, hidden: 8}\n"
        "training: {batch_size: 100, threads: 1, precision: fp32}\n"
    )
    yield JobConfig.from_file(tmp_path / "job.yaml")
    sys.path[:] = path
    sys.modules.pop("my_models", None)


def test_a_job_trains_and_exports_a_model_named_by_its_place(job: JobConfig, tmp_path: Path) -> None:
    Trainer(job).run()
    again = JobConfig.from_file(Path(job.run) / "config.yaml")
    assert again.model == job.model
    assert Trainer(again).run().windows == ()  # the kept config is a job file, and there is nothing new
    assert export_model(job, tmp_path / "out") == 0.0

    read = ExportedModel(tmp_path / "out")
    scored = 0
    for batch, logits in Scorer(job).score(list_files(str(tmp_path / "logs")), "test"):
        np.testing.assert_array_equal(read(batch).numpy(), logits)
        scored += len(batch)
    assert scored == 600

    del sys.modules["my_models"]
    with pytest.raises(ConfigError, match=r"my_models:TwoTowersConfig: not imported.*import my_models before"):
        ExportedModel(tmp_path / "out")
