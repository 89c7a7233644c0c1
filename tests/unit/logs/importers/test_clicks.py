"""The import of a click log: a hand-made log with rows computed by hand, resuming, and what is refused."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from headrace.errors import ConfigError, DataError
from headrace.logs import Schema
from headrace.logs.importers import ClicksConfig, import_clicks

HEADER = "u,s,i,t,os\n"
CONFIG = ClicksConfig(
    user="u", session="s", item="i", timestamp="t", unit="s", context={"system": "os"}, negatives=2, history_length=2
)

# user, session, item, second, os. Not in order of time within a file; the last click of hour 1 runs on past hour 3.
MINI_LOG = {
    "h0.csv": "1,10,100,0,5\n1,10,200,10,5\n2,20,100,20,6\n",
    "h1.csv": "2,21,300,3610,6\n1,11,100,3605,5\n1,11,200,3605,5\n1,11,300,9000,5\n",
    "h2.csv": "",
    "h3.csv": "1,12,400,7300,5\n3,30,200,7300,7\n1,12,300,7400,5\n",
}

# Per click, in order of time: second, user, session, os, hour of day, history, items of the session before.
EXPECTED = {
    1: [
        (3605, 1, 11, 5, 1, [100, 200], [], 100),
        (3605, 1, 11, 5, 1, [100, 200], [], 200),  # at the same moment: does not see the click on 100
        (3610, 2, 21, 6, 1, [100], [], 300),
        (9000, 1, 11, 5, 2, [100, 200], [100, 200], 300),  # the two of 3605, no longer those of 0 and 10
    ],
    3: [
        (7300, 1, 12, 5, 2, [100, 200], [], 400),  # 300 was clicked at 9000: not yet
        (7300, 3, 30, 7, 2, [], [], 200),
        (7400, 1, 12, 5, 2, [200, 400], [400], 300),
    ],
}

# Clicks in the hour before, by item, where there are any.
LAST_HOUR = {
    1: [
        {100: 1, 200: 1},
        {100: 1, 200: 1},
        {100: 2, 200: 2},
        {},
    ],  # second 0 lies too far back at 3605; 10 does not at 3610
    3: [{}, {}, {400: 1, 200: 1}],
}

# What the negatives may be: items of the last hour with clicks, but the clicked one.
POOL = {1: {100, 200}, 3: {100, 200, 300}}


def write_log(folder: Path, files: dict[str, str] = MINI_LOG) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(HEADER + text)
    return folder


def read_hour(out: Path, hour: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / f"hour={hour:03d}" / "part-00000.parquet").to_pylist()
    return rows


def files_below(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("hour", [1, 3])
def test_rows_of_a_hand_made_log_are_those_computed_by_hand(tmp_path: Path, hour: int) -> None:
    import_clicks(write_log(tmp_path / "clicks"), tmp_path / "out", CONFIG)
    rows = read_hour(tmp_path / "out", hour)
    assert len(rows) == 3 * len(EXPECTED[hour])
    clicks_before = {1: 3, 3: 7}[hour]
    for number, (time, user, session, system, of_day, history, items, clicked) in enumerate(EXPECTED[hour]):
        group = rows[3 * number : 3 * number + 3]
        counts = LAST_HOUR[hour][number]
        others = {item for item, count in counts.items() if count and item != clicked}
        for slot, row in enumerate(group):
            assert row["row"] == (clicks_before + number) * 3 + slot
            assert (row["timestamp"], row["user"], row["session"], row["system"]) == (time, user, session, system)
            assert (row["hour_of_day"], row["history"], row["session_items"]) == (of_day, history, items)
            assert row["click"] == (row["item"] == clicked)
            drawn_by = 1 if others and not row["click"] else 0
            assert row["item_clicks_last_hour"] == counts.get(row["item"], 0) - drawn_by
        assert [row["item"] for row in group].count(clicked) == 1
        assert {row["item"] for row in group} - {clicked} <= (others or POOL[hour] - {clicked})


def test_hours_without_clicks_or_without_a_past_make_no_rows(tmp_path: Path) -> None:
    done = import_clicks(write_log(tmp_path / "clicks"), tmp_path / "out", CONFIG)
    assert (done.hours, done.hours_kept, done.hours_skipped, done.clicks, done.rows) == (2, 0, 2, 10, 21)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["hour=001", "hour=003", "schema.yaml"]


def test_the_schema_beside_the_hours_names_every_column(tmp_path: Path) -> None:
    import_clicks(write_log(tmp_path / "clicks"), tmp_path / "out", CONFIG)
    schema = Schema.from_yaml(tmp_path / "out" / "schema.yaml")
    assert set(schema.columns) == set(read_hour(tmp_path / "out", 1)[0])
    assert schema == CONFIG.log_schema()
    assert [column.max_length for column in schema.id_lists] == [2, None]


def test_the_same_seed_gives_the_same_files_and_another_gives_other_negatives(tmp_path: Path) -> None:
    log = write_log(tmp_path / "clicks")
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        import_clicks(log, tmp_path / name, CONFIG.model_copy(update={"seed": seed}))
    assert files_below(tmp_path / "a") == files_below(tmp_path / "b")
    drawn = [[row["item"] for hour in (1, 3) for row in read_hour(tmp_path / name, hour)] for name in ("a", "c")]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("missing", [[1], [3], [1, 3]])
def test_hours_that_are_missing_are_made_again_just_the_same(tmp_path: Path, missing: list[int]) -> None:
    log, out = write_log(tmp_path / "clicks"), tmp_path / "out"
    import_clicks(log, out, CONFIG)
    before = files_below(out)
    for hour in missing:  # as a kill leaves them: the hidden folder of the writer instead of the hour
        (out / f"hour={hour:03d}").rename(out / f".hour={hour:03d}.writing")
    done = import_clicks(log, out, CONFIG)
    assert files_below(out) == before
    assert (done.hours, done.hours_kept, done.rows) == (2, 2 - len(missing), 21)


def test_finished_hours_are_kept_as_they_are(tmp_path: Path) -> None:
    log, out = write_log(tmp_path / "clicks"), tmp_path / "out"
    import_clicks(log, out, CONFIG)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert import_clicks(log, out, CONFIG).hours_kept == 2
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps


def test_hours_that_arrive_later_are_added(tmp_path: Path) -> None:
    early = write_log(tmp_path / "early", {name: MINI_LOG[name] for name in ("h0.csv", "h1.csv", "h2.csv")})
    assert import_clicks(early, tmp_path / "out", CONFIG).hours == 1
    import_clicks(write_log(tmp_path / "all"), tmp_path / "out", CONFIG)
    import_clicks(tmp_path / "all", tmp_path / "whole", CONFIG)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def test_other_options_or_another_log_are_refused(tmp_path: Path) -> None:
    log, out = write_log(tmp_path / "clicks"), tmp_path / "out"
    import_clicks(log, out, CONFIG)
    with pytest.raises(ConfigError, match=r"hour=001: made with config seed = 7, given seed = 9; import into another"):
        import_clicks(log, out, CONFIG.model_copy(update={"seed": 9}))
    (log / "h1.csv").write_text(HEADER + "2,21,300,3610,6\n")
    with pytest.raises(ConfigError, match="hour=001: made with clicks 4, given 1"):
        import_clicks(log, out, CONFIG)


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    log, other = write_log(tmp_path / "clicks"), write_log(tmp_path / "other")
    with pytest.raises(ConfigError, match="other: was not written by this import"):
        import_clicks(log, other, CONFIG)
    assert sorted(path.name for path in other.iterdir()) == sorted(MINI_LOG)


def test_files_out_of_order_are_refused(tmp_path: Path) -> None:
    log = write_log(tmp_path / "clicks", {"h0.csv": "1,1,1,200000,1\n", "h1.csv": "1,1,1,100000,1\n"})
    with pytest.raises(DataError, match=r"h1.csv starts at 100000, more than 24 hours before h0.csv at 200000"):
        import_clicks(log, tmp_path / "out", CONFIG)


def test_progress_tells_bytes_and_hours(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    import_clicks(
        write_log(tmp_path / "clicks"),
        tmp_path / "out",
        CONFIG,
        on_hour=lambda read, done: told.append((read, done.hours)),
    )
    assert [hours for _, hours in told] == [0, 1, 1, 2]
    assert told[-1][0] == sum(len(HEADER + text) for text in MINI_LOG.values())


def test_context_columns_may_not_take_the_names_of_others() -> None:
    with pytest.raises(ConfigError, match="reserved: item"):
        ClicksConfig.from_dict({"context": {"item": "os"}}, where="import")
