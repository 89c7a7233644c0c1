"""A trained run goes on with other features: what stays is kept, predictions do not jump, nothing happens unasked."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.cluster.launcher import LaunchOptions
from headrace.embeddings import EmbeddingBags, embedding_bags
from headrace.errors import CheckpointError, ConfigError
from headrace.logs import Schema
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.models import FeatureAxis, ModelConfig
from headrace.observe.decisions import read_decisions
from headrace.scoring.scorer import Scorer
from headrace.tensors import Batch
from headrace.training import CheckpointFolder, JobConfig, RunFolder, Snapshot, Trainer
from headrace.training.change_features import with_job_features
from headrace.training.commits import restore, take_snapshot
from headrace.training.components import JobComponents, build_components
from headrace.training.dense_optimizer import optimizer_arrays, slots_of
from headrace.training.process_group import SingleProcess
from headrace.training.state import TrainingState
from headrace.training.step import TrainingStep

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
SHARES_WEIGHTS = ("deepfm", "wide_deep")
"""Models with a linear weight per id, which a feature takes over from the table that it joins."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[0])
    torch.set_num_threads(before[1])


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


# Runs over logs: three windows, the features change after the first, or in it.

LOGS = GenerateConfig(rows=900, windows=3, users=40, items=30, user_dense=1, item_dense=1, id_lists=1, seed=3)
WITHOUT = {"dense": {"user_x0": []}, "sparse": {"user": [], "item": [], "segment_0": []}}
WITH = {"dense": {"item_x0": [], "user_x0": []}, "sparse": {"user": [], "history": [], "item": []}}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    generate_logs(LOGS, folder / "logs")
    return folder / "logs"


class Run:
    """A run whose first part has the features `WITHOUT`, and the rest `WITH`."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder, self._logs = folder, logs
        self.said: list[str] = []

    def job(self, features: dict[str, Any]) -> JobConfig:
        return JobConfig.from_dict(
            {
                "run": str(self.folder),
                "data": {"path": str(self._logs)},
                "features": features,
                "pipeline": {"executor": "inline", "tuner": "none"},
                "embeddings": {"default": {"kind": "collisionless", "admission_count": 2, "evict_after": 1}},
                "model": {"kind": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
                "training": {"batch_size": 50, "threads": 1, "precision": "fp32", "row_ledger": True},
            },
            where="job",
        ).resolve(self.folder)

    def train(
        self,
        features: dict[str, Any] = WITH,
        *,
        flag: bool = False,
        steps: int | None = None,
        windows: int | None = None,
    ) -> None:
        """Train, and stop after some steps."""
        asked = 0

        def should_stop() -> bool:
            nonlocal asked
            asked += 1
            return steps is not None and asked > steps

        trainer = Trainer(
            self.job(features), should_stop=should_stop, on_message=self.said.append, change_features=flag
        )
        trainer.run(windows=windows)

    @property
    def checkpoints(self) -> CheckpointFolder:
        return CheckpointFolder(self.folder / "checkpoints")

    def outcome(self) -> dict[str, npt.NDArray[Any]]:
        """Dense parameters, optimizer, metrics, and table columns in the order of (table, id)."""
        snapshot, refused = self.checkpoints.load_latest()
        assert snapshot is not None
        assert not refused
        found = {f"{group}.{name}": array for group, of in snapshot.arrays.items() for name, array in of.items()}
        for group, columns in snapshot.columns.items():
            order = np.lexsort((columns["ids"], columns["tables"]))
            for name, column in columns.items():
                if name not in ("header", "rows"):
                    of_rows = not name.startswith(("pending", "removed"))
                    found[f"{group}.{name}"] = np.asarray(column[order] if of_rows else column)
        return found

    def rows(self) -> list[int]:
        """Rows trained on, in order."""
        ledger = [pq.read_table(path) for path in sorted((self.folder / "ledger").glob("*.parquet"))]
        return [int(row) for row in pa.concat_tables(ledger).column("row_id").to_pylist()]


@pytest.fixture(scope="module")
def first_window(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run after its first window, without the features that follow."""
    run = Run(tmp_path_factory.mktemp("first") / "run", logs)
    run.train(WITHOUT, windows=1)
    return run


@pytest.fixture(scope="module")
def whole(first_window: Run) -> Run:
    """The same run with other features from its second window on, never stopped."""
    run = copied(first_window, first_window.folder.with_name("whole"))
    run.train(flag=True)
    return run


@pytest.fixture
def run(first_window: Run, tmp_path: Path) -> Run:
    """A copy of the run after its first window."""
    return copied(first_window, tmp_path / "run")


def copied(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder, folder)
    return Run(folder, run._logs)


def assert_same(one: Run, other: Run) -> None:
    expected, found = one.outcome(), other.outcome()
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert one.rows() == other.rows()


def test_a_run_goes_on_with_other_features_and_says_so_also_in_its_records(run: Run) -> None:
    before = run.checkpoints.numbers()[-1]
    run.train(flag=True)
    assert "features: added dense item_x0, sparse history; removed sparse segment_0" in run.said
    assert f"checkpoint {before + 1} has the changed features, checkpoint {before} the earlier ones" in run.said
    assert f"going on from checkpoint {before + 1}, step 6" in run.said
    assert len(run.rows()) == len(set(run.rows())) == 900
    changes = [each for each in read_decisions(run.folder / "decisions.jsonl") if each.change]
    assert [(each.reason, dict(each.change)) for each in changes] == [
        (
            "features: added dense item_x0, sparse history; removed sparse segment_0",
            {
                "dense features": ("user_x0", "item_x0, user_x0"),
                "sparse features": ("user, item, segment_0", "user, history, item"),
            },
        )
    ]
    Scorer(run.job(WITH)).evaluate(run.job(WITH).data.path)
    run.train()  # without the flag: there is nothing new


def test_the_change_is_refused_without_the_flag_and_leaves_the_run_as_it_is(run: Run) -> None:
    files = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(
        CheckpointError, match=r"other features than the job \(added dense item_x0, sparse history; rem"
    ):
        run.train()
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == files
    with pytest.raises(CheckpointError, match="--change-features"):
        Scorer(run.job(WITH))
    run.train(WITHOUT)  # it goes on as before


@pytest.mark.parametrize("steps", [0, 1, 4, 8])
def test_a_run_that_is_stopped_after_the_change_resumes_like_any_other(run: Run, whole: Run, steps: int) -> None:
    run.train(flag=True, steps=steps)
    run.train()
    assert_same(whole, run)


def test_features_may_change_within_a_window(run: Run) -> None:
    run.train(WITHOUT, steps=2)
    whole = copied(run, run.folder.with_name("whole"))
    whole.train(flag=True)
    assert len(whole.rows()) == len(set(whole.rows())) == 900
    run.train(flag=True, steps=1)
    run.train()
    assert_same(whole, run)


def test_a_kill_during_the_change_changes_nothing(run: Run, whole: Run, monkeypatch: pytest.MonkeyPatch) -> None:

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    before = run.checkpoints.numbers()
    with monkeypatch.context() as patch:
        patch.setattr("headrace.training.checkpoint.Manifest.write", killed)
        with pytest.raises(KeyboardInterrupt):
            run.train(flag=True)
    assert run.checkpoints.numbers() == before
    with pytest.raises(CheckpointError, match="--change-features"):
        run.train()
    run.train(flag=True)
    assert_same(whole, run)


def test_output_that_no_checkpoint_committed_is_not_committed_by_the_change(run: Run, whole: Run) -> None:
    newest = run.checkpoints.numbers()[-1]
    left = run.folder / "ledger" / f"{newest + 1:08d}.parquet"  # as a kill right before the checkpoint leaves it
    shutil.copy(run.folder / "ledger" / f"{newest:08d}.parquet", left)
    run.train(flag=True)
    assert any(line.startswith("moved output newer than the checkpoint") for line in run.said)
    assert_same(whole, run)


def test_a_damaged_change_falls_back_to_the_earlier_features_and_is_made_again(run: Run, whole: Run) -> None:
    run.train(flag=True, steps=0)
    changed = run.checkpoints.numbers()[-2:]
    for number in changed:  # the change, and the checkpoint of the stop
        (run.folder / "checkpoints" / f"{number:08d}" / "dense.safetensors").write_bytes(b"torn")
    run.said.clear()
    with pytest.raises(CheckpointError, match="other features than the job"):
        run.train()
    assert [line.split(":")[0] for line in run.said] == ["refused a checkpoint, falling back to the previous one"] * 2
    run.train(flag=True)
    assert_same(whole, run)


def test_the_command_takes_the_flag_and_prints_what_it_does(run: Run, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(run.job(WITH).to_yaml())
    done = CliRunner().invoke(app, ["train", str(job), "--change-features"])
    assert done.exit_code == 0, done.output
    assert "features: added dense item_x0, sparse history; removed sparse segment_0" in done.output


def test_launch_passes_the_flag_to_its_trainers(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, given = tmp_path / "job.yaml", []
    job.write_text(run.job(WITH).to_yaml())

    def launch(job: Path, run: Path, options: LaunchOptions, **_: Any) -> int:
        given.append(options.arguments)
        return 0

    monkeypatch.setattr("headrace.cluster.launcher.launch", launch)
    for arguments in (["launch", str(job)], ["launch", str(job), "--change-features", "--windows", "1"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert given == [(), ("--windows=1", "--change-features")]
