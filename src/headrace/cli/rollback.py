"""`headrace rollback`: serves an earlier version at replicas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def rollback(
    replicas: Annotated[list[str], typer.Argument(help="HOST:PORT of the replicas.")],
    to: Annotated[str, typer.Option(help="The version, or newest to follow the publisher again.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept with the rollback.")] = "by hand",
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token of the replicas. By default, HEADRACE_PUBLISH_TOKEN.")
    ] = None,
    tls_authority: Annotated[
        Path | None, typer.Option(help="PEM file with the authority of the replicas' certificates.")
    ] = None,
) -> None:
    """Serve an earlier version at replicas, at once. They stay there, also after a restart, until `--to newest`.

    The version must be in the memory of each replica, see its --in-memory. All replicas are asked, also if one refuses.

    Example: headrace rollback 127.0.0.1:9101 127.0.0.1:9102 --to 41 --reason "calibration is off"
    """
    from headrace.embeddings.shards.security import ClientSecurity, read_token
    from headrace.errors import ConfigError, PublishingError
    from headrace.publishing.client import PUBLISH_TOKEN, PublicationClient
    from headrace.publishing.replica_actions import roll_back

    if to != "newest" and not (to.isdigit() and int(to) > 0):
        raise ConfigError(f"--to: given {to!r}, expected a version or newest")
    security = ClientSecurity.of_files(read_token(token_file, PUBLISH_TOKEN), tls_authority)
    failed = False
    for address in replicas:
        client = PublicationClient(address, security=security)
        try:
            served = roll_back(client, "newest" if to == "newest" else int(to), reason)
            typer.echo(f"{address}: serves version {served}")
        except PublishingError as error:
            failed = True
            typer.echo(str(error), err=True)
        finally:
            client.close()
    if failed:
        raise typer.Exit(1)
