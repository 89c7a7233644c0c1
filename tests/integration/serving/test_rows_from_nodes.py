"""A server without rows scores as `headrace predict` does, with rows from replicas that each have a part."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.publishing.client import PublicationClient
from headrace.publishing.publications import PublicationFolder
from headrace.publishing.replica_actions import replica_status
from headrace.publishing.server import PublicationServer
from headrace.scoring import Scorer
from headrace.training import JobConfig, Trainer

JOB = """\
run: run
data: {path: logs}
model: {kind: deepfm, embedding_dim: 4, deep: [8]}
embeddings: {default: {kind: collisionless, num_embeddings: 64}}
training: {batch_size: 128, threads: 1, publish: {every_s: 0.2}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generate_logs(GenerateConfig(rows=2_000, windows=2, users=300, items=200, seed=3), tmp_path / "logs")
    (tmp_path / "job.yaml").write_text(JOB)
    Trainer(JobConfig.from_file("job.yaml")).run(windows=1)
    return tmp_path


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A process of headrace, with the address that it prints."""
    command = [sys.executable, "-m", "headrace", *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            where = next(match[1] for line in lines if (match := re.search(r"(?:serving|answering) on (\S+)", line)))
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield where, process
        finally:
            process.kill()


def replica(folder: Path, stack: ExitStack, source: str, name: str, part: str) -> tuple[str, subprocess.Popen[str]]:
    path = ["--path", str(folder / name), "--part", part]
    return stack.enter_context(started(folder, "replica", "--from", source, *path))


def ask(url: str, body: bytes | None = None) -> tuple[int, Any]:
    try:
        with urlopen(Request(url, data=body), timeout=60) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, error.read()


def until_version(url: str, version: int) -> dict[str, Any]:
    """Wait for a version; the test ends by its own time limit."""
    while True:
        status, answer = ask(f"{url}/v1/models")
        main = answer["models"]["main"] if status == 200 else {}
        if main.get("version", 0) >= version:
            return dict(main)


def assert_scores_are_predictions(folder: Path, url: str, window: int) -> None:
    logs = folder / "logs" / f"window=00{window}"
    Scorer(JobConfig.from_file(folder / "job.yaml")).predict(str(logs), folder / "out.parquet")
    expected = np.array(pq.read_table(folder / "out.parquet")["p_click"].to_pylist(), np.float32)
    (log,) = logs.glob("*.parquet")
    records = pq.read_table(log).drop_columns(["click"]).to_pylist()
    status, answer = ask(f"{url}/v1/score", json.dumps({"records": records}).encode())
    assert status == 200, answer
    assert np.array_equal(np.array(answer["scores"]["click"], np.float32), expected)


def test_scores_are_predictions_with_parts_of_rows_new_versions_and_a_killed_node(folder: Path) -> None:
    publications = PublicationFolder(folder / "run" / "publications")
    with ExitStack() as stack:
        publisher = stack.enter_context(PublicationServer(publications, "127.0.0.1:0"))
        source = f"127.0.0.1:{publisher.port}"
        first, killed = replica(folder, stack, source, "a", "1/2")
        nodes = [first, *(replica(folder, stack, source, name, part)[0] for name, part in (("b", "1/2"), ("c", "2/2")))]
        rows = ["--rows-from", ",".join(nodes), "--cache", "20KiB", "--path", str(folder / "compute")]
        url, server = stack.enter_context(started(folder, "serve", "--listen", "127.0.0.1:0", *rows))
        until_version(url, publications.versions()[-1])
        assert_scores_are_predictions(folder, url, 1)
        parts = [replica_status(PublicationClient(each)) for each in (nodes[0], nodes[2])]
        whole = until_version(url, 1)
        assert 0 < whole["cache_bytes"] <= 20 << 10
        assert {each["part"] for each in parts} == {"1/2", "2/2"}

        killed.send_signal(signal.SIGKILL)
        killed.wait()
        Trainer(JobConfig.from_file("job.yaml")).run(windows=1)
        until_version(url, publications.versions()[-1])
        assert_scores_are_predictions(folder, url, 1)
        assert_scores_are_predictions(folder, url, 0)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    assert os.listdir(folder / "compute" / "dense")
