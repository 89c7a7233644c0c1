"""Writes the reference of the commands into docs/command-line.md; `--check` only says whether it is up to date."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from headrace.cli.app import app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "command-line.md"
BEGIN = "<!-- commands: written by scripts/command_reference.py -->"
END = "<!-- end of commands -->"


def reference() -> str:
    """A section for each command: what it does, an example, its arguments and options."""
    return "\n\n".join(_section(path, command) for path, command in _commands(typer.main.get_command(app)))


def _commands(group: Any, path: str = "headrace") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _section(path: str, command: Any) -> str:
    parts = [f"## {path}", *_paragraphs(inspect.cleandoc(command.help))]
    hints = get_type_hints(command.callback)
    rows = [_row(parameter, hints[parameter.name]) for parameter in command.params if parameter.name != "help"]
    if rows:
        parts.append("\n".join(["| argument or option | value | default | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _paragraphs(text: str) -> Iterator[str]:
    example = False
    for paragraph in text.split("\n\n"):
        before, found, command = paragraph.partition("Example:")
        if example or found:
            lines = [line.strip() for line in command.splitlines() or before.splitlines() if line.strip()]
            example = not lines
            if lines:
                yield "\n".join(f"    {line}" for line in lines)
        else:
            yield paragraph


def _row(parameter: Any, hint: Any) -> str:
    name = f"`{parameter.opts[-1]}`" if parameter.param_type_name == "option" else parameter.name.upper()
    text, default = parameter.help or "", parameter.default
    if text.endswith("]."):  # a default the help names itself, as it depends
        text, _, shown = text.removesuffix("].").rpartition(" [")
        text, shown = f"{text}.", f"`{shown}`" if shown[0].isdigit() else shown
    elif parameter.param_type_name == "argument" and parameter.required:
        shown = "required"
    else:
        shown = "" if default is None or default is False else f"`{default}`"
    return f"| {name} | {_value(hint)} | {shown} | {text.replace('|', chr(92) + '|')} |"


def _value(hint: Any) -> str:
    """What a parameter takes; a flag takes nothing."""
    names = {int: "integer", float: "number", str: "text", Path: "path", bool: "", list[str]: "text, several times"}
    (kind,) = {part for part in get_args(hint) or (hint,) if part is not type(None)} if hint != list[str] else {hint}
    return names[kind]


def with_reference(text: str) -> str:
    """The page with the reference as it should be."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}"


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    wanted = with_reference(text)
    if "--check" in sys.argv[1:]:
        if text != wanted:
            print(f"{PAGE} is out of date; run: python scripts/command_reference.py")
            return 1
        return 0
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
