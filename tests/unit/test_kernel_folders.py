"""Compiled code is kept where only this user can have put it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import kernel_folders as module
from headrace.kernel_folders import CACHE_VARIABLE, kernel_folders


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation that cannot be written to, a home, and a folder for temporary files."""
    for name in (CACHE_VARIABLE, "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("installed/features", "home", "tmp", "chosen"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    real = module.is_writable
    monkeypatch.setattr(module, "is_writable", lambda folder: "installed" not in folder.parts and real(folder))
    kernel_folders.cache_clear()
    yield
    kernel_folders.cache_clear()


def kept(tmp_path: Path) -> str:
    """Where kernels are kept, from the folder that holds everything."""
    found = kernel_folders(tmp_path / "installed/features")
    assert found.shipped == tmp_path / "installed/features/__pycache__"
    return "" if found.kept is None else str(found.kept.relative_to(tmp_path)).rpartition("/")[0]


def test_an_installation_that_can_be_written_to_keeps_its_own(tmp_path: Path) -> None:
    found = kernel_folders(tmp_path / "home")
    assert (found.kept, found.shipped) == (tmp_path / "home/__pycache__", None)


def test_else_the_users_folder_for_caches_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept(tmp_path) == "home/.cache/headrace/kernels"
    kernel_folders.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kept(tmp_path) == "xdg/headrace/kernels"


def test_a_folder_that_was_chosen_comes_first_and_is_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "chosen"))
    assert kept(tmp_path) == "chosen/kernels"
    kernel_folders.cache_clear()
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert kept(tmp_path) == ""


def test_without_a_home_a_private_folder_among_temporary_files_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/proc")
    assert kept(tmp_path) == f"tmp/headrace-{os.getuid()}/kernels"
    assert (tmp_path / "tmp" / f"headrace-{os.getuid()}").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("trap", ["others may write", "a link", "of somebody else"])
def test_a_folder_that_somebody_else_may_have_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    monkeypatch.setenv("HOME", "/proc")
    folder = tmp_path / "tmp" / f"headrace-{os.getuid()}"
    if trap == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    else:
        folder.mkdir(mode=0o700)
    if trap == "others may write":
        folder.chmod(0o777)
    if trap == "of somebody else":
        other = os.getuid() + 1
        folder.rename(tmp_path / "tmp" / f"headrace-{other}")
        monkeypatch.setattr(os, "getuid", lambda: other)
    assert kept(tmp_path) == ""


def test_without_any_temporary_folder_code_is_compiled_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(module.tempfile, "gettempdir", none)
    monkeypatch.setenv("HOME", str(tmp_path / "installed"))
    assert kept(tmp_path) == ""
