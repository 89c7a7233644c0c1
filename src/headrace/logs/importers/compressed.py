"""Reads a file as a stream whether it is compressed or not, and says so where it is cut short."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from headrace.errors import DataError

__all__ = ["open_stream"]


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The content of a plain, gzip, bzip2 or xz file (told by its first bytes), and the file itself for its position.

    Raises:
        DataError: Inside the `with`, where the compressed data is damaged or ends too early.
    """
    with path.open("rb") as raw:
        magic = raw.read(6)
        raw.seek(0)
        try:
            yield _decompress(raw, magic), raw
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{path}: damaged compressed file: {error}") from error


def _decompress(raw: IO[bytes], magic: bytes) -> IO[bytes]:
    if magic.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if magic.startswith(b"BZh"):
        return cast(IO[bytes], bz2.BZ2File(raw))
    if magic == b"\xfd7zXZ\x00":
        return cast(IO[bytes], lzma.LZMAFile(raw))
    return raw
