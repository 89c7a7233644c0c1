"""The public surface is what `__all__` says, sorted, and cheap to import."""

import importlib
import pkgutil

import pytest

import headrace


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
