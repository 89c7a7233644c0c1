"""Writes docs/api.md from the docstrings of everything that `headrace` and its subpackages export."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import headrace

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"

HEAD = """# API reference

<!-- Written by scripts/api_reference.py from the docstrings. -->

`import headrace as hr` gives the names of the first list. Every subpackage is reachable from there (`hr.embeddings`)
and listed below in the order in which data flows. Names that are not on this page are internal and may change at any
time.
"""

PACKAGES = (
    "logs",
    "tensors",
    "features",
    "pipeline",
    "tuning",
    "simulation",
    "embeddings",
    "placement.replay",
    "models",
    "scheduling",
    "training",
    "scoring",
    "cluster",
    "resources",
    "errors",
)


def page() -> str:
    """The text of the page."""
    parts = [HEAD, "## headrace\n", _top()]
    for name in PACKAGES:
        module = importlib.import_module(f"headrace.{name}")
        summary = inspect.getdoc(module) or ""
        parts.append(f"## headrace.{name}\n\n{_first_paragraph(summary)}\n")
        parts += [_entry(member, getattr(module, member)) for member in module.__all__]
    return "\n".join(parts).rstrip() + "\n"


def _top() -> str:
    rows = ["| name | what it is |", "|---|---|"]
    for name, home in sorted(headrace._HOMES.items(), key=lambda pair: pair[0].lower()):
        what = _first_paragraph(inspect.getdoc(getattr(headrace, name)) or "").replace("\n", " ").replace("|", "\\|")
        rows.append(f"| [`{name}`](#{name.lower()}) | {what} |")
        assert home.removeprefix("headrace.") in PACKAGES
    return "\n".join(rows) + "\n"


def _entry(name: str, member: Any) -> str:
    """A heading, the signature, the docstring, and public methods with their first lines."""
    lines = [f"### {name}\n"]
    if callable(member):
        lines.append(f"```python\n{_signature(name, member)}\n```\n")
    doc = _doc_of(name, member)
    if doc:
        lines.append(_as_markdown(doc) + "\n")
    if inspect.isclass(member):
        methods = list(_methods(member))
        if methods:
            lines.append("\n".join(f"- `{signature}`: {what}" for signature, what in methods) + "\n")
    return "\n".join(lines)


def _doc_of(name: str, member: Any) -> str:
    if not (inspect.isclass(member) or callable(member)):
        return f"`{name}` is a constant." if isinstance(member, str | int | float | np.generic) else ""
    doc = inspect.getdoc(member) or ""
    if inspect.isclass(member) and "__init__" in vars(member):  # arguments may be described there
        arguments = inspect.getdoc(member.__init__) or ""
        if "Args:" in arguments:
            doc += "\n\n" + arguments[arguments.index("Args:") :]
    return "" if doc.startswith(f"{name}(") else doc  # what dataclasses write where there is none


def _signature(name: str, member: Any) -> str:
    try:
        signature = inspect.signature(member)
    except (TypeError, ValueError):
        return name
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name != "self" and not parameter.name.startswith("_")
    ]
    text = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return f"{name}{re.sub(r'<(?:[^<>]|<[^<>]*>)*>', '...', text)}"  # objects whose text has an address


def _methods(member: type) -> Iterator[tuple[str, str]]:
    for name, value in vars(member).items():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if name.startswith("_") or not (inspect.isfunction(function) or isinstance(value, property)):
            continue
        doc = inspect.getdoc(value if isinstance(value, property) else function) or ""
        if doc.startswith("See `"):
            continue
        what = _first_paragraph(doc).replace("\n", " ")
        yield (name if isinstance(value, property) else _signature(name, function).replace("(cls, ", "(")), what


def _first_paragraph(doc: str) -> str:
    return doc.split("\n\n")[0].strip()


def _as_markdown(doc: str) -> str:
    """A docstring whose sections (Args, Raises, ...) are lists, and whose `::` blocks are fenced."""
    out: list[str] = []
    in_section = in_block = False
    for line in doc.splitlines():
        stripped = line.strip()
        if in_block and stripped and not line.startswith("    "):
            out.append("```\n")
            in_block = False
        if re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", stripped):
            out.append(f"**{stripped[:-1]}**\n")
            in_section = True
        elif in_section and line.startswith("    "):
            item = re.match(r"    (\*{0,2}\w[\w, *]*): (.*)", line)
            out.append(
                f"- `{item[1]}`: {item[2]}" if item else line[2:] if line.startswith("      ") else f"- {stripped}"
            )
        elif stripped.endswith("::") and not in_block:
            out.append(line[: line.rindex("::")] + ":\n\n```text")
            in_block, in_section = True, False
        else:
            in_section = in_section and not stripped
            out.append(line)
    if in_block:
        out.append("```")
    return "\n".join(out).strip()


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
