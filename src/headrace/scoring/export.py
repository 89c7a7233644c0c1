"""Exports a model for serving, as raw arrays of parameters and tables, and the job file."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from torch import Tensor

from headrace.errors import ConfigError, HeadraceError, TornCheckpoint
from headrace.files import new_folder, write_text
from headrace.logs import check_output
from headrace.manifest import MANIFEST, Manifest
from headrace.paths import local_path
from headrace.scoring.forward import Forward
from headrace.scoring.onnx_export import export_onnx
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
ONNX = "dense.onnx"


class ExportedModel:
    """A model loaded from an export. An export contains only numbers and a job file, so loading it runs no code.

    If the job uses your own model or operator, import its module before you load the export.
    """

    def __init__(self, folder: str | Path) -> None:
        """Load an export.

        Raises:
            TornCheckpoint: The manifest or a file is missing, or a checksum does not match.
            VersionMismatch: It was written in a different version of the format.
            ConfigError: The folder is not an export.
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
        arrays = [name for name in manifest.files if name not in (JOB, ONNX)]
        load_parameters(read_arrays(folder, arrays, 0, {}), components.model)
        self.plan = components.plan
        self.label_names = components.label_names
        self.is_regression = components.is_regression
        self._forward = Forward(components.model)

    def __call__(self, batch: Batch) -> Tensor:
        """Compute float32 [B, L]: logits, or predicted values of the labels for which `is_regression` is true."""
        return self._forward(batch)


def export_model(
    job: JobConfig,
    out: Path,
    *,
    checkpoint: int | None = None,
    check_rows: int = 4096,
    onnx: bool = False,
    on_message: Callable[[str], None] = lambda line: None,
) -> float:
    """Export a model for serving, load the export, and compare its scores on the job's logs.

    The folder holds `dense.safetensors` (the dense parameters), `tables/<module>/<column>.npy`, `job.yaml` (schema,
    features, embeddings, model) and `manifest.json` with checksums. It is written atomically.

    Args:
        job: The resolved job.
        out: Output folder, local; must not exist.
        checkpoint: Number of the checkpoint; None for the newest valid one.
        check_rows: Number of log rows on which to compare scores.
        onnx: Whether to write the dense part of the model as `dense.onnx`, too, see `export_onnx`.
        on_message: Called with a line for each damaged newer checkpoint, and for log entries that are not read.

    Returns:
        The maximum difference of logits.

    Raises:
        HeadraceError: The export's scores differ from the model's, or the model cannot be written as ONNX.
        StorageError: The export cannot be written.
    """
    out = local_path(out, where="OUT")
    if os.path.lexists(out):
        raise ConfigError(f"{out}: already exists; choose a new folder")
    check_output(out, job.data.path, what="export")
    check_output(out, RunFolder(job.run).checkpoints, what="export")
    scorer = Scorer(job, checkpoint=checkpoint, on_message=on_message)
    sample = _first_batches(scorer, check_rows)
    with new_folder(out) as folder:
        if onnx:
            export_onnx(scorer.components.model, sample, folder / ONNX)
        _write(scorer, folder)
        exported = ExportedModel(folder)
        gaps = [float((exported(batch) - scorer.forward(batch)).abs().max()) for batch in sample]
        if not max(gaps) <= 1e-5:
            raise HeadraceError(
                f"{out}: the export's logits differ by {max(gaps):.3g} from the model's, expected at most 1e-5"
            )
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
