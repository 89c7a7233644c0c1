"""A compiled kernel that is kept on disk is as new as everything it calls."""

import os
from pathlib import Path
from types import FunctionType, ModuleType

import numba
import pytest

from headrace.compiling import source_stamp


def _module(path: Path, source: str, **names: object) -> ModuleType:
    path.write_text(source)
    module = ModuleType(path.stem)
    vars(module).update(names)
    exec(compile(source, str(path), "exec"), vars(module))
    return module


@pytest.fixture
def caller(tmp_path: Path) -> FunctionType:
    inner = _module(tmp_path / "inner.py", "def twice(x): return 2 * x\n")
    middle = _module(tmp_path / "middle.py", "def four(x): return twice(twice(x))\n", twice=numba.njit(inner.twice))
    outer = _module(tmp_path / "outer.py", "def eight(x): return 2 * four(x)\n", four=numba.njit(middle.four))
    function = outer.eight
    assert isinstance(function, FunctionType)
    return function


def test_the_stamp_names_the_files_of_all_kernels_called(caller: FunctionType) -> None:
    assert [name for name, _, _ in source_stamp(caller)] == ["inner.py", "middle.py", "outer.py"]


@pytest.mark.parametrize("changed", ["inner.py", "middle.py", "outer.py"])
def test_a_change_of_any_of_them_changes_the_stamp(caller: FunctionType, tmp_path: Path, changed: str) -> None:
    before = source_stamp(caller)
    os.utime(tmp_path / changed, ns=(1, 1))
    assert source_stamp(caller) != before


def test_kernels_that_call_each_other_are_named_once(tmp_path: Path) -> None:
    module = _module(tmp_path / "loop.py", "def f(x): return f(x - 1) if x else 0\n")
    module.f = numba.njit(module.f)
    assert [name for name, _, _ in source_stamp(module.f.py_func)] == ["loop.py"]
