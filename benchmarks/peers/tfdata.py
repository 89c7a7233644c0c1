"""Loader arms of tf.data: a generator over pyarrow, and TFRecords; AUTOTUNE sets parallelism and prefetching.

TFRecord files have fewer rows than the Parquet files (see `peers.data`), which rates per row take into account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.parquet as pq

from peers.data import Logs, tfrecord_file
from peers.work import BATCH_SIZE, COLUMNS, DENSE, IDS, LABEL, Batch, IdOp, raw_arrays, slices, tensorflow_ids

__all__ = ["from_generator", "tfrecord"]


def from_generator(logs: Logs, op: IdOp, *, rows: int) -> Callable[[], Iterator[Batch]]:
    """Decode and stack columns with pyarrow, and do the work in parallel calls of a TensorFlow graph.

    Args:
        logs: Logs to read.
        op: Operation on ids.
        rows: Rows per element of the generator, which become one batch.
    """
    import tensorflow as tf

    def generate() -> Iterator[tuple[Any, Any, Any]]:
        for file in logs.files:
            for record_batch in pq.ParquetFile(file).iter_batches(batch_size=65_536, columns=list(COLUMNS)):
                for part in slices(record_batch, rows):
                    yield raw_arrays(part)

    signature = (
        tf.TensorSpec((len(DENSE), None), tf.float32),
        tf.TensorSpec((len(IDS), None), tf.int64),
        tf.TensorSpec((None,), tf.float32),
    )

    def work(dense: Any, ids: Any, labels: Any) -> tuple[Any, Any, Any]:
        return tf.transpose(tf.math.log1p(dense)), tensorflow_ids(ids, op), labels

    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    dataset = dataset.map(work, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return lambda: (Batch(*batch) for batch in dataset)


def tfrecord(logs: Logs, op: IdOp, *, vectorised: bool) -> Callable[[], Iterator[Batch]]:
    """Read TFRecords of `tf.train.Example`.

    Args:
        logs: Logs to read.
        op: Operation on ids.
        vectorised: Whether examples have three features and are batched before they are parsed. Otherwise, they have
            one feature per column, are parsed one at a time and batched afterwards, as in most tutorials.
    """
    import tensorflow as tf

    path = tfrecord_file(logs, packed=vectorised)
    if vectorised:
        spec = {
            "dense": tf.io.FixedLenFeature([len(DENSE)], tf.float32),
            "ids": tf.io.FixedLenFeature([len(IDS)], tf.int64),
            LABEL: tf.io.FixedLenFeature([], tf.float32),
        }
    else:
        spec = {
            **{name: tf.io.FixedLenFeature([], tf.float32, 0.0) for name in (*DENSE, LABEL)},
            **{name: tf.io.FixedLenFeature([], tf.int64) for name in IDS},
        }

    def work(rows: dict[str, Any]) -> tuple[Any, Any, Any]:
        if vectorised:
            dense, ids = rows["dense"], tf.transpose(rows["ids"])
        else:
            dense, ids = tf.stack([rows[name] for name in DENSE], axis=1), tf.stack([rows[name] for name in IDS])
        return tf.math.log1p(dense), tensorflow_ids(ids, op), rows[LABEL]

    auto = tf.data.AUTOTUNE
    records = tf.data.TFRecordDataset(path)
    if vectorised:
        parsed = records.batch(BATCH_SIZE).map(lambda r: work(tf.io.parse_example(r, spec)), num_parallel_calls=auto)
    else:
        rows = records.map(lambda r: tf.io.parse_single_example(r, spec), num_parallel_calls=auto)
        parsed = rows.batch(BATCH_SIZE).map(work, num_parallel_calls=auto)
    dataset = parsed.prefetch(auto)
    return lambda: (Batch(*batch) for batch in dataset)
