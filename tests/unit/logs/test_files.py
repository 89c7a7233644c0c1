"""Listing log files: folders, hive partitions, globs and URLs, in an order that never depends on the file system."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ConfigError, DataError
from headrace.logs.files import (
    LogFile,
    list_files,
    list_log,
    natural_key,
    open_log_file,
    partition_of,
    schema_beside,
)


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
        ("empty", "no log files found, expected files ending in .parquet"),
        ("missing/*.parquet", "no log files found"),
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
    with pytest.raises(DataError, match=r"gone\.parquet: the file no longer exists"):
        open_log_file(str(tmp_path / "gone.parquet"))
    with pytest.raises(DataError, match=r"gone\.parquet: the file no longer exists"):
        open_log_file("memory://logs/gone.parquet")


def test_partition_values_are_unquoted() -> None:
    assert partition_of("logs/day=2024-01-02/hour=a%2Fb/part=0.parquet") == (("day", "2024-01-02"), ("hour", "a/b"))


@given(st.lists(st.text("ab019/=-", min_size=1), unique=True), st.randoms())
def test_natural_order_is_total(texts: list[str], shuffler: random.Random) -> None:
    ordered = sorted(texts, key=natural_key)
    shuffled = list(texts)
    shuffler.shuffle(shuffled)
    assert sorted(shuffled, key=natural_key) == ordered


def test_every_entry_is_taken_hidden_or_named_with_the_reason(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet", "b.PARQUET", "day=1/c.Pq", ".d.parquet", "_e/f.parquet", "schema.yaml", "teacher.json")
    touch(tmp_path, "000000_0", "day=1/g.parquet.gz", "h.csv")
    os.mkfifo(tmp_path / "i.parquet")
    (tmp_path / "j.parquet").symlink_to(tmp_path / "gone.parquet")
    listing = list_log(tmp_path)
    assert names(list(listing.files)) == ["a.parquet", "b.PARQUET", "day=1/c.Pq"]
    assert listing.notes == (
        f"{tmp_path}: 5 entries are not read: 000000_0, day=1/g.parquet.gz (compressed; "
        "decompress it), h.csv, i.parquet (not a regular file), j.parquet (broken link: No such file or directory)"
        "; log files end in .parquet, .parq, .pq",
    )


def test_only_some_of_many_entries_that_are_not_read_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet", *(f"{number}.csv" for number in range(1, 14)))
    (note,) = list_log(tmp_path).notes
    assert "13 entries are not read: 1.csv, 2.csv" in note
    assert "10.csv, and 3 more; log files" in note


def test_a_folder_without_log_files_names_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv")
    with pytest.raises(ConfigError, match=r"no log files found, .*; 1 entry is not read: a\.csv"):
        list_files(tmp_path)


def test_linked_folders_and_files_are_taken_once(tmp_path: Path) -> None:
    touch(tmp_path, "disk2/day=2/a.parquet", "elsewhere.parquet", "logs/day=1/a.parquet")
    logs = tmp_path / "logs"
    (logs / "day=2").symlink_to("../disk2/day=2")
    (logs / "day=1/b.parquet").symlink_to("../../elsewhere.parquet")
    (logs / "current").symlink_to("day=1")
    (logs / "day=1/up").symlink_to(logs)
    (logs / "day=1/z.parquet").hardlink_to(logs / "day=1/a.parquet")
    listing = list_log(logs)
    assert names(list(listing.files)) == ["day=1/a.parquet", "day=1/b.parquet", "day=2/a.parquet"]
    (note,) = listing.notes
    assert "current/a.parquet (the same file as day=1/a.parquet)" in note
    assert "day=1/up (a link to one of its parent folders)" in note
    assert "day=1/z.parquet (the same file as day=1/a.parquet)" in note


def test_a_link_is_as_new_as_its_file(tmp_path: Path) -> None:
    touch(tmp_path, "real.bin")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/a.parquet").symlink_to(tmp_path / "real.bin")
    (before,) = list_files(tmp_path / "logs")
    (tmp_path / "real.bin").write_bytes(b"others!")
    os.utime(tmp_path / "real.bin", (1, 1))
    (after,) = list_files(tmp_path / "logs")
    assert (before.size_bytes, after.size_bytes) == (8, 7)
    assert before.version != after.version


def test_a_time_of_change_that_was_set_back_is_noticed(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet")
    os.utime(tmp_path / "a.parquet", (1, 1))
    (before,) = list_files(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"y" * 9)
    os.utime(tmp_path / "a.parquet", (1, 1))
    (after,) = list_files(tmp_path)
    assert before.version != after.version


@pytest.mark.parametrize(
    ("mark", "what", "location"),
    [
        ("_delta_log/00000000000000000000.json", "a Delta table", "table"),
        ("_delta_log/00000000000000000000.json", "a Delta table", "table/day=1"),
        ("_delta_log/00000000000000000000.json", "a Delta table", "table/*.parquet"),
        ("_delta_log/00000000000000000000.json", "a Delta table", "table/a.parquet"),
        ("_delta_log/00000000000000000000.json", "a Delta table", "."),
        ("metadata/v1.metadata.json", "an Iceberg table", "table"),
        ("metadata/v1.metadata.json", "an Iceberg table", "table/day=1"),
        (".hoodie/hoodie.properties", "a Hudi table", "table"),
    ],
)
def test_a_table_whose_log_decides_which_files_count_is_refused(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, mark: str, what: str, location: str
) -> None:
    touch(tmp_path, "table/a.parquet", "table/day=1/a.parquet", f"table/{mark}")
    for name in ("table/a.parquet", "table/day=1/a.parquet", f"table/{mark}"):
        memory.pipe_file(f"/lake/{name}", b"abc")
    for place in (tmp_path / location, f"memory://lake/{location}".removesuffix("/.")):
        with pytest.raises(ConfigError, match=f"table: is {what}, .* write the rows to a folder first"):
            list_files(place)


def test_a_folder_called_metadata_alone_is_no_table(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet", "metadata/b.parquet")
    assert names(list_files(tmp_path)) == ["a.parquet", "metadata/b.parquet"]


@pytest.mark.parametrize("folder", ["logs[1]", "a*b", "what?", "[x]/[y]"])
def test_characters_of_globs_in_real_paths_are_meant_as_they_are(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, f"{folder}/day=1/a.parquet", "logs1/day=1/wrong.parquet", "axb/day=1/wrong.parquet")
    assert names(list_files(tmp_path / folder)) == ["day=1/a.parquet"]
    assert names(list_files(f"{tmp_path}/{folder}/day=*")) == ["day=1/a.parquet"]
    assert names(list_files(f"{tmp_path}/{folder}/*/*.parquet")) == ["day=1/a.parquet"]
    assert schema_beside(str(tmp_path / folder)) == tmp_path / folder / "schema.yaml"
    assert schema_beside(f"{tmp_path}/{folder}/day=*/*.parquet") == tmp_path / folder / "schema.yaml"


def test_names_that_are_not_utf8_are_read_and_shown_escaped(tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"d\xe4y")
    os.mkdir(folder)
    with open(os.path.join(folder, b"\xff.parquet"), "wb") as written:
        written.write(b"abc")
    (file,) = list_files(tmp_path)
    assert file.shown_path == f"{tmp_path}/d\\xe4y/\\xff.parquet"
    with open_log_file(file.path) as opened:
        assert opened.read() == b"abc"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet", "day=1/b.parquet")
    (tmp_path / "day=1").chmod(0)
    try:
        with pytest.raises(DataError, match="day=1: cannot be searched"):
            list_files(tmp_path)
    finally:
        (tmp_path / "day=1").chmod(0o755)
