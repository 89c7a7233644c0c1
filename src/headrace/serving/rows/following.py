"""`NodeFollower`: a server without rows follows the versions of memory nodes: dense parameters here, rows there."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from headrace.errors import CheckpointError, HeadraceError, PublishingError
from headrace.files import writing
from headrace.manifest import MANIFEST
from headrace.publishing.publications import DENSE, JOB, Publication, PublicationFolder
from headrace.publishing.row_reader import RowReader
from headrace.publishing.served_tables import ServedVersion
from headrace.serving.model import ModelTemplate, ServedModel
from headrace.serving.rows.cached import CachedRows
from headrace.serving.rows.memory_nodes import MemoryNodes
from headrace.serving.service import ScoringService

__all__ = ["NodeFollower"]

POLL_S = 0.1


class NodeFollower:
    """Has a service answer with the newest version that memory nodes serve.

    Args:
        nodes: The nodes.
        service: The service.
        path: Folder for the dense parameters of the newest version.
        cache_bytes: Bytes of rows to keep here.
        make_template: A template from the text of a job.
        on_message: Called with a line for each event.
    """

    def __init__(
        self,
        nodes: MemoryNodes,
        service: ScoringService,
        path: Path,
        *,
        cache_bytes: int,
        make_template: Callable[[str], ModelTemplate],
        on_message: Callable[[str], object] = print,
    ) -> None:
        self._nodes, self._service = nodes, service
        self._folder = PublicationFolder(path)
        self._cache_bytes, self._make_template, self._on_message = cache_bytes, make_template, on_message
        self._template: tuple[str, ModelTemplate] | None = None
        self._cache: CachedRows | None = None
        self._version, self._said = 0, ""

    def step(self) -> ServedModel | None:
        """Use the newest version, if it is another one; returns its model, or None if nothing changed."""
        try:
            version = self._nodes.newest()
            if version in (0, self._version):
                return None
            publication, job = self._fetch(version)
            model = self._model(publication, job)
        except HeadraceError as error:
            self._say(f"stays at version {self._version or 'none'}: {error}")
            return None
        self._service.use(model)
        self._version = version
        return model

    def run(self, stop: threading.Event) -> None:
        """Follow until stopped."""
        while not stop.wait(POLL_S):
            self.step()

    def status(self) -> dict[str, Any]:
        """JSON-able values."""
        cache = self._cache
        return {
            "memory_nodes": [client.address for client in self._nodes.clients],
            "cache_bytes": 0 if cache is None else cache.num_bytes,
            "cache_hit_ratio": None if cache is None else cache.hit_ratio,
        }

    def _model(self, publication: Publication, job: str) -> ServedModel:
        if self._template is None or self._template[0] != job:
            self._template = job, self._make_template(job)
        readers = {name: RowReader(headers) for name, headers in publication.tables.items()}
        self._nodes.use(readers)
        version = publication.version
        if self._cache is None:
            dims = {name: reader.embedding_dim for name, reader in readers.items()}
            self._cache = CachedRows(self._nodes, self._cache_bytes, dims)
        changed = {}
        for name in readers:
            since = self._cache.version(name)
            changed[name] = self._nodes.changed(name, since=since, version=version) if since else None
        about = ServedVersion(version, publication.step, publication.cut_at, self._folder.dense(publication))
        model = self._template[1].at(about, partial(self._cache.read, version))
        self._cache.advance(version, changed)
        return model

    def _fetch(self, version: int) -> tuple[Publication, str]:
        """The manifest, the dense parameters and the job of a version, from any node."""
        place = self._folder.place(version)
        last: Exception | None = None
        for client in self._nodes.clients:
            try:
                with writing(place, CheckpointError):
                    shutil.rmtree(self._folder.path, ignore_errors=True)
                    place.mkdir(parents=True)
                    (place / MANIFEST).write_bytes(client.manifest(version))
                    for name in (DENSE, JOB):
                        with (place / name).open("wb") as file:
                            file.writelines(client.read(f"{place.name}/{name}"))
                return self._folder.load(version), (place / JOB).read_text(encoding="utf-8")
            except (PublishingError, CheckpointError) as error:
                last = error
        raise last or PublishingError("no memory node answers")

    def _say(self, line: str) -> None:
        if line != self._said:
            self._said = line
            self._on_message(line)
