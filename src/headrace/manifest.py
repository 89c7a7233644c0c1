"""`Manifest`: lists the files of a folder, with checksums of every file and of the manifest itself."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from headrace.errors import CheckpointError, TornCheckpoint, VersionMismatch
from headrace.files import flush, write_text

__all__ = ["MANIFEST", "FileEntry", "Manifest", "file_checksum", "open_regular"]

MANIFEST = "manifest.json"

OWN_KEYS = ("format", "version", "files")
"""Reserved keys of a manifest, in addition to its checksum."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_DAMAGED = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG, errno.EIO}
"""Error codes of missing, replaced or unreadable files; other errors do not mean that a checkpoint is torn."""


def _relative(name: str) -> str:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name:
        raise ValueError("expected a path below the folder")
    return name


def _sha256(digits: str) -> str:
    if not _DIGEST.fullmatch(digits):
        raise ValueError("expected 64 hexadecimal digits")
    return digits


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(_Part):
    """Size in bytes and SHA-256 of a file."""

    bytes: int = Field(ge=0)
    sha256: Annotated[str, AfterValidator(_sha256)]


class Manifest(_Part):
    """The manifest of a folder.

    Attributes:
        format: Format of the folder.
        version: Version of the format.
        files: Files by path relative to the folder.
        content: Other keys, with JSON-able values of the folder's owner.
    """

    format: str
    version: int
    files: dict[Annotated[str, AfterValidator(_relative)], FileEntry]
    content: dict[str, Any]

    @classmethod
    def write(cls, folder: Path, kind: str, version: int, content: Mapping[str, Any]) -> None:
        """Write `manifest.json` with all files of a folder, and flush everything to disk."""
        files = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": file_checksum(path)}
            flush(path)
        values = {"format": kind, "version": version, **content, "files": files}
        _write(folder, values)
        for parent in {(folder / name).parent for name in files} | {folder}:
            flush(parent)

    @classmethod
    def read(cls, folder: Path, kind: str, *versions: int) -> Self:
        """Read and check the manifest of a folder, but not its files.

        Args:
            folder: The folder.
            kind: Format of the folder.
            versions: Accepted versions of the format.

        Raises:
            TornCheckpoint: The manifest is missing, damaged or invalid.
            VersionMismatch: The manifest is valid, but has a different format or version.
            CheckpointError: The manifest is not readable.
        """
        path = folder / MANIFEST
        expected = f"{kind} version {' or '.join(map(str, versions))}"
        values = _read_json(path)
        digest = values.pop("sha256", None)
        if not isinstance(digest, str) and (values.get("format"), values.get("version")) == (kind, 1):
            raise VersionMismatch(f"{folder}: is {kind} version 1, expected {expected}")
        found = _digest(values)
        if digest != found:
            raise TornCheckpoint(f"{path}: does not match its checksum: {found[:12]}..., expected {str(digest)[:12]}")
        if values.get("format") != kind or values.get("version") not in versions:
            given = f"{values.get('format')} version {values.get('version')}"
            raise VersionMismatch(f"{folder}: is {given}, expected {expected}")
        own = {key: values.pop(key) for key in OWN_KEYS if key in values}
        try:
            return cls.model_validate(own | {"content": values})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise TornCheckpoint(f"{path}: {key}: {first['msg']}") from error

    def rewrite(self, folder: Path, content: Mapping[str, Any]) -> None:
        """Replace the content of the manifest of a folder, whose files stay as they are, atomically."""
        files = {name: entry.model_dump() for name, entry in self.files.items()}
        _write(folder, {"format": self.format, "version": self.version, **content, "files": files})

    def check_files(self, folder: Path) -> None:
        """Check the size and checksum of every listed file; other files are ignored.

        Raises:
            TornCheckpoint: A file is missing or different; the message has both values.
            CheckpointError: A file is not readable.
        """
        for name, expected in self.files.items():
            path = folder / name
            with open_regular(path, f"expected {expected.bytes} bytes") as file:
                size = os.fstat(file.fileno()).st_size
                if size != expected.bytes:
                    raise TornCheckpoint(f"{path}: has {size} bytes, expected {expected.bytes}")
                try:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                except OSError as error:
                    raise _unreadable(path, error) from error
            if found != expected.sha256:
                raise TornCheckpoint(f"{path}: has SHA-256 {found[:12]}..., expected {expected.sha256[:12]}...")


def open_regular(path: Path, expected: str = "expected a file") -> BufferedReader:
    """Open a regular file for reading; never blocks on a pipe.

    Raises:
        TornCheckpoint: The file is missing, or not a regular file.
        CheckpointError: The manifest is not readable.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # not inheritable, like all files opened by Python
    except OSError as error:
        raise _unreadable(path, error, expected) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TornCheckpoint(f"{path}: is not a regular file, {expected}")
    return os.fdopen(descriptor, "rb")


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, values: dict[str, Any]) -> None:
    values = json.loads(json.dumps(values))  # as it will be read: tuples become lists, and keys strings
    write_text(folder / MANIFEST, json.dumps(values | {"sha256": _digest(values)}, indent=1))


def _read_json(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        try:
            values = json.loads(file.read().decode())
            _digest(values)  # too deep nesting fails here, if not above
        except OSError as error:
            raise _unreadable(path, error) from error
        except (ValueError, RecursionError) as error:
            raise TornCheckpoint(f"{path}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise TornCheckpoint(f"{path}: holds {type(values).__name__}, expected a mapping")
    return values


def _digest(values: Any) -> str:
    """SHA-256 of the contents of a manifest, independent of formatting."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _unreadable(path: Path, error: OSError, expected: str = "expected a file") -> CheckpointError:
    if error.errno == errno.ENOENT:
        return TornCheckpoint(f"{path}: is missing, {expected}")
    kind = TornCheckpoint if error.errno in _DAMAGED else CheckpointError
    return kind(f"{path}: cannot be read: {error.strerror}")
