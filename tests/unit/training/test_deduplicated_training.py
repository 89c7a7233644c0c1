"""Training on what repeats once gives the parameters of training on plain rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from headrace.models.tower_work import tower_work
from headrace.pipeline import from_source
from headrace.tensors import InverseKeyedJaggedTensor
from headrace.testing.sessions import SESSION_SCHEMA, SessionSource
from headrace.training.components import JobComponents, build_components
from headrace.training.feed import decide_groups, source_columns
from headrace.training.job import JobConfig
from headrace.training.step import TrainingStep

MODELS = {
    "sum pooling": {"kind": "dlrm", "embedding_dim": 8, "bottom": [8], "top": [16]},
    "target attention": {"kind": "din", "embedding_dim": 8, "histories": {"history": "item"}, "deep": [16]},
}
SOURCE = {"num_splits": 3, "sessions_per_batch": 60}


def job_of(model: dict[str, Any], dedup: Any, shuffle: dict[str, Any] | None = None) -> JobConfig:
    return JobConfig.from_dict(
        {
            "run": "unused",
            "data": {"path": "unused", "schema": SESSION_SCHEMA.model_dump(mode="json", by_alias=True)},
            "features": {"dedup": dedup},
            "pipeline": {"shuffle": shuffle},
            "embeddings": {"default": {"num_embeddings": 300, "kind": "hashed"}},
            "model": model,
            # Adam divides by the size of a gradient: where that is near zero, a difference in the last bit may become
            # one of the size of the learning rate. Plain SGD keeps what rounding there is.
            "training": {
                "batch_size": 256,
                "seed": 1,
                "threads": 1,
                "dense_optimizer": {"kind": "sgd", "lr": 0.05},
            },
        },
        where="test",
    )


def trained(job: JobConfig, *, nested: bool) -> tuple[JobComponents, list[torch.Tensor], list[int], set[type]]:
    """Parameters and last predictions of one pass, the rows used, and the kinds of groups in the batches."""
    source = SessionSource(nested=nested, **SOURCE)
    components = build_components(job)
    components = replace(components, plan=decide_groups(job, components.plan, source))
    pipe = from_source(source)
    if job.pipeline.shuffle is not None:
        pipe = pipe.shuffle(num_rows=600, seed=3, by=job.pipeline.shuffle.by, session="session")
    pipe = pipe.batch(256).transform(components.plan)
    step = TrainingStep(components.model, components.optimizer)
    rows, kinds, batches = [], set(), []
    with pipe.open(executor="inline") as opened:
        for batch in opened:
            step(batch)
            rows += batch.row_ids.tolist()
            kinds |= {type(group) for group in batch.sparse}
            batches.append(batch)
    components.model.eval()
    with torch.no_grad():
        logits = [components.model(batch.expand()) for batch in batches]
    return components, [*components.model.state_dict().values(), *logits], rows, kinds


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("shuffle", [None, {"num_rows": 600, "seed": 3, "by": "session"}], ids=["in order", "shuffled"])
def test_plain_grouped_and_nested_rows_train_the_same_model(name: str, shuffle: dict[str, Any] | None) -> None:
    _, wanted, rows, kinds = trained(job_of(MODELS[name], "off", shuffle), nested=False)
    assert InverseKeyedJaggedTensor not in kinds
    for nested in (False, True):
        components, given, same_rows, kinds = trained(job_of(MODELS[name], "auto", shuffle), nested=nested)
        assert InverseKeyedJaggedTensor in kinds, components.plan.grouping
        assert components.plan.savings.ids_factor > 1.5
        assert same_rows == rows
        for one, other in zip(given, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert max(float(logits.std()) for logits in wanted[-5:]) > 0.01  # there was something to learn


@pytest.mark.parametrize("name", ["target attention", "encoder"])
def test_products_of_towers_are_counted_as_they_are_made_and_as_plain_rows_would_need_them(name: str) -> None:
    encoder = {**MODELS["sum pooling"], "encoder": {"features": ["history"]}}
    job = job_of({**MODELS, "encoder": encoder}[name], "auto")
    source, components = SessionSource(nested=True, **SOURCE), build_components(job)
    plan = decide_groups(job, components.plan, source)
    with from_source(source).batch(256).transform(plan).open(executor="inline") as batches:
        batch = next(batches)
    counted = []
    for rows in (batch, batch.expand()):
        before = tower_work(components.model)
        components.model(rows)
        after = tower_work(components.model)
        counted.append((after.num_flop - before.num_flop, after.num_plain_flop - before.num_plain_flop))
    (made, plain), of_plain_rows = counted
    assert of_plain_rows == (plain, plain)
    assert 0 < made < plain


def test_a_run_and_its_repetition_are_bit_equal() -> None:
    job = job_of(MODELS["sum pooling"], "auto")
    first, second = (trained(job, nested=True)[1] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_rows_shuffled_one_by_one_are_not_searched_for_equal_neighbours() -> None:
    job = job_of(MODELS["sum pooling"], "auto", {"num_rows": 600, "seed": 3})
    components, _, _, kinds = trained(job, nested=False)
    assert InverseKeyedJaggedTensor not in kinds
    assert components.plan.grouping is not None
    assert "see pipeline.shuffle.by" in components.plan.grouping.reason


def test_shuffling_by_session_reads_the_session_too() -> None:
    job = job_of(MODELS["sum pooling"], "auto", {"num_rows": 600, "by": "session"})
    plan = build_components(job).plan
    assert "session" not in plan.columns
    assert "session" in source_columns(job, plan)
