"""`headrace replica`: runs a process that has a copy of a published model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def replica(
    sources: Annotated[
        str,
        typer.Option(
            "--from",
            help="HOST:PORT of other replicas, separated by commas, and last that of the publisher.",
        ),
    ],
    path: Annotated[Path, typer.Option(help="Folder of its versions, for this replica alone.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT to listen on; port 0 for any free port.")] = "127.0.0.1:0",
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT by which other replicas know this one. By default, --listen.")
    ] = None,
    keep: Annotated[int, typer.Option(min=2, help="Number of newest versions to keep on disk.")] = 100,
    in_memory: Annotated[
        int, typer.Option(min=1, help="Number of newest versions in memory, to which it can be rolled back.")
    ] = 10,
    part: Annotated[
        str,
        typer.Option(help="K/N: have the K-th of N parts of the rows in memory, for serve --rows-from."),
    ] = "1/1",
    patience_s: Annotated[
        float, typer.Option("--patience", min=0, help="Seconds to wait for other replicas before asking the publisher.")
    ] = 1.0,
    guard: Annotated[
        str | None,
        typer.Option(
            help="Limits on fed-back labels, such as ne=0.95,calibration=0.1,rows=10000,windows=3. A version outside "
            "them is rolled back."
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token of all replicas. By default, HEADRACE_PUBLISH_TOKEN.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file with the TLS certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with its private key.")] = None,
    tls_authority: Annotated[
        Path | None, typer.Option(help="PEM file with the authority of the certificates of the sources.")
    ] = None,
) -> None:
    """Follow a published model, keep its last versions in memory, and serve its files to other replicas.

    Versions come from whichever source has them, each file once. A replica can be killed and restarted, and goes on
    with the versions in its folder. By default it listens on loopback only; other addresses need a token and TLS.

    Example: headrace replica --from 127.0.0.1:9101,127.0.0.1:9000 --listen 127.0.0.1:9102 --path replicas/2
    """
    from headrace.cluster.replicas import serve_replica
    from headrace.embeddings.shards.security import ClientSecurity, ServerSecurity, read_token
    from headrace.publishing.client import PUBLISH_TOKEN
    from headrace.publishing.guard import GuardLimits
    from headrace.publishing.parts import Part

    token = read_token(token_file, PUBLISH_TOKEN)
    serve_replica(
        path,
        [each.strip() for each in sources.split(",")],
        listen,
        address=address,
        keep=keep,
        in_memory=in_memory,
        part=Part.of(part),
        patience_s=patience_s,
        limits=None if guard is None else GuardLimits.of(guard),
        server_security=ServerSecurity.of_files(token, tls_cert, tls_key),
        client_security=ClientSecurity.of_files(token, tls_authority),
        on_message=typer.echo,
    )
