"""The files of the features import one way, in the order in which a plan is declared, compiled and run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import headrace.features

ROOT = Path(headrace.features.__file__).parent

ORDER = [
    "kernels",
    "program",
    "operator",
    "registry",
    "operators",
    "spec",
    "steps",
    "binding",
    "grouping",
    "compiled",
    "equal_rows",
    "savings",
    "buffers",
    "compute",
    "plan",
    "costs",
    "warm_up",
]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("headrace.features"):
            parts = node.module.split(".")
            names = [parts[2]] if len(parts) > 2 else [alias.name for alias in node.names]
            yield from ((name, node.lineno) for name in names)


def test_every_file_has_its_place() -> None:
    found = {path.stem if path.is_file() else path.name for path in ROOT.iterdir()}
    assert found - {"__init__", "__pycache__"} == set(ORDER)


def test_files_import_only_those_before_them() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        here = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for name, line in imports(path):
            if ORDER.index(name) > ORDER.index(here):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)
