"""Listing log files: folders, hive partitions, globs and URLs, in an order that never depends on the file system."""

import random
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ConfigError, DataError
from headrace.logs.files import LogFile, list_files, natural_key, open_log_file, partition_of


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * len(name))


def names(files: list[LogFile]) -> list[str]:
    return [file.name for file in files]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def test_folders_are_searched_with_digits_compared_as_numbers(tmp_path: Path) -> None:
    wanted = ["hour=2/part-1.parquet", "hour=2/part-10.parquet", "hour=10/part-2.parquet", "hour=10/part-10.parquet"]
    shuffled = list(wanted)
    random.Random(3).shuffle(shuffled)
    touch(tmp_path, *shuffled)
    files = list_files(tmp_path)
    assert names(files) == wanted
    assert [file.path for file in files] == [str(tmp_path / name) for name in wanted]
    assert [file.size_bytes for file in files] == [len(name) for name in wanted]
    assert {file.partition for file in files} == {(("hour", "2"),), (("hour", "10"),)}
    assert files[0].folder == "hour=2"


def test_hidden_files_and_other_endings_are_skipped(tmp_path: Path) -> None:
    touch(
        tmp_path, "a.parquet", ".b.parquet", "_c.parquet", "_tmp/d.parquet", ".x.writing/e.parquet", "notes.txt", "f.pq"
    )
    assert names(list_files(tmp_path)) == ["a.parquet", "f.pq"]


def test_hidden_folders_above_the_log_do_not_matter(tmp_path: Path) -> None:
    touch(tmp_path, ".cache/_x/logs/a.parquet")
    assert names(list_files(tmp_path / ".cache/_x/logs")) == ["a.parquet"]


def test_a_file_named_outright_is_taken_whatever_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "day=1/_log.bin")
    (file,) = list_files(tmp_path / "day=1/_log.bin")
    assert (file.name, file.partition) == ("_log.bin", (("day", "1"),))


def test_globs_match_files_and_whole_folders(tmp_path: Path) -> None:
    touch(tmp_path, "hour=1/a.parquet", "hour=2/a.parquet", "hour=12/a.parquet", "hour=12/_x/a.parquet", "hour=1/b.bin")
    assert names(list_files(f"{tmp_path}/hour=1*")) == ["hour=1/a.parquet", "hour=12/a.parquet"]
    assert names(list_files(f"{tmp_path}/*/*.bin")) == ["hour=1/b.bin"]


def test_urls_of_other_file_systems(memory: fsspec.AbstractFileSystem) -> None:
    for name in ("hour=10/a.parquet", "hour=9/a.parquet", "hour=9/.b.parquet"):
        memory.pipe_file(f"/logs/{name}", b"abc")
    files = list_files("memory://logs")
    assert names(files) == ["hour=9/a.parquet", "hour=10/a.parquet"]
    assert all(file.path.startswith("memory://") for file in files)
    assert names(list_files("memory://logs/hour=9/*.parquet")) == ["a.parquet"]
    with open_log_file(files[0].path) as file:
        assert file.read() == b"abc"


def test_a_rewritten_file_has_another_version(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet")
    (before,) = list_files(tmp_path)
    (tmp_path / "a.parquet").touch()
    (after,) = list_files(tmp_path)
    assert before.version != after.version


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("missing", "no such file or folder"),
        ("empty", "no log files there, expected files ending in .parquet"),
        ("missing/*.parquet", "no log files there"),
        ("nosuch://x", "nosuch"),
    ],
)
def test_nothing_found_is_said_clearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, message: str
) -> None:
    touch(tmp_path, "empty/readme.md")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        list_files(location)
    assert str(caught.value).startswith(location)


def test_opening_a_file_that_is_gone_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.parquet: the file is gone"):
        open_log_file(str(tmp_path / "gone.parquet"))
    with pytest.raises(DataError, match=r"gone\.parquet: the file is gone"):
        open_log_file("memory://logs/gone.parquet")


def test_partition_values_are_unquoted() -> None:
    assert partition_of("logs/day=2024-01-02/hour=a%2Fb/part=0.parquet") == (("day", "2024-01-02"), ("hour", "a/b"))


@given(st.lists(st.text("ab019/=-", min_size=1), unique=True), st.randoms())
def test_natural_order_is_total(texts: list[str], shuffler: random.Random) -> None:
    ordered = sorted(texts, key=natural_key)
    shuffled = list(texts)
    shuffler.shuffle(shuffled)
    assert sorted(shuffled, key=natural_key) == ordered
