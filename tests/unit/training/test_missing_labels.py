"""A label that some rows lack: they are trained on and scored for their other labels only."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import HeadraceError
from headrace.scoring import Scorer
from headrace.training import JobConfig, Trainer

ROWS = 400


def write_job(folder: Path, run: str, buys: list[float | None]) -> JobConfig:
    rng = np.random.default_rng(3)
    columns = {
        "click": rng.integers(0, 2, ROWS).astype(np.float32),
        "buy": pa.array(buys, pa.float32()),
        "item": rng.integers(0, 20, ROWS),
        "price": rng.random(ROWS).astype(np.float32),
    }
    (folder / f"logs-{run}").mkdir()
    pq.write_table(pa.table(columns), folder / f"logs-{run}" / "a.parquet")
    schema = "{labels: [click, {name: buy, allowed: null, kind: binary}], ids: [item], dense: [price]}"
    (folder / f"{run}.yaml").write_text(
        f"run: {run}\ndata: {{path: logs-{run}, schema: {schema}}}\n"
        "pipeline: {workers: 1, tuner: none, executor: inline}\n"
        "model: {kind: dlrm, embedding_dim: 4, bottom: [4], top: [4]}\n"
        "training: {batch_size: 64, threads: 1}\n"
    )
    return JobConfig.from_file(folder / f"{run}.yaml")


def test_rows_that_lack_a_label_train_and_score_for_the_others(tmp_path: Path) -> None:
    buys: list[float | None] = [None if number % 3 else float(number % 2) for number in range(ROWS)]
    job = write_job(tmp_path, "some", buys)
    (window,) = Trainer(job).run().windows
    assert (window.rows.num_used, window.rows.num_bad) == (ROWS, 0)
    scores = Scorer(job).evaluate(str(tmp_path / "logs-some"))
    assert all(np.isfinite(each.log_loss) for each in scores.values())


def test_a_label_that_is_no_probability_stops_training_with_one_line(tmp_path: Path) -> None:
    job = write_job(tmp_path, "stars", [float(number % 5) for number in range(ROWS)])
    with pytest.raises(HeadraceError, match=r"a label is [234], expected a number from 0 to 1") as caught:
        Trainer(job).run()
    assert "\n" not in str(caught.value)
