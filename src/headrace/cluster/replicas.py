"""`serve_replica`: main function of a replica process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from headrace.cluster.shards import stop_signals
from headrace.embeddings.shards.security import ClientSecurity, ServerSecurity, split_address
from headrace.publishing.client import PublicationClient
from headrace.publishing.guard import GuardLimits
from headrace.publishing.parts import Part
from headrace.publishing.publications import PublicationFolder
from headrace.publishing.replica import Replica
from headrace.publishing.replica_actions import replica_actions
from headrace.publishing.row_service import row_actions
from headrace.publishing.server import PublicationServer

__all__ = ["READY", "serve_replica"]

READY = "replica: serving on "
"""Prefix of the line with the address, which the parent process reads."""


def serve_replica(
    path: Path,
    sources: Sequence[str],
    listen: str,
    *,
    address: str | None,
    keep: int,
    in_memory: int,
    part: Part,
    patience_s: float,
    limits: GuardLimits | None,
    server_security: ServerSecurity,
    client_security: ClientSecurity,
    on_message: Callable[[str], None],
) -> None:
    """Follow and serve until SIGTERM, SIGINT or SIGHUP, then exit.

    Args:
        path: Folder of its versions.
        sources: Addresses of other replicas, and last of the publisher.
        listen: Address "host:port".
        address: Its address as other replicas know it; None for `listen`.
        keep: Number of newest versions to keep on disk.
        in_memory: Number of newest versions in memory.
        part: Which rows it has in memory.
        patience_s: See `Replica`.
        limits: Limits of the guard; None for no guard.
        server_security, client_security: Token and TLS settings.
        on_message: Called with a line for each event.
    """
    stop = stop_signals()
    clients = [PublicationClient(each, security=client_security) for each in sources]
    folder = PublicationFolder(path, keep=keep)
    replica = Replica(
        folder,
        clients,
        address=address or listen,
        keep=in_memory,
        part=part,
        patience_s=patience_s,
        limits=limits,
        on_message=on_message,
    )
    replica.restore()
    server = PublicationServer(
        folder,
        listen,
        security=server_security,
        actions=replica_actions(replica),
        raw_actions=row_actions(replica.tables),
    )
    host, _ = split_address(listen)
    on_message(f"{READY}{f'[{host}]' if ':' in host else host}:{server.port}")
    sys.stdout.flush()
    stopping = threading.Event()
    threading.Thread(target=replica.run, args=(stopping,), daemon=True).start()
    os.read(stop, 1)
    stopping.set()
    with suppress(OSError):  # the terminal is gone
        sys.stdout.flush()
    os._exit(0)  # calls to sources may take long, and files appear by renames
