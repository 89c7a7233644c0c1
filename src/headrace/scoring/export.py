"""Exporting a model for serving: parameters and tables as raw arrays, and the job that says how they fit together."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from headrace.errors import ConfigError, HeadraceError, TornCheckpoint
from headrace.files import new_folder, write_text
from headrace.logs import check_output
from headrace.manifest import MANIFEST, Manifest
from headrace.paths import local_path
from headrace.scoring.scorer import Scorer
from headrace.tensors import Batch
from headrace.training.checkpoint import Snapshot, read_arrays, write_arrays
from headrace.training.commits import load_parameters, parameters
from headrace.training.components import build_components
from headrace.training.job import JobConfig
from headrace.training.run_folder import RunFolder
from headrace.user_code import no_imports
from headrace.version import __version__

__all__ = ["ExportedModel", "export_model"]

FORMAT = "headrace-export"
VERSION = 2
JOB = "job.yaml"


class ExportedModel:
    """A model read back from an export. Reading one runs no code: it holds numbers and a job file.

    Where the job names a model or an operator of your own, import its module before you read the export.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read an export.

        Raises:
            TornCheckpoint: The manifest or a file is missing or does not match its checksum.
            VersionMismatch: It was written in another version of the format.
            ConfigError: The folder holds no export.
        """
        folder = Path(folder)
        if not os.path.lexists(folder / MANIFEST):
            raise ConfigError(f"{folder}: has no {MANIFEST}, expected a folder written by headrace export")
        manifest = Manifest.read(folder, FORMAT, VERSION)
        manifest.check_files(folder)
        if JOB not in manifest.files:
            raise TornCheckpoint(f"{folder / MANIFEST}: lists no {JOB}")
        with no_imports():
            components = build_components(JobConfig.from_file(folder / JOB))
        load_parameters(read_arrays(folder, [name for name in manifest.files if name != JOB], 0, {}), components.model)
        self.plan = components.plan
        self.label_names = components.label_names
        self._model = components.model.eval()

    def __call__(self, batch: Batch) -> Tensor:
        """Logits float32 [B, L]."""
        with torch.inference_mode():
            logits: Tensor = self._model(batch)
        return logits


def export_model(
    job: JobConfig,
    out: Path,
    *,
    checkpoint: int | None = None,
    check_rows: int = 4096,
    on_message: Callable[[str], None] = lambda line: None,
) -> float:
    """Write a model for serving, read it back, and compare its scores on the job's logs.

    The folder holds `dense.safetensors` (the dense parameters), `tables/<module>/<column>.npy`, `job.yaml` (schema,
    features, embeddings, model) and `manifest.json` with checksums. It appears whole or not at all.

    Args:
        job: The job, resolved.
        out: Local folder to write; must not exist.
        checkpoint: Number of the checkpoint; None for the newest whole one.
        check_rows: Rows of the logs to compare scores on.
        on_message: Called with a line for each damaged newer checkpoint, and one for entries of the logs that are not
            read.

    Returns:
        The greatest difference of a logit.

    Raises:
        HeadraceError: The export does not score like the model.
        StorageError: It cannot be written.
    """
    out = local_path(out, where="OUT")
    if os.path.lexists(out):
        raise ConfigError(f"{out}: already exists; choose a new folder")
    check_output(out, job.data.path, what="export")
    check_output(out, RunFolder(job.run).checkpoints, what="export")
    scorer = Scorer(job, checkpoint=checkpoint, on_message=on_message)
    sample = _first_batches(scorer, check_rows)
    with new_folder(out) as folder:
        _write(scorer, folder)
        exported = ExportedModel(folder)
        with torch.inference_mode():
            gaps = [float((exported(batch) - scorer.components.model(batch)).abs().max()) for batch in sample]
        if not max(gaps) <= 1e-5:
            raise HeadraceError(f"{out}: the export's logits differ by {max(gaps):.3g} from the model's, expected 1e-5")
    return max(gaps)


def _first_batches(scorer: Scorer, num_rows: int) -> list[Batch]:
    batches: list[Batch] = []
    with closing(scorer.score(scorer.list_logs(scorer.job.data.path), "compare")) as scored:
        for batch, _ in scored:
            batches.append(batch)
            if sum(map(len, batches)) >= num_rows:
                break
    if not batches:
        raise ConfigError(f"{scorer.job.data.path}: has no good rows to compare scores on")
    return batches


def _write(scorer: Scorer, folder: Path) -> None:
    dense, columns = parameters(scorer.components.model)
    write_arrays(folder, Snapshot(scorer.checkpoint, {}, {"dense": dense}, columns))
    write_text(folder / JOB, scorer.job.to_yaml())
    content = {"checkpoint": scorer.checkpoint, "step": scorer.step, "headrace": __version__}
    Manifest.write(folder, FORMAT, VERSION, content)
