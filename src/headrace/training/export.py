"""Exporting a model: the dense part as one `torch.export` program, the tables as raw columns."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headrace.embeddings import EmbeddingBags, embedding_bags
from headrace.errors import ConfigError, HeadraceError, TornCheckpoint
from headrace.logs import check_output, list_files
from headrace.tensors import Batch
from headrace.training.assembly import assemble
from headrace.training.checkpoint import file_checksum
from headrace.training.job import JobConfig
from headrace.training.run_folder import RunFolder
from headrace.training.scoring import Scorer

__all__ = ["ExportedModel", "export_model"]

FORMAT = "headrace-export"
VERSION = 1


class _Given(nn.Module):
    """Stands where `EmbeddingBags` stood, and returns the pooled embeddings it was given."""

    value: Tensor

    def forward(self, sparse: Any) -> Tensor:
        return self.value


class _DensePart(nn.Module):
    """A model as a function of dense features [B, D] and of pooled embeddings [B, F, dim], one per `EmbeddingBags`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        bags = embedding_bags(model)
        memo: dict[int, Any] = {id(module): _Given() for module in bags.values()}  # tables are not copied
        self.model = copy.deepcopy(model, memo)
        self._given = [memo[id(module)] for module in bags.values()]

    def forward(self, dense: Tensor, pooled: list[Tensor]) -> Tensor:
        for given, value in zip(self._given, pooled, strict=True):
            given.value = value
        empty = torch.empty(0)
        logits: Tensor = self.model(Batch(dense=dense, sparse=(), labels=empty, row_ids=empty))
        for given in self._given:
            del given.value  # torch.export warns of tensors that a forward pass leaves behind
        return logits


class ExportedModel:
    """A model read back from an export, which scores batches without the code of its dense part."""

    def __init__(self, folder: str | Path) -> None:
        """Read an export.

        Raises:
            TornCheckpoint: A file is missing or does not match its checksum.
            ConfigError: The folder holds no export, or one of another version.
        """
        folder = Path(folder)
        _check(folder)
        job = JobConfig.from_file(folder / "job.yaml")
        assembly = assemble(job)
        self.plan = assembly.plan
        self.label_names = assembly.label_names
        self._bags: Sequence[EmbeddingBags] = list(embedding_bags(assembly.model).values())
        for bags, table in zip(self._bags, sorted((folder / "tables").iterdir()), strict=True):
            assert bags.table is not None
            bags.table.load_state_dict({path.stem: np.load(path, mmap_mode="r") for path in table.glob("*.npy")})
            bags.eval()
        self._dense_part = torch.export.load(folder / "dense.pt2").module()

    def __call__(self, batch: Batch) -> Tensor:
        """Logits float32 [B, L]."""
        with torch.inference_mode():
            pooled = [bags(batch.sparse) for bags in self._bags]
            return self._dense_part(batch.dense, pooled)  # type: ignore[no-any-return]


def export_model(
    job: JobConfig,
    out: Path,
    *,
    checkpoint: int | None = None,
    check_rows: int = 4096,
    say: Callable[[str], None] = lambda line: None,
) -> float:
    """Write a model for serving, read it back, and compare its scores on the job's logs.

    The folder holds `dense.pt2` (`torch.export`, any batch size), `tables/<module>/<column>.npy`, `job.yaml` (schema,
    features, embeddings) and `manifest.json` with checksums. It appears whole or not at all.

    Args:
        job: The job, resolved.
        out: Folder to write; must not exist.
        checkpoint: Number of the checkpoint; None for the newest whole one.
        check_rows: Rows of the logs to compare scores on.
        say: Given a line for each newer checkpoint that was refused.

    Returns:
        The greatest difference of a logit.

    Raises:
        HeadraceError: The export does not score like the model.
    """
    if out.exists():
        raise ConfigError(f"{out}: is there already, expected the name of a new folder")
    check_output(out, job.data.path, what="export")
    check_output(out, RunFolder(job.run).checkpoints, what="export")
    scorer = Scorer(job, checkpoint=checkpoint, say=say)
    sample = _first_batches(scorer, check_rows)
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write(scorer, sample[0], temporary)
        exported = ExportedModel(temporary)
        with torch.inference_mode():
            gaps = [float((exported(batch) - scorer.assembly.model(batch)).abs().max()) for batch in sample]
        if max(gaps) > 1e-5:
            raise HeadraceError(f"{out}: the export's logits differ by {max(gaps):.3g} from the model's, expected 1e-5")
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return max(gaps)


def _first_batches(scorer: Scorer, num_rows: int) -> list[Batch]:
    batches: list[Batch] = []
    with closing(scorer.score(list_files(scorer.job.data.path), "compare")) as scored:
        for batch, _ in scored:
            batches.append(batch)
            if sum(map(len, batches)) >= num_rows:
                break
    if not batches:
        raise ConfigError(f"{scorer.job.data.path}: has no good row to compare scores on")
    return batches


def _write(scorer: Scorer, example: Batch, folder: Path) -> None:
    model = scorer.assembly.model
    bags = embedding_bags(model)
    rows = torch.export.Dim("rows")
    with torch.no_grad():
        pooled = [module(example.sparse) for module in bags.values()]
        program = torch.export.export(
            _DensePart(model),
            (example.dense, pooled),
            dynamic_shapes=({0: rows}, [{0: rows} for _ in pooled]),
            strict=False,
        )
    torch.export.save(program, folder / "dense.pt2")
    for place, module in enumerate(bags.values()):
        assert module.table is not None
        (folder / "tables" / str(place)).mkdir(parents=True)
        for name, array in module.table.state_dict().items():
            np.save(folder / "tables" / str(place) / f"{name}.npy", array, allow_pickle=False)
    (folder / "job.yaml").write_text(scorer.job.to_yaml(), encoding="utf-8")
    files = {str(path.relative_to(folder)): file_checksum(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = {"format": FORMAT, "version": VERSION, "step": scorer.step, "sha256": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _check(folder: Path) -> None:
    path = folder / "manifest.json"
    if not path.is_file():
        raise ConfigError(f"{folder}: holds no manifest.json, expected a folder that headrace export wrote")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    given = (manifest.get("format"), manifest.get("version"))
    if given != (FORMAT, VERSION):
        raise ConfigError(f"{folder}: is {given[0]} version {given[1]}, expected {FORMAT} version {VERSION}")
    for name, expected in manifest["sha256"].items():
        if not (folder / name).is_file():
            raise TornCheckpoint(f"{folder / name}: is missing")
        found = file_checksum(folder / name)
        if found != expected:
            raise TornCheckpoint(f"{folder / name}: has SHA-256 {found[:12]}..., expected {expected[:12]}...")
