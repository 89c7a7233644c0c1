"""Files of a manifest are opened as files and nothing else."""

import os
from pathlib import Path

import pytest

from headrace.errors import TornCheckpoint
from headrace.manifest import open_regular


def test_an_opened_file_is_not_passed_on_to_child_processes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12")
    with open_regular(tmp_path / "a") as file:
        assert not os.get_inheritable(file.fileno())
        assert file.read() == b"12"


def test_a_pipe_a_folder_and_nothing_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, reason in (("pipe", "is not a regular file"), (".", "is not a regular file"), ("none", "is missing")):
        with pytest.raises(TornCheckpoint, match=f"{reason}, expected 2 bytes"):
            open_regular(tmp_path / name, "expected 2 bytes")
    with pytest.raises(TornCheckpoint, match="cannot be read: Too many levels of symbolic links"):
        open_regular(tmp_path / "loop")
