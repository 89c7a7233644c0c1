"""Publications: what a reader of an earlier version needs, what damage does, and which files are kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from headrace.embeddings import TableConfig
from headrace.embeddings.changes.chains import Chains
from headrace.embeddings.changes.delta import Delta
from headrace.embeddings.changes.merging import merge_segments
from headrace.embeddings.changes.segments import Segment, SegmentEntry, write_delta
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.errors import TornCheckpoint, VersionMismatch
from headrace.manifest import Manifest
from headrace.publishing.publications import DENSE, Publication, PublicationFolder

HEADER = TableGroupHeader.of([TableConfig(name="items", embedding_dim=2)], seed=3)


def rows_of(values: dict[int, float]) -> dict[str, np.ndarray]:
    ids = np.array(sorted(values), dtype=np.int64)
    weights = np.array([[values[each], -values[each]] for each in ids.tolist()], dtype=np.float32).reshape(-1, 2)
    return {"tables": np.zeros(len(ids), dtype=np.int32), "ids": ids, "weights": weights}


def keys_of(ids: list[int]) -> dict[str, np.ndarray]:
    return {"tables": np.zeros(len(ids), dtype=np.int32), "ids": np.array(ids, dtype=np.int64)}


class Publisher:
    """Publishes a dictionary of rows."""

    def __init__(self, path: Path, keep: int = 100) -> None:
        self.folder = PublicationFolder(path, keep=keep)
        self.chain: tuple[SegmentEntry, ...] = ()
        self.version = 0

    def publish(self, rows: dict[int, float], removed: list[int] | None = None, *, is_base: bool = False) -> None:
        self.version += 1
        since = 0 if is_base or not self.chain else 1
        delta = Delta(since, 2, keys_of(removed or []), rows_of(rows), keys_of([]), {})
        name = self.folder.segments.new_name(self.version, self.version)
        entry = write_delta(self.folder.segments.place("items") / name, delta, first=self.version)
        self.chain = (entry,) if entry.is_base else (*self.chain, entry)
        chains: Chains = {"items": (self.chain,)}

        def write(place: Path) -> Publication:
            save_file({"bias": np.full(1, self.version, dtype=np.float32)}, place / DENSE)
            return Publication(self.version, "a", 10 * self.version, 1.5, len(rows), {"items": (HEADER,)}, chains)

        self.folder.add(self.version, write)
        self.folder.segments.forget_name(name)

    def merge(self, first: int, last: int) -> None:
        merged = self.chain[first:last]
        name = self.folder.segments.new_name(merged[0].first, merged[-1].last)
        entry = merge_segments(self.folder.segments.place("items"), merged, name)
        self.chain = (*self.chain[:first], entry, *self.chain[last:])


def applied(folder: PublicationFolder, since: int, rows: dict[int, float], to: int) -> tuple[bool, dict[int, float]]:
    changes = folder.changes(folder.load(to), since)
    rows = {} if changes.is_everything else dict(rows)
    for _, section, block in changes.blocks:
        for place, each in enumerate(block["ids"].tolist()):
            if section == "removed":
                rows.pop(each, None)
            else:
                rows[each] = float(block["weights"][place, 0])
    return changes.is_everything, rows


def published_five(path: Path) -> tuple[Publisher, list[dict[int, float]]]:
    """Five versions, with removals, and an id that comes back; merged on the way. States of version 0 to 5."""
    publisher, states = Publisher(path), [{}]
    publisher.publish({1: 1.0, 2: 1.0, 3: 1.0})
    states.append({1: 1.0, 2: 1.0, 3: 1.0})
    publisher.publish({2: 2.0}, [3])
    states.append({1: 1.0, 2: 2.0})
    publisher.publish({3: 3.0}, [1])
    states.append({2: 2.0, 3: 3.0})
    publisher.merge(1, 3)
    publisher.publish({4: 4.0}, [2])
    states.append({3: 3.0, 4: 4.0})
    publisher.merge(0, 3)
    publisher.publish({4: 5.0, 2: 5.0})
    states.append({2: 5.0, 3: 3.0, 4: 5.0})
    return publisher, states


@pytest.mark.parametrize("since", range(6))
def test_changes_lead_from_any_version_to_any_later_one(since: int, tmp_path: Path) -> None:
    publisher, states = published_five(tmp_path)
    for to in range(max(1, since), 6):
        is_everything, rows = applied(publisher.folder, since, states[since], to)
        assert rows == states[to]
        assert is_everything == (since == 0)


def test_a_reader_that_is_too_old_gets_everything(tmp_path: Path) -> None:
    publisher, states = published_five(tmp_path)
    publisher.publish({7: 7.0}, is_base=True)
    assert applied(publisher.folder, 5, states[5], 6) == (True, {7: 7.0})
    assert applied(publisher.folder, 0, {}, 6) == (True, {7: 7.0})


def test_a_reader_needs_only_the_segments_after_its_version(tmp_path: Path) -> None:
    publisher, _ = published_five(tmp_path)
    newest = publisher.folder.newest()
    assert newest is not None
    needed = publisher.folder.needed(newest, 4)
    assert needed is not None
    assert [(entry.first, entry.last) for entry in needed["items"][0]] == [(5, 5)]
    needed = publisher.folder.needed(newest, 3)  # through the chain of version 4, as the base has been merged since
    assert needed is not None
    assert [(entry.first, entry.last) for entry in needed["items"][0]] == [(4, 4), (5, 5)]


def test_only_the_newest_versions_and_their_segments_are_kept(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path, keep=2)
    for version in range(1, 6):
        publisher.publish({version: 1.0})
        publisher.merge(0, len(publisher.chain))
        for name in {entry.name for entry in publisher.chain}:
            publisher.folder.segments.forget_name(name)
    assert publisher.folder.versions() == [4, 5]
    named = {entry.name for version in (4, 5) for entry in publisher.folder.load(version).chains["items"][0]}
    found = {path.name for path in (tmp_path / "segments" / "items").iterdir()}
    assert named <= found
    assert len(found - named) <= 1


def test_a_damaged_version_is_passed_over(tmp_path: Path) -> None:
    publisher, _ = published_five(tmp_path)
    path = tmp_path / "00000005" / "manifest.json"
    path.write_text(path.read_text().replace('"step": 50', '"step": 51'))
    with pytest.raises(TornCheckpoint, match="does not match its checksum"):
        publisher.folder.load(5)
    newest = publisher.folder.newest()
    assert newest is not None
    assert newest.version == 4
    dense = tmp_path / "00000004" / DENSE
    dense.write_bytes(dense.read_bytes()[:-1] + b"x")
    with pytest.raises(TornCheckpoint, match=r"dense\.safetensors: has SHA-256"):
        publisher.folder.load(4)


def test_damage_in_a_segment_is_found_when_it_is_read(tmp_path: Path) -> None:
    publisher, states = published_five(tmp_path)
    entry = publisher.folder.load(5).chains["items"][0][-1]
    path = tmp_path / "segments" / "items" / entry.name
    data = bytearray(path.read_bytes())
    segment = Segment(path.parent, entry)
    data[segment.blocks_of("rows")[-1].columns["weights"][1]] ^= 1
    path.write_bytes(data)
    with pytest.raises(TornCheckpoint, match=r"rows\.weights: has CRC-32"):
        applied(publisher.folder, 4, states[4], 5)


def test_a_manifest_with_other_content_is_refused_in_one_line(tmp_path: Path) -> None:
    publisher, _ = published_five(tmp_path)
    content = json.loads((tmp_path / "00000005" / "manifest.json").read_text())
    own = {key: content.pop(key) for key in ("format", "version", "files", "sha256")}
    for wrong, message in (
        ({"step": "many"}, "step"),
        ({"chains": {}}, "chains of"),
        ({"tables": 3}, "dictionary"),
        ({"number": 4}, "is of version 4, expected 5|later version"),
    ):
        Manifest.write(tmp_path / "00000005", own["format"], own["version"], content | wrong)
        with pytest.raises(TornCheckpoint, match=message) as refused:
            publisher.folder.load(5)
        assert "\n" not in str(refused.value)


def test_dense_parameters_are_those_of_the_version(tmp_path: Path) -> None:
    publisher, _ = published_five(tmp_path)
    assert publisher.folder.dense(publisher.folder.load(3))["bias"] == np.float32(3)


def test_int8_rows_of_an_earlier_format_are_refused_and_exact_ones_are_read(tmp_path: Path) -> None:
    publisher, _ = published_five(tmp_path)
    own = json.loads((tmp_path / "00000005" / "manifest.json").read_text())
    content = {key: value for key, value in own.items() if key not in ("format", "version", "files", "sha256")}
    (tmp_path / "00000005" / "manifest.json").unlink()
    Manifest.write(tmp_path / "00000005", own["format"], 1, content)
    assert publisher.folder.load(5).version == 5
    Manifest.write(tmp_path / "00000005", own["format"], 1, content | {"weights": "int8"})
    with pytest.raises(VersionMismatch, match="int8 rows of headrace-publication version 1, expected version 2"):
        publisher.folder.load(5)
