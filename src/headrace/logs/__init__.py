"""Interaction logs: schema, reading and writing, windows, bad rows."""

from headrace.logs.arrow_source import ArrowSource
from headrace.logs.checks import BadRowPolicy, ErrorBudget
from headrace.logs.cursor import Cursor, FileInfo, Selection, Window
from headrace.logs.files import Listing, LogFile, list_files, list_log, schema_beside
from headrace.logs.metadata import NewWindows, find_windows, read_infos
from headrace.logs.outputs import check_output
from headrace.logs.parquet_source import ParquetSource, select_files
from headrace.logs.quarantine import ReplaySource, read_rejects, replay_source, write_rejects
from headrace.logs.schema import DenseColumn, IdColumn, IdListColumn, LabelColumn, Schema, TimestampColumn
from headrace.logs.source import REJECT_SCHEMA, ROW_ID, Source, SourceBatch, make_row_id, split_row_id
from headrace.logs.windows import WindowConfig, describe_rest, plan_windows
from headrace.logs.writer import ParquetLogWriter, partition_folder, read_marker

__all__ = [
    "REJECT_SCHEMA",
    "ROW_ID",
    "ArrowSource",
    "BadRowPolicy",
    "Cursor",
    "DenseColumn",
    "ErrorBudget",
    "FileInfo",
    "IdColumn",
    "IdListColumn",
    "LabelColumn",
    "Listing",
    "LogFile",
    "NewWindows",
    "ParquetLogWriter",
    "ParquetSource",
    "ReplaySource",
    "Schema",
    "Selection",
    "Source",
    "SourceBatch",
    "TimestampColumn",
    "Window",
    "WindowConfig",
    "check_output",
    "describe_rest",
    "find_windows",
    "list_files",
    "list_log",
    "make_row_id",
    "partition_folder",
    "plan_windows",
    "read_infos",
    "read_marker",
    "read_rejects",
    "replay_source",
    "schema_beside",
    "select_files",
    "split_row_id",
    "write_rejects",
]
