"""Functions that a job names: where they are searched, and what is said when they cannot be had."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace.user_code import load_function


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    modules, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_module_in_the_working_folder_is_found(working_folder: Path) -> None:
    (working_folder / "my_functions.py").write_text("def double(rows): return rows + rows\n")
    assert load_function("my_functions:double")(2) == 4


def test_the_working_folder_comes_after_what_is_installed(working_folder: Path) -> None:
    (working_folder / "wave.py").write_text("def open(rows): raise SystemExit\n")  # a module of Python's own library
    function = load_function("wave:open")
    assert sys.path[-1] == str(working_folder)
    assert function.__code__.co_filename != str(working_folder / "wave.py")


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("x = 1 / 0\n", "broken:f", "importing module broken ({file}) failed: ZeroDivisionError: division by zero"),
        ("x = 1 / 0\n", "broken:f", "({file} line 1)"),
        ("import no_such_library\n", "broken:f", "({file}) failed: ModuleNotFoundError: No module named 'no_such_lib"),
        (
            "def f(:\n",
            "broken:f",
            "importing module broken ({file}) failed: SyntaxError: invalid syntax (broken.py, line",
        ),
        ("def g(rows): ...\n", "broken:f", "module broken ({file}) has no f"),
        ("f = 3\n", "broken:f", "broken:f is int, expected a function"),
        ("", "missing:f", "no module missing in {folder} or among installed packages"),
        ("", "missing.part:f", "no module missing in {folder}"),
        ("", "broken.part:f", "no module broken.part in {folder} or among installed packages"),
        ("", ":f", "given ':f', expected package.module:name"),
    ],
)
def test_an_error_names_the_module_and_its_file(working_folder: Path, text: str, name: str, message: str) -> None:
    file = working_folder / "broken.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_function(name)
    line = str(caught.value)
    assert line.startswith("pipeline: ")
    assert message.format(file=file, folder=working_folder) in line
