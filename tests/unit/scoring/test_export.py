"""Every model that trains can be exported, and reading an export runs no code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace import registry
from headrace.errors import ConfigError, HeadraceError, TornCheckpoint, VersionMismatch
from headrace.logs import Schema, list_files
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.manifest import Manifest
from headrace.scoring import ExportedModel, export_model
from headrace.scoring.scorer import Scorer
from headrace.training import JobConfig, Trainer

MODELS: dict[str, dict[str, Any]] = {
    "dlrm": {"kind": "dlrm", "bottom": [8], "top": [8]},
    "dlrm with an encoder": {"kind": "dlrm", "bottom": [8], "top": [8], "encoder": {"features": ["history"]}},
    "dcnv2": {"kind": "dcnv2", "deep": [8]},
    "dcnv2, stacked": {"kind": "dcnv2", "deep": [8], "cross_rank": 2, "structure": "stacked"},
    "dcnv2, with a linear part": {"kind": "dcnv2", "deep": [8], "linear": True},
    "deepfm": {"kind": "deepfm", "deep": [8]},
    "wide_deep": {"kind": "wide_deep", "deep": [8]},
    "din": {"kind": "din", "histories": {"history": "item"}, "attention": [8], "deep": [8]},
}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "logs"
    generate_logs(GenerateConfig(rows=600, windows=1, users=40, items=30, id_lists=1, seed=3), folder)
    return folder


def job_of(model: dict[str, Any], logs: Path, folder: Path) -> JobConfig:
    schema = Schema.from_yaml(logs / "schema.yaml")
    history = schema.id_lists[0].name
    text = dict(model)
    if "encoder" in text:
        text["encoder"] = {"features": [history]}
    if "histories" in text:
        text["histories"] = {history: "item"}
    return JobConfig.from_dict(
        {
            "run": str(folder / "run"),
            "data": {"path": str(logs)},
            "pipeline": {"executor": "inline", "tuner": "none"},
            "features": {"dense": {"no_item": {"from": "item", "ops": ["is_null"]}}, "others": "default"},
            "embeddings": {
                "default": {"kind": "collisionless", "num_embeddings": 64},
                "tables": {"items": {"feature_names": ["item", history]}},
            },
            "model": text | {"embedding_dim": 4},
            "training": {"batch_size": 200, "threads": 1, "precision": "fp32"},
        },
        where="test",
    ).resolve(folder)


@pytest.fixture(scope="module")
def exported(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    job = job_of(MODELS["dlrm"], logs, folder)
    Trainer(job).run()
    export_model(job, folder / "out")
    return folder / "out"


def copy_of(exported: Path, folder: Path) -> Path:
    for path in exported.rglob("*"):
        if path.is_file():
            target = folder / "copy" / path.relative_to(exported)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder / "copy"


def test_the_models_here_are_all_models_a_job_can_name() -> None:
    assert {model["kind"] for model in MODELS.values()} == set(registry.MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_an_export_scores_as_the_model_does_bit_for_bit(model: str, logs: Path, tmp_path: Path) -> None:
    job = job_of(MODELS[model], logs, tmp_path)
    Trainer(job).run()
    assert export_model(job, tmp_path / "out") == 0.0
    read = ExportedModel(tmp_path / "out")
    scorer = Scorer(job)
    for batch, logits in scorer.score(list_files(str(logs)), "test"):
        np.testing.assert_array_equal(read(batch).numpy(), logits)
    assert not list(tmp_path.glob(".*"))


def test_an_export_holds_numbers_and_text_only(exported: Path) -> None:
    endings = {path.suffix for path in exported.rglob("*") if path.is_file()}
    assert endings == {".json", ".yaml", ".safetensors", ".npy"}


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.place,))


@pytest.mark.parametrize("name", ["dense.safetensors", "tables/embeddings/weights.npy", "job.yaml", "dense.pt2"])
@pytest.mark.parametrize("how", ["pickle", "torch", "numpy"])
def test_a_payload_put_into_an_export_with_its_checksum_is_not_run(
    name: str, how: str, exported: Path, tmp_path: Path
) -> None:
    folder, place = copy_of(exported, tmp_path), tmp_path / "was run"
    if how == "pickle":
        (folder / name).write_bytes(pickle.dumps(Payload(place)))
    elif how == "torch":
        torch.save(Payload(place), folder / name)
    else:
        with (folder / name).open("wb") as file:
            np.save(file, np.array([Payload(place)], dtype=object), allow_pickle=True)
    (folder / "manifest.json").unlink()
    Manifest.write(folder, "headrace-export", 2, {})
    with pytest.raises(HeadraceError):
        ExportedModel(folder)
    assert not place.exists()


def test_a_changed_file_or_manifest_is_torn(exported: Path, tmp_path: Path) -> None:
    folder = copy_of(exported, tmp_path)
    path = folder / "dense.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(TornCheckpoint, match=r"dense.safetensors: has SHA-256"):
        ExportedModel(folder)
    for text in ("[]", "null", "{}", "x", '{"format": "headrace-export"}'):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(TornCheckpoint, match=r"manifest.json: "):
            ExportedModel(folder)


def test_an_export_of_an_earlier_format_is_refused_with_both_versions(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": "headrace-export", "version": 1, "step": 1, "sha256": {}}')
    with pytest.raises(VersionMismatch, match=r"version 1, expected headrace-export version 2"):
        ExportedModel(tmp_path)


def test_what_others_leave_in_an_export_does_not_matter(exported: Path, tmp_path: Path) -> None:
    folder = copy_of(exported, tmp_path)
    (folder / ".DS_Store").touch()
    (folder / "tables/.ipynb_checkpoints").mkdir()
    ExportedModel(folder)


def test_no_export_and_one_that_exists_are_named(exported: Path, logs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no manifest.json, expected a folder written by headrace export"):
        ExportedModel(tmp_path)
    with pytest.raises(HeadraceError, match=r"already exists; choose a new folder"):
        export_model(job_of(MODELS["dlrm"], logs, tmp_path), exported)


def test_entries_of_the_logs_that_are_not_read_are_named(logs: Path, tmp_path: Path) -> None:
    job = job_of(MODELS["dcnv2"], logs, tmp_path)
    Trainer(job).run()
    said: list[str] = []
    (logs / "notes.csv").write_text("x")
    try:
        export_model(job, tmp_path / "out", on_message=said.append)
    finally:
        (logs / "notes.csv").unlink()
    assert said == [f"{logs}: 1 entry is not read: notes.csv; log files end in .parquet, .parq, .pq"]
