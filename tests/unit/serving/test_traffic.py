"""Which model answers a request."""

import pytest

from headrace.errors import ConfigError
from headrace.serving.traffic import Traffic


def test_a_candidate_answers_its_share_and_a_key_always_the_same_model() -> None:
    traffic = Traffic.of(["main", "new", "old"], ["new=0.25", "old=.1"], [])
    keys = [str(number).encode() for number in range(20_000)]
    found = [traffic.model_of(key) for key in keys]
    assert found.count("new") / len(keys) == pytest.approx(0.25, abs=0.01)
    assert found.count("old") / len(keys) == pytest.approx(0.1, abs=0.01)
    assert found == [traffic.model_of(key) for key in keys]


def test_a_larger_share_keeps_the_keys_of_a_smaller_one() -> None:
    small, large = (Traffic.of(["main", "new"], [f"new={share}"], []) for share in (0.1, 0.3))
    keys = [str(number).encode() for number in range(2_000)]
    assert {k for k in keys if small.model_of(k) == "new"} < {k for k in keys if large.model_of(k) == "new"}


def test_without_shares_the_main_model_answers() -> None:
    assert Traffic.of(["main", "new"], [], ["new"]).model_of(b"any") == "main"
    assert Traffic.of(["main", "new"], ["new=1"], []).model_of(b"any") == "new"


@pytest.mark.parametrize(
    ("split", "shadow", "message"),
    [
        (["new"], [], "--split: given 'new', expected NAME=SHARE"),
        (["new=2"], [], "--split: given 'new=2', expected NAME=SHARE"),
        (["nw=0.1"], [], "--split: given nw, expected different ones of: new"),
        (["main=0.1"], [], "--split: given main, expected different ones of: new"),
        (["new=0.1", "new=0.2"], [], "--split: given new, expected different ones"),
        ([], ["nw"], "--shadow: given nw, expected different ones of: new"),
    ],
)
def test_wrong_options_are_named(split: list[str], shadow: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Traffic.of(["main", "new"], split, shadow)


def test_shares_are_at_most_all() -> None:
    with pytest.raises(ConfigError, match="more than 1 together"):
        Traffic.of(["main", "a", "b"], ["a=0.6", "b=0.6"], [])
