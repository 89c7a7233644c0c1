"""Explains files that are not readable Parquet, and decoder errors, with a remedy."""

from __future__ import annotations

import pyarrow as pa

__all__ = ["HEAD_BYTES", "describe_error", "describe_file"]

HEAD_BYTES = 512
"""Number of bytes from the start of a file needed to detect its format."""

PARQUET, ENCRYPTED = b"PAR1", b"PARE"

BEGINNINGS = (
    (b"\x1f\x8b", "compressed with gzip; decompress it first, or unpack it if it is a tar archive"),
    (b"BZh", "compressed with bzip2; decompress it first"),
    (b"\xfd7zXZ", "compressed with xz; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; decompress it first"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"ARROW1", "an Arrow IPC (Feather) file; write it as Parquet"),
    (b"ORC", "an ORC file; write it as Parquet"),
    (b"Obj\x01", "an Avro file; write it as Parquet"),
    (b"SQLite format 3", "an SQLite database; write its table as Parquet"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file with git lfs pull"),
)


def describe_file(head: bytes, tail: bytes, size: int) -> str:
    """Explain why a file without a Parquet footer cannot be read.

    Args:
        head: First bytes of the file, up to `HEAD_BYTES`.
        tail: Last four bytes of the file.
        size: Size of the file.
    """
    if size == 0:
        return "not a Parquet file: it is empty"
    if tail == ENCRYPTED or head.startswith(ENCRYPTED):
        return "an encrypted Parquet file, which headrace does not read; write it without encryption"
    if head.startswith(PARQUET):
        return (
            f"incomplete Parquet file: it ends with {tail!r}, expected a footer and {PARQUET!r}; "
            f"its writer may not have finished, or it was truncated"
        )
    for beginning, what in BEGINNINGS:
        if head.startswith(beginning):
            return f"not a Parquet file: it is {what}"
    return f"not a Parquet file: it {_describe_text(head)}"


def describe_error(error: BaseException) -> str:
    """Explain an error raised while decoding a row group."""
    text = " ".join(str(error).split())
    lower = text.lower()
    if "decrypt" in lower or "encrypt" in lower:
        return f"has encrypted columns, which headrace does not read; write the file without encryption ({text})"
    if "cannot contain more than" in lower or "capacity" in lower or isinstance(error, pa.ArrowCapacityError):
        return f"has too much data in one column for Arrow to decode at once; write smaller row groups ({text})"
    if isinstance(error, pa.ArrowNotImplementedError):
        return f"uses a Parquet feature that the installed pyarrow {pa.__version__} does not support ({text})"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {text}"
    return f"cannot be decoded, because the file is damaged: {text}"


def _describe_text(head: bytes) -> str:
    text = head.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    if "\ufffd" in text[:-1] or "\0" in text:
        return f"starts with {head[:8]!r}, expected {PARQUET!r}"
    if text[:1] == "<":
        return "is HTML or XML, perhaps the error page of a download"
    if text[:1] in ("{", "["):
        return "is JSON; if it has one object per line, convert it with: headrace import jsonl"
    return "is text, perhaps CSV; convert it with: headrace import csv"
