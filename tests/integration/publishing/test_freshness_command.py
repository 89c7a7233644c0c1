"""`headrace freshness` shows replicas that answer, and says which do not."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.publishing.publications import PublicationFolder
from headrace.publishing.server import PublicationServer


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[str]:
    status = {"served": 41, "newest": 42, "cut_at": time.time() - 100, "held": "bad", "bytes_from": {"a:1": 3_000_000}}
    server = PublicationServer(
        PublicationFolder(tmp_path), "127.0.0.1:0", actions={"replica": lambda body: status | {"row_age_p99_s": 1.25}}
    )
    yield f"127.0.0.1:{server.port}"
    server.shutdown()


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[str]:
    server = PublicationServer(PublicationFolder(tmp_path), "127.0.0.1:0")
    yield f"127.0.0.1:{server.port}"
    server.shutdown()


def test_a_table_has_replicas_and_those_that_do_not_answer(replica: str, publisher: str) -> None:
    result = CliRunner().invoke(app, ["freshness", replica, publisher, "127.0.0.1:1"])
    assert result.exit_code == 1
    (line,) = (line for line in result.output.splitlines() if replica in line)
    cells = line.split()
    assert cells[1:3] == ["41", "42"]
    assert float(cells[3]) >= 100
    assert cells[5:] == ["-", "1.25", "s", "3.0", "rolled", "back"]
    assert "action 'replica'" in next(line for line in result.output.splitlines() if publisher in line)
    assert "127.0.0.1:1" in result.output


def test_json_and_prometheus_have_the_same_numbers(replica: str) -> None:
    result = CliRunner().invoke(app, ["freshness", replica, "--json"])
    assert result.exit_code == 0
    values = json.loads(result.output)[replica]
    assert values["replica.row_age_p99_s"] == 1.25
    assert values["replica.row_age_p50_s"] is None
    result = CliRunner().invoke(app, ["freshness", replica, "--prometheus"])
    assert f'headrace_replica_row_age_p99_s{{replica="{replica}"}} 1.25' in result.output.splitlines()
