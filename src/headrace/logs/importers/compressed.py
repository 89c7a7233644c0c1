"""Reads a file or pipe as a stream, optionally compressed or in a tar archive."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from headrace.errors import ConfigError, DataError
from headrace.messages import shorten_list

__all__ = ["open_stream", "open_text", "readable_input"]

_REFUSED = {b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "Zstandard", b"7z\xbc\xaf": "7-Zip", b"\x04\x22\x4d\x18": "LZ4"}
"""First bytes of formats that the standard library cannot read as a stream."""

_TAR_BLOCK = 512
_TAR_MAGIC = slice(257, 262)


class _Peeked(io.RawIOBase):
    """A stream whose first bytes were peeked at, and that counts the bytes read, which pipes do not."""

    def __init__(self, stream: Any, num_bytes: int) -> None:
        self._stream = stream
        self.head = b""
        while len(self.head) < num_bytes and (more := stream.read(num_bytes - len(self.head))):
            self.head += more
        self._left = self.head
        self._num_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._left[: len(buffer)] or self._stream.read(len(buffer))
        self._left = self._left[len(data) :]
        buffer[: len(data)] = data
        self._num_read += len(data)
        return len(data)

    def tell(self) -> int:
        return self._num_read


def readable_input(path: Path) -> bool:
    """Whether a path is a file, a pipe, or a device such as /dev/stdin."""
    return path.exists() and not path.is_dir()


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a plain, gzip, bzip2 or xz file or pipe, detected by its first bytes; yields the content, and the raw stream
    for its position.

    Raises:
        DataError: Inside the `with` block: the compressed data is damaged or truncated.
        ConfigError: The compression is not supported.
    """
    with path.open("rb") as file:
        raw = _Peeked(file, 6)
        for magic, name in _REFUSED.items():
            if raw.head.startswith(magic):
                raise ConfigError(f"{path}: {name} data, expected plain, gzip, bzip2 or xz; unpack it first")
        try:
            yield _decompress(raw), cast(IO[bytes], raw)
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{path}: damaged compressed file: {error}") from error


@contextmanager
def open_text(path: Path, member: str) -> Iterator[tuple[IO[bytes], IO[bytes], str]]:
    """Open a text file or pipe like `open_stream`, or a file in a tar archive; also yields its name in the archive.

    Args:
        path: Path of the file, archive or pipe.
        member: File name to read from an archive, in any folder.

    Raises:
        DataError: As for `open_stream`, or the archive is truncated or does not contain that file.
    """
    with open_stream(path) as (stream, raw):
        unpacked = _Peeked(stream, _TAR_BLOCK)
        text = io.BufferedReader(unpacked)
        if unpacked.head[_TAR_MAGIC] != b"ustar":
            yield text, raw, ""
            return
        names = []
        try:
            with tarfile.open(fileobj=text, mode="r|") as archive:
                for entry in archive:
                    names.append(entry.name)
                    if entry.isfile() and Path(entry.name).name == member:
                        yield cast(IO[bytes], archive.extractfile(entry)), raw, entry.name
                        return
        except tarfile.TarError as error:
            raise DataError(f"{path}: not a readable tar archive: {error}") from error
        raise DataError(f"{path}: a tar archive without {member}, it has {shorten_list(names) or 'no files'}")


def _decompress(raw: _Peeked) -> IO[bytes]:
    buffered = io.BufferedReader(raw)
    if raw.head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=buffered))
    if raw.head.startswith(b"BZh"):
        return cast(IO[bytes], bz2.BZ2File(buffered))
    if raw.head == b"\xfd7zXZ\x00":
        return cast(IO[bytes], lzma.LZMAFile(buffered))
    return buffered
