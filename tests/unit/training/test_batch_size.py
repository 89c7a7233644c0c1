"""Batches that grow with the log: where they begin and end."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import ConfigError
from headrace.pipeline import GrowingSize
from headrace.training.batch_size import batch_sizes, smallest_batch
from headrace.training.job import JobConfig, TrainingConfig
from headrace.training.trainer import Trainer


@pytest.mark.parametrize(
    ("first", "sizes"),
    [(None, {0: 128, 8_191: 128, 8_192: 256, 16_384: 512, 32_768: 1024}), (256, {0: 256, 8_192: 256, 16_384: 512})],
)
def test_automatic_batches_begin_with_the_first_size_and_grow_with_the_log(
    first: int | None, sizes: dict[int, int]
) -> None:
    found = batch_sizes("auto", first, 0, [50_000])
    assert isinstance(found, GrowingSize)
    assert {rows: found.after(rows) for rows in sizes} == sizes
    assert next(islice(found.sizes(0, 0), 1)) == smallest_batch("auto", first) == sizes[0]


def test_a_number_is_the_size_of_all_batches_and_has_no_first_size() -> None:
    assert batch_sizes(64, None, 0, [100]) == smallest_batch(64, None) == 64
    with pytest.raises(ConfigError, match=r"first_batch_size is only for batch_size auto, given batch_size 64"):
        TrainingConfig(batch_size=64, first_batch_size=32)


@pytest.mark.parametrize(("training", "num_steps"), [({}, 1), ({"first_batch_size": 32}, 4)])
def test_a_run_begins_with_batches_of_the_first_size(training: dict[str, int], num_steps: int, tmp_path: Path) -> None:
    values = {
        "run": str(tmp_path / "run"),
        "data": {"path": str(tmp_path / "logs"), "schema": {"labels": ["click"], "ids": ["item"]}},
        "pipeline": {"workers": 1, "tuner": "none", "executor": "inline"},
        "model": {"kind": "dcnv2", "embedding_dim": 2, "deep": [2]},
        "training": {"threads": 1, **training},
    }
    (tmp_path / "logs").mkdir()
    pq.write_table(pa.table({"click": [0, 1] * 50, "item": list(range(100))}), tmp_path / "logs" / "a.parquet")
    trainer = Trainer(JobConfig.from_dict(values, where="job").resolve(tmp_path))
    assert trainer.run().step == num_steps
