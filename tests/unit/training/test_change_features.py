"""A trained run goes on with other features: what stays is kept, predictions do not jump, nothing happens unasked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from headrace.embeddings import EmbeddingBags, embedding_bags
from headrace.errors import CheckpointError, ConfigError
from headrace.logs import Schema
from headrace.models import FeatureAxis, ModelConfig
from headrace.tensors import Batch
from headrace.training import CheckpointFolder, JobConfig, RunFolder, Snapshot
from headrace.training.change_features import with_job_features
from headrace.training.commits import restore, take_snapshot
from headrace.training.components import JobComponents, build_components
from headrace.training.dense_optimizer import optimizer_arrays, slots_of
from headrace.training.process_group import SingleProcess
from headrace.training.state import TrainingState
from headrace.training.step import TrainingStep

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_ROWS = 64
SCHEMA = {
    "labels": ["click"],
    "dense": ["price", "age", "size"],
    "ids": ["user", "item", "shop"],
    "id_lists": ["history", "tags"],
}
MODELS: dict[str, dict[str, Any]] = {
    "dlrm": {"kind": "dlrm", "bottom": [8], "top": [8]},
    "dlrm-encoder": {"kind": "dlrm", "bottom": [8], "top": [8], "encoder": {"features": ["history"]}},
    "dcnv2": {"kind": "dcnv2", "deep": [8], "num_cross_layers": 2},
    "dcnv2-stacked-low-rank": {"kind": "dcnv2", "deep": [8], "structure": "stacked", "cross_rank": 2},
    "dcnv2-linear": {"kind": "dcnv2", "deep": [8], "num_cross_layers": 2, "linear": True},
    "deepfm": {"kind": "deepfm", "deep": [8]},
    "wide_deep": {"kind": "wide_deep", "deep": [8]},
    "din": {"kind": "din", "histories": {"history": "item"}, "attention": [4], "deep": [8]},
}
Features = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
"""Dense features, sparse features, and those of them in the table of items."""
BASE: Features = (("price", "age"), ("user", "item", "history"), ("history",))
MORE: dict[str, Features] = {
    "a dense feature": (("price", "size", "age"), BASE[1], BASE[2]),
    "ids": (BASE[0], ("shop", *BASE[1]), BASE[2]),
    "a list": (BASE[0], (*BASE[1], "tags"), BASE[2]),
    "a list in a trained table": (BASE[0], ("user", "tags", "item", "history"), ("history", "tags")),
    "several, in another order": (("age", "size", "price"), ("tags", "history", "shop", "user", "item"), ("history",)),
}
FEWER = {"no dense features": ((), BASE[1], BASE[2])}
MOVED: Features = (("age", "price"), ("history", "user", "item"), ("history",))
CHANGED_TABLES = ("shop", "tags")
SHARES_WEIGHTS = ("dcnv2-linear", "deepfm", "wide_deep")
"""Models with a linear weight per id, which a feature takes over from the table that it joins."""


def job_of(model: dict[str, Any], features: Features, **training: Any) -> JobConfig:
    dense, sparse, in_items = features
    # Second-order terms of DeepFM count a new embedding at once, unless it starts at zero.
    zero = {"init_scale": 0.0} if model["kind"] == "deepfm" else {}
    own = {name: zero for name in CHANGED_TABLES if name in sparse and name not in in_items}
    return JobConfig.from_dict(
        {
            "run": "unused",
            "data": {"path": "unused", "schema": SCHEMA},
            "features": {"dense": {name: [] for name in dense}, "sparse": {name: [] for name in sparse}},
            "embeddings": {
                "default": {"kind": "hashed", "num_embeddings": 50},
                "tables": {"item": {"feature_names": list(in_items)}, **own},
            },
            "model": {"embedding_dim": 4, **model},
            "training": {"threads": 1, "dense_optimizer": {"kind": "adam", "lr": 0.01}, **training},
        },
        where="test",
    )


def rows(seed: int, **columns: pa.Array) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    lists = [[list(map(int, rng.integers(0, 30, rng.integers(0, 4)))) for _ in range(NUM_ROWS)] for _ in range(2)]
    made = {name: pa.array(rng.normal(size=NUM_ROWS).astype(np.float32)) for name in SCHEMA["dense"]}
    made |= {name: pa.array(rng.integers(0, 30, NUM_ROWS)) for name in SCHEMA["ids"]}
    made |= {
        name: pa.array(values, pa.list_(pa.int64())) for name, values in zip(("history", "tags"), lists, strict=True)
    }
    made |= {"click": pa.array(rng.integers(0, 2, NUM_ROWS)), "__row_id": pa.array(np.arange(NUM_ROWS))}
    return pa.record_batch(made | columns)


def train(components: JobComponents, seeds: range) -> None:
    step = TrainingStep(components.model, components.optimizer)
    components.model.train()
    for seed in seeds:
        step(components.plan.apply(rows(seed)))


def predict(components: JobComponents, batch: pa.RecordBatch) -> npt.NDArray[np.float32]:
    components.model.eval()
    with torch.inference_mode():
        logits: Tensor = components.model(components.plan.apply(batch))
    return logits.numpy()


def saved(components: JobComponents) -> Snapshot:
    return take_snapshot(
        TrainingState(("click",), checkpoint=1), components.model, components.optimizer, components.shape
    )


def change(
    snapshot: Snapshot, job: JobConfig, folder: Path, *, may_change: bool = True
) -> tuple[JobComponents, list[str]]:
    """The components of a job with the parameters of a snapshot, and what was said."""
    now = build_components(job)
    told: list[str] = []
    changed = with_job_features(
        snapshot,
        job,
        now,
        may_change=may_change,
        run=RunFolder(folder),
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        process_group=SingleProcess(),
        tell=lambda line, _: told.append(line),
    )
    restore(changed, TrainingState(("click",)), now.model, now.optimizer, now.shape)
    return now, told


def trained(model: str, features: Features) -> JobComponents:
    components = build_components(job_of(MODELS[model], features))
    train(components, range(4))
    return components


@pytest.mark.parametrize("added", list(MORE))
@pytest.mark.parametrize("model", list(MODELS))
def test_added_features_change_no_prediction_at_first_and_are_learned_from(
    model: str, added: str, tmp_path: Path
) -> None:
    if model in SHARES_WEIGHTS and added == "a list in a trained table":
        pytest.skip("the linear weights of the table count at once")
    before = trained(model, BASE)
    after, _ = change(saved(before), job_of(MODELS[model], MORE[added]), tmp_path)
    np.testing.assert_allclose(predict(after, rows(9)), predict(before, rows(9)), rtol=0, atol=2e-6)
    train(after, range(4, 9))
    logits, others = predict(after, rows(9)), rows(10)
    for name in (set(MORE[added][0]) | set(MORE[added][1])) - set(BASE[0]) - set(BASE[1]):
        assert not np.allclose(predict(after, rows(9, **{name: others.column(name)})), logits, atol=1e-6), name


@pytest.mark.parametrize("removed", list(MORE))
@pytest.mark.parametrize("model", list(MODELS))
def test_removed_features_leave_the_predictions_of_rows_that_do_not_have_them(
    model: str, removed: str, tmp_path: Path
) -> None:
    before = trained(model, MORE[removed])
    after, _ = change(saved(before), job_of(MODELS[model], BASE), tmp_path)
    nothing = {
        "size": pa.array(np.zeros(NUM_ROWS, np.float32)),
        "tags": pa.array([[]] * NUM_ROWS, pa.list_(pa.int64())),
        "shop": pa.array([None] * NUM_ROWS, pa.int64()),
    }
    np.testing.assert_allclose(predict(after, rows(9)), predict(before, rows(9, **nothing)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("model", list(MODELS))
def test_features_in_another_order_change_no_prediction(model: str, tmp_path: Path) -> None:
    before = trained(model, BASE)
    after, told = change(saved(before), job_of(MODELS[model], MOVED), tmp_path)
    np.testing.assert_allclose(predict(after, rows(9)), predict(before, rows(9)), rtol=0, atol=2e-6)
    assert told[0] == "features: the same in another order"
    back, _ = change(saved(after), job_of(MODELS[model], BASE), tmp_path / "back")
    for name, value in before.model.state_dict().items():
        assert torch.equal(back.model.state_dict()[name], value), name


@pytest.mark.parametrize("model", list(MODELS))
def test_the_first_dense_features_change_no_prediction_at_first(model: str, tmp_path: Path) -> None:
    before = trained(model, FEWER["no dense features"])
    after, _ = change(saved(before), job_of(MODELS[model], BASE), tmp_path)
    np.testing.assert_allclose(predict(after, rows(9)), predict(before, rows(9)), rtol=0, atol=2e-6)
    train(after, range(4, 6))
    assert np.isfinite(predict(after, rows(9))).all()


def test_optimizer_state_follows_its_inputs_and_kept_tables_keep_everything(tmp_path: Path) -> None:
    before = trained("dcnv2", BASE)
    after, _ = change(saved(before), job_of(MODELS["dcnv2"], MORE["several, in another order"]), tmp_path)
    states = [optimizer_arrays(components.optimizer) for components in (before, after)]
    names = [[name for name, _ in components.model.named_parameters()] for components in (before, after)]
    was, now = (slots_of(state, of.index("deep.0.weight")) for state, of in zip(states, names, strict=True))
    assert was["step"] == now["step"] == 4
    # Dense columns were price, age and are age, size, price; then four numbers of each embedding.
    for slot in ("exp_avg", "exp_avg_sq"):
        np.testing.assert_array_equal(now[slot].reshape(8, -1)[:, [2, 0]], was[slot].reshape(8, -1)[:, :2])
    assert (now["exp_avg"].reshape(8, -1)[:, 1] == 0).all()
    np.testing.assert_allclose(now["exp_avg_sq"].reshape(8, -1)[:, 1], was["exp_avg_sq"].mean(), rtol=1e-5)
    one, two = (slots_of(state, of.index("deep.0.bias")) for state, of in zip(states, names, strict=True))
    for slot, values in one.items():
        np.testing.assert_array_equal(two[slot], values)
    groups = [components.model.embeddings.table_group for components in (before, after)]
    for table in ("user", "item"):
        assert rows_of(groups[0], table) == rows_of(groups[1], table) != {}
    assert rows_of(groups[1], "tags") == rows_of(groups[1], "shop") == {}
    assert groups[0].step == groups[1].step


def rows_of(group: Any, table: str) -> dict[int, tuple[Any, ...]]:
    state, number = group.state_dict(), [each.name for each in group.tables].index(table)
    where = np.flatnonzero(state["tables"] == number)
    columns = ("weights", "slot.accumulator", "frequency", "version")
    return {int(state["ids"][row]): tuple(state[name][row].tolist() for name in columns) for row in where}


def test_everything_that_is_kept_new_or_dropped_is_said(tmp_path: Path) -> None:
    before = trained("dlrm", MORE["a list"])
    _, told = change(saved(before), job_of(MODELS["dlrm"], MORE["ids"]), tmp_path)
    assert told[0] == "features: added sparse shop; removed sparse tags"
    assert re.fullmatch(
        r"embedding tables: kept: user \(\d+ rows\), item \(\d+ rows\); new: shop; dropped: tags \(\d+ rows\)", told[1]
    )
    # Vectors: dense, user, item, history, tags: four numbers and ten pairs, of which four are those of tags.
    assert told[2] == "dense layers: kept; top.0.weight 10 of 14 inputs kept, 4 new at zero"
    assert told[3] == "checkpoint 2 has the changed features, checkpoint 1 the earlier ones"
    _, told = change(saved(before), job_of(MODELS["dlrm"], MORE["a list"]), tmp_path)
    assert told == ["features: those of the checkpoint, nothing to change"]


def test_nothing_is_changed_unasked_and_the_line_names_the_features_and_the_flag(tmp_path: Path) -> None:
    before = trained("dlrm", MORE["a list"])
    with pytest.raises(
        CheckpointError,
        match=r"^checkpoint 1 has other features than the job \(added dense size; removed sparse tags\); if you mean "
        r"to change the run's features, use: headrace train JOB --change-features; else change them back, or use a dif",
    ):
        change(saved(before), job_of(MODELS["dlrm"], MORE["a dense feature"]), tmp_path, may_change=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "changed", "said"),
    [
        ({"embedding_dim": 8}, {}, "model.embedding_dim was 4, is now 8"),
        ({"top": [9]}, {}, r"model.top was \[8\], is now \[9\]"),
        (MODELS["wide_deep"], {}, "model.* was"),
        ({}, {"seed": 5}, "seed was 0, is now 5"),
        ({}, {"dense_optimizer": {"kind": "sgd", "lr": 0.1}}, "dense_optimizer was 'adam', is now 'sgd'"),
    ],
)
def test_other_changes_are_refused_also_together_with_features(
    model: dict[str, Any], changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    before, base = trained("dlrm", BASE), {} if "kind" in model else MODELS["dlrm"]
    with pytest.raises(CheckpointError, match=f"^checkpoint 1 belongs to another model: {said}"):
        change(saved(before), job_of({**base, **model}, MORE["ids"], **changed), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_changed_as_well_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    job = job_of(MODELS["dlrm"], MORE["ids"])
    tables = {"user": job.embeddings.default.model_copy(update={"num_embeddings": 60}), **job.embeddings.tables}
    wider = job.model_copy(update={"embeddings": job.embeddings.model_copy(update={"tables": tables})})
    with pytest.raises(CheckpointError, match=r"user.num_embeddings was saved as 50, but the job says 60"):
        change(saved(trained("dlrm", BASE)), wider, tmp_path)
    assert list(tmp_path.iterdir()) == []


class PlainConfig(ModelConfig):
    """A model that does not describe its parameters."""

    def build(self, **sizes: Any) -> nn.Module:
        return Plain(self.embedding_dim, **sizes)


Axes = Callable[[list[Any]], Any]


class SaysConfig(PlainConfig):
    """The same, described in one of several ways."""

    says: str = "right"

    def feature_axes(self, *, dense_names: Sequence[str], sparse_keys: Sequence[str]) -> Any:
        entries = [*dense_names, *((key, d) for key in sparse_keys for d in range(self.embedding_dim))]
        return SAID[self.says](entries)


SAID: dict[str, Axes] = {
    "right": lambda entries: {"hidden.weight": (FeatureAxis(1, entries),)},
    "no name": lambda entries: {},
    "other name": lambda entries: {"hidden.wieght": (FeatureAxis(1, entries),)},
    "other axis": lambda entries: {"hidden.weight": (FeatureAxis(0, entries),)},
    "twice": lambda entries: {"hidden.weight": (FeatureAxis(1, [entries[0], *entries[:-1]]),)},
}


class Plain(nn.Module):
    def __init__(
        self, dim: int, num_dense: int, sparse_keys: Sequence[str], num_labels: int, embeddings: Any, seed: int
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.bags = EmbeddingBags(embeddings, sparse_keys, dim, seed=seed)
            self.hidden = nn.Linear(num_dense + len(sparse_keys) * dim, 6)
            self.head = nn.Linear(6, num_labels)

    def forward(self, batch: Batch) -> Tensor:
        inputs = torch.cat([batch.dense, self.bags(batch).flatten(1)], dim=1)
        return self.head(torch.relu(self.hidden(inputs)))  # type: ignore[no-any-return]


def with_model(model: ModelConfig, features: Features) -> JobConfig:
    return job_of(MODELS["dlrm"], features).model_copy(update={"model": model})


def test_a_model_that_does_not_describe_its_weights_begins_them_anew_but_keeps_tables_and_output_bias(
    tmp_path: Path,
) -> None:
    before = build_components(with_model(PlainConfig(kind="own", embedding_dim=4), BASE))
    train(before, range(4))
    job = with_model(PlainConfig(kind="own", embedding_dim=4), MORE["ids"])
    after, told = change(saved(before), job, tmp_path)
    assert told[2] == (
        "dense layers: begin anew except for head.bias, the label rate, because model own does not say what its "
        "weights belong to"
    )
    new = build_components(job)
    for name, value in after.model.state_dict().items():
        assert torch.equal(value, (before if name == "head.bias" else new).model.state_dict()[name]), name
    assert optimizer_arrays(after.optimizer) == {}
    groups = [next(iter(embedding_bags(each.model).values())).table_group for each in (before, after)]
    assert rows_of(groups[0], "item") == rows_of(groups[1], "item") != {}


def test_a_model_that_begins_anew_keeps_the_units_of_labels_that_are_numbers(tmp_path: Path) -> None:
    def with_number(job: JobConfig) -> JobConfig:
        labels = [{"name": label.name, "allowed": None} for label in job.schema_of_logs.labels]
        schema = Schema.from_dict({**job.schema_of_logs.model_dump(), "labels": labels}, where="test")
        return job.model_copy(update={"data": job.data.model_copy(update={"columns": schema})})

    own = PlainConfig(kind="own", embedding_dim=4)
    before = build_components(with_number(with_model(own, BASE)))
    before.model.get_buffer("label_mean").fill_(30.0)
    before.model.get_buffer("label_unit").fill_(5.0)
    train(before, range(2))
    after, _ = change(saved(before), with_number(with_model(own, MORE["ids"])), tmp_path)
    assert {float(value) for value in after.model.get_buffer("label_mean")} == {30.0}
    assert {float(value) for value in after.model.get_buffer("label_unit")} == {5.0}


def test_a_model_of_the_users_own_that_describes_its_weights_keeps_them(tmp_path: Path) -> None:
    before = build_components(with_model(SaysConfig(kind="own", embedding_dim=4), BASE))
    train(before, range(4))
    after, _ = change(saved(before), with_model(SaysConfig(kind="own", embedding_dim=4), MORE["ids"]), tmp_path)
    np.testing.assert_allclose(predict(after, rows(9)), predict(before, rows(9)), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("says", "said"),
    [
        (
            "no name",
            r"hidden.weight: given axes \[\] before and \[\] now, but its shape was \(6, 14\) and is now \(6, 18\)",
        ),
        (
            "other name",
            "given hidden.wieght, expected parameters of the model: hidden.weight, hidden.bias, head.weight",
        ),
        (
            "other axis",
            r"hidden.weight: given 14 entries, 14 of them different, for axis 0 of shape \(6, 14\), expected 6",
        ),
        ("twice", "hidden.weight: given 14 entries, 13 of them different, .* expected 14 different ones"),
    ],
)
def test_a_description_that_does_not_fit_is_one_line(says: str, said: str, tmp_path: Path) -> None:
    before = build_components(with_model(SaysConfig(kind="own", embedding_dim=4, says=says), BASE))
    with pytest.raises(ConfigError, match=rf"^feature_axes of model own: {said}"):
        change(saved(before), with_model(SaysConfig(kind="own", embedding_dim=4, says=says), MORE["ids"]), tmp_path)
    assert list(tmp_path.iterdir()) == []
