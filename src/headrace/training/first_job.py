"""Writes a first job file for an inspected log, with the reason for each choice as a comment.

Contains only choices that depend on the log; everything else keeps its default, see `docs/job-file.md`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from headrace.logs.inspection import Inspection, Ranking
from headrace.logs.schema import Schema
from headrace.messages import count_of, one_line, shorten_list
from headrace.training.batch_size import SMALLEST_BATCH
from headrace.training.first_features import number_features
from headrace.training.job import JobConfig

__all__ = ["Choice", "choose_job", "job_notes", "job_to_yaml"]

NUM_WINDOWS = 10
"""Number of windows for a log without folders, enough to see how metrics develop."""

MIN_WINDOW_ROWS = 1_000
"""Minimum number of rows per window; metrics of fewer rows are too noisy."""

MAX_FILES = 1_000
"""Maximum number of windows for a log whose files are windows."""

HASHED_ROWS = 100_000
"""Default number of rows of a table. With half as many ids, one in three shares its row with another id."""

MAX_ROWS_AT_START = 1 << 20
"""Initial capacity of a collisionless table, which grows."""

NUM_CROSS_LAYERS = 2

CROSS_RANK, WIDE_CROSS_RANK = 64, 128
"""Ranks of cross layers, for inputs of at most `WIDE` numbers and for wider ones."""

WIDE = 512

EMBEDDING_DIM = 16

EMBEDDING_OPTIMIZER = {"kind": "rowwise_adagrad", "lr": 0.1, "initial_accumulator": 0.003, "reduction": "sum"}
"""`docs/design/0014-defaults.md` has the measurements; they are for embeddings and layers together."""

LINEAR_OPTIMIZER = {"kind": "adagrad", "lr": 0.03, "eps": 1.0, "reduction": "sum"}
"""As McMahan et al., "Ad Click Prediction: a View from the Trenches", 2013, section 3.1, without regularization."""

DENSE_OPTIMIZER = {"kind": "adam", "lr": 0.002}

RARE_RATE, FIRST_BATCH_OF_RARE = 1 / 32, 256
"""Label rate below which the default's first batches of 128 rows have fewer than four positives on average; NE is then
up to 1.2 % lower with twice as many rows, see `docs/design/0014-defaults.md`."""

BASELINE_AUC = 0.55
"""Minimum AUC of a number alone to be shown beside the model's."""

LEAK_AUC = 0.95
"""AUC of a number alone (or of its negative) above which it probably follows from the label."""

MAX_LIST_LENGTH = 50
"""Default number of ids used per list."""

WIDTH = 110
"""Maximum length of comment lines."""


@dataclass(frozen=True)
class Choice:
    """One value of a job file.

    Attributes:
        key: Key path, such as ("data", "window").
        value: The value.
        reason: Reason for the value.
    """

    key: tuple[str, ...]
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{'.'.join(self.key)}: {_flow(self.value)}"


def choose_job(
    found: Inspection, *, path: str, schema: str, run: str = "run", rankings: Sequence[Ranking] = ()
) -> list[Choice]:
    """Choose the values of a job that trains on an inspected log.

    Args:
        found: Result of `inspect_log`, with a schema.
        path: Path of the log, as in the job file.
        schema: Path of the schema file, as in the job file.
        run: Folder of the run, as in the job file.
        rankings: Result of `rank_numbers`, for the baseline.
    """
    assert found.schema is not None, "without a label there is nothing to train on"
    choices = [
        Choice(("run",), run, "Checkpoints, metrics and the report go here."),
        Choice(("data", "path"), path, f"{found.num_rows:,} rows in {count_of(found.num_files, 'file')}."),
        Choice(("data", "schema"), schema, "Has the role of each column; correct wrong guesses there."),
        _window(found),
        *_bad_rows(found),
        *_shuffle(found),
        *_features(found, found.schema),
        Choice(
            ("embeddings", "default", "optimizer"),
            EMBEDDING_OPTIMIZER,
            "An id's first rows move it little, and a row counts the same in small and large batches.",
        ),
        Choice(
            ("embeddings", "linear_optimizer"),
            LINEAR_OPTIMIZER,
            "Trains the one weight per id that the model adds to its other layers.",
        ),
        *_tables(found, found.schema),
        _model(found.schema),
        Choice(("training", "batch_size"), "auto", "Small batches at first, larger ones as more rows have been seen."),
        *_first_batch(found, found.schema),
        Choice(("training", "dense_optimizer"), DENSE_OPTIMIZER, "A new model has few steps to learn its layers in."),
        *_baseline(rankings),
    ]
    JobConfig.from_dict(_nested(choices), where="the job")  # a mistake here is ours
    return choices


def job_to_yaml(choices: Sequence[Choice], *, title: str, notes: Sequence[str] = ()) -> str:
    """Format a job file, with each value below its reason.

    Args:
        choices: Choices, see `choose_job`; choices with the same first key must be adjacent.
        title: First line, a comment.
        notes: More comments, at the end.
    """
    lines = [*_comment(title), ""]
    lines += _section(choices, 0)
    for note in notes:
        lines += ["", *_comment(note)]
    return "\n".join(lines) + "\n"


def _window(found: Inspection) -> Choice:
    key = ("data", "window")
    folders = len({group.file.rpartition("/")[0] for group in found.row_groups})
    why = "windows are trained on in turn, each with its own metrics and checkpoint"
    if folders > 1:
        return Choice(key, {"kind": "folder"}, f"One window for each of {folders} folders: {why}.")
    mean_rows = found.num_rows / found.num_files
    if 1 < found.num_files <= MAX_FILES and mean_rows >= MIN_WINDOW_ROWS:
        return Choice(key, {"kind": "file"}, f"One window for each of {found.num_files} files: {why}.")
    if found.num_rows < 2 * MIN_WINDOW_ROWS:
        return Choice(key, {"kind": "folder"}, "One window for all rows, because there are few.")
    rows = max(MIN_WINDOW_ROWS, _round(found.num_rows / NUM_WINDOWS))
    value = {"kind": "rows", "num_rows": rows, "include_incomplete": True}
    return Choice(key, value, f"A window for every {rows:,} rows, because the log has one folder: {why}.")


def _bad_rows(found: Inspection) -> Iterator[Choice]:
    if not found.num_bad:
        return
    ratio = found.num_bad / max(1, found.num_rows)
    policy: dict[str, Any] = {"policy": "quarantine"}
    if ratio > 0.005:  # the limit of a window is 1 %, and bad rows come in bursts
        policy["max_ratio"] = min(1.0, _round(2 * ratio + 0.005))
    reason = f"{found.num_bad:,} rows are bad ({ratio:.2%}), see headrace inspect; they are kept for a replay."
    yield Choice(("data", "bad_rows"), policy, reason)


def _shuffle(found: Inspection) -> Iterator[Choice]:
    if found.layout is not None:
        value = {"num_rows": 50_000, "seed": 7, "by": "session"}
        yield Choice(("pipeline", "shuffle"), value, "Rows of a session are adjacent; batches should mix sessions.")


def _features(found: Inspection, schema: Schema) -> Iterator[Choice]:
    numbers = list(number_features(found, schema))
    if numbers:
        yield Choice(("features", "others"), "default", "Columns that are not listed here are features, too.")
    for name, value, reason in numbers:
        yield Choice(("features", "dense", name), value, reason)


def _tables(found: Inspection, schema: Schema) -> Iterator[Choice]:
    profiles = {profile.name: profile for profile in found.profiles}
    lists = {column.name for column in schema.id_lists}
    shared = found.shared_tables
    names = [column.name for column in schema.ids] + [column.name for column in schema.id_lists]
    alone = [(name,) for name in names if not any(name in table for table in shared)]
    for columns in [*shared, *alone]:
        name = next((column for column in columns if column not in lists), columns[0])
        num_ids = max(round(profiles[column].ids.num_distinct()) for column in columns)
        table: dict[str, Any] = {}
        reasons = []
        if len(columns) > 1:
            table["feature_names"] = list(columns)
            pooled = [column for column in columns if column in lists]
            if pooled:
                table["pooling"] = dict.fromkeys(pooled, "mean")
            reasons.append(f"{shorten_list(columns)} hold the same ids: in one table, they learn from each other.")
        if num_ids > HASHED_ROWS // 2:
            rows = min(MAX_ROWS_AT_START, 1 << (num_ids - 1).bit_length())
            table |= {"kind": "collisionless", "num_embeddings": rows}
            reasons.append(f"About {_round(num_ids):,} ids: each gets its own row, because hashed ids would collide.")
        if table:
            yield Choice(("embeddings", "tables", name), table, " ".join(reasons))


def _model(schema: Schema) -> Choice:
    num_ids = len(schema.ids) + len(schema.id_lists)
    width = len(schema.dense) + num_ids * EMBEDDING_DIM
    rank = CROSS_RANK if width <= WIDE else WIDE_CROSS_RANK
    value = {
        "kind": "dcnv2",
        "embedding_dim": EMBEDDING_DIM,
        "num_cross_layers": NUM_CROSS_LAYERS,
        "cross_rank": rank,
        "linear": True,
    }
    reason = (
        f"Learns products of all features, including dense ones; rank {rank} costs less than full matrices. The linear "
        "part learns from the first rows."
    )
    return Choice(("model",), value, reason)


def _first_batch(found: Inspection, schema: Schema) -> Iterator[Choice]:
    label = schema.labels[0]
    rate = next((profile.mean for profile in found.profiles if profile.name == label.name), None)
    if rate is None or label.is_regression:
        return
    rarer = min(rate, 1.0 - rate)
    if 0 < rarer < RARE_RATE:
        value = "positive" if rate < 0.5 else "negative"
        reason = (
            f"Only {rarer:.2%} of the labels are {value}: on average, the usual {SMALLEST_BATCH} rows would have "
            f"{SMALLEST_BATCH * rarer:.1f} of them."
        )
        yield Choice(("training", "first_batch_size"), FIRST_BATCH_OF_RARE, reason)


def _baseline(rankings: Sequence[Ranking]) -> Iterator[Choice]:
    able = [ranking for ranking in rankings if BASELINE_AUC <= ranking.auc < LEAK_AUC]
    if able:
        best = max(able, key=lambda ranking: ranking.auc)
        reason = f"The number that ranks best alone, with AUC {best.auc:.3f} on {best.num_rows:,} rows."
        yield Choice(("training", "baseline"), best.column, f"{reason} Tables show it next to the model.")


def job_notes(found: Inspection, *, path: str, rankings: Sequence[Ranking] = ()) -> list[str]:
    """Notes on a log for the user, in addition to the choices of the job.

    Args:
        found: Result of `inspect_log`.
        path: Path of the log, as given by the user.
        rankings: Result of `rank_numbers`, for columns that give the label away.
    """
    assert found.schema is not None
    notes = [
        f"{one_line(ranking.column)} alone tells the label (AUC {ranking.auc:.3f}): is it known before the label is? "
        "If not, remove it from the schema."
        for ranking in rankings
        if max(ranking.auc, 1 - ranking.auc) >= LEAK_AUC
    ]
    if found.layout is None and found.groups and found.clustering_gain > 1.2:
        notes.append(
            f"Rows of a session repeat their values. headrace cluster {path} CLUSTERED would store them once, "
            f"{found.clustering_gain:.1f}x fewer bytes in memory; then set data.path to CLUSTERED."
        )
    clock = found.schema.timestamp
    times = [profile for profile in found.profiles if clock is not None and profile.name == clock.name]
    notes += [
        "Rows are not in order of time, so metrics say less about how the model predicts later rows. Sort the log by "
        f"{one_line(profile.name)} if you can."
        for profile in times
        if found.layout is None and profile.num_backward > 0.01 * profile.num_values
    ]
    long = [
        profile.name
        for profile, guess in zip(found.profiles, found.guesses, strict=True)
        if guess.part == "id_list" and profile.percentile_length(99) > MAX_LIST_LENGTH
    ]
    if long:
        notes.append(
            f"Only the first {MAX_LIST_LENGTH} ids of a list are used, but more than 1 % of the lists in "
            f"{shorten_list(long)} are longer. To use more, list the features with a larger first_x."
        )
    return notes


def _nested(choices: Sequence[Choice]) -> dict[str, Any]:
    job: dict[str, Any] = {}
    for choice in choices:
        place = job
        for key in choice.key[:-1]:
            place = place.setdefault(key, {})
        place[choice.key[-1]] = choice.value
    return job


def _section(choices: Sequence[Choice], level: int) -> Iterator[str]:
    """The lines of choices that share the first `level` keys."""
    indent = "  " * level
    for key in dict.fromkeys(choice.key[level] for choice in choices):
        below = [choice for choice in choices if choice.key[level] == key]
        if level == 0 and choices[0].key[0] != key:
            yield ""
        if len(below[0].key) == level + 1:
            yield from _comment(below[0].reason, indent)
            yield f"{indent}{_flow(key)}: {_flow(below[0].value)}"
        else:
            yield f"{indent}{_flow(key)}:"
            yield from _section(below, level + 1)


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _round(number: float) -> Any:
    """Round a share to one significant digit, a count to two."""
    if number < 1:
        return float(f"{number:.1g}")
    return round(float(f"{number:.2g}"))
