"""Workloads of `bench_schedule.py`; each has rows in memory, a feature plan and a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["NAMES", "Workload", "log_name", "make_workload"]

NAMES = ("criteo", "rm2", "industrial")
NUM_BATCHES = 24  # distinct batches, which a run repeats
SKEW = 1.05  # Zipf exponent of ids, about that of Criteo's large features


@dataclass(frozen=True)
class Workload:
    """A model and the rows it is trained on.

    Attributes:
        name: Name of the workload.
        batch_size: Rows per step.
        embedding_dim: Numbers per embedding row.
        schema: Schema, as for `Schema.from_dict`.
        features: Features, as for `FeaturePlan.from_config`.
        model: Model, as for `ModelConfig`.
        table: Rows of all batches.
    """

    name: str
    batch_size: int
    embedding_dim: int
    schema: dict[str, Any]
    features: dict[str, Any]
    model: dict[str, Any]
    table: pa.Table

    @property
    def borders(self) -> list[float]:
        """Borders of the buckets into which dense columns are cut for features of their own; none without them."""
        buckets = self.features["sparse"].get("b0")
        return [] if buckets is None else [float(border) for border in buckets["ops"][0]["bucketize"]]


def log_name(folder: Path, batch_size: int, dim: int) -> str:
    """The name of a workload that is the first file of a log in Criteo's format."""
    return f"log:{batch_size}:{dim}:{folder}"


def make_workload(name: str, *, quick: bool = False) -> Workload:
    """Create a workload by name (of `NAMES`, or a `log_name`); it is the same in every process."""
    if name.startswith("log:"):
        _, batch_size, dim, folder = name.split(":", 3)
        return _of_log(Path(folder), int(batch_size), int(dim))
    return {"criteo": _criteo, "rm2": _rm2, "industrial": _industrial}[name](8 if quick else NUM_BATCHES)


def _criteo(num_batches: int) -> Workload:
    """13 dense columns and 26 single ids, as in Criteo's logs, with the operators of TorchArrow's RM1 recipe."""
    batch_size = 1024
    rng = np.random.default_rng(1)
    num_rows = batch_size * num_batches
    columns = {f"i{n}": rng.exponential(50.0, num_rows) for n in range(13)}
    sizes = np.geomspace(10, 2_000_000, 26).astype(np.int64)
    columns |= {f"c{n}": _ids(rng, num_rows, int(size)) for n, size in enumerate(sizes)}
    features = {
        "dense": {f"i{n}": [{"fill": 0}, "log1p"] for n in range(13)},
        "sparse": {f"c{n}": [{"hash": {"range": 1_000_000}}] for n in range(26)}
        | {f"b{n}": {"from": f"i{n}", "ops": [{"bucketize": _borders(256)}]} for n in range(13)},
    }
    return _workload("criteo", batch_size, 16, columns, [], features, num_rows, rng)


def _rm2(num_batches: int) -> Workload:
    """504 dense columns and 42 lists of 20 ids, as in Meta's RM2, and crosses of lists: mostly feature work."""
    batch_size = 256
    rng = np.random.default_rng(2)
    num_rows = batch_size * num_batches
    columns = {f"d{n}": rng.exponential(5.0, num_rows) for n in range(504)}
    lists = {f"l{n}": _lists(rng, num_rows, 20, 300_000) for n in range(42)}
    sparse: dict[str, Any] = {f"l{n}": [{"hash": {"range": 200_000}}, {"first_x": 2}] for n in range(42)}
    for n in range(12):
        sparse[f"x{n}"] = {"from": [f"l{n}", f"l{n + 12}"], "ops": _cross(50_000, 1)}
        sparse[f"g{n}"] = {"from": f"l{n}", "ops": _grams(3, 50_000, 1)}
    sparse |= {f"b{n}": {"from": f"d{n}", "ops": [{"bucketize": _borders(1024)}]} for n in range(21)}
    dense = {f"d{n}": [{"fill": 0}, {"box_cox": 0.3}, {"clamp": {"min": -10, "max": 10}}] for n in range(504)}
    features = {"dense": dense, "sparse": sparse}
    return _workload("rm2", batch_size, 16, columns, list(lists), features, num_rows, rng, lists)


def _industrial(num_batches: int) -> Workload:
    """Feature groups of unequal cost: some consist almost only of computation, others only of communication."""
    batch_size = 256
    rng = np.random.default_rng(3)
    num_rows = batch_size * num_batches
    columns = {f"d{n}": rng.exponential(5.0, num_rows) for n in range(16)}
    columns |= {f"u{n}": _ids(rng, num_rows, 3_000_000) for n in range(6)}
    lists = {f"l{n}": _lists(rng, num_rows, size, 500_000) for n, size in enumerate((40, 30, 20, 10))}
    pairs = ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3))
    sparse: dict[str, Any] = {
        f"cross{one}{two}": {"from": [f"l{one}", f"l{two}"], "ops": _cross(200_000, 2)} for one, two in pairs
    }
    sparse |= {f"grams{n}": {"from": f"l{n}", "ops": _grams(4, 200_000, 2)} for n in range(2)}
    sparse |= {
        "history": {"from": "l0", "ops": [{"first_x": 10}, {"hash": {"range": 400_000}}]},
        "recent": {"from": "l2", "ops": [{"first_x": 6}, {"hash": {"range": 400_000}}]},
    }
    sparse |= {f"u{n}": [{"hash": {"range": 1_000_000}}] for n in range(6)}
    sparse |= {f"b{n}": {"from": f"d{n}", "ops": [{"bucketize": _borders(512)}]} for n in range(8)}
    dense = {f"d{n}": [{"fill": 0}, "log1p"] for n in range(16)}
    features = {"dense": dense, "sparse": sparse}
    return _workload("industrial", batch_size, 32, columns, list(lists), features, num_rows, rng, lists)


def _of_log(folder: Path, batch_size: int, dim: int) -> Workload:
    """The rows of a log with dense columns I and columns of ids C; ids are numbered, so that tables are small."""
    rows = pq.read_table(sorted(folder.glob("*.parquet"))[0])
    dense = [name for name in rows.column_names if name.startswith("I")]
    ids = [name for name in rows.column_names if name.startswith("C")]
    columns = {f"i{n}": rows[name].fill_null(0).to_numpy().astype(np.float32) for n, name in enumerate(dense)}
    columns = {name: np.maximum(values, 0) for name, values in columns.items()}
    numbers = {f"c{n}": np.unique(rows[name].fill_null(0), return_inverse=True)[1] for n, name in enumerate(ids)}
    label = rows["label"].to_numpy().astype(np.float32)
    return Workload(
        folder.name,
        batch_size,
        dim,
        {"labels": ["label"], "dense": list(columns), "ids": list(numbers), "id_lists": []},
        {"dense": {name: ["log1p"] for name in columns}, "sparse": {name: [] for name in numbers}},
        {"kind": "dlrm", "embedding_dim": dim, "bottom": [512, 256], "top": [512, 256]},
        pa.table({"label": label, **columns, **{name: each.astype(np.int64) for name, each in numbers.items()}}),
    )


def _cross(size: int, count: int) -> list[Any]:
    """Return operators that hash all pairs of ids of two lists twice; the first `count` are looked up."""
    hashes = [{"hash": {"range": 1_000_000}}, {"hash": {"range": size, "salt": 1}}]
    return [{"cartesian": 1024}, *hashes, {"first_x": count}]


def _grams(length: int, size: int, count: int) -> list[Any]:
    """Return operators that do the same with all runs of `length` ids."""
    hashes = [{"hash": {"range": 1_000_000}}, {"hash": {"range": size, "salt": 1}}]
    return [{"ngram": length}, *hashes, {"first_x": count}]


def _workload(
    name: str,
    batch_size: int,
    dim: int,
    columns: dict[str, Any],
    lists: list[str],
    features: dict[str, Any],
    num_rows: int,
    rng: np.random.Generator,
    list_columns: dict[str, pa.Array] | None = None,
) -> Workload:
    floats = [key for key, value in columns.items() if value.dtype.kind == "f"]
    ids = [key for key, value in columns.items() if value.dtype.kind == "i"]
    schema = {"labels": ["label"], "dense": floats, "ids": ids, "id_lists": lists}
    table = pa.table(
        {"label": rng.integers(0, 2, num_rows).astype(np.float32)}
        | {key: value.astype(np.float32) if key in floats else value for key, value in columns.items()}
        | (list_columns or {})
    )
    model = {"kind": "dlrm", "embedding_dim": dim, "bottom": [256, 64], "top": [256, 128]}
    return Workload(name, batch_size, dim, schema, features, model, table)


def _ids(rng: np.random.Generator, num_ids: int, size: int) -> Any:
    """Draw ids from 0 to `size` - 1 from a Zipf distribution, in which smaller ids are more frequent."""
    return np.minimum(_zipf(rng, num_ids, size).astype(np.int64), size) - 1


def _zipf(rng: np.random.Generator, num_ids: int, size: int) -> Any:
    power = 1 - SKEW
    return (1 + rng.random(num_ids) * ((size + 1.0) ** power - 1)) ** (1 / power)


def _lists(rng: np.random.Generator, num_rows: int, length: int, size: int) -> pa.Array:
    lengths = rng.poisson(length, num_rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(_ids(rng, int(offsets[-1]), size)))


def _borders(count: int) -> list[float]:
    return [float(value) for value in np.geomspace(0.01, 500.0, count)]
