"""`ServedModel`: one version of a model, which scores rows; `ModelTemplate` makes one of each version."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from headrace.embeddings import EmbeddingBags, Keys, embedding_bags, key_layouts
from headrace.embeddings.changes.log import RowBlock
from headrace.errors import CheckpointError, HeadraceError
from headrace.features import FeaturePlan
from headrace.models.row_bits import rows_for_equal_bits
from headrace.publishing.served_tables import ServedVersion
from headrace.scoring.forward import Forward
from headrace.scoring.predictions import predicted
from headrace.serving.requests import RequestReader
from headrace.training.commits import table_group_name
from headrace.training.components import build_components
from headrace.training.job import JobConfig

__all__ = ["ModelTemplate", "ReadRows", "ServedModel", "VersionStore"]

Float32s = npt.NDArray[np.float32]

ReadRows = Callable[[str, Keys], Float32s]
"""Rows of unique keys of a table group at one version, float32 [U, D]."""


class VersionStore:
    """An `EmbeddingStore` of one version, for reading only.

    Args:
        read_rows: Reads rows.
        table_group: Name of the table group.
    """

    def __init__(self, read_rows: ReadRows, table_group: str) -> None:
        self._read_rows, self._table_group = read_rows, table_group

    @property
    def step(self) -> int:
        """See `EmbeddingStore`; a version has no further steps."""
        return 0

    def read(self, keys: Keys, *, after: int | None = None) -> Future[Float32s]:
        """See `EmbeddingStore.read`."""
        rows: Future[Float32s] = Future()
        rows.set_result(self._read_rows(self._table_group, keys))
        return rows

    def update(self, keys: Keys, gradients: Float32s, *, num_rows: int = 1, lr_factor: float = 1.0) -> Future[None]:
        """Not possible."""
        raise HeadraceError("a served version cannot be trained")

    def evict(self, keys: Keys) -> Future[int]:
        """Not possible."""
        raise HeadraceError("a served version cannot be changed")

    def changes(self, since: int = 0) -> Iterator[RowBlock]:
        """Not possible."""
        raise HeadraceError("a served version records no changes")

    def acknowledge(self, consumer: str, version: int) -> None:
        """Nothing to do."""


class ServedModel:
    """A model at one version, which never changes. Thread-safe.

    Requests take a reference to one model, so that rows and dense parameters of an answer are of one version, however
    many versions arrive meanwhile.

    Attributes:
        about: The version.
        model: The module, with a store of that version.
    """

    def __init__(self, about: ServedVersion, template: ModelTemplate, model: nn.Module) -> None:
        self.about = about
        self.model = model
        self._template = template
        self._forward = Forward(model, template.least_rows)

    @property
    def version(self) -> int:
        """Number of the version."""
        return self.about.version

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the L labels."""
        return self._template.label_names

    @property
    def is_regression(self) -> tuple[bool, ...]:
        """Which of the labels are numbers."""
        return self._template.is_regression

    @property
    def reader(self) -> RequestReader:
        """Reads rows from the bodies of requests."""
        return self._template.reader

    @property
    def plan(self) -> FeaturePlan:
        """The feature plan, without labels."""
        return self._template.plan

    def score(self, rows: pa.RecordBatch) -> Float32s:
        """Probabilities of binary labels and values of numbers, float32 [N, L], as `headrace predict` writes them.

        Args:
            rows: N rows with the columns of `plan`, plain or in groups.

        Raises:
            DataError: A value is not valid in the logs of the job.
        """
        num_rows = rows.num_rows
        if not num_rows:
            return np.zeros((0, len(self.label_names)), np.float32)
        padded = self._forward.padded(num_rows)
        if padded != num_rows:  # already here, since filling up a batch would find its keys twice
            rows = rows.take(pa.array(np.minimum(np.arange(padded), num_rows - 1)))
        batch = self._template.plan.apply(rows).with_keys(self._template.layouts)
        logits = self._forward(batch).numpy()[:num_rows]
        return np.stack(predicted(logits, self._template.is_regression), axis=1)


class ModelTemplate:
    """What all versions of a model with one job have in common: features, module, and how labels are predicted.

    Args:
        job: The job of the run.

    Attributes:
        job: The job.
        plan: The feature plan, without labels.
        layouts: Key layouts of the module.
        reader: Reads rows from the bodies of requests.
        label_names, is_regression: Of the L labels.
        least_rows: See `Forward`.

    Raises:
        ConfigError: Features, embeddings, model and schema do not fit together.
    """

    def __init__(self, job: JobConfig) -> None:
        components = build_components(
            job.model_copy(update={"training": job.training.model_copy(update={"device": "cpu"})})
        )
        self.job = job
        self.plan = components.plan.without_labels()
        self.label_names, self.is_regression = components.label_names, components.is_regression
        self._module = components.model.eval()
        for module, bags in embedding_bags(self._module).items():
            bags.use_store(VersionStore(_no_rows, table_group_name(module)))
        self.layouts = key_layouts(self._module)
        self.reader = RequestReader(self.plan)
        self.least_rows = rows_for_equal_bits(self._module)

    @property
    def table_groups(self) -> Sequence[str]:
        """Names of the table groups of the module."""
        return [table_group_name(name) for name in embedding_bags(self._module)]

    def at(self, about: ServedVersion, read_rows: ReadRows) -> ServedModel:
        """The model at a version.

        Args:
            about: The version, with dense parameters.
            read_rows: Reads rows of this version.

        Raises:
            CheckpointError: The dense parameters do not fit the module.
        """
        model = copy.deepcopy(self._module)
        state = {name: torch.from_numpy(np.array(array)) for name, array in about.dense.items()}
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(
                f"version {about.version}: dense parameters: {' '.join(str(error).split())}"
            ) from error
        bags: EmbeddingBags
        for name, bags in embedding_bags(model).items():
            bags.use_store(VersionStore(read_rows, table_group_name(name)))
        return ServedModel(about, self, model)


def _no_rows(table_group: str, keys: Any) -> Float32s:
    raise HeadraceError(f"table group {table_group}: has no version yet")
