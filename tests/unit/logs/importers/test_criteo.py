"""Criteo's text becomes Parquet: values, cuts, bad lines by policy with their place, compression."""

import gzip
import io
import json
import lzma
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import ConfigError, DataError
from headrace.logs import REJECT_SCHEMA, Schema
from headrace.logs.importers import CriteoConfig, import_criteo
from headrace.logs.importers import criteo as criteo_module


def line(number: int) -> str:
    """A line with empty fields at changing places."""
    fields = [str(number % 2)]
    fields += ["" if (number + i) % 5 == 0 else str(number * i - 2) for i in range(1, 14)]
    fields += ["" if (number + i) % 7 == 0 else f"{number * 7919 + i + (i << 28):08x}"[-8:] for i in range(1, 27)]
    return "\t".join(fields)


def write_text(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(text + "\n" for text in lines))
    return path


def read(files: tuple[Path, ...]) -> pa.Table:
    return pa.concat_tables(pq.read_table(path, partitioning=None) for path in files)


def test_every_value_arrives_and_empty_fields_are_null(tmp_path: Path) -> None:
    texts = [line(number) for number in range(50)]
    done = import_criteo(write_text(tmp_path / "a.tsv", texts), tmp_path / "out")
    table = read(done.files)
    assert table["row"].to_pylist() == list(range(50))
    columns = [text.split("\t") for text in texts]
    assert table["label"].to_pylist() == [int(fields[0]) for fields in columns]
    for i in range(1, 14):
        assert table[f"I{i}"].to_pylist() == [int(fields[i]) if fields[i] else None for fields in columns]
    for i in range(1, 27):
        assert table[f"C{i}"].to_pylist() == [int(f[13 + i], 16) if f[13 + i] else None for f in columns]
    assert (done.lines, done.rows, done.dropped, done.quarantined, done.quarantine) == (50, 50, 0, 0, None)


def test_the_schema_beside_it_names_every_column(tmp_path: Path) -> None:
    done = import_criteo(write_text(tmp_path / "a.tsv", [line(1)]), tmp_path / "out")
    schema = Schema.from_yaml(tmp_path / "out" / "schema.yaml")
    assert set(schema.columns) == set(pq.read_schema(done.files[0]).names)
    assert schema.row_id == "row"


@pytest.mark.parametrize("block_bytes", [1, 300, 1000, 1 << 20])
def test_rows_do_not_depend_on_the_blocks_they_are_read_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(criteo_module, "BLOCK_BYTES", block_bytes)
    path = write_text(tmp_path / "a.tsv", [line(number) for number in range(12)])
    path.write_text(path.read_text().removesuffix("\n"))  # the last line is not ended
    done = import_criteo(path, tmp_path / "out", CriteoConfig(parts=3))
    monkeypatch.undo()
    plain = import_criteo(path, tmp_path / "plain")
    assert read(done.files).equals(read(plain.files))
    assert [pq.read_metadata(file).num_rows for file in done.files] == [4, 4, 4]


@pytest.mark.parametrize("open_file", [gzip.open, lzma.open])
def test_compressed_text_is_read_alike_and_refused_when_cut_short(tmp_path: Path, open_file) -> None:
    path = write_text(tmp_path / "a.tsv", [line(number) for number in range(200)])
    packed = tmp_path / "packed.tsv"
    with open_file(packed, "wb") as stream:
        stream.write(path.read_bytes())
    expected = read(import_criteo(path, tmp_path / "plain").files)
    assert read(import_criteo(packed, tmp_path / "out").files).equals(expected)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"packed.tsv: damaged compressed file"):
        import_criteo(packed, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize(("lines", "parts"), [(10, 4), (9, 4), (3, 3), (100, 7), (5, 1)])
def test_parts_are_equal_and_in_file_order(tmp_path: Path, lines: int, parts: int) -> None:
    path = write_text(tmp_path / "a.tsv", [line(number) for number in range(lines)])
    done = import_criteo(path, tmp_path / "out", CriteoConfig(parts=parts))
    sizes = [pq.read_metadata(file).num_rows for file in done.files]
    assert len(sizes) == parts
    assert max(sizes) - min(sizes) <= 1
    assert read(done.files)["row"].to_pylist() == list(range(lines))


def test_files_have_the_rows_asked_for(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.tsv", [line(number) for number in range(25)])
    done = import_criteo(path, tmp_path / "out", CriteoConfig(rows_per_file=10))
    assert [pq.read_metadata(file).num_rows for file in done.files] == [10, 10, 5]


BAD = {3: ("C2", line(3).replace(line(3).split("\t")[15], "xyz")), 7: (None, "1\t2"), 8: ("label", "5" + line(8)[1:])}


def bad_text(path: Path) -> Path:
    return write_text(path, [BAD[number][1] if number in BAD else line(number) for number in range(10)])


def test_fail_names_file_line_column_and_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bad.tsv: line 4, column C2: given 'xyz', expected 8 hex digits or nothing"):
        import_criteo(bad_text(tmp_path / "bad.tsv"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tsv"]


def test_fail_counts_lines_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteo_module, "BLOCK_BYTES", 400)
    path = write_text(tmp_path / "bad.tsv", [*[line(number) for number in range(9)], "1\t2"])
    with pytest.raises(DataError, match=r"bad.tsv: line 10: given 2 columns, expected 40"):
        import_criteo(path, tmp_path / "out")


def test_drop_leaves_the_others_with_their_line_numbers(tmp_path: Path) -> None:
    done = import_criteo(bad_text(tmp_path / "bad.tsv"), tmp_path / "out", CriteoConfig(bad_lines="drop"))
    assert (done.lines, done.rows, done.dropped, done.quarantined) == (10, 7, 3, 0)
    assert read(done.files)["row"].to_pylist() == [0, 1, 2, 4, 5, 6, 9]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tsv", "out"]


def test_quarantine_keeps_bad_lines_with_place_and_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteo_module, "BLOCK_BYTES", 600)
    path = bad_text(tmp_path / "bad.tsv")
    done = import_criteo(path, tmp_path / "out", CriteoConfig(bad_lines="quarantine", parts=2))
    assert (done.lines, done.rows, done.dropped, done.quarantined) == (10, 7, 0, 3)
    assert done.quarantine == tmp_path / "out-quarantine"
    rejects = pq.read_table(done.quarantine)
    assert rejects.schema.equals(REJECT_SCHEMA)
    assert rejects["file"].to_pylist() == [str(path)] * 3
    assert rejects["row"].to_pylist() == [3, 7, 8]
    assert rejects["column"].to_pylist() == ["C2", None, "label"]
    assert [json.loads(raw)["line"] for raw in rejects["raw"].to_pylist()] == [text for _, text in BAD.values()]
    assert rejects["reason"].to_pylist()[1] == "given 2 columns, expected 40"
    assert [pq.read_metadata(file).num_rows for file in done.files] == [4, 3]  # lines 0-4 and 5-9 without the bad ones


def test_bad_lines_at_a_cut_leave_every_row_in_its_part(tmp_path: Path) -> None:
    texts = [line(number) for number in range(8)]
    texts[4] = "bad"
    path = write_text(tmp_path / "bad.tsv", texts)
    done = import_criteo(path, tmp_path / "out", CriteoConfig(bad_lines="drop", parts=2))
    assert [pq.read_table(file)["row"].to_pylist() for file in done.files] == [[0, 1, 2, 3], [5, 6, 7]]


def test_what_cannot_be_imported_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"missing.tsv: no such file"):
        import_criteo(tmp_path / "missing.tsv", tmp_path / "out")
    with pytest.raises(DataError, match=r"empty.tsv: is empty"):
        import_criteo(write_text(tmp_path / "empty.tsv", []), tmp_path / "out")
    monkeypatch.setattr(criteo_module, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(criteo_module, "BLOCK_BYTES", 500)
    with pytest.raises(DataError, match=r"long.tsv: a line of over 1,000 bytes"):
        import_criteo(write_text(tmp_path / "long.tsv", ["1" * 3000]), tmp_path / "out")
    (tmp_path / "full").mkdir()
    good = write_text(tmp_path / "full" / "good.tsv", [line(1)])
    with pytest.raises(ConfigError, match="full: is not empty"):
        import_criteo(good, tmp_path / "full")
    with pytest.raises(ConfigError, match="only one of parts and rows_per_file"):
        CriteoConfig.from_dict({"parts": 2, "rows_per_file": 3}, where="import")


def test_progress_tells_bytes_and_rows(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    path = write_text(tmp_path / "a.tsv", [line(number) for number in range(30)])
    import_criteo(path, tmp_path / "out", on_block=lambda read, rows: told.append((read, rows)))
    assert told[-1] == (path.stat().st_size, 30)


@pytest.mark.parametrize("ending", ["", "\n", "\n\n\r\n", "\r\n"])
@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
def test_empty_lines_at_the_end_are_no_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, block_bytes: int
) -> None:
    monkeypatch.setattr(criteo_module, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "a.tsv"
    path.write_bytes((line(1) + "\n" + line(2) + ending).encode())
    done = import_criteo(path, tmp_path / "out")
    assert (done.lines, done.rows) == (2, 2)
    path.write_bytes((line(1) + "\n\n" + line(2) + ending).encode())
    with pytest.raises(DataError, match="line 2: given 1 columns, expected 40"):
        import_criteo(path, tmp_path / "inside")


def archive(path: Path, files: dict[str, str], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_the_archive_of_the_competition_is_read_as_it_is(tmp_path: Path, mode: str) -> None:
    text = "".join(line(number) + "\n" for number in range(30))
    files = {"dac/readme.txt": "About.\n\n", "dac/test.txt": line(3)[2:] + "\n", "dac/train.txt": text}
    done = import_criteo(archive(tmp_path / "dac", files, mode), tmp_path / "out", CriteoConfig(parts=3))
    assert (done.member, done.rows, len(done.files)) == ("dac/train.txt", 30, 3)
    (tmp_path / "a.tsv").write_text(text)
    assert read(done.files).equals(read(import_criteo(tmp_path / "a.tsv", tmp_path / "plain").files))

    bad = archive(tmp_path / "bad", files | {"dac/train.txt": text + "x\n"}, mode)
    with pytest.raises(DataError, match=r"bad/dac/train.txt: line 31: given 1 columns"):
        import_criteo(bad, tmp_path / "failed")
    cut = tmp_path / "cut"
    cut.write_bytes((tmp_path / "dac").read_bytes()[: -200 if mode != "w" else 600])
    with pytest.raises(DataError, match=r"cut: (damaged compressed file|not a readable tar archive|a tar archive)"):
        import_criteo(cut, tmp_path / "cut-out")
    other = archive(tmp_path / "other", {"day_0": text}, mode)
    with pytest.raises(DataError, match=r"other: a tar archive without train.txt, it has day_0"):
        import_criteo(other, tmp_path / "other-out")


def test_other_archives_are_refused_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "dac.zip", "w") as packed:
        packed.writestr("train.txt", line(1))
    with pytest.raises(ConfigError, match=r"dac.zip: zip data, expected plain, gzip, bzip2 or xz; unpack it first"):
        import_criteo(tmp_path / "dac.zip", tmp_path / "out", CriteoConfig(bad_lines="drop"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_pipe_is_read_as_a_file_is(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = pack("".join(line(number) + "\n" for number in range(500)).encode())
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    done = import_criteo(pipe, tmp_path / "out")
    writer.join()
    assert done.rows == 500
    with pytest.raises(ConfigError, match="pipe: parts needs a regular file, which is read twice; for a pipe, use"):
        import_criteo(pipe, tmp_path / "parts", CriteoConfig(parts=2))
