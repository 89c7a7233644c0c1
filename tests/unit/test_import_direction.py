"""Imports only go up the list of packages and never in a circle, so every file can be read without those below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import headrace

ROOT = Path(headrace.__file__).parent

ORDER = [
    "version",
    "errors",
    "bounded_yaml",
    "messages",
    "auc",
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
    "placement",
    "models",
    "scheduling",
    "publishing",
    "training",
    "scoring",
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


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """Modules of headrace that a module imports: anywhere, also in functions and for type checkers only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (members & modules) or {node.module}
    return found & modules


def circle_in(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; empty if there is none."""
    done: set[str] = set()
    for start in imports:
        path: list[str] = []
        waiting = [(start, iter(sorted(imports[start])))] if start not in done else []
        while waiting:
            module, rest = waiting[-1]
            path = [each for each, _ in waiting]
            following = next(rest, None)
            if following is None:
                done.add(module)
                waiting.pop()
            elif following in path:
                return [*path[path.index(following) :], following]
            elif following not in done:
                waiting.append((following, iter(sorted(imports[following]))))
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    paths = {module_name(path): path for path in ROOT.rglob("*.py")}
    imports = {name: imports_of(path, set(paths)) - {name} for name, path in paths.items()}
    assert len(imports) > 400
    assert not circle_in(imports), " -> ".join(circle_in(imports))


def test_a_circle_is_found_and_told_in_order() -> None:
    assert circle_in({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
