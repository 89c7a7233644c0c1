"""No output becomes part of the logs that are read, however either path is written."""

from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace.logs import check_output


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "logs/day=1/hour=1").mkdir(parents=True)
    (tmp_path / "logs/day=1/hour=1/a.parquet").write_bytes(b"x")
    (tmp_path / "disk2/day=2/hour=1").mkdir(parents=True)
    (tmp_path / "disk2/day=2/hour=1/a.parquet").write_bytes(b"y")
    (tmp_path / "logs/day=2").symlink_to(tmp_path / "disk2/day=2")
    (tmp_path / "alias").symlink_to(tmp_path / "logs")
    (tmp_path / "disk3/empty").mkdir(parents=True)
    (tmp_path / "disk2/day=2/deeper").symlink_to(tmp_path / "disk3")
    (tmp_path / "disk3/loop").symlink_to(tmp_path / "disk2")
    return tmp_path / "logs"


@pytest.mark.parametrize(
    ("output", "location"),
    [
        ("logs", "logs"),
        ("logs/run", "logs"),
        ("logs/day=1/out.parquet", "logs"),
        ("logs/day=1/hour=1/a.parquet", "logs/day=1/hour=1/a.parquet"),
        ("alias/run", "logs"),
        ("logs/run", "alias"),
        ("other/../logs/run", "logs"),
        ("disk2/day=2/run", "logs"),
        ("disk2/day=2/run", "logs/day=*"),
        ("disk3/empty/run", "logs"),
        ("disk2/day=2/hour=1/a.parquet", "logs"),
        ("logs/day=3", "logs/day=*"),
        ("logs/day=3/out.parquet", "logs/day=*"),
        ("logs/day=1/out.parquet", "logs/*/*.parquet"),
        ("new/logs/run", "new/logs"),
    ],
)
def test_an_output_within_or_over_the_logs_is_refused_with_both_named(
    logs: Path, monkeypatch: pytest.MonkeyPatch, output: str, location: str
) -> None:
    monkeypatch.chdir(logs.parent)
    for place in (location, f"file://{logs.parent}/{location}"):
        with pytest.raises(ConfigError, match="is part of the logs at") as caught:
            check_output(output, place, what="run")
        assert str(caught.value).startswith(f"run: {output}")
        assert location in str(caught.value)


@pytest.mark.parametrize(
    ("output", "location"),
    [
        ("run", "logs"),
        ("logs2", "logs"),
        ("logs/_run", "logs"),
        ("logs/.run/checkpoints", "logs"),
        ("logs/day=1/hour=1/b.parquet", "logs/day=1/hour=1/a.parquet"),
        ("logs/out", "logs/day=*"),
        ("logs/day=1/hour=1/out.txt", "logs/*/*.parquet"),
        ("logs/run", "memory://logs"),
    ],
)
def test_an_output_beside_the_logs_is_allowed(
    logs: Path, monkeypatch: pytest.MonkeyPatch, output: str, location: str
) -> None:
    monkeypatch.chdir(logs.parent)
    check_output(output, location, what="run")
