"""What holds for every model: shapes, seeds, gradients everywhere, learning, and what a job file may say."""

from typing import Any

import pytest
import torch
from torch import nn

from headrace.config import Config
from headrace.embeddings import EmbeddingsConfig, apply_gradients, embedding_bags
from headrace.errors import ConfigError
from headrace.models import (
    DCNv2Config,
    DeepFMConfig,
    DINConfig,
    DLRMConfig,
    HistoryEncoderConfig,
    ModelConfig,
    WideDeepConfig,
)
from headrace.tensors import Batch, KeyedJaggedTensor

KEYS = ("user", "item", "history")
CONFIGS = [
    DLRMConfig(embedding_dim=4, bottom=(8,), top=(16, 8)),
    DCNv2Config(embedding_dim=4, num_cross_layers=2, deep=(8,)),
    DCNv2Config(embedding_dim=4, cross_rank=3, deep=(8,), structure="stacked"),
    DCNv2Config(embedding_dim=4, deep=(8,), linear=True),
    DeepFMConfig(embedding_dim=4, deep=(8, 8)),
    WideDeepConfig(embedding_dim=4, deep=(8,)),
    DINConfig(kind="din", embedding_dim=4, histories={"history": "item"}, attention=(8, 4), deep=(8,)),
    DLRMConfig(embedding_dim=4, bottom=(8,), top=(16, 8), encoder=HistoryEncoderConfig(features=("history",))),
]
EVERY = pytest.mark.parametrize(
    "config",
    CONFIGS,
    ids=["dlrm", "dcnv2", "dcnv2-stacked-low-rank", "dcnv2-linear", "deepfm", "wide_deep", "din", "dlrm-encoder"],
)


class Job(Config):
    model: ModelConfig


def build(
    config: Any, embeddings: EmbeddingsConfig, num_dense: int = 2, num_labels: int = 2, seed: int = 0
) -> nn.Module:
    return config.build(num_dense=num_dense, sparse_keys=KEYS, num_labels=num_labels, embeddings=embeddings, seed=seed)


def train(model: nn.Module, batch: Batch, num_steps: int) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    losses = []
    for _ in range(num_steps):
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        apply_gradients(model)
        losses.append(loss.item())
    return losses


@EVERY
@pytest.mark.parametrize("num_labels", [1, 2])
def test_logits_are_float32_rows_by_labels(
    config: Any, num_labels: int, batch: Batch, embeddings: EmbeddingsConfig
) -> None:
    logits = build(config, embeddings, num_labels=num_labels)(batch)
    assert logits.shape == (len(batch), num_labels)
    assert logits.dtype == torch.float32


@EVERY
def test_a_model_learns_a_small_batch_by_heart(config: Any, batch: Batch, embeddings: EmbeddingsConfig) -> None:
    losses = train(build(config, embeddings), batch, 200)
    assert losses[-1] < 0.1 < losses[0]


@EVERY
def test_equal_seeds_give_equal_models_and_other_seeds_others(
    config: Any, batch: Batch, embeddings: EmbeddingsConfig
) -> None:
    first, again, other = (build(config, embeddings, seed=seed) for seed in (1, 1, 2))
    assert train(first, batch, 3) == train(again, batch, 3)
    assert torch.equal(first(batch), again(batch))
    assert not torch.equal(first(batch), other(batch))


@EVERY
def test_the_global_generator_is_neither_read_nor_moved(config: Any, embeddings: EmbeddingsConfig) -> None:
    torch.manual_seed(1)
    first, state = build(config, embeddings), torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    again = build(config, embeddings)
    for one, two in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


@EVERY
def test_gradients_reach_every_parameter_and_every_table(
    config: Any, batch: Batch, embeddings: EmbeddingsConfig
) -> None:
    model = build(config, embeddings)
    before = {
        name: bags.table_group.weights.clone() for name, bags in embedding_bags(model).items() if bags.table_group
    }
    train(model, batch, 1)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    for name, bags in embedding_bags(model).items():
        assert bags.table_group is not None
        changed = (bags.table_group.weights != before[name]).any(dim=1)
        assert changed.sum() == len(bags.table_group.state_dict()["rows"]), name


@EVERY
def test_a_model_without_dense_features_works(config: Any, batch: Batch, embeddings: EmbeddingsConfig) -> None:
    sparse_only = Batch(batch.dense[:, :0], batch.sparse, batch.labels, batch.row_ids)
    losses = train(build(config, embeddings, num_dense=0), sparse_only, 20)
    assert losses[-1] < losses[0]


@EVERY
@pytest.mark.parametrize("num_dense", [0, 1])
@pytest.mark.parametrize("keys", [("item",), ("item", "history")])
def test_every_feature_changes_the_logits_or_the_model_is_refused(
    config: Any, num_dense: int, keys: tuple[str, ...], batch: Batch, embeddings: EmbeddingsConfig
) -> None:
    needed = {*getattr(config, "histories", {}), *(() if getattr(config, "encoder", None) is None else ("history",))}
    if not needed <= set(keys):
        pytest.skip("the model names a feature that is not there")
    if "history" not in keys:
        embeddings = embeddings.model_copy(update={"tables": {}})
    sizes = {"num_dense": num_dense, "num_labels": 1, "embeddings": embeddings, "seed": 0}
    if isinstance(config, DLRMConfig) and len(keys) + num_dense == 1:
        with pytest.raises(ConfigError, match=r"dlrm, which needs pairs of features, but item is the only one"):
            config.build(sparse_keys=keys, **sizes)
        return
    model = config.build(sparse_keys=keys, **sizes)
    train(model, Batch(batch.dense[:, :num_dense], batch.sparse, batch.labels[:, :1], batch.row_ids), 3)
    model.eval()

    def logits(dense: float, ids: dict[str, int]) -> torch.Tensor:
        lists = {key: [[(row + ids.get(key, 0)) % 5] for row in range(12)] for key in keys}
        sparse = (KeyedJaggedTensor.from_lists(lists),)
        rows = torch.arange(12)
        with torch.no_grad():
            return model(Batch(torch.full((12, num_dense), dense), sparse, torch.zeros(12, 1), rows))

    before = logits(0.0, {})
    assert not num_dense or not torch.equal(before, logits(1.0, {}))
    for key in keys:
        assert not torch.equal(before, logits(0.0, {key: 1})), key


@pytest.mark.parametrize("kind", ["dlrm", "dcnv2", "deepfm", "wide_deep"])
def test_a_job_file_names_a_model_by_its_kind(kind: str) -> None:
    assert Job.from_dict({"model": {"kind": kind, "embedding_dim": 8}}, where="job.yaml").model.embedding_dim == 8


def test_a_wrong_kind_or_size_is_told_with_what_was_expected() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^job.yaml: model.kind: given 'dlmr', expected: one of dlrm, dcnv2, .*din, .* mean dlrm",
    ):
        Job.from_dict({"model": {"kind": "dlmr"}}, where="job.yaml")
    with pytest.raises(ConfigError, match=r"^job.yaml: model.embedding_dim: given 0, expected: .*greater"):
        Job.from_dict({"model": {"kind": "dlrm", "embedding_dim": 0}}, where="job.yaml")
