"""Synthetic logs in Criteo's format for the loader benchmarks; they depend only on the size, and are kept between runs.

Cardinalities and shares of nulls are those of Criteo's logs. Ids follow a Zipf distribution with exponent 1 and are
hashed, so that they look like the 32-bit hashes in Criteo's logs; counts are long-tailed; labels depend on both. Each
Parquet file (zstd) has two row groups of 131,072 rows. A row takes about as many bytes (54 against 48), and as long to
decode (192 against 189 ns), as a row of Criteo's logs written in the same way.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from peers.work import COLUMNS, DENSE, IDS, LABEL

__all__ = ["ROW_GROUP_ROWS", "Logs", "make_logs"]

ROW_GROUP_ROWS = 131_072
GROUPS_PER_FILE = 2
VERSION = 4
SCHEMA = pa.schema([(name, pa.int64() if name in IDS else pa.float32()) for name in COLUMNS])
NULL_RATIOS = (0.45, 0.0, 0.21, 0.21, 0.03, 0.22, 0.04, 0.0, 0.04, 0.45, 0.04, 0.77, 0.21)
CARDINALITIES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
TFRECORD_ROWS = 131_072
"""Rows in the TFRecord files; fewer than in Parquet, because they are written row by row in Python."""


@dataclass(frozen=True)
class Logs:
    """A folder of logs.

    Attributes:
        folder: Folder of the Parquet files.
        num_rows: Number of rows.
    """

    folder: Path
    num_rows: int

    @property
    def files(self) -> list[str]:
        """Paths of the Parquet files, in order."""
        return [str(path) for path in sorted(self.folder.glob("*.parquet"))]

    @property
    def num_bytes(self) -> int:
        """Total size of the Parquet files in bytes."""
        return sum(os.path.getsize(file) for file in self.files)

    @property
    def row_groups(self) -> list[tuple[str, int]]:
        """(file, number) of each row group, in order."""
        return [(file, group) for file in self.files for group in range(pq.ParquetFile(file).num_row_groups)]

    @property
    def arrow_file(self) -> str:
        """Path of an uncompressed Arrow IPC file with the same rows, written at first use."""
        path = self.folder / "rows.arrow"
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}")
            with pa.OSFile(str(part), "wb") as sink:
                first = pq.ParquetFile(self.files[0]).schema_arrow
                with pa.ipc.new_file(sink, first) as writer:
                    for file in self.files:
                        for batch in pq.ParquetFile(file).iter_batches(batch_size=65_536):
                            writer.write_batch(batch)
            part.rename(path)
        return str(path)


def make_logs(num_rows: int, folder: str | None = None) -> Logs:
    """Write logs of `num_rows` rows below `folder` (default: the temporary folder), unless they exist already."""
    base = Path(folder or tempfile.gettempdir())
    target = base / f"headrace-bench-logs-v{VERSION}-{num_rows}"
    if not target.exists():
        part = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        per_file = ROW_GROUP_ROWS * GROUPS_PER_FILE
        for number, start in enumerate(range(0, num_rows, per_file)):
            rows = min(per_file, num_rows - start)
            with pq.ParquetWriter(part / f"part-{number:03}.parquet", SCHEMA, compression="zstd") as writer:
                for group in _row_groups(number, rows):
                    writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
        part.rename(target)
    return Logs(target, num_rows)


def _row_groups(file: int, num_rows: int) -> Iterator[pa.Table]:
    for start in range(0, num_rows, ROW_GROUP_ROWS):
        rows = min(ROW_GROUP_ROWS, num_rows - start)
        rng = np.random.default_rng((7, file, start))
        columns, log_odds = [], np.full(rows, -1.3)
        for number, ratio in enumerate(NULL_RATIOS):
            counts = np.floor(rng.lognormal(number % 4, 1.5, rows)).astype(np.float32)
            columns.append(pa.array(counts, mask=rng.random(rows) < ratio))
            log_odds += 0.1 * (-1) ** number * (np.log1p(counts) - number % 4)
        for number, num_ids in enumerate(CARDINALITIES):
            ranks = np.floor(float(num_ids) ** rng.random(rows)).astype(np.uint64)
            mixed = (ranks * np.uint64(0x9E3779B97F4A7C15) + np.uint64(number)) >> np.uint64(32)
            columns.append(pa.array(mixed.astype(np.int64)))
            log_odds += 0.3 * ((mixed & np.uint64(255)).astype(np.float64) / 127.5 - 1)
        labels = rng.random(rows) < 1 / (1 + np.exp(-log_odds))
        yield pa.Table.from_arrays([pa.array(labels.astype(np.float32)), *columns], schema=SCHEMA)


def tfrecord_file(logs: Logs, *, packed: bool) -> str:
    """Return a file with the first rows as TFRecords of `tf.train.Example`, written at first use.

    Args:
        logs: Logs whose first rows are converted.
        packed: Whether an example has three features (dense, ids, label) instead of one per column.
    """
    import tensorflow as tf

    path = logs.folder / f"{'packed' if packed else 'columns'}-{TFRECORD_ROWS}.tfrecord"
    if path.exists():
        return str(path)
    rows = pq.ParquetFile(logs.files[0]).read_row_group(0).slice(0, TFRECORD_ROWS)
    dense = np.stack([rows[name].fill_null(0).to_numpy() for name in DENSE], axis=1)
    ids = np.stack([rows[name].to_numpy() for name in IDS], axis=1)
    labels = rows[LABEL].to_numpy()
    null = np.stack([rows[name].is_null().to_numpy() for name in DENSE], axis=1)

    def floats(values: list[float]) -> tf.train.Feature:
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    def ints(values: list[int]) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    part = path.with_suffix(f".{os.getpid()}")
    with tf.io.TFRecordWriter(str(part)) as writer:
        for number_row, id_row, label, nulls in zip(dense, ids, labels, null, strict=True):
            if packed:
                features = {"dense": floats(number_row.tolist()), "ids": ints(id_row.tolist())}
            else:
                features = {
                    name: floats([value])
                    for name, value, gone in zip(DENSE, number_row.tolist(), nulls, strict=True)
                    if not gone
                }
                features |= {name: ints([value]) for name, value in zip(IDS, id_row.tolist(), strict=True)}
            features[LABEL] = floats([float(label)])
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    part.rename(path)
    return str(path)
