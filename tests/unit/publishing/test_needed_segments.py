"""Which segments lead from one version to a later one: those after it, and of merged ones the parts after it."""

from __future__ import annotations

from headrace.embeddings.changes.chains import Chain
from headrace.embeddings.changes.segments import SegmentEntry
from headrace.publishing.needed_segments import segments_since


def chain_of(*spans: tuple[int, int], bytes_of: dict[tuple[int, int], int] | None = None) -> Chain:
    """A base and the segments after it, of 10 bytes per version."""
    found = []
    for place, (first, last) in enumerate(spans):
        num_bytes = (bytes_of or {}).get((first, last), 10 * (last - first + 1))
        found.append(SegmentEntry(f"{first}-{last}", first, last, place == 0, 1, num_bytes, ""))
    return tuple(found)


def spans_of(chain: Chain | None) -> list[tuple[int, int]] | None:
    return None if chain is None else [(entry.first, entry.last) for entry in chain]


PUBLISHED = {
    4: chain_of((1, 1), (2, 2), (3, 3), (4, 4)),
    8: chain_of((1, 4), (5, 5), (6, 6), (7, 7), (8, 8)),
    12: chain_of((1, 4), (5, 8), (9, 9), (10, 10), (11, 11), (12, 12)),
    13: chain_of((1, 4), (5, 8), (9, 12), (13, 13)),
    14: chain_of((1, 12), (13, 13), (14, 14)),
    15: chain_of((1, 4), (5, 12), (13, 13), (14, 14), (15, 15)),
}


def test_only_segments_after_the_version_are_needed() -> None:
    assert spans_of(segments_since(PUBLISHED[13], 12, PUBLISHED.get)) == [(13, 13)]
    assert spans_of(segments_since(PUBLISHED[13], 8, PUBLISHED.get)) == [(9, 12), (13, 13)]
    assert spans_of(segments_since(PUBLISHED[13], 13, PUBLISHED.get)) == []


def test_of_a_merged_segment_that_began_before_the_parts_after_the_version_are_needed() -> None:
    assert spans_of(segments_since(PUBLISHED[13], 10, PUBLISHED.get)) == [(11, 11), (12, 12), (13, 13)]
    assert spans_of(segments_since(PUBLISHED[13], 6, PUBLISHED.get)) == [(7, 7), (8, 8), (9, 12), (13, 13)]
    # Through two merges: that of 5 to 12, and that of 5 to 8.
    assert spans_of(segments_since(PUBLISHED[15], 7, PUBLISHED.get)) == [
        (8, 8), (9, 9), (10, 10), (11, 11), (12, 12), (13, 13), (14, 14), (15, 15)
    ]  # fmt: skip


def test_of_a_base_too() -> None:
    assert spans_of(segments_since(PUBLISHED[14], 11, PUBLISHED.get)) == [(12, 12), (13, 13), (14, 14)]
    assert spans_of(segments_since(PUBLISHED[14], 3, PUBLISHED.get)) == [
        (4, 4), (5, 8), (9, 9), (10, 10), (11, 11), (12, 12), (13, 13), (14, 14)
    ]  # fmt: skip


def test_a_merged_segment_is_taken_whole_where_it_has_fewer_bytes_than_its_parts() -> None:
    chain = chain_of((1, 4), (5, 8), bytes_of={(5, 8): 25})
    assert spans_of(segments_since(chain, 6, PUBLISHED.get)) == [(7, 7), (8, 8)]
    assert spans_of(segments_since(chain, 5, PUBLISHED.get)) == [(5, 8)]


def test_without_the_chain_between_a_merged_segment_is_taken_whole_and_of_a_base_everything() -> None:
    assert spans_of(segments_since(PUBLISHED[13], 10, lambda _: None)) == [(9, 12), (13, 13)]
    assert segments_since(PUBLISHED[14], 3, lambda _: None) is None
    assert segments_since(chain_of((9, 9), (10, 10)), 8, PUBLISHED.get) is None  # all rows were published anew


def test_a_chain_that_has_no_parts_is_not_followed_forever() -> None:
    assert spans_of(segments_since(PUBLISHED[13], 10, lambda _: PUBLISHED[13])) == [(9, 12), (13, 13)]
    same = chain_of((1, 4), (5, 8), (9, 12))
    assert spans_of(segments_since(same, 10, lambda _: same)) == [(9, 12)]
    base = chain_of((1, 12))
    assert segments_since(base, 3, lambda _: base) is None
