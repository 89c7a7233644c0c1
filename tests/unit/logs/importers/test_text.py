"""CSV and JSON lines become Parquet: types, lists in texts, bad lines by one rule, nothing half-written."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import ConfigError, DataError
from headrace.logs.importers import TextConfig, TextImport, import_text, text_kind
from headrace.logs.importers.text_columns import TextColumn


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def imported(path: Path, out: Path, kind: Any = "csv", **options: Any) -> tuple[TextImport, pa.Table]:
    done = import_text(kind, path, out, TextConfig(**options))
    return done, pa.concat_tables([pq.read_table(file) for file in done.files])


def kinds(done: TextImport) -> dict[str, str]:
    return {column.name: column.kind for column in done.columns}


CLICKS = "user,tags,seen,when,price,ok,city,hash,click\n" + "".join(
    f'{n},"a|b{n}",{n} {n + 1},2024-01-31 12:00:{n:02},{n / 4},true,"Paris, {n}",{2**63 + n},1\n' for n in range(20)
)


def test_types_are_guessed_and_lists_in_texts_are_split(tmp_path: Path) -> None:
    done, table = imported(write(tmp_path / "a.csv", CLICKS), tmp_path / "out")
    assert kinds(done) == {
        "user": "integer",
        "tags": "texts",
        "seen": "integers",
        "when": "time",
        "price": "number",
        "ok": "boolean",
        "city": "text",
        "hash": "unsigned",
        "click": "integer",
    }
    assert table.slice(3, 1).to_pylist() == [
        {
            "user": 3,
            "tags": ["a", "b3"],
            "seen": [3, 4],
            "when": datetime(2024, 1, 31, 12, 0, 3, tzinfo=UTC),
            "price": 0.75,
            "ok": True,
            "city": "Paris, 3",
            "hash": 2**63 + 3,
            "click": 1,
        }
    ]
    assert done.notes == [
        "columns separated by commas, names in the first line",
        "tags: lists of texts, split at '|'",
        "seen: lists of integers, split at ' '",
    ]


def test_rows_keep_their_order_over_many_batches(tmp_path: Path) -> None:
    text = "n,word\n" + "".join(f"{n},w{n % 7}\n" for n in range(60_000))
    done, table = imported(write(tmp_path / "a.csv", text), tmp_path / "out")
    assert done.rows == 60_000
    assert table["n"].to_pylist() == list(range(60_000))


@pytest.mark.parametrize("delimiter", ["\t", ";", "|", "::"])
def test_the_separator_of_columns_is_told_by_the_first_line(tmp_path: Path, delimiter: str) -> None:
    text = "".join(delimiter.join(cells) + "\n" for cells in (["a", "b"], ["1", "x, y"], ["2", "z"]))
    _, table = imported(write(tmp_path / "a.tsv", text), tmp_path / "out")
    assert table.to_pylist() == [{"a": 1, "b": "x, y"}, {"a": 2, "b": "z"}]


def test_without_a_header_columns_are_numbered(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "1,x\n0,y\n")
    done, table = imported(path, tmp_path / "out")
    assert table.to_pylist() == [{"column1": 1, "column2": "x"}, {"column1": 0, "column2": "y"}]
    assert "no header" in done.notes[0]
    _, named = imported(write(tmp_path / "b.csv", "x,y\nz,w\n"), tmp_path / "named", header=False)
    assert named.num_rows == 2
    _, named = imported(path, tmp_path / "given", names=("click", "who"), label="click = 1")
    assert named.to_pylist() == [{"who": "x", "label": 1}, {"who": "y", "label": 0}]
    with pytest.raises(ConfigError, match="given 3 names, expected 2, one for each column"):
        imported(path, tmp_path / "wrong", names=("a", "b", "c"))
    with pytest.raises(ConfigError, match="a name in the header is empty or occurs twice"):
        imported(write(tmp_path / "c.csv", "x,x\n1,2\n"), tmp_path / "twice", header=True)


def test_empty_texts_and_their_spellings_are_nulls(tmp_path: Path) -> None:
    _, table = imported(write(tmp_path / "a.csv", "a,b\n1,x\n,NULL\nNA,\n"), tmp_path / "out")
    assert table.to_pylist() == [{"a": 1, "b": "x"}, {"a": None, "b": None}, {"a": None, "b": None}]


def test_integers_too_long_for_a_float_stay_texts(tmp_path: Path) -> None:
    number = "123456789012345678901234567890"
    _, table = imported(write(tmp_path / "a.csv", f"a,b\n{number},1\n{number[::-1]},2\n"), tmp_path / "out")
    assert table["a"].to_pylist() == [number, number[::-1]]


def rows_with_mistakes(path: Path) -> Path:
    """300 rows, of which row 151 has a fraction for an integer and row 152 lacks a column."""
    lines = [f"{n},x{n}" for n in range(300)]
    lines[150], lines[151] = "2.5,half", "7"
    return write(path, "\n".join(["id,word", *lines]) + "\n")


def test_the_first_bad_line_stops_the_import_and_nothing_appears(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,word\n" + "1,a\n" * 200 + "2.5,b\n")
    with pytest.raises(DataError, match=r"a\.csv: row 201, column id: given '2\.5', expected an integer; drop or"):
        imported(path, tmp_path / "out")
    path = write(tmp_path / "b.csv", "id,word\n1,a\n2\n")
    with pytest.raises(DataError, match=r"b\.csv: line 3: given 1 columns, expected 2"):
        imported(path, tmp_path / "out")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["a.csv", "b.csv"]


def test_bad_lines_are_dropped_or_kept_with_place_and_reason(tmp_path: Path) -> None:
    path = rows_with_mistakes(tmp_path / "a.csv")
    done, table = imported(path, tmp_path / "dropped", bad_lines="drop")
    assert (done.rows, done.num_bad, done.quarantine) == (298, 2, None)
    assert table["id"].to_pylist() == [*range(150), *range(152, 300)]
    done, _ = imported(path, tmp_path / "out", bad_lines="quarantine")
    assert done.quarantine == tmp_path / "out-quarantine"
    assert pq.read_table(done.quarantine).to_pylist() == [
        {
            "file": str(path),
            "row_group": None,
            "row": 150,
            "column": "id",
            "reason": "given '2.5', expected an integer",
            "raw": json.dumps({"id": "2.5", "word": "half"}, separators=(",", ":")),
        },
        {
            "file": str(path),
            "row_group": None,
            "row": 151,
            "column": None,
            "reason": "given 1 columns, expected 2",
            "raw": '{"line": "7"}',
        },
    ]


def test_a_list_with_a_wrong_element_is_a_bad_line(tmp_path: Path) -> None:
    text = "ids,n\n" + "".join(f"{n}|{n + 1}|,{n}\n" for n in range(200)) + "1|x,7\n"
    done, table = imported(write(tmp_path / "a.csv", text), tmp_path / "out", bad_lines="drop")
    assert done.num_bad == 1
    assert table["ids"].to_pylist()[:2] == [[0, 1], [1, 2]]


def test_types_and_lists_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "zip,title,tags\n1,a|b,x_y\n2,c|d,z\n")
    given = {"types": {"zip": "text"}, "lists": {"title": "", "tags": "_"}}
    _, table = imported(path, tmp_path / "out", **given)
    assert table.to_pylist() == [
        {"zip": "1", "title": "a|b", "tags": ["x", "y"]},
        {"zip": "2", "title": "c|d", "tags": ["z"]},
    ]
    with pytest.raises(ConfigError, match="types: given zap, expected one of the columns: zip, title, tags"):
        imported(path, tmp_path / "more", types={"zap": "text"})
    with pytest.raises(ConfigError, match="types: given zip=integers, a list, but no separator was found"):
        imported(path, tmp_path / "more", types={"zip": "integers"})


def test_a_condition_becomes_the_label_and_takes_its_columns_away(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,rating\n1,5\n2,3\n3,\n")
    done, table = imported(path, tmp_path / "out", label="rating >= 4")
    assert table.to_pylist() == [{"user": 1, "label": 1}, {"user": 2, "label": 0}, {"user": 3, "label": None}]
    assert "label: rating >= 4; left out rating, which tells it" in done.notes
    for label in ("ratng >= 4", "rating >=", "rating like 4 or"):
        with pytest.raises(ConfigError, match=f"label: given '{label}', expected a condition on user, rating: "):
            imported(path, tmp_path / "more", label=label)
    assert not (tmp_path / "more").exists()


def test_files_keep_their_folders_and_their_order(tmp_path: Path) -> None:
    for hour in (2, 10):
        write(tmp_path / "in" / f"hour={hour}" / "a.csv", f"a,b\n{hour},1\n")
    write(tmp_path / "in" / "hour=2" / "b.csv", "b,a\n2,7\n")  # columns in another order
    (tmp_path / "in" / "hour=10" / "c.csv.gz").write_bytes(gzip.compress(b"a,b\n8,9\n"))
    done, table = imported(tmp_path / "in", tmp_path / "out")
    names = [str(file.relative_to(tmp_path / "out")) for file in done.files]
    assert names == [f"hour={hour}/part-0000{n}.parquet" for hour in (2, 10) for n in (0, 1)]
    assert table.to_pylist() == [{"a": 2, "b": 1}, {"a": 7, "b": 2}, {"a": 10, "b": 1}, {"a": 8, "b": 9}]
    with pytest.raises(ConfigError, match="is not empty"):
        imported(tmp_path / "in", tmp_path / "out")


def test_json_lines_have_columns_for_inner_objects_and_lists_for_arrays(tmp_path: Path) -> None:
    rows = [
        {"user": {"id": n, "name": f"u{n}"}, "seen": [n, n + 1], "tags": ["a", "b, c"], "ok": True, "deep": [{"x": 1}]}
        for n in range(3)
    ]
    rows.append({"user": {"id": 3}, "seen": None, "when": "2024-01-31T12:00:00Z"})
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    done, table = imported(path, tmp_path / "out", "jsonl")
    assert kinds(done) == {
        "user_id": "integer",
        "user_name": "text",
        "seen": "integers",
        "tags": "texts",
        "ok": "boolean",
        "when": "time",
    }
    first, last = table.to_pylist()[0], table.to_pylist()[3]
    assert first == {"user_id": 0, "user_name": "u0", "seen": [0, 1], "tags": ["a", "b, c"], "ok": True, "when": None}
    assert last["when"] == datetime(2024, 1, 31, 12, tzinfo=UTC)
    assert last["seen"] is None
    assert done.notes == ["left out deep: an array of arrays or objects"]


def test_bad_json_lines_follow_the_same_rule(tmp_path: Path) -> None:
    lines = [json.dumps({"a": n}) for n in range(200)]
    lines[120], lines[130], lines[140] = "not json", '{"a": "x"}', "[1]"
    path = write(tmp_path / "a.jsonl", "\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl: row 121: given 'not json', not a JSON object"):
        imported(path, tmp_path / "out", "jsonl")
    done, table = imported(path, tmp_path / "out", "jsonl", bad_lines="quarantine")
    assert (done.num_bad, table.num_rows) == (3, 197)
    assert done.quarantine is not None
    found = pq.read_table(done.quarantine).to_pylist()
    assert [(bad["row"], bad["column"], bad["raw"]) for bad in found] == [
        (120, None, "not json"),
        (130, "a", '{"a": "x"}'),
        (140, None, "[1]"),
    ]
    assert found[1]["reason"] == "given 'x', expected an integer"


def test_a_text_where_others_have_an_array_is_a_bad_line(tmp_path: Path) -> None:
    lines = [json.dumps({"tags": [f"t{n}"], 'odd"key': 1}) for n in range(200)]
    lines[150] = '{"tags": "none"}'
    path = write(tmp_path / "a.jsonl", "\n".join(lines) + "\n")
    with pytest.raises(DataError, match="row 151, column tags: given 'none', expected a JSON array of texts"):
        imported(path, tmp_path / "out", "jsonl")
    done, table = imported(path, tmp_path / "out", "jsonl", bad_lines="drop")
    assert (done.num_bad, table.column_names) == (1, ["tags"])
    assert done.notes == ['left out odd"key: its name']


def test_what_text_logs_there_are_is_told_by_their_names(tmp_path: Path) -> None:
    write(tmp_path / "csv" / "a.CSV", "a\n1\n")
    write(tmp_path / "json" / "a.ndjson", "{}\n")
    write(tmp_path / "other" / "a.parquet", "")
    write(tmp_path / "other" / "README.txt", "what the columns are")
    assert text_kind(tmp_path / "csv") == "csv"
    assert text_kind(tmp_path / "csv" / "a.CSV") == "csv"
    assert text_kind(tmp_path / "json") == "jsonl"
    assert text_kind(tmp_path / "other") is None
    assert text_kind(tmp_path / "missing") is None
    assert text_kind("s3://bucket/a.csv") is None


def test_files_without_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no rows"):
        imported(write(tmp_path / "a.csv", "a,b\n"), tmp_path / "out")
    with pytest.raises(DataError, match=r"starts with an empty line"):
        imported(write(tmp_path / "b.csv", ""), tmp_path / "out")
    with pytest.raises(DataError, match=r"no JSON objects"):
        imported(write(tmp_path / "c.jsonl", "x\n"), tmp_path / "out", "jsonl")
    assert not (tmp_path / "out").exists()


def test_what_was_expected_is_said_in_words() -> None:
    assert TextColumn("a", "integers", "|").expected == "a list, separated by '|', of integers"
    assert TextColumn("a", "numbers", "json").expected == "a JSON array of numbers"
    assert TextColumn("a", "time").expected == "a time such as 2024-01-31 12:00:00"
