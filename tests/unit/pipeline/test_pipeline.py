"""The fluent graph: names, checks with clear words, and which stages run together."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from headrace.errors import ConfigError
from headrace.logs import Schema
from headrace.pipeline import Pipeline, from_source, read_arrow, read_parquet
from headrace.pipeline.engine.options import OpenOptions, make_groups
from headrace.testing.pipelines import SyntheticSource, batches_of


class Identity:
    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch


def same(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows


def pipe() -> Pipeline:
    return from_source(SyntheticSource([[(10, 0, 0)], [(10, 0, 0)]]))


def groups(pipeline: Pipeline, **options: object) -> list[str]:
    defaults = {"workers": 2, "memory_bytes": "1GiB", "executor": "thread", "epoch": 0, "rank": 0, "num_ranks": 1}
    checked = OpenOptions.check(pipeline.plan, **{**defaults, "decisions": None, **options})
    return [f"{group.name}:{group.executor}" for group in make_groups(pipeline.plan, checked)]


def test_a_pipeline_is_not_changed_by_its_methods() -> None:
    first = pipe()
    second = first.map(same)
    assert not first.plan.stages
    assert [stage.name for stage in second.plan.stages] == ["map"]


def test_stages_get_names_that_are_all_different() -> None:
    built = pipe().map(same).map(same, name="map3").map(same).filter(same)
    assert [stage.name for stage in built.plan.stages] == ["map", "map3", "map2", "filter"]


def test_neighbours_run_together_until_a_cut_another_executor_or_workers_of_their_own() -> None:
    built = pipe().map(same).filter(same).shuffle(num_rows=5).batch(2).transform(Identity())
    assert groups(built) == ["map+filter:thread", "shuffle:thread", "batch+transform:thread"]
    assert groups(built, workers={"filter": 1})[:2] == ["map:thread", "filter:thread"]
    assert groups(built, executor="process")[:2] == ["map+filter:process", "shuffle:thread"]
    mixed = pipe().map(same, executor="process").filter(same).map(same, timeout_s=1.0)
    assert groups(mixed) == ["map:process", "filter:thread", "map2:thread"]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda p: p.batch(0), "batch: size: given 0, expected a whole number from 1 on"),
        (lambda p: p.shuffle(num_rows=True), "shuffle: num_rows: given True"),
        (lambda p: p.shuffle(num_rows=5, seed=-1), "shuffle: seed: given -1"),
        (lambda p: p.map("clean"), "expected a function of a record batch, given str"),
        (lambda p: p.map(same, executor="fork"), 'map: executor: given \'fork\', expected "thread" or "process"'),
        (lambda p: p.map(same, bad_rows="skip"), "map: bad_rows: given 'skip'"),
        (lambda p: p.map(same, timeout_s=0), "map: timeout_s: given 0"),
        (lambda p: p.map(same, name="a+b"), "map: name: given 'a+b'"),
        (lambda p: p.map(same, name="x").filter(same, name="x"), "expected a unique name"),
        (lambda p: p.transform(same), "transform: given function, expected a plan with a method apply"),
        (lambda p: p.transform(Identity()).batch(3), "batch: cannot follow transform"),
        (lambda p: p.to_device("cuda"), "to_device: given record batches, expected tensors"),
        (lambda p: p.prefetch(-1), "prefetch: num_batches: given -1"),
        (lambda p: p.open(workers=0), "open: workers: given 0, expected a whole number from 1 to 256"),
        (lambda p: p.open(workers={"mop": 2}), "open: workers: no stage named 'mop'; there are source"),
        (lambda p: p.open(memory_bytes="lots"), "open: memory_bytes: given 'lots'"),
        (lambda p: p.open(memory_bytes=0), "open: memory_bytes: given 0, expected more than 0"),
        (lambda p: p.open(executor="ray"), "open: executor: given 'ray'"),
        (lambda p: p.open(epoch=-1), "open: epoch: given -1"),
        (lambda p: p.batch(2).open(rank=2, num_ranks=2), "open: rank: given 2 of num_ranks 2"),
        (lambda p: p.open(rank=0, num_ranks=2), "the pipeline has no batch stage"),
    ],
)
def test_mistakes_are_told_in_one_line(build: object, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(pipe())
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_expression_filters_like_a_function() -> None:
    by_function = pipe().filter(lambda rows: [value > 4 for value in rows["value"].to_pylist()]).batch(4)
    by_expression = pipe().filter(pc.field("value") > 4).batch(4)
    assert batches_of(by_function, executor="inline") == batches_of(by_expression, executor="inline")


def test_the_schema_of_a_log_may_be_the_path_of_its_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"click": [0.0, 1.0], "user": [1, 2]}), tmp_path / "log.parquet")
    (tmp_path / "schema.yaml").write_text("labels: [click]\nids: [user]\n")
    for schema in (tmp_path / "schema.yaml", str(tmp_path / "schema.yaml")):
        with read_parquet(tmp_path / "log.parquet", schema).open(executor="inline") as batches:
            assert next(batches)["user"].to_pylist() == [1, 2]


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (lambda: read_parquet("log", {"labels": ["click"]}), "read_parquet: schema: given dict, expected a Schema or"),
        (lambda: read_parquet("log", "none.yaml"), "none.yaml: no such file"),
        (
            lambda: read_parquet(3, Schema(labels=("click",))),
            "read_parquet: paths: given int, expected a path or a list",
        ),
        (lambda: read_parquet([3], Schema(labels=("click",))), "read_parquet: paths: given list, expected a path or"),
        (lambda: read_arrow([1]), "read_arrow: table: given list, expected a pyarrow.Table"),
        (lambda: read_arrow(pa.table({}), 3), "read_arrow: schema: given int, expected a Schema or the path"),
    ],
)
def test_arguments_of_another_type_are_refused_with_one_line(read: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read()
    assert str(caught.value).startswith(text)


def test_read_parquet_warns_of_entries_that_it_does_not_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"click": [1, 0]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet.gz").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"1 entry is not read: b\.parquet\.gz \(compressed") as caught:
        read_parquet(tmp_path, Schema(labels=["click"]))
    assert Path(caught[0].filename).name == "test_pipeline.py"
