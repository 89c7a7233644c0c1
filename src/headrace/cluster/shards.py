"""`serve_shard`: main function of a shard process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from headrace.embeddings.shards.security import ServerSecurity, split_address
from headrace.embeddings.shards.service import ShardServer
from headrace.embeddings.shards.shard import Shard
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.storage.choose import choose_storage
from headrace.embeddings.storage.config import StorageConfig

__all__ = ["READY", "serve_shard", "stop_signals"]

READY = "shard: serving on "
"""Prefix of the line with the address, which the parent process reads."""


def serve_shard(
    job: Path | None,
    listen: str,
    *,
    checkpoints: Path | None,
    threads: int,
    hold_s: float,
    security: ServerSecurity,
    storage: StorageConfig | None = None,
    on_message: Callable[[str], None],
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then exit.

    It exits immediately even with connected trainers: updates since the newest checkpoint are lost either way, and
    waiting for open streams could take forever.

    Args:
        job: Job file, or None.
        listen: Address "host:port".
        checkpoints: Folder of checkpoints; None for the job's.
        threads: Threads per request.
        hold_s: Maximum seconds that a request waits for other trainers.
        security: Token and TLS settings.
        storage: Where rows are; None for the job's choice, or memory without a job.
        on_message: Called with a line when the shard is ready.
    """
    expected = None
    if job is not None:
        folder, expected, of_job = _read_job(job)
        checkpoints, storage = checkpoints or folder, storage or of_job
    make_storage = choose_storage(storage or StorageConfig())
    shard = Shard(checkpoints=checkpoints, expected=expected, hold_s=hold_s, make_storage=make_storage)
    stop = stop_signals()
    server = ShardServer(shard, listen, security=security, threads=threads)
    host, _ = split_address(listen)
    on_message(f"{READY}{f'[{host}]' if ':' in host else host}:{server.port}")
    sys.stdout.flush()
    os.read(stop, 1)
    with suppress(OSError):  # the terminal is gone
        sys.stdout.flush()
    os._exit(0)


def stop_signals() -> int:
    """Handle SIGTERM, SIGINT and SIGHUP; returns a file descriptor that becomes readable when one arrives."""
    stop, stopped = os.pipe()
    os.set_blocking(stopped, False)
    signal.set_wakeup_fd(stopped)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, lambda *_: None)
    return stop


def _read_job(path: Path) -> tuple[Path, dict[str, TableGroupSpec], StorageConfig]:
    """A job's checkpoint folder, its table groups, and where their rows are."""
    from headrace.embeddings import embedding_bags
    from headrace.training import JobConfig, RunFolder
    from headrace.training.commits import table_group_name
    from headrace.training.components import build_components

    job = JobConfig.from_file(path)
    bags = embedding_bags(build_components(job).model)
    seed = job.training.seed
    table_groups = {
        table_group_name(name): TableGroupSpec(each.tables, seed, each.budget) for name, each in bags.items()
    }
    return RunFolder(job.run).checkpoints, table_groups, job.embeddings.storage
