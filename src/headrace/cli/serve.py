"""`headrace serve`: answers requests with the newest version of a model."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Annotated

import typer

MAIN = "main"
"""Name of the model that is given first."""


def serve(
    run: Annotated[
        Path | None,
        typer.Argument(help="Run folder or job file, whose versions are served as they are published."),
    ] = None,
    sources: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="HOST:PORT of other replicas, separated by commas, and last that of the publisher, in place of RUN.",
        ),
    ] = None,
    rows_from: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of replicas that have the rows, separated by commas, in place of RUN and --from."),
    ] = None,
    cache: Annotated[str, typer.Option(help="Bytes of rows to keep here, with --rows-from.")] = "64MiB",
    listen: Annotated[str, typer.Option(help="HOST:PORT of HTTP; port 0 for any free port.")] = "127.0.0.1:8080",
    path: Annotated[
        Path | None, typer.Option(help="Folder for this server's copies of versions. By default RUN/serving.")
    ] = None,
    p99_ms: Annotated[
        float, typer.Option("--p99", min=1, help="Milliseconds within which 99 % of requests are to be answered.")
    ] = 20.0,
    most_rows: Annotated[int, typer.Option(min=1, help="Maximum rows that are scored together.")] = 2048,
    threads: Annotated[
        int,
        typer.Option(min=0, help="Threads that score; with 0, the one of connections does."),
    ] = 0,
    drain_s: Annotated[
        float,
        typer.Option("--drain", min=0, help="Seconds from a signal to stop, while /readyz says so, until it stops."),
    ] = 0.0,
    replica_listen: Annotated[
        str | None,
        typer.Option(help="HOST:PORT for other replicas, and for headrace rollback and freshness."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT by which other replicas know this one; it may be in --from. By default, --replica-listen."
        ),
    ] = None,
    keep: Annotated[int, typer.Option(min=2, help="Number of newest versions to keep on disk.")] = 10,
    in_memory: Annotated[
        int, typer.Option(min=1, help="Number of newest versions in memory, to which it can be rolled back.")
    ] = 10,
    guard: Annotated[
        str | None,
        typer.Option(
            help="Limits on fed-back labels, such as ne=0.95,calibration=0.1,rows=10000,windows=3. A version outside "
            "them is rolled back."
        ),
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", help="NAME=RUN of a further model, at /v1/models/NAME/score.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="NAME=SHARE: the part of requests to /v1/score that this model answers.")
    ] = None,
    shadow: Annotated[
        list[str] | None, typer.Option(help="NAME of a model that scores all requests to /v1/score for comparison.")
    ] = None,
    modules: Annotated[
        list[str] | None, typer.Option("--import", help="Module with your own model or operators, for --from.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token of callers. By default, HEADRACE_PUBLISH_TOKEN.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file with the TLS certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with its private key.")] = None,
    tls_authority: Annotated[
        Path | None, typer.Option(help="PEM file with the authority of the certificates of the sources.")
    ] = None,
) -> None:
    """Answer requests over HTTP with the newest version of a model: probabilities for rows of the log.

    With RUN, versions come from the folder of a run that is trained meanwhile, or from its checkpoints. With --from,
    they come over the network, as to headrace replica. By default the server listens on loopback only; other
    addresses need a token and TLS.

    With --rows-from, this server has no rows but a cache: it reads them from replicas, which may each have a part, and
    follows the versions that they serve.

    Further models are compared with the first one: --split has a candidate answer some requests, --shadow only scores
    them, and labels sent to /v1/labels show how good each is.

    Example: headrace serve job.yaml --listen 127.0.0.1:8080
    """
    from headrace.cluster.followed_model import ModelSource, ScoringOptions
    from headrace.cluster.node_model import NodeSource
    from headrace.cluster.serving import ServeOptions, serve_models
    from headrace.embeddings.shards.security import ClientSecurity, ServerSecurity, read_token
    from headrace.errors import ConfigError
    from headrace.publishing.client import PUBLISH_TOKEN, PublicationClient
    from headrace.publishing.guard import GuardLimits
    from headrace.resources.quantities import parse_bytes
    from headrace.serving.traffic import Traffic
    from headrace.training.publishing_folder import followed_run

    if sum(each is not None for each in (run, sources, rows_from)) != 1:
        raise ConfigError("headrace serve: expected one of RUN, --from and --rows-from")
    if run is None and path is None:
        raise ConfigError("--path: missing, expected a folder for this server's copies of versions")
    for module in modules or ():
        importlib.import_module(module)
    token = read_token(token_file, PUBLISH_TOKEN)

    def of_run(name: str, place: str | Path, copies: Path | None = None) -> ModelSource:
        folder, source = followed_run(place, on_message=typer.echo)
        return ModelSource(
            name, copies or folder / ("serving" if name == MAIN else f"serving-{name}"), [source], trusts_job=True
        )

    security = ClientSecurity.of_files(token, tls_authority)
    served: list[ModelSource | NodeSource]
    if run is not None:
        served = [of_run(MAIN, run, path)]
    elif rows_from is not None:
        assert path is not None
        if replica_listen is not None or guard is not None:
            raise ConfigError("--rows-from: goes without --replica-listen and --guard, which replicas have")
        nodes = [PublicationClient(each.strip(), security=security) for each in rows_from.split(",")]
        served = [NodeSource(MAIN, path, nodes, parse_bytes(cache, where="--cache"))]
    else:
        assert sources is not None
        assert path is not None
        others = [each.strip() for each in sources.split(",") if each.strip() != address]
        clients = [PublicationClient(each, security=security) for each in others]
        served = [ModelSource(MAIN, path, clients)]
    for text in models or ():
        name, _, place = text.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name) or not place or name in {each.name for each in served}:
            raise ConfigError(f"--model: given {text!r}, expected NAME=RUN with a new name of letters, digits, - and _")
        served.append(of_run(name, place))
    options = ServeOptions(
        listen,
        Traffic.of([each.name for each in served], split or (), shadow or ()),
        replica_listen=replica_listen,
        address=address,
        drain_s=drain_s,
        scoring=ScoringOptions(
            promise_s=p99_ms / 1e3,
            most_rows=most_rows,
            threads=threads,
            keep=keep,
            in_memory=in_memory,
            limits=None if guard is None else GuardLimits.of(guard),
        ),
        security=ServerSecurity.of_files(token, tls_cert, tls_key),
        tls_cert=tls_cert,
        tls_key=tls_key,
    )
    serve_models(served, options, on_message=typer.echo)
