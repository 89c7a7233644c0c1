"""A pipeline over Parquet files: places in errors and rejects are those of the files, and quarantined rows replay."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import PipelineError
from headrace.logs import Schema, splits
from headrace.pipeline import Pipeline, read_parquet
from headrace.testing.pipelines import assert_resumes_everywhere, batches_of

SCHEMA = Schema.from_dict({"labels": ["click"], "dense": ["price"], "ids": ["user"]}, where="test")


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    for number in range(2):
        users = range(number * 100, number * 100 + 100)
        table = pa.table({"click": [user % 2 for user in users], "price": [user / 2 for user in users], "user": users})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=40)
    return tmp_path


def refuse_user_150(rows: pa.RecordBatch) -> pa.RecordBatch:
    if 150 in rows["user"].to_pylist():
        raise ValueError("user 150 is a robot")
    return rows


def pipe(logs: Path) -> Pipeline:
    return read_parquet(logs, SCHEMA)


def test_rows_arrive_in_the_order_of_files_and_a_stop_loses_none(logs: Path) -> None:
    built = pipe(logs).batch(33)
    rows = [row for batch in batches_of(built, workers=3) for row in batch]
    assert rows == sorted(rows)
    assert len(rows) == 200
    assert_resumes_everywhere(
        pipe(logs).shuffle(num_rows=70, seed=3).batch(33), first={"workers": 3}, then={"workers": 1}
    )


def test_an_error_names_the_file_the_row_group_and_the_row(logs: Path) -> None:
    with pipe(logs).map(refuse_user_150).open(workers=2) as batches, pytest.raises(PipelineError) as caught:
        list(batches)
    file = logs / "1.parquet"
    assert str(caught.value).startswith(
        f"stage map (refuse_user_150): ValueError: user 150 is a robot; at {file}, row 50; in {file}, row groups 0 to 2"
    )


@pytest.mark.parametrize(("joined", "cut", "row_group"), [(40, False, 1), (1024, False, None), (40, True, None)])
def test_a_quarantined_row_carries_its_place_also_from_an_element_of_two_row_groups_or_files(
    logs: Path, joined: int, cut: bool, row_group: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "JOINED_ROWS", joined)
    built = pipe(logs).batch(170) if cut else pipe(logs)
    with built.map(refuse_user_150, bad_rows="quarantine").open(workers=2) as batches:
        assert sum(batch.num_rows for batch in batches) == 199
        (rejects,) = batches.take_row_stats().rejects
    (row,) = rejects.to_pylist()
    assert (row["file"], row["row_group"], row["row"]) == (str(logs / "1.parquet"), row_group, 50)
    assert '"user": 150' in row["raw"]


def test_the_first_read_is_reserved_as_the_source_estimates_it(logs: Path) -> None:
    with pipe(logs).open(workers=1, memory_bytes=100) as batches:
        next(batches)
        (decision,) = [each for each in batches.decisions if "stage source" in each.reason]
    assert "above the budget" in decision.reason
