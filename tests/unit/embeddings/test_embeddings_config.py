from typing import Any

import pytest

from headrace.embeddings import EmbeddingsConfig, TableConfig
from headrace.errors import ConfigError


def parsed(**values: Any) -> EmbeddingsConfig:
    return EmbeddingsConfig.from_dict(values, where="job.yaml")


def test_spaces_inherit_what_they_do_not_say_from_the_default() -> None:
    default = {
        "kind": "collisionless",
        "num_embeddings": 64,
        "admission_count": 3,
        "optimizer": {"kind": "adam", "lr": 0.5},
    }
    config = parsed(default=default, spaces={"items": {"num_embeddings": 8, "optimizer": {"beta1": 0.5}}})
    items = config.spaces["items"]
    assert (items.kind, items.num_embeddings, items.admission_count) == ("collisionless", 8, 3)
    assert (items.optimizer.kind, items.optimizer.lr, items.optimizer.beta1) == ("adam", 0.5, 0.5)


def test_a_space_inherits_the_optimizer_kind_also_where_the_default_does_not_name_one() -> None:
    config = parsed(spaces={"items": {"optimizer": {"lr": 0.25}}})
    assert config.spaces["items"].optimizer.kind == config.default.optimizer.kind
    assert config.spaces["items"].optimizer.lr == 0.25


def test_a_hashed_space_does_not_inherit_admission_and_eviction() -> None:
    default = {"kind": "collisionless", "admission_count": 3, "evict_after": 2}
    config = parsed(default=default, spaces={"country": {"kind": "hashed"}})
    assert (config.spaces["country"].admission_count, config.spaces["country"].evict_after) == (1, None)


def test_configs_built_in_python_equal_those_from_yaml() -> None:
    table = TableConfig(kind="direct", num_embeddings=4)
    assert EmbeddingsConfig(default=table, spaces={"a": table}) == parsed(
        default={"kind": "direct", "num_embeddings": 4}, spaces={"a": {}}
    )


def test_a_resolved_config_reads_back_as_itself() -> None:
    config = parsed(
        default={"kind": "collisionless", "evict_after": 2},
        spaces={"a": {"kind": "direct"}},
        features={"f": {"space": "a"}},
    )
    assert EmbeddingsConfig.from_dict(config.model_dump(mode="json"), where="again") == config


def test_layout_numbers_spaces_in_the_order_in_which_features_name_them() -> None:
    features = {"candidate": {"space": "items"}, "history": {"space": "items", "pooling": "mean"}}
    layout = parsed(features=features, spaces={"items": {"num_embeddings": 8}}).layout(["user", "candidate", "history"])
    assert list(layout.spaces) == ["user", "items"]
    assert layout.space_of_feature == (0, 1, 1)
    assert layout.poolings == ("sum", "sum", "mean")
    assert layout.spaces["items"].num_embeddings == 8


def test_rows_begin_as_in_the_dlrm_code_unless_told_otherwise() -> None:
    assert TableConfig(num_embeddings=400).scale == 0.05
    assert TableConfig(init_scale=0.0).scale == 0.0


def test_first_order_weights_begin_at_zero_in_every_space() -> None:
    config = parsed(spaces={"a": {"num_embeddings": 5}}).first_order()
    assert config.default.scale == 0.0
    assert config.spaces["a"].scale == 0.0
    assert config.spaces["a"].num_embeddings == 5


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
        ({"default": {"evict_after": 2}}, "admission_count and evict_after only with kind: collisionless, not hashed"),
        ({"spaces": {"a": {"size": 3}}}, "spaces.a.size: unknown key"),
        ({"spaces": {"a": 3}}, "spaces.a: given 3"),
        ({"default": 3, "spaces": {"a": {}}}, "default: given 3"),
        (
            {"spaces": {"a": {"optimizer": {"kind": "adam"}}}},
            "one kind of optimizer for all spaces: spaces.a has adam, default has rowwise_adagrad",
        ),
    ],
)
def test_mistakes_are_told_with_key_given_and_expected(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        EmbeddingsConfig.from_dict(values, where="job.yaml")
    assert str(error.value).startswith("job.yaml: ")
    assert text in str(error.value)


def test_a_name_that_nothing_uses_is_refused_when_features_are_known() -> None:
    with pytest.raises(ConfigError, match=r"^embeddings.features.itme: unknown, expected one of: item, user$"):
        parsed(features={"itme": {}}).layout(["item", "user"])
    with pytest.raises(ConfigError, match=r"^embeddings.spaces.itmes: unknown, expected one of: items, user$"):
        parsed(features={"item": {"space": "items"}}, spaces={"itmes": {}}).layout(["item", "user"])
