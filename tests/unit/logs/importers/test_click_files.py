"""Hourly click files, from folders and archives, in order; what is wrong with them is said with its place."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.errors import ConfigError, DataError
from headrace.logs.importers.click_files import ClickFile, iterate_click_files, read_clicks, total_bytes

FILES = {"h_8.csv": b"user,item\n1,10\n", "h_9.csv": b"user,item\n", "h_10.csv": b"user,item\n2,20\n3,30\n"}


def write_archive(path: Path, names: list[str], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        archive.addfile(_folder("clicks"))
        for name in names:
            entry = tarfile.TarInfo(f"clicks/{name}")
            entry.size = len(FILES[name])
            archive.addfile(entry, io.BytesIO(FILES[name]))
    return path


def _folder(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.DIRTYPE
    return entry


def content(path: Path) -> list[tuple[int, str, bytes]]:
    return [(file.number, file.name, bytes(file.content)) for file in iterate_click_files(path)]


def test_a_folder_and_its_archives_give_the_same_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "clicks"
    folder.mkdir()
    for name in reversed(FILES):
        (folder / name).write_bytes(FILES[name])
    (folder / "notes.txt").write_text("not a click")
    expected = [(number, name, data) for number, (name, data) in enumerate(FILES.items())]
    assert content(folder) == expected
    assert content(write_archive(tmp_path / "clicks.tar.gz", list(FILES))) == expected
    assert content(write_archive(tmp_path / "clicks.tar", list(FILES), "w")) == expected


def test_bytes_read_grow_up_to_the_total(tmp_path: Path) -> None:
    folder = tmp_path / "clicks"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    read = [file.bytes_read for file in iterate_click_files(folder)]
    assert read == sorted(read)
    assert read[-1] == total_bytes(folder) == sum(map(len, FILES.values()))
    archive = write_archive(tmp_path / "clicks.tar.gz", list(FILES))
    assert [file.bytes_read for file in iterate_click_files(archive)][-1] <= total_bytes(archive)


def test_an_archive_out_of_order_is_refused_with_advice(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "clicks.tar.gz", ["h_10.csv", "h_9.csv"])
    with pytest.raises(DataError, match=r"clicks/h_9.csv comes after clicks/h_10.csv; .*import the folder"):
        content(archive)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_an_archive_cut_short_is_refused_even_behind_its_last_file(tmp_path: Path, mode: str) -> None:
    archive = write_archive(tmp_path / "clicks.tar.gz", list(FILES), mode)
    assert len(content(archive)) == 3
    whole = archive.read_bytes()
    for cut in (1, 30, len(whole) // 2):
        archive.write_bytes(whole[:-cut])
        with pytest.raises(DataError, match=r"clicks.tar.gz: (damaged compressed file|not a readable tar archive)"):
            content(archive)


def test_something_else_than_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clicks.tar").write_bytes(b"something else")
    with pytest.raises(DataError, match="not a readable tar archive"):
        content(tmp_path / "clicks.tar")


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"contains no \.csv file"):
        content(tmp_path)
    with pytest.raises(ConfigError, match="missing: no such file or folder"):
        content(tmp_path / "missing")


def click_file(text: str) -> ClickFile:
    return ClickFile(4, "h_05.csv", pa.py_buffer(text.encode()), 0)


def test_columns_are_read_by_name_as_integers() -> None:
    columns = read_clicks(click_file("a,user,item\nx,1,-5\ny,2,9007199254740993\n"), ("item", "user"), Path("logs"))
    assert {name: values.tolist() for name, values in columns.items()} == {
        "item": [-5, 9007199254740993],
        "user": [1, 2],
    }
    assert read_clicks(click_file("user,item\n"), ("user",), Path("logs"))["user"].tolist() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item\n1,2\n,3\n", "logs: h_05.csv: row 2, column user: empty, expected an integer"),
        ("user,item\n1,x\n", "logs: h_05.csv: .*'x'"),
        ("user,item\n1,2.5\n", "logs: h_05.csv: .*'2.5'"),
        ("user,item\n1,2\n1\n", "logs: h_05.csv: .*[Ee]xpected 2 columns, got 1"),
        ("user,article\n1,2\n", "logs: h_05.csv: .*'item'"),
        ("", "logs: h_05.csv: .*[Ee]mpty"),
    ],
)
def test_bad_files_are_refused_with_their_place(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_clicks(click_file(text), ("user", "item"), Path("logs"))
