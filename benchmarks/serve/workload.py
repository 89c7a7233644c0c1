"""The model that all servers answer with, and the requests: a trained run of headrace, its weights, bodies of requests.

A row has 13 numbers and 26 ids, as in Criteo's logs. The features are `log1p` of the numbers, and the ids themselves:
each is a row of a table of 40,000 rows of dimension 16. The model is a DLRM with MLPs of 512 and 256, trained for a few
steps, so that probabilities differ from row to row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = [
    "DENSE",
    "DIM",
    "IDS",
    "NUM_EMBEDDINGS",
    "WIDTHS",
    "Workload",
    "arrow_body",
    "check_probabilities",
    "json_body",
    "make_workload",
]

DENSE = tuple(f"dense_{number:02}" for number in range(13))
IDS = tuple(f"id_{number:02}" for number in range(26))
NUM_EMBEDDINGS, DIM = 40_000, 16
WIDTHS = (512, 256)
NUM_REQUEST_ROWS = 8192
"""Rows from which requests are made; more than fit into any cache of answers that a server might have."""
ZIPF = 0.9


@dataclass(frozen=True)
class Workload:
    """A folder with all that servers and their clients need.

    Attributes:
        folder: Holds `run` (the run), `job.yaml`, `weights.npz` (the same weights for other libraries), `rows.parquet`
            (the rows of requests) and `expected.npy` (their probabilities, float32).
    """

    folder: Path

    @property
    def job(self) -> Path:
        """The job file."""
        return self.folder / "job.yaml"

    @property
    def weights(self) -> Path:
        """Weights as arrays: `table_0` ... [N, D], `bottom_0_weight`, ..., `head_weight`."""
        return self.folder / "weights.npz"

    def rows(self) -> pa.RecordBatch:
        """The rows from which requests are made, without labels."""
        return pq.read_table(self.folder / "rows.parquet").combine_chunks().to_batches()[0]

    def expected(self) -> np.ndarray:
        """Probabilities of `rows`, float32, as headrace computes them offline."""
        return np.load(self.folder / "expected.npy")

    def bodies(self, num_records: int, kind: str, most: int = 512) -> list[bytes]:
        """Bodies of requests of consecutive rows; `kind` is json or arrow."""
        rows, encode = self.rows(), json_body if kind == "json" else arrow_body
        count = min(most, rows.num_rows // num_records)
        return [encode(rows.slice(at * num_records, num_records)) for at in range(count)]


def json_body(rows: pa.RecordBatch) -> bytes:
    """Encode rows as JSON records."""
    return json.dumps({"records": rows.to_pylist()}, separators=(",", ":")).encode()


def arrow_body(rows: pa.RecordBatch) -> bytes:
    """Encode rows as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return sink.getvalue().to_pybytes()


def make_workload(folder: Path, *, num_rows: int = 131_072, seed: int = 0) -> Workload:
    """Train the model on `num_rows` rows, and write everything into a folder."""
    import yaml

    from headrace.scoring import Scorer
    from headrace.training import JobConfig, Trainer

    workload = Workload(folder)
    (folder / "logs").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    log = _log(rng, num_rows)
    pq.write_table(pa.Table.from_batches([log]), folder / "logs" / "log.parquet")
    requests = _rows_of_requests(rng, log)
    pq.write_table(pa.Table.from_batches([requests]), folder / "rows.parquet")
    workload.job.write_text(yaml.safe_dump(job_values()), encoding="utf-8")
    job = JobConfig.from_file(workload.job)
    Trainer(job).run()
    scorer = Scorer(job)
    np.savez(workload.weights, **_weights(scorer.components.model))
    scorer.predict(str(folder / "rows.parquet"), folder / "predicted.parquet")
    np.save(folder / "expected.npy", pq.read_table(folder / "predicted.parquet")["p_label"].to_numpy())
    return workload


def job_values() -> dict[str, Any]:
    """The job file."""
    return {
        "run": "run",
        "data": {
            "path": "logs",
            "schema": {
                "labels": [{"name": "label", "allowed": [0, 1]}],
                "dense": list(DENSE),
                "ids": list(IDS),
            },
        },
        "features": {"dense": {name: [{"fill": 0}, "log1p"] for name in DENSE}, "sparse": {name: [] for name in IDS}},
        "embeddings": {"default": {"kind": "direct", "num_embeddings": NUM_EMBEDDINGS}},
        "model": {"kind": "dlrm", "embedding_dim": DIM, "bottom": list(WIDTHS), "top": list(WIDTHS)},
        "training": {"batch_size": 512, "precision": "fp32", "dense_optimizer": {"kind": "adam", "lr": 0.001}},
    }


def _log(rng: np.random.Generator, count: int) -> pa.RecordBatch:
    """Rows whose ids follow a Zipf distribution, and whose labels depend on two ids and a number."""
    shares = np.arange(1, NUM_EMBEDDINGS + 1) ** -ZIPF
    cumulative = np.cumsum(shares / shares.sum())
    columns: dict[str, np.ndarray] = {}
    for name in DENSE:
        columns[name] = np.floor(rng.lognormal(1.0, 1.5, count)).astype(np.float32)
    for name in IDS:
        ranks = np.searchsorted(cumulative, rng.random(count)).clip(0, NUM_EMBEDDINGS - 1)
        columns[name] = ranks * 7919 % NUM_EMBEDDINGS  # frequent ids are all over the table
    score = (columns["id_00"] % 7) - (columns["id_01"] % 5) + np.log1p(columns["dense_00"]) - 3
    columns["label"] = (rng.random(count) < 1 / (1 + np.exp(-score))).astype(np.int8)
    return pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in columns.items()})


def _rows_of_requests(rng: np.random.Generator, log: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of values from the log, so that all ids were trained on, in new combinations."""
    columns = {
        name: log.column(name).take(pa.array(rng.integers(len(log), size=NUM_REQUEST_ROWS))) for name in DENSE + IDS
    }
    return pa.RecordBatch.from_pydict(columns)


def _weights(model: Any) -> dict[str, np.ndarray]:
    """The parameters of a DLRM of headrace by the names that peers use."""
    from headrace.embeddings import embedding_bags

    arrays: dict[str, np.ndarray] = {}
    for part in ("bottom", "top"):
        linears = [layer for layer in getattr(model, part) if hasattr(layer, "weight")]
        for at, layer in enumerate(linears):
            arrays[f"{part}_{at}_weight"] = layer.weight.detach().numpy()
            arrays[f"{part}_{at}_bias"] = layer.bias.detach().numpy()
    arrays["head_weight"], arrays["head_bias"] = model.head.weight.detach().numpy(), model.head.bias.detach().numpy()
    (bags,) = embedding_bags(model).values()
    columns = bags.table_group.state_dict()
    names = [table.name for table in bags.table_group.tables]
    for number, name in enumerate(IDS):
        mine = columns["tables"] == names.index(name)
        table = np.zeros((NUM_EMBEDDINGS, DIM), np.float32)
        table[columns["ids"][mine]] = columns["weights"][mine]
        arrays[f"table_{number}"] = table
    return arrays


def check_probabilities(given: Sequence[float], expected: np.ndarray, *, where: str) -> None:
    """Refuse answers that are not those of the model.

    Raises:
        ValueError: A probability differs by more than 1e-5.
    """
    gap = float(np.abs(np.asarray(given, np.float64) - expected).max()) if len(given) == len(expected) else np.inf
    if not gap <= 1e-5:
        raise ValueError(f"{where}: probabilities differ by {gap:.3g}, expected at most 1e-5")
