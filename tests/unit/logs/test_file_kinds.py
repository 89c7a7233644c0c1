"""Files that are not Parquet are told by what they are, and errors of the decoder by their cause."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import DataError
from headrace.logs.file_kinds import describe_error
from headrace.logs.files import LogFile
from headrace.logs.footers import read_footer

KINDS = {
    b"": "it is empty",
    b"user,item\n1,2\n3,4\n5,6\n": "is text, perhaps CSV",
    b'{"user": 1, "item": 2}\n': "is JSON",
    b"<!DOCTYPE html><html><body>404</body></html>": "is HTML or XML",
    gzip.compress(b"user,item\n" * 9, mtime=0): "compressed with gzip",
    b"ORC" + bytes(40): "an ORC file",
    b"PAR1" + bytes(40): "its writer may not have finished, or it was truncated",
    b"PAR1" + bytes(40) + b"PARE": "an encrypted Parquet file",
    bytes(range(40)): "starts with",
}


@pytest.mark.parametrize("data", KINDS, ids=KINDS.values())
def test_a_file_that_is_not_parquet_is_told_by_what_it_is(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(data)
    with pytest.raises(DataError, match=KINDS[data]) as caught:
        read_footer(LogFile(str(path), len(data)))
    assert str(path) in str(caught.value)
    assert ("truncated" in str(caught.value)) == (KINDS[data].endswith("truncated"))


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    assert read_footer(LogFile(str(tmp_path / "a.parquet"), 1)).num_rows == 1


def test_errors_of_the_decoder_are_told_by_their_cause() -> None:
    assert "encrypted columns" in describe_error(OSError("Cannot decrypt ColumnMetadata"))
    assert "smaller row groups" in describe_error(pa.ArrowCapacityError("array cannot contain more than 2147483646"))
    assert "does not support" in describe_error(pa.ArrowNotImplementedError("Support for codec 'lzo' not built"))
    assert "damaged" not in describe_error(PermissionError(13, "Permission denied"))
    assert describe_error(OSError("Unexpected end of\nstream")) == (
        "cannot be decoded, because the file is damaged: Unexpected end of stream"
    )
