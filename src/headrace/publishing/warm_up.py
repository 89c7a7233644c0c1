"""Compiles the kernels of a replica ahead of time."""

from __future__ import annotations

from typing import get_args

import numpy as np

from headrace.embeddings.changes.delta import Columns
from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.storage.row_formats import RowFormat, storage_dtype, stored_width
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.publishing.served_tables import ServedTables, ServedVersion

__all__ = ["warm_up_replica"]


def warm_up_replica() -> None:
    """Apply versions of tables with each row format, with removed rows, and read them."""
    keys = Keys(np.zeros(2, np.int32), np.arange(2), np.zeros(2, np.int32))
    where: Columns = {"tables": keys.tables, "ids": keys.ids}
    for row_format in get_args(RowFormat):
        table = TableConfig(name="warm up", embedding_dim=8, rows=row_format)
        headers = {"tables": [TableGroupHeader.of([table], 0)]}
        weights = np.zeros((2, stored_width(row_format, 8)), storage_dtype(row_format))
        served = ServedTables(keep=1)
        for version in (1, 2):
            blocks = [("tables", "removed", where), ("tables", "rows", {**where, "weights": weights})]
            about = ServedVersion(version, version, 0.0, {})
            served.apply(about, headers, blocks, everything=True)
            served.read("tables", keys)
