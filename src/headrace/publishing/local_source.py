"""`LocalSource`: a folder of publications on this machine, as a source of a replica."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from headrace.errors import CheckpointError, PublishingError
from headrace.manifest import MANIFEST, open_regular
from headrace.publishing.client import ServerStatus
from headrace.publishing.publications import PublicationFolder

__all__ = ["LocalSource"]

POLL_S = 0.02
CHUNK_BYTES = 1 << 20


class LocalSource:
    """A folder that a run, or another process, writes; see `download.Source`.

    Args:
        folder: The folder.

    Attributes:
        address: Its path.
    """

    def __init__(self, folder: PublicationFolder) -> None:
        self._folder = folder
        self.address = str(folder.path)

    def wait(self, after: int, *, timeout_s: float) -> ServerStatus:
        """See `download.Source`."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                versions = self._folder.versions()
            except CheckpointError as error:
                raise PublishingError(str(error)) from error
            newest = versions[-1] if versions else 0
            if newest > after or time.monotonic() >= until:
                return ServerStatus(newest, tuple(versions))
            time.sleep(POLL_S)

    def manifest(self, version: int) -> bytes:
        """See `download.Source`."""
        return b"".join(self._read(self._folder.place(version) / MANIFEST, 0))

    def read(self, file: str, offset: int = 0) -> Iterator[bytes]:
        """See `download.Source`."""
        return self._read(self._folder.path / file, offset)

    def _read(self, path: Path, offset: int) -> Iterator[bytes]:
        try:
            with open_regular(path) as file:
                file.seek(offset)
                while data := file.read(CHUNK_BYTES):
                    yield data
        except (CheckpointError, OSError) as error:
            raise PublishingError(f"{path}: is not here (any more)") from error
