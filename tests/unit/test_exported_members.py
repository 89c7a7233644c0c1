"""The public surface is what `__all__` says, both ways; it is sorted, documented, and cheap to import."""

import ast
import importlib
import pkgutil
import runpy
from pathlib import Path
from types import ModuleType

import pytest

import headrace

ROOT = Path(__file__).parents[2]


def constants_then_classes(name: str) -> tuple[bool, bool, str]:
    """The order ruff keeps `__all__` in: CONSTANTS, Classes, functions."""
    return (not name.isupper(), not name[0].isupper(), name)


PACKAGES = ["headrace"] + [m.name for m in pkgutil.walk_packages(headrace.__path__, "headrace.") if m.ispkg]


@pytest.mark.parametrize("name", PACKAGES)
def test_exported_names_exist_and_are_sorted(name: str) -> None:
    module = importlib.import_module(name)
    names = list(getattr(module, "__all__", []))
    assert names == sorted(names, key=constants_then_classes)
    for exported in names:
        assert getattr(module, exported) is not None


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_of_a_package_is_exported(name: str) -> None:
    module = importlib.import_module(name)
    source = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    imported = [
        alias.asname or alias.name
        for node in source.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{name}.")
        for alias in node.names
    ]
    defined = [node.name for node in source.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    public = {each for each in (*imported, *defined) if not each.startswith("_")}
    lazy = set(getattr(module, "_HOMES", {}))
    assert public | lazy <= set(getattr(module, "__all__", []))


def test_the_top_says_what_it_offers_and_reaches_every_subpackage() -> None:
    assert dir(headrace) == sorted(headrace.__all__)
    for name in headrace._SUBPACKAGES:
        assert isinstance(getattr(headrace, name), ModuleType)
    for name, home in headrace._HOMES.items():
        assert getattr(headrace, name) is getattr(importlib.import_module(home), name)
    assert set(headrace.__all__) == {"__version__", *headrace._SUBPACKAGES, *headrace._HOMES}
    with pytest.raises(AttributeError, match="module 'headrace' has no attribute 'Piplne'"):
        _ = headrace.Piplne  # type: ignore[attr-defined]


def test_names_that_type_checkers_see_are_those_of_the_top() -> None:
    source = ast.parse(Path(headrace.__file__).read_text(encoding="utf-8"))
    (guarded,) = (node for node in source.body if isinstance(node, ast.If))
    imports = [node for node in guarded.body if isinstance(node, ast.Import | ast.ImportFrom)]
    seen = [alias.asname for node in imports for alias in node.names]
    assert sorted(filter(None, seen)) == sorted(set(headrace.__all__) - {"__version__"})


def test_the_api_page_shows_the_docstrings_of_now() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    wanted = runpy.run_path(str(ROOT / "scripts" / "api_reference.py"))["page"]()
    assert page == wanted, "run: python scripts/api_reference.py"
