"""Actions of a replica's server: its status, rollback, and labels for the guard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from headrace.errors import PublishingError
from headrace.publishing.client import PublicationClient
from headrace.publishing.replica import Replica
from headrace.publishing.server import Act

__all__ = ["feed_back", "replica_actions", "replica_status", "roll_back"]

MAX_REASON = 500
MAX_LABELS = 2_000
"""Per call; the body of an action has at most 64 KiB."""


def replica_actions(replica: Replica) -> Mapping[str, Act]:
    """Actions for `PublicationServer`."""

    def status(body: dict[str, Any]) -> dict[str, Any]:
        return {"versions": replica.folder.versions(), **replica.status()}

    def rollback(body: dict[str, Any]) -> dict[str, Any]:
        to, reason = body.get("to"), body.get("reason", "")
        is_version = type(to) is int and to > 0
        if not (is_version or to == "newest"):
            raise PublishingError(f"rollback: to: given {str(to)[:40]!r}, expected a version or newest")
        if not isinstance(reason, str) or not reason.strip() or len(reason) > MAX_REASON:
            raise PublishingError(f"rollback: reason: expected text of 1 to {MAX_REASON} characters")
        return {"served": replica.rollback(to, " ".join(reason.split()))}  # type: ignore[arg-type]

    def feedback(body: dict[str, Any]) -> dict[str, Any]:
        version = body.get("version")
        predictions, labels = _numbers("predictions", body), _numbers("labels", body)
        if type(version) is not int or len(predictions) != len(labels):
            raise PublishingError(
                f"feedback: given version {str(version)[:40]} with {len(predictions)} predictions and {len(labels)} "
                "labels, expected a version with as many of both"
            )
        replica.feed_back(version, predictions, labels)
        return {"served": replica.tables.served or 0}

    return {"status": status, "rollback": rollback, "feedback": feedback}


def replica_status(client: PublicationClient) -> dict[str, Any]:
    """See `Replica.status`.

    Raises:
        PublishingError: The replica cannot be reached, or the server is not a replica.
    """
    values: dict[str, Any] = json.loads(client.act("status", {}))
    if "served" not in values:
        raise PublishingError(f"{client.address}: is a publisher, expected a replica")
    return values


def roll_back(client: PublicationClient, to: int | Literal["newest"], reason: str) -> int:
    """Serve another version at a replica, see `Replica.rollback`; returns the version that is served.

    Raises:
        PublishingError: The replica refused, or cannot be reached.
    """
    return int(json.loads(client.act("rollback", {"to": to, "reason": reason}))["served"])


def feed_back(client: PublicationClient, version: int, predictions: Any, labels: Any) -> int:
    """Give a replica's guard labels [N] of predictions [N] that were made with a version; returns the version that is
    served afterwards.

    Raises:
        PublishingError: The replica refused, or cannot be reached.
        ValueError: The numbers of predictions and labels differ, or there are none.
    """
    predictions, labels = np.asarray(predictions, np.float32), np.asarray(labels, np.float32)
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise ValueError(f"given predictions {predictions.shape} and labels {labels.shape}, expected [N] of both")
    served = 0
    for first in range(0, len(labels), MAX_LABELS):
        part = slice(first, first + MAX_LABELS)
        rounded = [float(f"{each:.7g}") for each in predictions[part].tolist()]
        body = {"version": version, "predictions": rounded, "labels": labels[part].astype(int).tolist()}
        served = int(json.loads(client.act("feedback", body))["served"])
    return served


def _numbers(name: str, body: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = body.get(name)
    try:
        found = np.array(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise PublishingError(f"feedback: {name}: expected a list of numbers") from error
    if not isinstance(values, list) or found.ndim != 1:
        raise PublishingError(f"feedback: {name}: expected a list of numbers")
    return found
