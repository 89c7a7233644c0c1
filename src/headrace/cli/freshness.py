"""`headrace freshness`: shows how old what replicas serve is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from headrace.publishing.client import PublicationClient

__all__ = ["freshness", "freshness_table"]

ANSWER_S = 2.0
"""Seconds to wait for an answer."""

Values = Mapping[str, float | None]


def freshness(
    replicas: Annotated[list[str], typer.Argument(metavar="HOST:PORT...", help="Addresses of replicas.")],
    every_s: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between updates in a terminal.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one table, as outside of a terminal.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print metrics in the text format of Prometheus.")
    ] = False,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the replicas' token. By default, HEADRACE_PUBLISH_TOKEN.")
    ] = None,
    tls_authority: Annotated[
        Path | None, typer.Option(help="PEM file with the certificate authority of the replicas.")
    ] = None,
) -> None:
    """Show how far behind replicas are, live in a terminal.

    "behind" is the time since the rows of the served version were copied at the trainer; "row age" that from the
    change of a row to when readers first saw it (median and 99th percentile). The exit code is 1 if a replica does not
    answer.

    Example: headrace freshness 127.0.0.1:9301 127.0.0.1:9302
    """
    import json
    import time

    from rich.console import Console
    from rich.live import Live

    from headrace.embeddings.shards.security import ClientSecurity, read_token
    from headrace.publishing.client import PUBLISH_TOKEN, PublicationClient
    from headrace.publishing.freshness import FRESHNESS, prometheus_text

    security = ClientSecurity.of_files(read_token(token_file, PUBLISH_TOKEN), tls_authority)
    clients = [PublicationClient(address, security=security) for address in replicas]
    found, problems = _read(clients)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    elif as_prometheus:
        typer.echo(prometheus_text(FRESHNESS, found), nl=False)
    elif once or not Console().is_terminal:
        Console(width=None if Console().is_terminal else 120).print(freshness_table(found, problems))
    else:
        with Live(freshness_table(found, problems), auto_refresh=False) as live:
            while True:
                time.sleep(every_s)
                live.update(freshness_table(*_read(clients)), refresh=True)
    if problems:
        for problem in problems.values() if as_json or as_prometheus else ():
            typer.echo(problem, err=True)
        raise typer.Exit(1)


def freshness_table(found: Mapping[str, Values], problems: Mapping[str, str]) -> Table:
    """A table of replicas.

    Args:
        found: For each replica that answered, the metrics of `FRESHNESS`.
        problems: For the others, why not.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("replica")
    for name in ("version", "newest", "behind", "row age p50", "row age p99", "fetched MB"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for replica, values in found.items():
        state = "rolled back" if values["replica.is_held"] else "follows"
        table.add_row(
            replica,
            _number(values["replica.served_version"]),
            _number(values["replica.newest_version"]),
            *(_seconds(values[f"replica.{name}"]) for name in ("seconds_behind", "row_age_p50_s", "row_age_p99_s")),
            f"{(values['replica.fetched_bytes'] or 0) / 1e6:,.1f}",
            state,
        )
    for replica, problem in problems.items():
        table.add_row(replica, *[""] * 6, problem.removeprefix(f"{replica}: "))
    return table


def _read(clients: list[PublicationClient]) -> tuple[dict[str, Values], dict[str, str]]:
    """Metrics of the replicas that answer, and the problems of the others."""
    import json
    import time

    from headrace.errors import PublishingError
    from headrace.publishing.freshness import freshness_of

    found: dict[str, Values] = {}
    problems: dict[str, str] = {}
    for client in clients:
        try:
            status = json.loads(client.act("replica", {}, timeout_s=ANSWER_S))
            found[client.address] = freshness_of(status, time.time())
        except PublishingError as error:
            problems[client.address] = str(error)
    return found, problems


def _number(value: float | None) -> str:
    return "-" if not value else f"{value:,.0f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f} s"
