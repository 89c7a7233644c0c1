"""`FeatureChanges`: how the features of a job differ from those of a checkpoint, as described by `describe_model`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from headrace.errors import CheckpointError
from headrace.messages import shorten_list

__all__ = ["FeatureChanges"]

SECTIONS = ("dense", "sparse")

Shape = Mapping[str, Any]


@dataclass(frozen=True)
class FeatureChanges:
    """Features that a job has and its checkpoint does not, or the reverse. All other features are the same in both.

    Attributes:
        added: New features, with their kind: "dense price".
        removed: Features that are gone.
        was: By kind ("dense", "sparse"), the names of the checkpoint's dense columns and sparse keys, in order; a
            feature may have several dense columns.
        now: The same of the job.
        kept_tables: Embedding tables in both, in the order of the job.
        new_tables: Tables of new features only.
        dropped_tables: Tables that no feature uses any more.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    was: Mapping[str, tuple[str, ...]]
    now: Mapping[str, tuple[str, ...]]
    kept_tables: tuple[str, ...]
    new_tables: tuple[str, ...]
    dropped_tables: tuple[str, ...]

    @classmethod
    def between(cls, was: Shape, now: Shape, *, checkpoint: int) -> Self | None:
        """Compare the model of a checkpoint with that of a job; None if they are the same.

        Args:
            was: Description of the checkpoint's model.
            now: Description of the job's model.
            checkpoint: Number of the checkpoint.

        Raises:
            CheckpointError: They differ in more than added, removed and moved features; the message has the first such
                difference.
        """
        difference = _first_difference(_common(was, now), _common(now, was))
        if difference:
            key, before, after = difference
            raise CheckpointError(
                f"checkpoint {checkpoint} belongs to another model: {key} was {before}, is now {after}; "
                "use a different run folder, or change it back"
            )
        if was == now:
            return None
        tables_before, tables_after = _tables(was), _tables(now)
        return cls(
            _features_beyond(now, was),
            _features_beyond(was, now),
            _names(was),
            _names(now),
            tuple(table for table in tables_after if table in tables_before),
            tuple(table for table in tables_after if table not in tables_before),
            tuple(table for table in tables_before if table not in tables_after),
        )

    def __str__(self) -> str:
        parts = [("added", self.added), ("removed", self.removed)]
        texts = [f"{what} {shorten_list(names)}" for what, names in parts if names]
        return "; ".join(texts) or "the same in another order"

    def refusal(self, checkpoint: int) -> str:
        """Message for a user who may not have meant to change the features."""
        return (
            f"checkpoint {checkpoint} has other features than the job ({self}); if you mean to change the run's "
            "features, use: headrace train JOB --change-features; else change them back, or use a different run folder"
        )


def _common(shape: Shape, other: Shape) -> dict[str, Any]:
    """A model's description without the order of features, and without features that the other one does not have."""
    if not (_has_features(shape) and _has_features(other)):
        return dict(shape)
    ours, theirs = shape["features"], other["features"]
    features = {
        section: {name: feature for name, feature in ours[section].items() if name in theirs[section]}
        for section in SECTIONS
    }
    return {key: value for key, value in shape.items() if key != "order"} | {"features": features}


def _has_features(shape: Shape) -> bool:
    parts = [shape.get("features"), shape.get("order")]
    return all(isinstance(part, dict) and set(part) == set(SECTIONS) for part in parts)


def _names(shape: Shape) -> dict[str, tuple[str, ...]]:
    return {section: tuple(shape["order"][section]) for section in SECTIONS}


def _tables(shape: Shape) -> list[str]:
    """Names of the tables in use, in the order of their features."""
    return list(dict.fromkeys(shape["features"]["sparse"][name]["table"] for name in shape["order"]["sparse"]))


def _features_beyond(shape: Shape, other: Shape) -> tuple[str, ...]:
    """Features that the other model does not have, with their kind."""
    ours, theirs = shape["features"], other["features"]
    return tuple(f"{section} {name}" for section in SECTIONS for name in ours[section] if name not in theirs[section])


def _first_difference(was: Any, now: Any, key: str = "") -> tuple[str, str, str] | None:
    if isinstance(was, dict) and isinstance(now, dict):
        for name in list(was) + [name for name in now if name not in was]:
            inner = f"{key}.{name}" if key else name
            if name not in was or name not in now:
                return inner, repr(was.get(name, "absent")), repr(now.get(name, "absent"))
            found = _first_difference(was[name], now[name], inner)
            if found:
                return found
        return None
    return None if was == now else (key, repr(was), repr(now))
