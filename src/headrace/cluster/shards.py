"""`serve_shard`: the life of a shard process."""

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

__all__ = ["READY", "serve_shard"]

READY = "shard: serving on "
"""How the line begins that says where; whoever started the process reads the address behind it."""


def serve_shard(
    job: Path | None,
    listen: str,
    *,
    checkpoints: Path | None,
    threads: int,
    hold_s: float,
    security: ServerSecurity,
    on_message: Callable[[str], None],
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then end the process.

    It ends at once, with trainers connected: rows since the newest checkpoint are lost either way, and streams that
    trainers keep open would be waited for without end.

    Args:
        job: Job file, or None.
        listen: "host:port".
        checkpoints: Folder of checkpoints; None for that of the job.
        threads: Of one request.
        hold_s: How long a request may wait for other trainers.
        security: Who may connect.
        on_message: Given a line when it is ready.
    """
    expected = None
    if job is not None:
        folder, expected = _read_job(job)
        checkpoints = checkpoints or folder
    shard = Shard(checkpoints=checkpoints, expected=expected, hold_s=hold_s)
    stop = _stop_signals()
    server = ShardServer(shard, listen, security=security, threads=threads)
    host, _ = split_address(listen)
    on_message(f"{READY}{f'[{host}]' if ':' in host else host}:{server.port}")
    sys.stdout.flush()
    os.read(stop, 1)
    with suppress(OSError):  # the terminal is gone
        sys.stdout.flush()
    os._exit(0)


def _stop_signals() -> int:
    """Handle SIGTERM, SIGINT and SIGHUP; returns a file that can be read from once one has come, in any thread."""
    stop, stopped = os.pipe()
    os.set_blocking(stopped, False)
    signal.set_wakeup_fd(stopped)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, lambda *_: None)
    return stop


def _read_job(path: Path) -> tuple[Path, dict[str, TableGroupSpec]]:
    """The folder of a job's checkpoints, and its table groups."""
    from headrace.embeddings import embedding_bags
    from headrace.training import JobConfig, RunFolder
    from headrace.training.commits import table_group_name
    from headrace.training.components import build_components

    job = JobConfig.from_file(path)
    bags = embedding_bags(build_components(job).model)
    seed = job.training.seed
    table_groups = {table_group_name(name): TableGroupSpec(each.tables, seed) for name, each in bags.items()}
    return RunFolder(job.run).checkpoints, table_groups
