"""`headrace cluster`, presets of `generate`: options reach the work, results are printed, mistakes are one line."""

import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner, Result

from headrace.cli.cluster import cluster, parse_duration
from headrace.cli.generate import generate
from headrace.errors import ConfigError

app = typer.Typer()
app.command()(cluster)
app.command()(generate)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    (folder / "hour=1").mkdir(parents=True)
    table = pa.table(
        {
            "visit": np.arange(300) % 20,
            "user": np.arange(300) % 20,
            "time": np.arange(300) * 1000,
            "click": np.arange(300) % 2,
        }
    )
    pq.write_table(table, folder / "hour=1" / "a.parquet")
    (folder / "schema.yaml").write_text("labels: [click]\nids: [user]\ntimestamp: time\nsession_id: visit\n")
    return folder


def test_each_window_is_printed_with_its_checksum_and_label_rate(log: Path, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    lines = run("cluster", log, tmp_path / "out", "--layout", "clustered").stdout.splitlines()
    assert lines[0].startswith("hour=1: 300 rows, checksum ")
    assert "click rate 0.500000, verified; 20 sessions, " in lines[0]
    assert lines[1] == f"300 rows in 1 window, layout clustered: {tmp_path / 'out'}"
    again = run("cluster", log, tmp_path / "out", "--layout", "clustered").stdout
    assert again == f"0 rows in 0 windows, layout clustered: {tmp_path / 'out'}, 1 file already done\n"


def test_sessions_of_users_and_samples_are_asked_for_by_options(log: Path, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    found = run("cluster", log, tmp_path / "user", "--user", "user", "--gap", "15s").stdout
    assert "300 rows" in found
    assert "; 300 sessions" in found  # each user comes every 20 s
    sampled = run("cluster", log, tmp_path / "sample", "--sample", "0.5", "--seed", 3).stdout
    rows = int(sampled.splitlines()[-1].split()[0])
    assert 0 < rows < 300
    assert rows % 15 == 0


def test_a_log_without_a_schema_says_how_to_get_one(log: Path, tmp_path: Path) -> None:
    (log / "schema.yaml").unlink()
    with pytest.raises(ConfigError, match=r"schema\.yaml: no such file; .* headrace inspect .* --write-schema"):
        run("cluster", log, tmp_path / "out")


def test_proposed_commands_can_be_pasted_whatever_the_path(log: Path, tmp_path: Path) -> None:
    (log / "schema.yaml").unlink()
    odd = log.rename(tmp_path / "my logs (1); rm $x")
    with pytest.raises(ConfigError) as caught:
        run("cluster", odd, tmp_path / "out")
    command = str(caught.value).partition("write one with: ")[2]
    assert shlex.split(command) == ["headrace", "inspect", str(odd), "--write-schema", str(odd / "schema.yaml")]


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45), ("30m", 1800), ("2h", 7200), ("1d", 86400), ("90", 90)])
def test_durations_are_written_as_people_do(text: str, seconds: float) -> None:
    assert parse_duration(text, "--gap") == seconds


@pytest.mark.parametrize("text", ["", "m", "-3s", "soon", "0", "nan", "inf"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--gap: given .*, expected a duration such as 45s, 30m, 2h or 1d"):
        parse_duration(text, "--gap")


def test_options_win_over_a_preset_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    options = ["--items", 1000, "--users", 1000, "--id-lists", 4, "--rows", 500]
    assert run("generate", tmp_path / "rm1", "--preset", "rm1", *options).exit_code == 0
    names = pq.read_schema(tmp_path / "rm1" / "window=000" / "part-00000.parquet").names
    assert "list_3" in names
    assert "list_4" not in names
    assert "item_list_5" in names
    with pytest.raises(ConfigError, match="--preset: given 'rm9', expected one of: rm1, mixed, control"):
        run("generate", tmp_path / "none", "--preset", "rm9")
