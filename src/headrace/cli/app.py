"""Assembles the commands, and turns errors into one clear line and exit code 2."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from headrace.cli.checkpoints import checkpoints
from headrace.cli.cluster import cluster
from headrace.cli.compare import compare
from headrace.cli.demo import demo
from headrace.cli.doctor import doctor
from headrace.cli.evaluate import evaluate
from headrace.cli.explain import explain
from headrace.cli.export import export
from headrace.cli.freshness import freshness
from headrace.cli.generate import generate
from headrace.cli.import_ import app as import_app
from headrace.cli.init import init
from headrace.cli.inspect import inspect
from headrace.cli.launch import launch
from headrace.cli.placement import placement
from headrace.cli.predict import predict
from headrace.cli.publish import publish
from headrace.cli.replay import replay
from headrace.cli.replica import replica
from headrace.cli.report import report
from headrace.cli.restore import restore
from headrace.cli.rollback import rollback
from headrace.cli.serve import serve
from headrace.cli.shard import shard
from headrace.cli.train import train
from headrace.cli.warmup import warmup
from headrace.errors import ConfigError, HeadraceError
from headrace.lifeline import end_with_parent
from headrace.messages import shorten
from headrace.version import __version__

MAX_LINE = 1_500
"""Approximate maximum length of an error message, in characters."""

# In the order of --help, which is the order of first use.
Commands = tuple[Callable[..., None], ...]
BEFORE_IMPORT: Commands = (demo, generate)
AFTER_IMPORT: Commands = (
    inspect,
    init,
    cluster,
    train,
    launch,
    shard,
    replica,
    rollback,
    report,
    compare,
    explain,
    placement,
    evaluate,
    predict,
    replay,
    checkpoints,
    restore,
    export,
    publish,
    serve,
    freshness,
    doctor,
    warmup,
)

app = typer.Typer(
    name="headrace",
    help="Trains recommendation models incrementally: reads new logs, computes features, trains in one pass.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in BEFORE_IMPORT:
    app.command()(command)
app.add_typer(import_app)
for command in AFTER_IMPORT:
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command. `main` handles --debug itself, so it can be anywhere on the line."""


def main() -> None:
    """Run the command line: 0 for success, 2 for a user error, 130 after Ctrl-C."""
    end_with_parent()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that an ASCII terminal cannot show are written as \\xNN
            stream.reconfigure(errors="backslashreplace")
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        _check_working_folder()
        app(arguments, prog_name="headrace")
    except (HeadraceError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"headrace: {_one_line(error)}", err=True)
        sys.exit(2)
    except UnicodeEncodeError as error:
        encoding = sys.getfilesystemencoding()
        if encoding.lower() in ("utf-8", "utf8") or "--debug" in sys.argv:
            raise
        name = shorten(ascii(error.object))
        typer.echo(
            f"headrace: {name}: cannot be encoded in the locale's encoding, {encoding}; set PYTHONUTF8=1", err=True
        )
        sys.exit(2)


def _check_working_folder() -> None:
    """Fail early if the working folder was deleted, because libraries then exit with unhelpful errors."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise ConfigError("the working folder was deleted; change to an existing one") from error


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, HeadraceError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if len(text) > MAX_LINE:  # library messages can be long; the start has the location, the end the remedy
        text = f"{text[: MAX_LINE * 2 // 3]} [...] {text[-MAX_LINE // 3 :]}"
    return text
