"""Chooses the layout of a clustered log from a sample: columns that change together, and how lists grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.compiling import kernel
from headrace.logs.break_even import INVERSE_BYTES, MIN_FACTOR
from headrace.logs.gathering import gather, is_list, list_parts
from headrace.logs.nested.changes import can_compare, changed
from headrace.logs.nested.layout import Layout, Runs, free_prefix
from headrace.logs.nested.unions import make_unions

__all__ = ["ColumnChanges", "choose_layout", "column_changes", "find_groups", "row_bytes"]

RUN_BYTES = 2.0
"""Approximate compressed bytes per run in a file in addition to its values, for its start."""

GROUP_BYTES = 0.25
"""Minimum bytes per row that runs must save over a plain column, because they are an additional column to decode."""

Words = npt.NDArray[np.uint64]


class ColumnChanges(NamedTuple):
    """The rows of a sample in which each column changes.

    Attributes:
        names: Columns that can be compared.
        words: uint64 [columns, words], one bit per row with a previous row in its session.
        counts: int64 [columns], number of changes.
        num_sessions: Sessions in the sample.
        num_rows: Rows in the sample.
    """

    names: tuple[str, ...]
    words: Words
    counts: npt.NDArray[np.int64]
    num_sessions: int
    num_rows: int

    @property
    def num_pairs(self) -> int:
        """Number of rows with a previous row in their session."""
        return self.num_rows - self.num_sessions

    def factor(self, changes: int) -> float:
        """Rows per unique row for this number of changes."""
        return self.num_rows / (self.num_sessions + changes)


def choose_layout(
    kind: Literal["clustered", "nested"],
    rows: pa.RecordBatch,
    new_session: npt.NDArray[np.bool_],
    *,
    session: str,
    apart: Sequence[str],
) -> Layout:
    """Choose the layout of a log.

    Args:
        kind: Kind of layout.
        rows: A sample with sessions adjacent.
        new_session: bool [rows], True for the first row of each session.
        session: Session id column.
        apart: Columns that always belong to a single row (labels, times, row ids).
    """
    num_sessions = int(new_session.sum())
    widths = {name: row_bytes(rows.column(name)) for name in rows.schema.names}
    layout = Layout(
        kind=kind,
        session=session,
        columns=tuple(rows.schema.names),
        rows_per_session=rows.num_rows / max(num_sessions, 1),
        row_bytes={name: round(width, 3) for name, width in widths.items()},
        prefix=free_prefix(rows.schema.names) if kind == "nested" else "",
    )
    if kind == "clustered":
        return layout
    changes = column_changes(rows, new_session, without=(*apart, session))
    constant = {name for name, count in zip(changes.names, changes.counts, strict=True) if count == 0}
    # Lists use runs even if they never change in the sample, because a union allows changes and a session column does
    # not.
    of_session = [name for name in rows.schema.names if name in constant and not is_list(rows.schema.field(name).type)]
    if changes.num_pairs == 0:
        of_session = []
    groups = find_groups(changes, widths, without=of_session) if changes.num_pairs else []
    runs = tuple(Runs(columns=names, rows_per_run=factor) for names, factor in groups)
    starts = np.flatnonzero(new_session)
    listed = [name for names, _ in groups for name in names if is_list(rows.schema.field(name).type)]
    backwards = tuple(name for name in listed if _grows_at_front(rows.column(name), starts))
    names = [session, *(name for name in of_session if name != session)]
    return layout.model_copy(update={"session_columns": tuple(names), "runs": runs, "newest_first": backwards})


def column_changes(
    rows: pa.RecordBatch, new_session: npt.NDArray[np.bool_], *, without: Sequence[str] = ()
) -> ColumnChanges:
    """Find where columns change within sessions; columns that cannot be compared are ignored."""
    names = [field.name for field in rows.schema if field.name not in without and can_compare(field.type)]
    following = ~new_session[1:]
    num_pairs = int(following.sum())
    words = np.zeros((len(names), -(-num_pairs // 64)), dtype=np.uint64)
    for index, name in enumerate(names):
        bits = np.packbits(changed(rows.column(name))[following], bitorder="little")
        words[index].view(np.uint8)[: len(bits)] = bits
    counts = _count_bits(words)
    return ColumnChanges(tuple(names), words, counts, rows.num_rows - num_pairs, rows.num_rows)


def find_groups(
    changes: ColumnChanges, widths: Mapping[str, float], *, without: Sequence[str] = ()
) -> list[tuple[tuple[str, ...], float]]:
    """Choose the groups of columns to store as runs, each with its rows per run; other columns do not pay off.

    Columns below break-even are dropped. Remaining columns that change in the same rows form one group. Then groups are
    merged, best pair first, as long as that reduces bytes in memory and file.

    Args:
        changes: Changes of the columns.
        widths: Bytes per row of each column.
        without: Columns that are placed already.
    """
    groups: dict[bytes, list[int]] = {}
    for index, name in enumerate(changes.names):
        factor = changes.factor(int(changes.counts[index]))
        stored = (widths[name] + RUN_BYTES) / factor + GROUP_BYTES
        if name not in without and factor >= MIN_FACTOR and stored < widths[name]:
            groups.setdefault(changes.words[index].tobytes(), []).append(index)
    members = list(groups.values())
    if not members:
        return []
    words = np.stack([changes.words[group[0]] for group in members])
    group_widths = np.array([sum(widths[changes.names[i]] for i in group) for group in members])
    parents = _join_groups(words, group_widths, changes.num_sessions, changes.num_rows)
    joined: dict[int, list[int]] = {}
    for group, parent in zip(members, parents.tolist(), strict=True):
        joined.setdefault(parent, []).extend(group)
    counts = _count_bits(words)  # of merged groups, at their parents
    return [
        (tuple(changes.names[i] for i in sorted(group)), changes.factor(int(counts[parent])))
        for parent, group in joined.items()
    ]


def row_bytes(array: pa.Array) -> float:
    """Mean bytes per row in memory."""
    if not len(array):
        return 0.0
    if is_list(array.type):
        _, lengths, elements, _ = list_parts(array)
        width = elements.nbytes / len(elements) if len(elements) else 8.0
        return float(lengths.mean()) * width + 4.0
    return float(array.nbytes) / len(array)


def _grows_at_front(lists: pa.Array, starts: npt.NDArray[np.int64]) -> bool:
    """Whether the unions of a list column are smaller with the newest element first."""
    begins = np.concatenate([[True], changed(lists)])
    begins[starts] = True
    runs = gather(lists, np.flatnonzero(begins))
    offsets = np.concatenate([[0], np.cumsum(begins)])[np.append(starts, len(lists))]
    forward, backward = (len(make_unions(runs, offsets, newest_first=way).values.values) for way in (False, True))
    return backward < forward


@kernel()
def _cost(unique_ratio: float, width: float) -> float:
    """Bytes per row of a group in memory, plus its runs in the file."""
    return unique_ratio * (width + RUN_BYTES) + INVERSE_BYTES


@kernel()
def _bits(word: np.uint64) -> int:
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return int((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@kernel()
def _count_bits(words: Words) -> npt.NDArray[np.int64]:
    counts = np.zeros(words.shape[0], np.int64)
    for c in range(words.shape[0]):
        for w in range(words.shape[1]):
            counts[c] += _bits(words[c, w])
    return counts


@kernel()
def _count_either(words: Words, one: int, other: int) -> int:
    count = 0
    for w in range(words.shape[1]):
        count += _bits(words[one, w] | words[other, w])
    return count


@kernel()
def _join_groups(
    words: Words, widths: npt.NDArray[np.float64], num_sessions: int, num_rows: int
) -> npt.NDArray[np.int64]:
    """Merge pairs of groups while that reduces bytes; the words of a merged group are stored at its parent."""
    n = words.shape[0]
    parents = np.arange(n)
    alive = np.ones(n, np.bool_)
    counts = _count_bits(words)
    own = np.empty(n)
    gains = np.full((n, n), -1.0)
    for a in range(n):
        own[a] = _cost((num_sessions + counts[a]) / num_rows, widths[a])
    for a in range(n):
        for b in range(a + 1, n):
            either = _count_either(words, a, b)
            gains[a, b] = own[a] + own[b] - _cost((num_sessions + either) / num_rows, widths[a] + widths[b])
    while True:
        best, one, other = 0.0, -1, -1
        for a in range(n):
            if alive[a]:
                for b in range(a + 1, n):
                    if alive[b] and gains[a, b] > best:
                        best, one, other = gains[a, b], a, b
        if one < 0:
            return parents
        for w in range(words.shape[1]):
            words[one, w] |= words[other, w]
        widths[one] += widths[other]
        alive[other] = False
        for a in range(n):
            if parents[a] == other:
                parents[a] = one
        counts[one] = _count_either(words, one, one)
        own[one] = _cost((num_sessions + counts[one]) / num_rows, widths[one])
        for b in range(n):
            if b != one and alive[b]:
                either = _count_either(words, one, b)
                gain = own[one] + own[b] - _cost((num_sessions + either) / num_rows, widths[one] + widths[b])
                gains[min(one, b), max(one, b)] = gain
