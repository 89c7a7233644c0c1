"""Imports only go up the list of packages, so that every package can be read without the ones below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import headrace

ROOT = Path(headrace.__file__).parent

ORDER = [
    "errors",
    "bounded_yaml",
    "messages",
    "paths",
    "files",
    "manifest",
    "config",
    "kernel_folders",
    "compiling",
    "user_code",
    "registry",
    "lifeline",
    "resources",
    "threads",
    "buffers",
    "observe",
    "tensors",
    "logs",
    "features",
    "pipeline",
    "simulation",
    "tuning",
    "embeddings",
    "models",
    "scheduling",
    "training",
    "scoring",
    "publishing",
    "serving",
    "cluster",
    "cli",
    "testing",
]


def imported_packages(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
            if node.module == "headrace":
                names = [f"headrace.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "headrace" and len(parts) > 1:
                yield parts[1], node.lineno


def test_every_package_is_on_the_list() -> None:
    found = {
        p.stem if p.is_file() else p.name for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert found - {"__init__", "__main__"} <= set(ORDER)


def test_imports_only_go_up_the_list() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        here = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if here in ("__init__", "__main__"):
            continue
        for package, line in imported_packages(path):
            if package in ORDER and ORDER.index(package) > ORDER.index(here):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {package}, which is below {here}")
    assert not wrong, "\n".join(wrong)
