"""Interaction logs at rest: their schema, reading and writing them, windows, bad rows."""

from headrace.logs.pieces import REJECT_SCHEMA, ROW_ID, Piece, Source, make_row_id, split_row_id
from headrace.logs.schema import DenseColumn, IdColumn, IdListColumn, LabelColumn, Schema, TimestampColumn
from headrace.logs.writer import ParquetLogWriter, partition_folder, read_marker

__all__ = [
    "REJECT_SCHEMA",
    "ROW_ID",
    "DenseColumn",
    "IdColumn",
    "IdListColumn",
    "LabelColumn",
    "ParquetLogWriter",
    "Piece",
    "Schema",
    "Source",
    "TimestampColumn",
    "make_row_id",
    "partition_folder",
    "read_marker",
    "split_row_id",
]
