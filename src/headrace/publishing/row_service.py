"""`row_actions`: rows of a replica's versions, for servers that have none or not all of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from headrace.errors import PublishingError
from headrace.publishing.row_messages import pack_changed, unpack_changed_request, unpack_keys
from headrace.publishing.row_reader import RowReader
from headrace.publishing.served_tables import ServedTables, View
from headrace.publishing.server import RawAct

__all__ = ["CHANGED_ROWS", "READ_ROWS", "row_actions"]

READ_ROWS, CHANGED_ROWS = "read_rows", "changed_rows"


def row_actions(tables: ServedTables) -> Mapping[str, RawAct]:
    """Raw actions for `PublicationServer`, see `row_messages`."""

    def read(message: bytes) -> bytes:
        table_group, version, keys = unpack_keys(message)
        view = tables.view_of(version)
        num_tables = len(_reader_of(view, table_group).table_names)
        if len(keys) and not 0 <= int(keys.tables.min()) <= int(keys.tables.max()) < num_tables:
            raise PublishingError(f"read: a key names a table beyond the {num_tables} of {table_group}")
        rows = view.read(table_group, keys)
        return np.ascontiguousarray(rows, "<f4").tobytes()

    def changed(message: bytes) -> bytes:
        table_group, since, version = unpack_changed_request(message)
        _reader_of(tables.view_of(version), table_group)
        return pack_changed(tables.changed(table_group, since=since, version=version))

    return {READ_ROWS: read, CHANGED_ROWS: changed}


def _reader_of(view: View, table_group: str) -> RowReader:
    reader = view.readers.get(table_group)
    if reader is None:
        raise PublishingError(f"table group {table_group[:100]!r}: unknown, expected one of: {', '.join(view.readers)}")
    return reader
