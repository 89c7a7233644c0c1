"""`headrace shard`: a process that holds part of the embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def shard(
    job: Annotated[
        Path | None,
        typer.Argument(help="Job file: names the folder of checkpoints, and trainers of other jobs are refused."),
    ] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT to listen on; port 0 for any free one.")] = "127.0.0.1:0",
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder of the run's checkpoints, in place of a job.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one request.")] = 1,
    hold_s: Annotated[
        float, typer.Option("--hold", min=0.1, help="Seconds a request may wait for other trainers.")
    ] = 120.0,
    token_file: Annotated[
        Path | None, typer.Option(help="Holds the token that clients must show; else HEADRACE_SHARD_TOKEN.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM of the TLS certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of its private key.")] = None,
) -> None:
    """Hold part of the embeddings for trainers in other processes.

    It listens on this machine only; other addresses need a token and TLS. What the tables are is told by the trainers,
    and what they hold comes from the run's checkpoints. It runs until it is stopped, and may be killed: trainers wait
    until it is back, and go on from their newest checkpoint.

    Example: headrace shard job.yaml --listen 127.0.0.1:9001
    """
    from headrace.cluster.shards import serve_shard
    from headrace.embeddings.shards.security import ServerSecurity, read_token

    security = ServerSecurity(
        token=read_token(token_file),
        certificate=None if tls_cert is None else tls_cert.read_bytes(),
        key=None if tls_key is None else tls_key.read_bytes(),
    )
    serve_shard(
        job, listen, checkpoints=checkpoints, threads=threads, hold_s=hold_s, security=security, on_message=typer.echo
    )
