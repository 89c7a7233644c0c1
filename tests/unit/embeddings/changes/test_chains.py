"""Which segments of a chain are merged: decided from their sizes alone."""

import pytest

from headrace.embeddings.changes.chains import chains_of, chains_to_json, plan_merge, replaced
from headrace.embeddings.changes.segments import SegmentEntry


def entry(first: int, last: int, num_bytes: int = 1, *, is_base: bool = False) -> SegmentEntry:
    return SegmentEntry(f"{first:08d}-{last:08d}-0123abcd.rows", first, last, is_base, 1, num_bytes, "0" * 64)


BASE = entry(1, 1, 1000, is_base=True)


def test_a_base_alone_is_left_alone() -> None:
    assert plan_merge((BASE,)) is None


@pytest.mark.parametrize(("num_bytes", "is_due"), [(249, False), (250, True)])
def test_segments_of_half_the_bytes_of_the_base_become_a_base(num_bytes: int, is_due: bool) -> None:
    plan = plan_merge((BASE, entry(2, 2, num_bytes), entry(3, 3, 250)))
    assert (plan is not None) == is_due
    if plan is not None:
        assert (plan.first, plan.last) == (0, 3)


def test_a_number_of_checkpoints_can_decide_instead() -> None:
    chain = (BASE, entry(2, 4, 10_000), entry(5, 5))
    assert plan_merge(chain, 5) is None
    plan = plan_merge(chain, 4)
    assert plan is not None
    assert plan.reason == "4 checkpoints after a base"


def test_four_segments_of_one_level_are_merged_with_all_others_of_it() -> None:
    chain = (BASE, entry(2, 5), *(entry(number, number) for number in range(6, 11)))
    plan = plan_merge(chain)
    assert plan is not None
    assert (plan.first, plan.last) == (2, 7)
    assert plan_merge(chain[:5]) is None


def test_a_chain_of_many_checkpoints_stays_short() -> None:
    chain: tuple[SegmentEntry, ...] = (entry(1, 1, 10**9, is_base=True),)
    for number in range(2, 300):
        chain = (*chain, entry(number, number))
        while plan := plan_merge(chain):
            merged = chain[plan.first : plan.last]
            chain = replaced(chain, merged, entry(merged[0].first, merged[-1].last))
        assert len(chain) <= 1 + 3 * 5
    assert [each.last + 1 for each in chain[:-1]] == [each.first for each in chain[1:]]


def test_only_a_chain_with_all_merged_segments_gets_the_new_one() -> None:
    chain = (BASE, entry(2, 2), entry(3, 3), entry(4, 4))
    by = entry(2, 3)
    assert replaced(chain, chain[1:3], by) == (BASE, by, chain[3])
    assert replaced(chain[:2], chain[1:3], by) == chain[:2]


def test_a_manifest_gives_back_its_chains_and_refuses_other_values() -> None:
    chains = {"g": ((BASE, entry(2, 2)), (BASE,))}
    values = chains_to_json(chains)
    assert chains_of(values) == chains
    values["g"][0][1]["name"] = "../../secret"
    with pytest.raises(ValueError, match="expected names of files"):
        chains_of(values)
    with pytest.raises(ValueError, match="expected a base and the segments after it"):
        chains_of({"g": [values["g"][0][1:]]})
    with pytest.raises(ValueError, match=r"chains\.g\.0\.0\.\w+: Field required"):
        chains_of({"g": [[{"name": "x"} | dict.fromkeys(("first", "last", "rows"), 1)]]})
