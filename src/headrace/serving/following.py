"""`ModelFollower`: makes a model of each version that a replica serves, and has a service answer with it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from contextlib import suppress

import pyarrow as pa

from headrace.errors import CheckpointError, HeadraceError
from headrace.publishing.served_tables import ServedTables, View
from headrace.serving.model import ModelTemplate, ServedModel
from headrace.serving.service import ScoringService

__all__ = ["ModelFollower"]

POLL_S = 0.5
WARM_UP_ROWS = 256


class ModelFollower:
    """Follows the served version of tables, also back to an earlier one.

    A model is made beside the one that answers; then a single reference changes. If it cannot be made, the model stays.

    Args:
        tables: The versions.
        service: The service.
        read_job: The job of a version, as text.
        make_template: A template from the text of a job.
        on_message: Called with a line for each event.
    """

    def __init__(
        self,
        tables: ServedTables,
        service: ScoringService,
        *,
        read_job: Callable[[int], str],
        make_template: Callable[[str], ModelTemplate],
        on_message: Callable[[str], object] = print,
    ) -> None:
        self._tables, self._service = tables, service
        self._read_job, self._make_template, self._on_message = read_job, make_template, on_message
        self._template: tuple[str, ModelTemplate] | None = None
        self._seen: View | None = None

    def step(self, *, timeout_s: float = 0.0) -> ServedModel | None:
        """Use the served version if it is another one; returns its model, or None if nothing changed."""
        view = self._tables.wait(self._seen, timeout_s=timeout_s)
        if view is None or view is self._seen:
            return None
        self._seen = view
        try:
            model = self._template_of(view).at(view.about, view.read)
        except HeadraceError as error:
            self._on_message(f"version {view.version} is not used: {error}")
            return None
        is_first = self._service.num_swaps == 0
        if is_first:
            _warm_up(model)
        self._service.use(model)
        if is_first:  # what is loaded now stays; looking through it again would stop all requests for 0.2 s
            gc.collect()
            gc.freeze()
        return model

    def run(self, stop: threading.Event) -> None:
        """Follow until stopped."""
        while not stop.is_set():
            self.step(timeout_s=POLL_S)

    def _template_of(self, view: View) -> ModelTemplate:
        try:
            job = self._read_job(view.version)
        except CheckpointError:  # its files were deleted, as newer ones came; jobs rarely change
            if self._template is None:
                raise
            return self._template[1]
        if self._template is None or self._template[0] != job:
            self._template = job, self._make_template(job)
        return self._template[1]


def _warm_up(model: ServedModel) -> None:
    """Score rows without values, so that the first request does not wait for kernels to be loaded."""
    with suppress(HeadraceError):  # nulls may not be valid
        rows = model.reader.records(b'{"records": [{}]}')
        for num_rows in (1, WARM_UP_ROWS):
            model.score(rows.take(pa.array([0] * num_rows)))
