"""Checkpoints appear whole or not at all, and a torn one is refused with both sides printed."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from headrace.errors import CheckpointError, TornCheckpoint, VersionMismatch
from headrace.manifest import Manifest
from headrace.training import checkpoint
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


def put_a_pipe_in_place_of_a_file(folder: Path) -> None:
    (folder / "dense.safetensors").unlink()
    os.mkfifo(folder / "dense.safetensors")


def put_a_folder_in_place_of_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()


def make_the_folder_a_loop(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.name)


def make_the_folder_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("notes")


def manifest_of(text: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / "manifest.json").write_text(text)

    return replace


def in_the_manifest(old: str, new: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        path = folder / "manifest.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return replace


def copy_another_checkpoint(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("00000015"), folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_short, r"rows.npy: has 2047 bytes, expected 2048"),
        (flip_a_bit, r"dense.safetensors: has SHA-256 .*, expected "),
        (lose_a_file, r"ids.npy: is missing, expected 264 bytes"),
        (lose_the_manifest, r"manifest.json: is missing"),
        (change_the_state, r"manifest.json: does not match its checksum"),
        (put_a_pipe_in_place_of_a_file, r"dense.safetensors: is not a regular file"),
        (put_a_folder_in_place_of_the_manifest, r"manifest.json: is not a regular file"),
        (make_the_folder_a_loop, r"manifest.json: cannot be read: Too many levels"),
        (make_the_folder_a_file, r"manifest.json: cannot be read: Not a directory"),
        (manifest_of("[]"), r"holds list, expected a mapping"),
        (manifest_of("null"), r"holds NoneType, expected a mapping"),
        (manifest_of("{}"), r"does not match its checksum"),
        (manifest_of("[" * 100_000), r"is not JSON"),
        (manifest_of('{"state": ' * 3000 + "1" + "}" * 3000), r"is not JSON|does not match"),
        (manifest_of("9" * 5000), r"is not JSON"),
        (in_the_manifest('"number": 17', '"number": 15'), r"does not match its checksum"),
        (in_the_manifest('"number"', '"numbes"'), r"does not match its checksum"),
        (in_the_manifest('"format": "headrace', '"format": "headracf'), r"does not match its checksum"),
        (in_the_manifest('"version": 2', '"version": 3'), r"does not match its checksum"),
        (in_the_manifest('"version": 2', '"version": 1'), r"does not match its checksum"),
        (in_the_manifest('"sha256"', '"sha257"'), r"does not match its checksum"),
        (copy_another_checkpoint, r"its manifest belongs to checkpoint 15, expected 17"),
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
    with pytest.raises(TornCheckpoint, match="all checkpoints are damaged"):
        folder.load_latest()


def test_another_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    path = folder.save(snapshot(1)) / "manifest.json"
    Manifest.write(path.parent, "headrace-checkpoint", 9, {"number": 1, "state": {}})
    with pytest.raises(VersionMismatch, match=r"version 9, expected headrace-checkpoint version 2"):
        folder.load_latest()
    path.write_text(json.dumps({"format": "headrace-checkpoint", "version": 1, "number": 1, "state_sha256": "ab"}))
    with pytest.raises(VersionMismatch, match=r"version 1, expected headrace-checkpoint version 2"):
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
    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        folder.save(snapshot(2))
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]


def test_a_number_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for number in (1, 2):
        folder.save(Snapshot(number, {}))
    with pytest.raises(CheckpointError, match="there is no checkpoint 9, expected one of: 1, 2"):
        folder.load(9)


def test_any_changed_byte_of_a_manifest_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    saved = Snapshot(3, {"window": None, "seconds": 0.25, "rows": {"read": 10}}, {"dense": {"w": np.zeros(2)}})
    path = folder.save(saved) / "manifest.json"
    whole, random_bytes = path.read_bytes(), random.Random(7)
    torn = 0
    for position in range(len(whole)):
        for changed in (whole[position] ^ (1 << random_bytes.randrange(8)), random_bytes.randrange(256), ord("0")):
            damaged = bytearray(whole)
            damaged[position] = changed
            path.write_bytes(damaged)
            try:
                loaded = folder.load(3)
            except TornCheckpoint:
                torn += 1
            else:
                assert (loaded.number, loaded.state) == (3, saved.state), (position, changed)
    assert torn > 2 * len(whole)


def test_what_others_leave_in_a_checkpoint_does_not_matter(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    place = folder.save(snapshot(2))
    (place / ".DS_Store").touch()
    (place / "tables/dim16/.ipynb_checkpoints").mkdir()
    (place / "tables/dim16/.ipynb_checkpoints/rows-checkpoint.npy").write_bytes(b"x")
    (place / "tables/dim16/extra.npy").write_bytes(b"x")
    os.mkfifo(place / "x.safetensors")
    loaded, refused = folder.load_latest()
    assert loaded is not None
    assert refused == []
    assert list(loaded.arrays) == ["dense"]
    assert sorted(loaded.columns["dim16"]) == ["ids", "rows"]
    assert loaded.parts == {}


def test_other_names_beside_checkpoints_do_not_matter(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(snapshot(2))
    for name in ("\u00b2", "notes", "3", "00000003 (copy)", "000000004", "\u0663" * 8, ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / ".DS_Store").touch()
    assert folder.numbers() == [2]


def test_a_broken_link_in_place_of_the_folder_does_not_begin_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(tmp_path / "not mounted")
    with pytest.raises(CheckpointError, match="checkpoints: not a folder"):
        CheckpointFolder(tmp_path / "checkpoints").load_latest()


@pytest.mark.parametrize("name", ["../outside.npy", "/etc/passwd", "tables//x.npy", "notes.txt"])
def test_a_manifest_cannot_name_files_elsewhere_or_of_another_kind(tmp_path: Path, name: str) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    place = folder.save(Snapshot(1, {}))
    if not name.startswith(("/", ".")):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(b"")
    sha = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    values = {"format": "headrace-checkpoint", "version": 2, "files": {name: {"bytes": 0, "sha256": sha}}}
    values |= {"number": 1, "state": {}}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (place / "manifest.json").write_text(json.dumps(values | {"sha256": digest}))
    with pytest.raises(TornCheckpoint, match=r"expected a path below the folder|has no arrays"):
        folder.load(1)


def test_errors_of_libraries_that_wrap_the_systems_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"00000002: cannot be written: No space left on device$"):
        CheckpointFolder(tmp_path).save(snapshot(2))
    assert not list(tmp_path.iterdir())
