"""Checkpoints appear whole or not at all, and a torn one is refused with both sides printed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import CheckpointError, TornCheckpoint, VersionMismatch
from headrace.training.checkpoint import CheckpointFolder, Snapshot


def snapshot(number: int) -> Snapshot:
    rng = np.random.default_rng(number)
    return Snapshot(
        number=number,
        state={"window": "hour=3", "cursor": {"files": ["a", "b"]}},
        arrays={"dense": {"top.weight": rng.random((3, 2), dtype=np.float32)}},
        columns={"dim16": {"ids": np.arange(number, dtype=np.int64), "rows": rng.random((number, 16))}},
    )


def test_a_checkpoint_is_read_back_exactly(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    saved = snapshot(7)
    folder.save(saved)
    loaded, refused = folder.load_latest()
    assert loaded is not None
    assert refused == []
    assert (loaded.number, loaded.state) == (7, saved.state)
    np.testing.assert_array_equal(loaded.arrays["dense"]["top.weight"], saved.arrays["dense"]["top.weight"])
    np.testing.assert_array_equal(loaded.columns["dim16"]["rows"], saved.columns["dim16"]["rows"])


def test_an_empty_folder_has_no_latest(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "none").load_latest() == (None, [])


def cut_short(folder: Path) -> None:
    path = folder / "tables/dim16/rows.npy"
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    path = folder / "dense.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lose_a_file(folder: Path) -> None:
    (folder / "tables/dim16/ids.npy").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def change_the_state(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("hour=3", "hour=4"))


def add_a_file(folder: Path) -> None:
    (folder / "tables/dim16/extra.npy").write_bytes(b"x")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_short, r"rows.npy: has 2047 bytes, expected 2048"),
        (flip_a_bit, r"dense.safetensors: has SHA-256 .*, expected "),
        (lose_a_file, r"ids.npy: is missing, expected 264 bytes"),
        (lose_the_manifest, r"has no manifest.json"),
        (change_the_state, r"state does not match its checksum"),
        (add_a_file, r"files its manifest does not list: tables/dim16/extra.npy"),
    ],
)
def test_a_torn_checkpoint_is_refused_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(snapshot(15))
    damage(folder.save(snapshot(17)))
    if damage is cut_short:
        said = said.replace("2047", str(17 * 128 + 127)).replace("2048", str(17 * 128 + 128))
    with pytest.raises(TornCheckpoint, match=said):
        folder.load(17)
    loaded, refused = folder.load_latest()
    assert loaded is not None
    assert loaded.number == 15
    assert len(refused) == 1


def test_when_none_is_whole_training_does_not_silently_start_anew(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    lose_a_file(folder.save(snapshot(1)))
    with pytest.raises(TornCheckpoint, match="no checkpoint is whole"):
        folder.load_latest()


def test_another_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    path = folder.save(snapshot(1)) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["version"] = 9
    path.write_text(json.dumps(manifest))
    with pytest.raises(VersionMismatch, match=r"version 9, expected headrace-checkpoint version 1"):
        folder.load_latest()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for number in (1, 2, 3, 10):
        folder.save(snapshot(number))
    assert folder.numbers() == [3, 10]


def test_leftovers_of_a_killed_writer_are_swept_and_never_read(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    final = folder.save(snapshot(1))
    shutil.copytree(final, tmp_path / ".00000002.99.partial")
    assert folder.numbers() == [1]
    folder.save(snapshot(3))
    assert not list(tmp_path.glob(".*"))


def test_a_disk_that_does_not_take_it_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    folder = CheckpointFolder(tmp_path)
    folder.save(snapshot(1))
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        folder.save(snapshot(2))
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]


def test_a_number_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for number in (1, 2):
        folder.save(Snapshot(number, {}))
    with pytest.raises(CheckpointError, match="there is no checkpoint 9, expected one of: 1, 2"):
        folder.load(9)
