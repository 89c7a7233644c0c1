"""Compiles all kernels before the first batch, or loads them from the cache on disk."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa

from headrace.features.operators.lists import RowSampling
from headrace.features.plan import FeaturePlan
from headrace.logs.groups import group_array, group_name
from headrace.logs.schema import Schema

__all__ = ["warmup"]

_SCHEMA = Schema.from_dict(
    {
        "labels": ["y"],
        "dense": ["number"],
        "ids": ["id"],
        "id_lists": [{"name": "ids", "weights": "scores"}, "others"],
        "weight": "weight",
        "row_id": "row",
    },
    where="warmup",
)

_JOB = {
    "dense": {
        "number": ["log1p"],
        "hot": {"from": "number", "ops": [{"one_hot": [0, 1]}]},
        "score": {"from": ["ids", "scores", "others", "scores"], "ops": [{"compute_score": "sum"}]},
    },
    "sparse": {
        "id": [{"hash": 10}],
        "weighted": {"from": "ids", "weights": "scores"},
        "pairs": {"from": ["id", "others"], "ops": ["cartesian"]},
        "grams": {"from": "ids", "ops": ["ngram"]},
        "common": {"from": ["ids", "others"], "ops": ["id_list_transform"]},
        "mapped": {"from": "id", "ops": [{"map_id": {"mapping": {1: 2}}}]},
        "text": {"from": "others", "ops": [{"map_id": {"mapping": {"a": 2}}}]},
    },
}


def warmup() -> float:
    """Compile all feature kernels, or load them from the cache if they were compiled on this machine before.

    Plans are data to the kernels, so no plan needs further compilation. Compiling takes about half a minute on one
    core, loading about a second.

    Returns:
        Elapsed seconds.
    """
    start = time.perf_counter()
    lists = pa.array([[1, 2], [3, 4]], pa.list_(pa.int64()))
    rows = pa.record_batch(
        {
            "y": pa.array([0, 1]),
            "number": pa.array([1.0, 2.0], pa.float32()),
            "id": pa.array([1, 2]),
            "ids": lists,
            "scores": pa.array([[1.0, 2.0], [3.0, 4.0]]),
            "others": lists,
            "weight": pa.array([1.0, 1.0]),
            "row": pa.array([0, 1]),
            "__row_id": pa.array(np.arange(2)),
        }
    )
    FeaturePlan.from_config(_JOB, _SCHEMA).apply(rows)
    for order in ("adjacent", "any"):
        groups = {"groups": [["ids", "scores"], ["others", "number"]], "order": order}
        FeaturePlan.from_config({**_JOB, "dedup": groups}, _SCHEMA).apply(pa.concat_batches([rows, rows]))
    FeaturePlan.from_config(_JOB, _SCHEMA).apply(_grouped(rows))
    RowSampling(probability=0.5)(rows)
    return time.perf_counter() - start


def _grouped(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The same columns with some of them in a group whose lists are slices of a shared buffer."""
    views = pa.ListViewArray.from_arrays(
        pa.array([0, 1], pa.int32()), pa.array([2, 2], pa.int32()), pa.array([1, 2, 3])
    )
    group = group_array({"ids": views, "scores": rows.column("scores")}, np.zeros(2, np.int32))
    return rows.drop_columns(["ids", "scores"]).append_column(group_name(0), group)
