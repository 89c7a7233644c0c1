"""`train_job`: the entry point of every trainer process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from headrace.cluster.rendezvous import Rendezvous
from headrace.embeddings.shards.group import wait_for_shards
from headrace.embeddings.shards.security import TOKEN_VARIABLE, is_loopback, split_address
from headrace.errors import ShardLost
from headrace.training import JobConfig, Trainer, TrainResult
from headrace.training.process_group import PeerLost
from headrace.training.results import WindowResult

__all__ = ["SHARDS_VARIABLE", "train_job", "with_shards"]

SHARDS_VARIABLE = "HEADRACE_SHARDS"
"""Environment variable with comma-separated shard addresses; overrides `cluster.shards` of the job file."""


def with_shards(job: JobConfig) -> JobConfig:
    """The job with the shards and the token from the environment, if set."""
    given = os.environ.get(SHARDS_VARIABLE)
    if not given:
        return job
    shards = tuple(given.split(","))
    update: dict[str, object] = {"shards": shards}
    if TOKEN_VARIABLE in os.environ:
        update["token_file"] = None
        if all(is_loopback(split_address(shard)[0]) for shard in shards):
            update["tls_authority"] = None
    return job.model_copy(update={"cluster": job.cluster.model_copy(update=update)})


def train_job(
    job: JobConfig,
    *,
    windows: int | None = None,
    until: str | None = None,
    change_features: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    on_message: Callable[[str], None] = lambda line: None,
    on_window: Callable[[WindowResult], None] = lambda result: None,
) -> tuple[Trainer, TrainResult]:
    """Train on new data, alone or with the other trainers given by the environment (see `Rendezvous`).

    If a shard or another trainer is lost, all trainers print a message, wait for it, and resume from the newest
    checkpoint with the same steps on the same rows. The parameters are the same as without the failure.

    Args:
        job: The resolved job.
        windows: Maximum number of windows; None for all.
        until: The last window to train on.
        change_features: Whether the run may continue with other features, as for `Trainer`.
        should_stop: Called after each step; training stops if it returns True in any trainer.
        on_message: Called with lines for the user.
        on_window: Called with the result of each window, as for `Trainer`.

    Returns:
        The trainer of the last round, and the results of all rounds.

    Raises:
        HeadraceError: As for `Trainer.run`, or a lost process did not return within `cluster.wait_s`.
    """
    job = with_shards(job)
    rendezvous = Rendezvous(job.cluster.wait_s)
    finished: list[WindowResult] = []
    while True:
        left = None if windows is None else windows - len(finished)
        trainer: Trainer | None = None
        try:
            with rendezvous.round() as group:
                trainer = Trainer(
                    job,
                    should_stop=should_stop,
                    on_message=on_message,
                    on_window=on_window,
                    process_group=group,
                    change_features=change_features,
                )
                result = trainer.run(windows=left, until=until)
                group.share(None)  # leaving before the others have finished would look like a failure
                return trainer, replace(result, windows=(*finished, *result.windows))
        except (ShardLost, PeerLost) as error:
            if trainer is None:
                raise
            finished += trainer.finished
            on_message(f"{error}; returning to the newest checkpoint")
            wait_for_shards(
                job.cluster.shards, security=job.cluster.security(), wait_s=job.cluster.wait_s, on_message=on_message
            )
