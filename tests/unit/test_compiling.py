"""A compiled kernel that is kept on disk is as new as everything it calls."""

import fcntl
import os
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numba
import pytest

from headrace.compiling import KernelCache, KernelFile, KernelFiles, kernel, source_stamp
from headrace.errors import ConfigError


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
    assert [name for name, _ in source_stamp(caller)] == ["inner.py", "middle.py", "outer.py"]


@pytest.mark.parametrize("changed", ["inner.py", "middle.py", "outer.py"])
def test_a_change_of_any_of_them_changes_the_stamp(caller: FunctionType, tmp_path: Path, changed: str) -> None:
    before = source_stamp(caller)
    os.utime(tmp_path / changed, ns=(1, 1))
    assert source_stamp(caller) == before, "copies and container images change the time alone"
    (tmp_path / changed).write_text((tmp_path / changed).read_text() + "# changed")
    assert source_stamp(caller) != before


def test_the_stamp_names_the_files_of_kernels_that_a_template_was_given(tmp_path: Path) -> None:
    rule = _module(tmp_path / "rule.py", "def rule(x): return 3 * x\n").rule
    outer = _module(tmp_path / "template.py", "def loop_of(rule):\n    def loop(x): return rule(x)\n    return loop\n")
    assert [name for name, _ in source_stamp(outer.loop_of(numba.njit(rule)))] == ["rule.py", "template.py"]


def test_the_code_of_a_template_has_the_same_key_in_every_process(tmp_path: Path) -> None:
    def loop_of(rule: Any) -> Any:
        def loop(x: int) -> int:
            return int(rule(x))

        return loop

    rule = _module(tmp_path / "rule.py", "def rule(x): return 3 * x\n").rule
    codegen = numba.njit(rule).targetctx.codegen()
    # Each `njit` of a function is another object, as in another process.
    keys = [KernelCache(loop_of(numba.njit(rule)))._index_key("signature", codegen) for _ in range(2)]
    assert keys[0] == keys[1]


def test_kernels_that_call_each_other_are_named_once(tmp_path: Path) -> None:
    module = _module(tmp_path / "loop.py", "def f(x): return f(x - 1) if x else 0\n")
    module.f = numba.njit(module.f)
    assert [name for name, _ in source_stamp(module.f.py_func)] == ["loop.py"]


def test_callees_defined_later_and_those_named_with_their_module_are_part_of_the_stamp(tmp_path: Path) -> None:
    inner = _module(tmp_path / "inner.py", "def twice(x): return 2 * x\n")
    inner.twice = numba.njit(inner.twice)
    source = "def eight(x): return 2 * four(x)\ndef four(x): return inner.twice(inner.twice(x))\n"
    outer = _module(tmp_path / "outer.py", source, inner=inner)
    four = vars(outer).pop("four")
    cache = KernelCache(outer.eight)
    outer.four = numba.njit(four)
    assert [name for name, _ in cache._cache_file._kept._source_stamp] == ["inner.py", "outer.py"]


def test_the_stamp_is_that_of_the_source_that_was_defined(tmp_path: Path) -> None:
    module = _module(tmp_path / "loop.py", "def f(x): return x\n")
    cache, before = KernelCache(module.f), source_stamp(module.f)
    (tmp_path / "loop.py").write_text("def f(x): return x + 1\n")
    assert cache._cache_file._kept._source_stamp == before


def test_two_processes_that_keep_code_at_once_keep_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = KernelFile(str(tmp_path), "f", "stamp"), KernelFile(str(tmp_path), "f", "stamp")
    save_data = one._save_data

    def save_data_while_another_asks(name: str, data: object) -> None:
        lock = os.open(tmp_path / "kernels.lock", os.O_WRONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(lock)
        save_data(name, data)

    monkeypatch.setattr(one, "_save_data", save_data_while_another_asks)
    one.save("float32", "code for float32")
    other.save("float64", "code for float64")
    one.save("float32", "newer code for float32")
    assert (other.load("float32"), one.load("float64")) == ("newer code for float32", "code for float64")


def test_code_is_never_named_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KernelFile(str(tmp_path), "f", "older sources").save("float32", "code of older sources")
    kept = KernelFile(str(tmp_path), "f", "stamp")

    def killed(name: str, data: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kept, "_save_data", killed)
    with pytest.raises(KeyboardInterrupt):
        kept.save("float32", "code")
    assert kept.load("float32") is None


def test_code_that_was_shipped_is_used_and_new_code_is_kept_elsewhere(tmp_path: Path) -> None:
    shipped, kept = tmp_path / "shipped", tmp_path / "kept"
    for folder in (shipped, kept):
        folder.mkdir()
    KernelFile(str(shipped), "f", "stamp").save("float32", "shipped code")
    (shipped / "kernels.lock").unlink()
    files = KernelFiles(KernelFile(str(kept), "f", "stamp"), KernelFile(str(shipped), "f", "stamp"))
    assert files.load("float32") == "shipped code"
    files.save("float64", "new code")
    assert files.load("float64") == "new code"
    assert [path.name for path in shipped.iterdir() if path.suffix != ".nbi"] == ["f.1.nbc"]


def test_without_a_folder_nothing_is_kept_and_nothing_fails(tmp_path: Path) -> None:
    nowhere = KernelFiles(None, None)
    nowhere.save("float32", "code")
    assert nowhere.load("float32") is None
    gone = KernelFiles(KernelFile(str(tmp_path / "gone"), "f", "stamp"), None)
    gone.save("float32", "code")
    assert gone.load("float32") is None


def test_with_compilation_switched_off_kernels_are_refused_with_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.raises(ConfigError, match="NUMBA_DISABLE_JIT is set, expected unset"):
        kernel()
