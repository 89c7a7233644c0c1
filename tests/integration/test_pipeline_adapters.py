"""The real libraries as sources and as users of a pipeline; each test is skipped where its library is not installed."""

import pyarrow as pa
import pytest

from headrace.pipeline import from_huggingface, from_ray, from_source, from_tfdata
from headrace.testing.pipelines import SyntheticSource, assert_resumes_everywhere, batches_of, rows_of

pytestmark = pytest.mark.filterwarnings("default")  # what other libraries warn about is not ours to mend

ROWS = {"user": list(range(50)), "price": [row / 2 for row in range(50)]}


def users(pipe: object) -> list[list[int]]:
    with pipe.open(workers=2) as batches:
        return [batch["user"].to_pylist() for batch in batches]


def hugging_face_rows(datasets: object) -> object:
    """With a fingerprint given: making one pickles the table, which dill cannot with the newest pyarrow."""
    return datasets.Dataset(datasets.table.InMemoryTable(pa.table(ROWS)), fingerprint="rows")


def test_rows_of_a_hugging_face_dataset_arrive_in_order_and_can_be_resumed() -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    pipe = from_huggingface(hugging_face_rows(datasets), split_rows=12).batch(20)
    assert users(pipe) == [list(range(20)), list(range(20, 40)), list(range(40, 50))]
    assert_resumes_everywhere(pipe, first={"workers": 2}, then={"workers": 1})


def test_rows_of_an_iterable_hugging_face_dataset_arrive_in_order() -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    pipe = from_huggingface(hugging_face_rows(datasets).to_iterable_dataset(), split_rows=12).batch(20)
    assert users(pipe) == [list(range(20)), list(range(20, 40)), list(range(40, 50))]


def test_elements_of_tf_data_arrive_in_order() -> None:
    tensorflow = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    dataset = tensorflow.data.Dataset.from_tensor_slices(ROWS).batch(7)
    assert users(from_tfdata(dataset).batch(20)) == [list(range(20)), list(range(20, 40)), list(range(40, 50))]


@pytest.fixture
def ray_data():
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    data = pytest.importorskip("ray.data", reason="Ray Data is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield data
    ray.shutdown()


def test_blocks_of_ray_data_arrive_in_order(ray_data: object) -> None:
    dataset = ray_data.from_items([{"user": row} for row in range(50)], override_num_blocks=5)
    assert users(from_ray(dataset).batch(20)) == [list(range(20)), list(range(20, 40)), list(range(40, 50))]


def test_a_stateful_data_loader_resumes_a_pipeline() -> None:
    module = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    pipe = from_source(SyntheticSource([[(20, 0, 0)], [(15, 1, 0)]])).shuffle(num_rows=12).batch(8)
    expected = batches_of(pipe, executor="inline")
    loader = module.StatefulDataLoader(pipe.as_dataset(workers=2), batch_size=None)
    batches = iter(loader)
    seen = [rows_of(next(batches)) for _ in range(2)]
    state = loader.state_dict()
    other = module.StatefulDataLoader(pipe.as_dataset(workers=1), batch_size=None)
    other.load_state_dict(state)
    assert seen + [rows_of(batch) for batch in other] == expected
