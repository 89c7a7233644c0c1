from typing import Any

import pytest
import torch

from headrace.embeddings import AdagradConfig, EmbeddingBags, EmbeddingsConfig, TableConfig
from headrace.errors import ConfigError
from headrace.tensors import KeyedJaggedTensor
from headrace.training import JobConfig


def parsed(**values: Any) -> EmbeddingsConfig:
    return EmbeddingsConfig.from_dict(values, where="job.yaml")


def test_tables_inherit_what_they_do_not_say_from_the_default() -> None:
    default = {
        "kind": "collisionless",
        "num_embeddings": 64,
        "admission_count": 3,
        "optimizer": {"kind": "adam", "lr": 0.5},
    }
    config = parsed(default=default, tables={"items": {"num_embeddings": 8, "optimizer": {"beta1": 0.5}}})
    items = config.tables["items"]
    assert (items.kind, items.num_embeddings, items.admission_count) == ("collisionless", 8, 3)
    assert (items.optimizer.kind, items.optimizer.lr, items.optimizer.beta1) == ("adam", 0.5, 0.5)


def test_a_table_inherits_the_optimizer_kind_also_where_the_default_does_not_name_one() -> None:
    config = parsed(tables={"items": {"optimizer": {"lr": 0.25}}})
    assert config.tables["items"].optimizer.kind == config.default.optimizer.kind
    assert config.tables["items"].optimizer.lr == 0.25


def test_a_hashed_table_does_not_inherit_admission_and_eviction() -> None:
    default = {"kind": "collisionless", "admission_count": 3, "evict_after": 2}
    config = parsed(default=default, tables={"country": {"kind": "hashed"}})
    assert (config.tables["country"].admission_count, config.tables["country"].evict_after) == (1, None)


def test_configs_built_in_python_equal_those_from_yaml() -> None:
    table = TableConfig(kind="direct", num_embeddings=4)
    assert EmbeddingsConfig(default=table, tables={"a": table}) == parsed(
        default={"kind": "direct", "num_embeddings": 4}, tables={"a": {}}
    )


def test_a_resolved_config_reads_back_as_itself() -> None:
    config = parsed(
        default={"kind": "collisionless", "evict_after": 2},
        tables={"a": {"kind": "direct", "feature_names": ["f"], "pooling": {"f": "max"}}},
    )
    assert EmbeddingsConfig.from_dict(config.model_dump(mode="json"), where="again") == config


def test_tables_of_features_come_in_the_order_of_the_features() -> None:
    items = {"num_embeddings": 8, "feature_names": ["candidate", "history"], "pooling": {"history": "mean"}}
    tables = parsed(tables={"items": items}).tables_of(["user", "candidate", "history"], 16)
    assert [table.name for table in tables] == ["user", "items"]
    assert [table.feature_names for table in tables] == [("user",), ("candidate", "history")]
    assert [tables[1].pooling_of(name) for name in tables[1].feature_names] == ["sum", "mean"]
    assert [(table.num_embeddings, table.embedding_dim) for table in tables] == [(100_000, 16), (8, 16)]


def test_a_list_of_tables_is_all_that_bags_need() -> None:
    items = TableConfig(name="items", num_embeddings=8, embedding_dim=4, feature_names=("candidate", "history"))
    bags = EmbeddingBags([items, TableConfig(name="user", num_embeddings=5, embedding_dim=4)], seed=1)
    assert bags.feature_names == ("candidate", "history", "user")
    section = parsed(
        default={"num_embeddings": 5}, tables={"items": items.model_dump(exclude={"name", "embedding_dim"})}
    )
    same = EmbeddingBags(section, bags.feature_names, 4, seed=1)
    sparse = (KeyedJaggedTensor.from_lists({"candidate": [[1]], "history": [[2, 3]], "user": [[4]]}),)
    assert torch.equal(bags(sparse), same(sparse))
    with pytest.raises(ConfigError, match=r"tables\.user\.embedding_dim: given 3, expected 4, the model's"):
        EmbeddingBags([items, TableConfig(name="user", embedding_dim=3)], seed=1)
    with pytest.raises(ConfigError, match="tables: number 1 has no name, expected a name for each"):
        EmbeddingBags([items, TableConfig(embedding_dim=4)], seed=1)
    with pytest.raises(ConfigError, match="tables: 'items' occurs 2 times, expected different names"):
        EmbeddingBags([items, items], seed=1)
    with pytest.raises(ConfigError, match="tables: given none, expected at least one"):
        EmbeddingBags([], seed=1)


def test_the_earlier_keys_spaces_and_features_are_accepted_with_a_warning() -> None:
    features = {
        "candidate": {"space": "items"},
        "history": {"space": "items", "pooling": "mean"},
        "b": {"pooling": "max"},
    }
    with pytest.warns(
        FutureWarning, match="embeddings.spaces and embeddings.features are deprecated; use embeddings.tables"
    ):
        config = parsed(default={"num_embeddings": 9}, spaces={"items": {"kind": "direct"}}, features=features)
    items = {"kind": "direct", "feature_names": ["candidate", "history"], "pooling": {"history": "mean"}}
    assert config == parsed(default={"num_embeddings": 9}, tables={"items": items, "b": {"pooling": {"b": "max"}}})


def test_rows_begin_as_in_the_dlrm_code_unless_told_otherwise() -> None:
    assert TableConfig(num_embeddings=400).scale == 0.05
    assert TableConfig(init_scale=0.0).scale == 0.0


def test_first_order_weights_begin_at_zero_in_every_table() -> None:
    config = parsed(tables={"a": {"num_embeddings": 5}}).first_order()
    assert config.default.scale == 0.0
    assert config.tables["a"].scale == 0.0
    assert config.tables["a"].num_embeddings == 5


def test_first_order_weights_have_the_optimizer_of_their_table_or_one_of_their_own() -> None:
    values = {"tables": {"a": {"optimizer": {"lr": 0.5}}}}
    assert parsed(**values).first_order().tables["a"].optimizer.model_dump()["lr"] == 0.5
    config = parsed(**values, linear_optimizer={"kind": "adagrad", "lr": 0.25}).first_order()
    assert config.default.optimizer == config.tables["a"].optimizer == AdagradConfig(lr=0.25)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"default": {"kind": "hash"}},
            "default.kind: given 'hash', expected: 'direct', 'hashed' or 'collisionless'",
        ),
        (
            {"default": {"num_embeddings": 0}},
            "default.num_embeddings: given 0, expected: greater than or equal to 1",
        ),
        ({"default": {"evict_after": 2}}, "admission_count and evict_after need kind: collisionless, given hashed"),
        ({"tables": {"a": {"size": 3}}}, "tables.a.size: unknown key"),
        ({"tables": {"a": 3}}, "tables.a: given 3"),
        ({"default": 3, "tables": {"a": {}}}, "default: given 3"),
        (
            {"tables": {"a": {"feature_names": ["x"]}, "b": {"feature_names": ["x"]}}},
            "tables.b.feature_names: x is in tables.a already",
        ),
        (
            {"tables": {"a": {"optimizer": {"kind": "adam"}}}},
            "one kind of optimizer for all tables: tables.a has adam, default has rowwise_adagrad",
        ),
    ],
)
def test_mistakes_are_told_with_key_given_and_expected(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        EmbeddingsConfig.from_dict(values, where="job.yaml")
    assert str(error.value).startswith("job.yaml: ")
    assert text in str(error.value)


def test_a_name_that_nothing_uses_is_refused_when_features_are_known() -> None:
    cases = {
        "itmes: unknown, expected one of: item, user": {"itmes": {}},
        "item.feature_names.hist: unknown, expected one of: item, user": {"item": {"feature_names": ["hist"]}},
        "item.pooling.itme: unknown, expected one of: item": {"item": {"pooling": {"itme": "max"}}},
    }
    for text, tables in cases.items():
        with pytest.raises(ConfigError, match=rf"^embeddings\.tables\.{text}$"):
            parsed(tables=tables).tables_of(["item", "user"])


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"budget": "0%"},
            'embeddings.budget: given \'0%\', expected a percentage such as "40%" or a size such as "2GiB"',
        ),
        (
            {"budget": 0.4},
            'embeddings.budget: given 0.4, expected: a percentage such as "40%" or a size such as "2GiB"',
        ),
        (
            {"retention": {"kind": "importance"}},
            "embeddings.retention: given importance without a budget, expected `budget` as well",
        ),
        ({"partitions": 2}, "embeddings.partitions: given 2 without a budget, expected `budget` as well"),
        ({"storage": {"kind": "tiered"}}, "embeddings.storage: storage kind tiered needs a path, such as /fast/ssd"),
        (
            {"storage": {"kind": "tiered", "memory": "x", "path": "."}},
            'embeddings.storage.memory: given \'x\', expected bytes or a size like "4GiB" or "500MB"',
        ),
    ],
)
def test_what_does_not_fit_is_named_without_its_whole_section(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JobConfig.from_dict({"run": "r", "data": {"path": "l"}, "embeddings": values}, where="job")
    assert str(caught.value) == f"job: {line}"


def test_a_budget_of_a_number_is_bytes() -> None:
    assert EmbeddingsConfig.from_dict({"budget": 14_000}, where="test").budget == "14000"
