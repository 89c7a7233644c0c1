"""Shards that a launcher names come with the token that the launcher made."""

from __future__ import annotations

import pytest

from headrace.cluster.training import SHARDS_VARIABLE, with_shards
from headrace.embeddings.shards.security import TOKEN_VARIABLE
from headrace.training import JobConfig

TOKEN = "t" * 32


def job(**cluster: object) -> JobConfig:
    return JobConfig.from_dict({"run": "r", "data": {"path": "logs"}, "cluster": cluster}, where="job.yaml")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SHARDS_VARIABLE, TOKEN_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def test_without_variables_the_job_stays_as_it_is() -> None:
    given = job(shards=["10.0.0.5:9001"], token_file="token")
    assert with_shards(given) == given


def test_the_token_of_the_environment_takes_the_place_of_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARDS_VARIABLE, "127.0.0.1:1,127.0.0.1:2")
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    cluster = with_shards(job(shards=["10.0.0.5:9001"], token_file="token", tls_authority="ca.pem")).cluster
    assert cluster.shards == ("127.0.0.1:1", "127.0.0.1:2")
    assert (cluster.security().token, cluster.security().authority) == (TOKEN, None)


def test_shards_beyond_this_machine_keep_the_jobs_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARDS_VARIABLE, "127.0.0.1:1,10.0.0.5:2")
    assert with_shards(job(token_file="token")).cluster.token_file == "token"
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert with_shards(job(tls_authority="ca.pem")).cluster.tls_authority == "ca.pem"
