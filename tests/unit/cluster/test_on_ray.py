"""Actors that Ray has no room for are refused, where Ray itself would wait without a word."""

import pytest

from headrace.cluster.on_ray import check_fits
from headrace.errors import ConfigError


@pytest.mark.parametrize(
    ("actors", "free"),
    [
        ({"shard": (2, 1.0), "trainer": (2, 1.0)}, {"a": 4.0}),
        ({"shard": (2, 0.5), "trainer": (2, 0.5)}, {"a": 2.0}),
        ({"shard": (3, 0.1)}, {"a": 0.3}),
        ({"shard": (1, 1.0), "trainer": (2, 3.0)}, {"a": 4.0, "b": 3.0}),
        ({"shard": (2, 0.0), "trainer": (1, 0.0)}, {"a": 0.0}),
        ({"shard": (0, 1.0), "trainer": (1, 2.0)}, {"a": 1.0, "b": 2.0}),
    ],
)
def test_actors_that_fit_are_let_through(actors: dict[str, tuple[int, float]], free: dict[str, float]) -> None:
    check_fits(actors, free, 8.0)


def test_too_many_actors_are_refused_with_what_they_need_and_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        check_fits({"shard": (2, 1.0), "trainer": (2, 1.0)}, {"a": 2.0}, 2.0)
    assert str(caught.value) == (
        "train_on_ray: needs 4 CPUs (2 shards of 1, 2 trainers of 1), but the cluster has 2 free of 2; "
        "use fewer actors, or lower trainer_cpus and shard_cpus"
    )


def test_an_actor_must_fit_one_machine() -> None:
    with pytest.raises(
        ConfigError, match=r"needs 4 CPUs \(1 shard of 1, 1 trainer of 3\), .* 4 free of 4 on 2 machines"
    ):
        check_fits({"shard": (1, 1.0), "trainer": (1, 3.0)}, {"a": 2.0, "b": 2.0}, 4.0)


def test_cpus_that_others_have_reserved_do_not_count() -> None:
    with pytest.raises(ConfigError, match="1 free of 8"):
        check_fits({"shard": (1, 1.0), "trainer": (1, 1.0)}, {"a": 1.0}, 8.0)


def test_a_cluster_without_a_machine_has_no_room() -> None:
    with pytest.raises(ConfigError, match="0 free of 0"):
        check_fits({"trainer": (1, 1.0)}, {}, 0.0)
