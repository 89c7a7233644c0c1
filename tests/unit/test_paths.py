"""Paths as people write them: home folders, file URLs, and URLs where only local paths will do."""

from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace.logs import schema_beside
from headrace.paths import local_path, logs_location
from headrace.training.job import JobConfig

SCHEMA = {"labels": ["click"], "ids": ["item"]}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_home_folder_is_expanded_and_relative_paths_start_at_the_base(home: Path) -> None:
    assert local_path("~/runs/x", where="run", base=Path("/base")) == home / "runs/x"
    assert local_path("runs/x", where="run", base=Path("/base")) == Path("/base/runs/x")
    assert local_path("runs/x", where="run") == Path("runs/x")


@pytest.mark.parametrize("url", ["file:///a/b c", "file://localhost/a/b%20c", "file:/a/b c", Path("file:///a/b c")])
def test_a_file_url_is_a_local_path(url: str | Path) -> None:
    assert local_path(url, where="run") == Path("/a/b c")


@pytest.mark.parametrize("path", ["out:v1", "a/s3:/b", "C:/x", "x:y/z", ":", "..."])
def test_colons_that_make_no_url_are_part_of_a_name(path: str) -> None:
    assert local_path(path, where="OUT") == Path(path)


@pytest.mark.parametrize("url", ["s3://bucket/x", Path("s3://bucket/x"), "S3://bucket/x", "s3:/bucket/x"])
def test_another_url_is_refused_with_its_key_and_as_it_was_written(url: str | Path) -> None:
    with pytest.raises(ConfigError, match=r"^run: given [sS]3://bucket/x, expected a local path; only logs are read"):
        local_path(url, where="run")


def test_what_is_no_path_is_refused() -> None:
    for given in ("", "a\0b", "~nobody-of-this-name/x", "file://elsewhere/x"):
        with pytest.raises(ConfigError, match=r"^run: given "):
            local_path(given, where="run")


def test_logs_may_be_anywhere_but_their_schema_is_local(home: Path) -> None:
    base = Path("/base")
    assert logs_location("s3://bucket/logs", where="data.path", base=base) == "s3://bucket/logs"
    assert logs_location("file:///logs/a", where="data.path", base=base) == "/logs/a"
    assert logs_location("~/logs", where="data.path", base=base) == str(home / "logs")
    assert schema_beside("file:///logs/day=*") == Path("/logs/schema.yaml")
    assert schema_beside("memory://logs") is None
    job = JobConfig.from_dict({"run": "run", "data": {"path": "memory://logs"}}, where="job.yaml")
    with pytest.raises(ConfigError, match=r"^data.schema: missing; logs at memory://logs need a local schema file"):
        job.resolve(base)


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("run", {"run": "gs://bucket/run"}),
        ("data.bad_rows.path", {"data": {"path": "logs", "schema": SCHEMA, "bad_rows": {"path": "s3://b/q"}}}),
        ("data.schema", {"data": {"path": "logs", "schema": "s3://b/schema.yaml"}}),
        ("cluster.token_file", {"cluster": {"token_file": "https://host/token"}}),
    ],
)
def test_every_key_of_a_job_that_names_a_local_path_refuses_a_url(key: str, changed: dict[str, object]) -> None:
    job = {"run": "run", "data": {"path": "logs", "schema": SCHEMA}} | changed
    with pytest.raises(ConfigError, match=rf"^{key}: given \w+://"):
        JobConfig.from_dict(job, where="job.yaml").resolve(Path("/base"))


def test_a_job_expands_home_folders_in_all_its_paths(home: Path) -> None:
    data = {"path": "~/logs", "schema": SCHEMA, "bad_rows": {"path": "~/bad"}}
    job = JobConfig.from_dict({"run": "~/run", "data": data}, where="job.yaml").resolve(Path("/base"))
    assert [job.run, job.data.path, job.data.bad_rows.path] == [str(home / name) for name in ("run", "logs", "bad")]
