"""`headrace shard`: runs a process that holds part of the embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def shard(
    job: Annotated[
        Path | None,
        typer.Argument(help="Job file. It sets the checkpoint folder; trainers of other jobs are refused."),
    ] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT to listen on; port 0 for any free port.")] = "127.0.0.1:0",
    checkpoints: Annotated[
        Path | None, typer.Option(help="The run's checkpoint folder, instead of a job file.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads per request.")] = 1,
    hold_s: Annotated[
        float, typer.Option("--hold", min=0.1, help="Maximum seconds that a request waits for other trainers.")
    ] = 120.0,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients must send. By default, HEADRACE_SHARD_TOKEN.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file with the TLS certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with its private key.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Where rows are kept, as embeddings.storage.kind. By default, as in the job file."),
    ] = None,
    storage_memory: Annotated[
        str | None, typer.Option(help="Memory per table group, as embeddings.storage.memory.")
    ] = None,
    storage_path: Annotated[Path | None, typer.Option(help="Folder of its files, as embeddings.storage.path.")] = None,
) -> None:
    """Hold part of the embeddings for trainers in other processes.

    By default it listens on loopback only; other addresses need a token and TLS. The trainers define the tables, and
    the run's checkpoints provide their contents. A shard runs until it is stopped. It can be killed and restarted:
    trainers wait for it and resume from their newest checkpoint.

    Example: headrace shard job.yaml --listen 127.0.0.1:9001
    """
    from headrace.cluster.shards import serve_shard
    from headrace.embeddings.shards.security import ServerSecurity, read_token
    from headrace.embeddings.storage.config import StorageConfig

    security = ServerSecurity.of_files(read_token(token_file), tls_cert, tls_key)
    given = {
        "kind": storage,
        "memory": storage_memory,
        "path": None if storage_path is None else str(storage_path.resolve()),
    }
    given = {name: value for name, value in given.items() if value is not None}
    serve_shard(
        job,
        listen,
        checkpoints=checkpoints,
        threads=threads,
        hold_s=hold_s,
        security=security,
        storage=StorageConfig.from_dict(given, where="--storage") if given else None,
        on_message=typer.echo,
    )
