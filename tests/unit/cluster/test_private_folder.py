"""The folder of a launched job is removed with its launcher, or by the next launcher if that was killed."""

import fcntl
import stat
import tempfile
from pathlib import Path

import pytest

from headrace.cluster.private_folder import LOCK, PREFIX, private_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_this_user_s_alone_and_removed_at_the_end(temporary: Path) -> None:
    with private_folder() as folder:
        (folder / "trainers").write_text("met")
        assert folder.parent == temporary
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(temporary.iterdir()) == []


def test_what_a_killed_launcher_left_is_removed_by_the_next_one_and_nothing_else(temporary: Path) -> None:
    left, new, other = (temporary / name for name in (f"{PREFIX}left", f"{PREFIX}new", "other"))
    for folder in (left, new, other):
        folder.mkdir()
    for folder in (left, other):
        (folder / LOCK).touch()
    (left / "trainers").write_text("met")
    with private_folder() as alive, private_folder() as second:
        assert {path.name for path in temporary.iterdir()} == {alive.name, second.name, new.name, "other"}


def test_a_folder_is_kept_as_long_as_its_lock_is_held(temporary: Path) -> None:
    held = temporary / f"{PREFIX}held"
    held.mkdir()
    with (held / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with private_folder():
            assert held.exists()
    with private_folder():
        assert not held.exists()
