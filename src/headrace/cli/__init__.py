"""The `headrace` command: one file a command."""

from headrace.cli.app import main

__all__ = ["main"]
