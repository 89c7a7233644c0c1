"""`ServingState`: what the routes of a serving process share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.serving.feedback import Feedback
from headrace.serving.http_bodies import RequestLimits
from headrace.serving.mailbox import Mailbox
from headrace.serving.metrics import ServingCounters
from headrace.serving.service import NotReady, ScoringService
from headrace.serving.traffic import Traffic

__all__ = ["NamedModel", "ServingState"]


@dataclass
class NamedModel:
    """A model of the process.

    Attributes:
        name: Its name in paths and metrics.
        service: Scores with it.
        read_status: Further values of its description, for example those of a replica.
        num_shadow_errors: Requests that it should have scored as a shadow, and did not.
    """

    name: str
    service: ScoringService
    read_status: Callable[[], Mapping[str, Any]] = dict
    num_shadow_errors: int = 0

    def describe(self) -> dict[str, Any]:
        """JSON-able values.

        Raises:
            NotReady: It has no version yet.
        """
        model = self.service.model
        return {
            "name": self.name,
            "version": model.version,
            "step": model.about.step,
            "age_s": max(0.0, time.time() - model.about.cut_at),
            "labels": list(model.label_names),
            "most_rows": self.service.batcher.most_rows,
            "most_waiting_rows": self.service.batcher.most_waiting_rows,
            **self.read_status(),
        }

    def metrics(self) -> dict[str, float]:
        """Values of `SERVING` by name, without those of requests."""
        batcher, service = self.service.batcher, self.service
        values: dict[str, float] = {
            "serve.rows": batcher.num_rows,
            "serve.batches": batcher.num_batches,
            "serve.batch_rows_limit": batcher.most_rows,
            "serve.waiting_rows": batcher.waiting_rows,
            "serve.shed_requests": batcher.num_shed,
            "serve.shadow_errors": self.num_shadow_errors,
            "serve.swaps": service.num_swaps,
        }
        try:
            about = service.model.about
        except NotReady:
            return values
        return values | {"serve.version": about.version, "serve.seconds_behind": max(0.0, time.time() - about.cut_at)}


@dataclass
class ServingState:
    """What the routes share.

    Attributes:
        models: The models by name.
        traffic: Which of them answers a request.
        feedback: Predictions that wait for labels.
        limits: Limits of requests.
        counters: Counts of requests.
        is_draining: Whether the server is about to stop, so that no new connections should come.
        mailbox: Brings answers to the thread of the event loop; None if models score there.
    """

    models: Mapping[str, NamedModel]
    traffic: Traffic
    feedback: Feedback = field(default_factory=Feedback)
    limits: RequestLimits = field(default_factory=RequestLimits)
    counters: ServingCounters = field(default_factory=ServingCounters)
    is_draining: bool = False
    mailbox: Mailbox | None = None

    @property
    def main(self) -> NamedModel:
        """The model that answers what no other does."""
        return self.models[self.traffic.main]
