"""The public surface is what `__all__` says, sorted, and cheap to import."""

import importlib
import pkgutil

import pytest

import headrace

PACKAGES = ["headrace"] + [m.name for m in pkgutil.walk_packages(headrace.__path__, "headrace.") if m.ispkg]


@pytest.mark.parametrize("name", PACKAGES)
def test_exported_names_exist_and_are_sorted(name: str) -> None:
    module = importlib.import_module(name)
    names = list(getattr(module, "__all__", []))
    assert names == sorted(names)
    for exported in names:
        assert getattr(module, exported) is not None
