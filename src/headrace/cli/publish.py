"""`headrace publish`: publishes versions of a run's model, and serves them to replicas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def publish(
    run: Annotated[Path, typer.Argument(help="Run folder or job file; the run can still be training.")],
    listen: Annotated[
        str | None, typer.Option(help="HOST:PORT on which replicas find the versions; port 0 for any free port.")
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET",
            help="redis://HOST:PORT/DB?prefix=NAME or a folder for Parquet files, which get the newest version; can be "
            "repeated.",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Publish the newest checkpoint, and end.")] = False,
    weights: Annotated[str, typer.Option(help="exact, or int8 as in training.publish.")] = "exact",
    keep: Annotated[int, typer.Option(min=2, help="Number of newest versions to keep.")] = 100,
    every_s: Annotated[float, typer.Option("--every", min=0.01, help="Seconds between two looks.")] = 1.0,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that replicas must send. By default, HEADRACE_PUBLISH_TOKEN."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file with the TLS certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with its private key.")] = None,
) -> None:
    """Publish each checkpoint of a run as a version for servers, and serve the versions to replicas.

    A run with training.publish writes versions itself, which are then only served. By default, the server listens on
    loopback only; other addresses need a token and TLS. It runs until it is stopped.

    With --to, the newest version is also kept in Redis, or what changed is written as Parquet files, for systems
    without headrace.

    Example: headrace publish job.yaml --listen 127.0.0.1:9100
    """
    from contextlib import ExitStack

    from headrace.cli.signals import stop_on_signals
    from headrace.embeddings.shards.security import ServerSecurity, read_token, split_address
    from headrace.publishing.client import PUBLISH_TOKEN
    from headrace.publishing.config import PublishConfig
    from headrace.publishing.publications import PublicationFolder
    from headrace.publishing.server import PublicationServer
    from headrace.publishing.sinks.feeding import Feeder, feeding, open_sink
    from headrace.training.checkpoint_publisher import CheckpointPublisher, publishes_itself
    from headrace.training.run_folder import RunFolder, find_run

    folder = find_run(run)
    config = PublishConfig.from_dict({"weights": weights, "keep": keep}, where="headrace publish")
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals("after this version"))
        publisher = None if publishes_itself(folder) else CheckpointPublisher(folder, config)
        if publisher is not None:
            stack.callback(publisher.close)
        if listen is not None:
            security = ServerSecurity.of_files(read_token(token_file, PUBLISH_TOKEN), tls_cert, tls_key)
            publications = PublicationFolder(RunFolder(folder).publications, keep=keep)
            server = stack.enter_context(PublicationServer(publications, listen, security=security))
            host, _ = split_address(listen)
            typer.echo(f"publish: serving on {f'[{host}]' if ':' in host else host}:{server.port}")
        feeders = []
        for target in to or ():
            sink = open_sink(target)
            stack.callback(sink.close)
            feeders.append(Feeder(PublicationFolder(RunFolder(folder).publications, keep=keep), sink, typer.echo))
        pause = stack.enter_context(feeding([] if once else feeders))
        while not stop.asked:
            version, lines = (None, []) if publisher is None else publisher.step()
            for line in lines:
                typer.echo(line, err=True)
            if version is not None:
                num_bytes = sum(chain[-1].bytes for parts in version.chains.values() for chain in parts)
                typer.echo(
                    f"version {version.version}: step {version.step:,}, {version.rows_changed:,} rows, "
                    f"{num_bytes / 1e6:.1f} MB"
                )
            if once or (publisher is None and listen is None and not feeders):
                if sum(not feeder.feed() for feeder in feeders):
                    raise typer.Exit(1)
                break
            pause(every_s)
