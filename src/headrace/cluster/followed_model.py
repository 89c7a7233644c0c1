"""`FollowedModel`: a model of a serving process, with the replica that brings its versions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

from headrace.config import parse_yaml
from headrace.observe.decisions import DecisionLog
from headrace.publishing.download import Source
from headrace.publishing.guard import GuardLimits
from headrace.publishing.publications import JOB, PublicationFolder
from headrace.publishing.replica import Replica
from headrace.serving.following import ModelFollower
from headrace.serving.model import ModelTemplate
from headrace.serving.service import ScoringService
from headrace.serving.state import NamedModel
from headrace.serving.tuning import PromisePolicy, ServingJob
from headrace.training.job import JobConfig
from headrace.tuning.loop import Tuner
from headrace.user_code import no_imports

__all__ = ["FollowedModel", "ModelSource", "ScoringOptions", "template_of", "tuner_of"]


@dataclass(frozen=True)
class ModelSource:
    """A model to serve.

    Attributes:
        name: Its name in paths and metrics.
        path: Folder for this server's copies of its versions.
        sources: From whom versions are fetched.
        trusts_job: Whether its job may name code to import.
    """

    name: str
    path: Path
    sources: Sequence[Source]
    trusts_job: bool = False


@dataclass(frozen=True)
class ScoringOptions:
    """How models are scored and kept.

    Attributes:
        promise_s: Seconds within which 99 % of requests are to be answered.
        most_rows: Maximum rows of a batch.
        threads: Threads that score; 0 to score in the thread that serves connections.
        keep: Versions to keep on disk.
        in_memory: Versions in memory.
        limits: Limits of the guard; None for no guard.
    """

    promise_s: float = 0.02
    most_rows: int = 2048
    threads: int = 0
    keep: int = 10
    in_memory: int = 10
    limits: GuardLimits | None = None


class FollowedModel:
    """A replica, the service that scores with what it serves, and the threads between them.

    Args:
        source: The model.
        address: Address of the replica, as others know it.
        options: How it is scored.
        on_message: Called with a line for each event.

    Attributes:
        folder: Its versions.
        replica: Brings them.
        named: The model for the routes.

    Raises:
        CheckpointError: The folder cannot be used.
    """

    def __init__(
        self, source: ModelSource, address: str, options: ScoringOptions, *, on_message: Callable[[str], None]
    ) -> None:
        self._source, self._options = source, options
        self.folder = PublicationFolder(source.path, keep=options.keep)
        self.replica = Replica(
            self.folder,
            source.sources,
            address=address,
            keep=options.in_memory,
            limits=options.limits,
            on_message=on_message,
        )
        self.replica.restore()
        self.named = NamedModel(source.name, ScoringService(num_threads=options.threads), self.replica.status)
        self._follower = ModelFollower(
            self.replica.tables,
            self.named.service,
            read_job=lambda version: (self.folder.place(version) / JOB).read_text(encoding="utf-8"),
            make_template=lambda text: template_of(text, trusts=source.trusts_job),
            on_message=on_message,
        )

    def start(self, stack: ExitStack) -> None:
        """Start the threads, which end when the stack is closed."""
        stopping = threading.Event()
        stack.callback(stopping.set)
        self.named.service.start()
        stack.enter_context(tuner_of(self.named.service, self._options, self._source.path))
        for run in (self.replica.run, self._follower.run):
            threading.Thread(target=run, args=(stopping,), daemon=True).start()


def tuner_of(service: ScoringService, options: ScoringOptions, path: Path) -> Tuner:
    """Tunes a service, and records in `decisions.jsonl` what it changes, and why."""
    job = ServingJob(service.batcher, most_rows=options.most_rows, num_threads=max(options.threads, 1))
    policy = PromisePolicy(options.promise_s, most_rows=options.most_rows)
    return Tuner(job, policy, decisions=DecisionLog(path / "decisions.jsonl"))


def template_of(text: str, *, trusts: bool) -> ModelTemplate:
    """The template of a job.

    Args:
        text: The job.
        trusts: Whether it may name code to import.
    """
    with nullcontext() if trusts else no_imports():
        return ModelTemplate(JobConfig.from_dict(parse_yaml(text, where=JOB), where=JOB))
