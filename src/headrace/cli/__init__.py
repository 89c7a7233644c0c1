"""The `headrace` command line, one file per command."""

from headrace.cli.app import main

__all__ = ["main"]
