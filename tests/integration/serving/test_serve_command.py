"""`headrace serve` as a process: the bits of `headrace predict`, versions that change under requests, and a stop."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.publishing.client import PublicationClient
from headrace.publishing.replica_actions import roll_back
from headrace.scoring import Scorer
from headrace.serving import Client, Refused
from headrace.training import JobConfig, Trainer

SCRIPTS = Path(__file__).parents[3] / "scripts"
JOB = """\
run: run
data: {path: logs}
model: {kind: dlrm, embedding_dim: 4, bottom: [8], top: [8]}
embeddings: {default: {kind: collisionless, num_embeddings: 64}}
training: {batch_size: 128, threads: 1, publish: {every_s: 0.001}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on the first of two windows."""
    folder = tmp_path_factory.mktemp("serve")
    generate_logs(GenerateConfig(rows=2_000, windows=2, users=300, items=200, seed=3), folder / "logs")
    (folder / "job.yaml").write_text(JOB)
    before = os.getcwd()
    os.chdir(folder)
    try:
        Trainer(JobConfig.from_file("job.yaml")).run(windows=1)
    finally:
        os.chdir(before)
    return folder


@cache
def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "headrace", "serve", "job.yaml", "--listen", "127.0.0.1:0", *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            url = next(match[1] for line in lines if (match := re.search(r"answering on (\S+)", line)))
            threading.Thread(target=process.stdout.read, daemon=True).start()
            until_version(url, 1)
            yield url, process
        finally:
            process.kill()


def ask(url: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    try:
        with urlopen(Request(url + path, data=body, headers=headers), timeout=60) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def score(url: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    status, body = ask(url, "/v1/score", json.dumps({"records": records}).encode())
    assert status == 200, body
    answer: dict[str, Any] = json.loads(body)
    return answer


def until_version(url: str, at_least: int) -> int:
    """Wait for a version; the test ends by its own time limit."""
    while True:
        status, body = ask(url, "/v1/model")
        if status == 200 and json.loads(body)["version"] >= at_least:
            return int(json.loads(body)["version"])


def records_of(folder: Path, window: int, columns: list[str]) -> list[dict[str, Any]]:
    (place,) = (folder / "logs" / f"window=00{window}").glob("*.parquet")
    return pq.read_table(place, columns=columns).to_pylist()


def predictions(folder: Path, window: int) -> list[np.float32]:
    job = JobConfig.from_file(folder / "job.yaml")
    Scorer(job).predict(str(folder / "logs" / f"window=00{window}"), folder / "out.parquet")
    table = pq.read_table(folder / "out.parquet")
    return [np.float32(value) for value in table["p_click"].to_pylist()]


def test_scores_equal_predictions_in_requests_of_any_size_and_form(folder: Path) -> None:
    expected = predictions(folder, 1)
    records = records_of(folder, 1, features_of(folder))
    with served(folder, "--drain", "0.2", "--model", "again=run", "--shadow", "again") as (url, process):
        found = [score(url, records[:1]), score(url, records[1:4]), score(url, records[4:900])]
        scores = [np.float32(value) for answer in found for value in answer["scores"]["click"]]
        assert scores == expected[:900]
        status, body = ask(
            url,
            "/v1/score",
            arrow_of(pa.Table.from_pylist(records)),
            **{"content-type": "application/vnd.apache.arrow.stream"},
        )
        assert status == 200
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
        assert table["click"].to_pylist() == expected
        assert int(table.schema.metadata[b"version"]) == found[0]["version"]
        assert ask(url, "/readyz")[0] == 200
        assert ask(url, "/nowhere")[0] == 404
        status, body = ask(url, "/v1/score", b'{"records": [{"usr": 3}]}')
        assert (status, b"column 'usr' of record 0 is unknown" in body) == (422, True)
        assert b'headrace_serve_requests{route="score",status="422"} 1' in ask(url, "/metrics")[1]
        the_client_gives_the_same(url, records[:30], found[0])
        counts = script("fuzz_requests").fuzz(url, {"user": 3, "item": 7, "history": [1]}, 4, seed=1)
        assert counts.faults == []
        assert {name for name, _ in counts.outcomes} == set(script("fuzz_requests").KINDS)
        labels_of_a_request_judge_all_models_that_scored_it(url, records[:20])
        assert stopped_under_requests(url, process, records[:20]) == {200}


def the_client_gives_the_same(url: str, records: list[dict[str, Any]], first: dict[str, Any]) -> None:
    with Client(url) as client, Client(url, model="other") as wrong:
        expected = client.score(records)
        assert expected.version == first["version"] == client.model()["version"]
        assert expected.scores["click"][0] == np.float32(first["scores"]["click"][0])
        table = client.score(pa.Table.from_pylist(records), request="by table")
        assert np.array_equal(table.scores["click"], expected.scores["click"])
        assert table.request == "by table"
        context = {"user": records[0]["user"], "history": records[0]["history"]}
        candidates = [{"item": record["item"]} for record in records]
        ranked = client.rank(context, candidates)
        plain = client.score([{**context, **candidate} for candidate in candidates])
        assert np.array_equal(ranked.scores["click"], plain.scores["click"])
        by_table = client.rank(context, pa.Table.from_pylist(candidates))
        assert np.array_equal(by_table.scores["click"], plain.scores["click"])
        assert client.labels("by table", click=[None] * 30)
        assert not client.labels("by table", click=[None] * 30)
        with pytest.raises(Refused, match="column 'usr' of record 0 is unknown") as caught:
            client.score([{"usr": 1}])
        assert caught.value.status == 422
        with pytest.raises(Refused, match="model 'other': unknown"):
            wrong.score(records)
    described = json.loads(ask(url, "/openapi.json")[1])
    assert described["components"]["schemas"]["Record"]["properties"]["user"] == {"type": ["integer", "null"]}
    assert b"/v1/score" in ask(url, "/docs")[1]


def labels_of_a_request_judge_all_models_that_scored_it(url: str, records: list[dict[str, Any]]) -> None:
    body = json.dumps({"records": records}).encode()
    until_scored(url, "again")
    found = [json.loads(ask(url, path, body)[1]) for path in ("/v1/score", "/v1/models/again/score")]
    assert found[0].get("scores") == found[1].get("scores"), found
    until_scored(url, "again", 2 * len(records))
    status, answer = ask(url, "/v1/models/other/score", body)
    assert (status, b"expected one of: main, again" in answer) == (404, True)
    labels = {"labels": [{"request": found[0]["request"], "click": [0, 1] * 10}, {"request": "unknown", "click": [1]}]}
    status, answer = ask(url, "/v1/labels", json.dumps(labels).encode())
    assert (status, json.loads(answer)) == (200, {"rows": 20, "unknown_requests": 1})
    quality = json.loads(ask(url, "/v1/models")[1])["quality"]
    assert quality["main"] == quality["again"]
    assert quality["main"]["click"]["rows"] == 20


def until_scored(url: str, model: str, rows: int = 0) -> None:
    """Wait until a model has a version and scored so many rows since the server started, in requests or as a shadow."""
    while True:
        text = ask(url, "/metrics")[1].decode()
        scored = re.search(rf'headrace_serve_rows{{model="{model}"}} ([0-9]+)', text)
        if f'headrace_serve_version{{model="{model}"}}' in text and scored and int(scored[1]) >= rows:
            return


def stopped_under_requests(url: str, process: subprocess.Popen[str], records: list[dict[str, Any]]) -> set[int]:
    """The statuses of requests while the server stops."""
    statuses: list[int] = []
    body = json.dumps({"records": records}).encode()

    def call() -> None:
        with suppress(OSError):  # refused, after the server has stopped to listen
            while True:
                statuses.append(ask(url, "/v1/score", body)[0])

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    while not statuses:
        pass
    process.send_signal(signal.SIGTERM)
    with suppress(OSError):
        while ask(url, "/readyz")[0] == 200:
            pass
    assert process.wait(60) == 0
    for thread in threads:
        thread.join()
    return set(statuses)


def arrow_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def test_versions_change_under_requests_and_a_rollback_gives_the_earlier_scores(folder: Path) -> None:
    records = records_of(folder, 1, ["user", "item"])[:50]
    by_version: dict[int, list[float]] = {}
    with served(folder, "--replica-listen", "127.0.0.1:0", "--in-memory", "200") as (url, process):
        first = score(url, records)
        training = subprocess.Popen(
            [sys.executable, "-m", "headrace", "train", "job.yaml"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while training.poll() is None:
                answer = score(url, records)
                assert by_version.setdefault(answer["version"], answer["scores"]["click"]) == answer["scores"]["click"]
        finally:
            training.kill()
            training.wait()
        newest = until_version(url, len(list((folder / "run" / "publications").glob("0*"))))
        assert newest > first["version"]
        assert score(url, records)["scores"] != first["scores"]
        rows = predictions(folder, 1)[:50]
        full = records_of(folder, 1, features_of(folder))[:50]
        assert [np.float32(value) for value in score(url, full)["scores"]["click"]] == rows
        client = PublicationClient(json.loads(ask(url, "/v1/model")[1])["replica"])
        assert roll_back(client, first["version"], "a test") == first["version"]
        client.close()
        while (answer := score(url, records))["version"] != first["version"]:
            pass
        assert answer["scores"] == first["scores"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def features_of(folder: Path) -> list[str]:
    names = pq.read_schema(next((folder / "logs").glob("*/*.parquet"))).names
    return [name for name in names if name != "click"]
