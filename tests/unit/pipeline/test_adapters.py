"""Other loaders as sources, and a pipeline as a dataset of torch."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from headrace.errors import ConfigError, MissingExtra
from headrace.logs.source import ROW_ID
from headrace.pipeline import from_dataloader, from_huggingface, from_ray, from_source, from_tfdata
from headrace.testing.pipelines import SyntheticSource, assert_resumes_everywhere, batches_of, rows_of

PIPE = from_source(SyntheticSource([[(20, 0, 0)], [(15, 1, 0)]])).shuffle(num_rows=12).batch(8)


class Clicks(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"user": torch.tensor(row), "price": torch.full((2,), row / 2)}


def test_a_data_loader_feeds_a_pipeline_that_can_be_resumed() -> None:
    pipe = from_dataloader(DataLoader(Clicks(), batch_size=3)).shuffle(num_rows=6).batch(4)
    with pipe.open(workers=2) as batches:
        rows = [row for batch in batches for row in batch.to_pylist()]
    assert sorted(row["user"] for row in rows) == list(range(10))
    assert all(row["price"] == [row["user"] / 2] * 2 for row in rows)
    assert_resumes_everywhere(pipe, first={"workers": 2}, then={"workers": 1})


def test_tuples_of_a_data_loader_are_named() -> None:
    loader = DataLoader(TensorDataset(torch.arange(4), torch.arange(4.0)), batch_size=2)
    with from_dataloader(loader, columns=["user", "price"]).open(workers=1) as batches:
        assert next(batches).to_pydict() == {"user": [0, 1], "price": [0.0, 1.0], ROW_ID: [0, 1]}


def test_a_loader_that_shuffles_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the loader shuffles.*use shuffle=False"):
        from_dataloader(DataLoader(Clicks(), shuffle=True))


@pytest.mark.parametrize(
    ("adapter", "package"), [(from_ray, "ray"), (from_tfdata, "tensorflow"), (from_huggingface, "datasets")]
)
def test_a_library_that_is_missing_is_named(adapter: object, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ray.data", "tensorflow", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=f"{package} is not installed"):
        adapter(None)


class ArrowDataset:
    """What is used of a Hugging Face dataset."""

    def __init__(self, num_rows: int) -> None:
        self.table = pa.table({"user": list(range(num_rows))})

    def with_format(self, name: str) -> "ArrowDataset":
        assert name == "arrow"
        return self

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, rows: slice) -> pa.Table:
        return self.table.slice(rows.start, rows.stop - rows.start)


def test_rows_of_a_hugging_face_dataset_are_read_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", ModuleType("datasets"))
    pipe = from_huggingface(ArrowDataset(10), split_rows=4)
    assert len(pipe.plan.sources[0]) == 3
    assert pipe.plan.sources[0].describe(2) == "datasets.Dataset, rows 8 to 9"
    assert batches_of(pipe.batch(3), workers=2) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert_resumes_everywhere(pipe.batch(3), first={"workers": 1}, then={"workers": 2})


def test_ray_is_asked_to_keep_the_order_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setitem(sys.modules, "ray.data", ModuleType("ray.data"))
    options = SimpleNamespace(preserve_order=False)
    dataset = SimpleNamespace(
        context=SimpleNamespace(execution_options=options),
        iter_batches=lambda batch_size, batch_format: iter([pa.table({"a": [1, 2]}), pa.table({"a": [3]})]),
    )
    assert batches_of(from_ray(dataset).batch(2), workers=1) == [[0, 1], [2]]
    assert options.preserve_order


def test_elements_of_tf_data_become_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", ModuleType("tensorflow"))
    elements = [{"a": np.array([1, 2])}, {"a": np.array([3])}]
    dataset = SimpleNamespace(as_numpy_iterator=lambda: iter(elements))
    with from_tfdata(dataset).batch(5).open(workers=1) as batches:
        assert next(batches)["a"].to_pylist() == [1, 2, 3]


def test_a_pipeline_is_a_dataset_for_a_torch_loader() -> None:
    loader = DataLoader(PIPE.as_dataset(workers=2), batch_size=None)
    expected = batches_of(PIPE, executor="inline")
    for _ in range(2):
        assert [rows_of(batch) for batch in loader] == expected


def test_a_dataset_goes_on_where_its_state_was_taken_and_then_begins_anew() -> None:
    expected = batches_of(PIPE, executor="inline")
    dataset = PIPE.as_dataset(workers=2)
    assert dataset.state_dict()["position"][0] == {"item": 0, "piece": 0}
    batches = iter(dataset)
    for _ in range(2):
        next(batches)
    state = dataset.state_dict()
    batches.close()
    other = PIPE.as_dataset(workers=1)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert [rows_of(batch) for batch in other] == expected[2:]
    assert [rows_of(batch) for batch in other] == expected
    other.set_epoch(1)
    assert [rows_of(batch) for batch in other] != expected


def test_in_a_worker_of_a_loader_a_dataset_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.pipeline.dataset.get_worker_info", lambda: SimpleNamespace(id=0))
    with pytest.raises(ConfigError, match="num_workers=0"):
        iter(PIPE.as_dataset())
