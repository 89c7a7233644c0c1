"""The importers on slices of real logs, checked against straightforward readings of the same lines."""

import csv
import gzip
import io
import itertools
import os
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from headrace.logs.importers import import_clicks, import_criteo

DATA = os.environ.get("HEADRACE_DATA")
CRITEO = Path(DATA or "-") / "criteo" / "criteo_kaggle_137139.tsv.gz"
CLICKS = Path(DATA or "-") / "globo" / "clicks_hourly.tar.gz"


@pytest.mark.skipif(not CRITEO.is_file(), reason="needs the Criteo sample below HEADRACE_DATA")
def test_first_lines_of_criteo_arrive_as_they_are(tmp_path: Path) -> None:
    with gzip.open(CRITEO, "rt") as stream:
        lines = list(itertools.islice(stream, 3000))
    (tmp_path / "slice.tsv").write_text("".join(lines))
    done = import_criteo(tmp_path / "slice.tsv", tmp_path / "out")
    rows = pq.read_table(done.files[0]).to_pylist()
    assert len(rows) == 3000
    for line, row in zip(lines, rows, strict=True):
        label, *fields = line.rstrip("\n").split("\t")
        assert row["label"] == int(label)
        assert [row[f"I{i}"] for i in range(1, 14)] == [int(field) if field else None for field in fields[:13]]
        assert [row[f"C{i}"] for i in range(1, 27)] == [int(field, 16) if field else None for field in fields[13:]]


@pytest.mark.skipif(not CLICKS.is_file(), reason="needs the hourly news log below HEADRACE_DATA")
def test_first_hours_of_the_news_log_give_rows_that_do_not_look_ahead(tmp_path: Path) -> None:
    folder = tmp_path / "clicks"
    folder.mkdir()
    clicks = []
    with tarfile.open(CLICKS, "r|gz") as archive:
        for member in itertools.islice((m for m in archive if m.name.endswith(".csv")), 4):
            stream = archive.extractfile(member)
            assert stream is not None
            text = stream.read()
            (folder / Path(member.name).name).write_bytes(text)
            for row in csv.DictReader(io.StringIO(text.decode())):
                names = ("click_timestamp", "user_id", "session_id", "click_article_id")
                clicks.append(tuple(int(row[name]) for name in names))
            hours = len(clicks)
    assert hours > 4000
    import_clicks(folder, tmp_path / "out")
    clicks.sort(key=lambda click: click[0])
    rows = pq.read_table(tmp_path / "out" / "hour=003" / "part-00000.parquet").to_pylist()
    assert sum(row["click"] for row in rows) * 5 == len(rows) > 2500
    for row in rows[::7]:
        before = [click for click in clicks if click[0] < row["timestamp"]]
        assert row["history"] == [click[3] for click in before if click[1] == row["user"]][-50:]
        assert row["session_items"] == [click[3] for click in before if click[2] == row["session"]]
        last_hour = Counter(click[3] for click in before if click[0] >= row["timestamp"] - 3_600_000)
        # The click that drew a negative is left out. Without other items in that hour it is drawn from an earlier one.
        drawn_by = min(1 - row["click"], last_hour[row["item"]])
        assert row["item_clicks_last_hour"] == last_hour[row["item"]] - drawn_by
