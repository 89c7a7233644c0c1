"""`headrace import` and `headrace generate`: options reach the work, results are printed, mistakes are one line."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner, Result

from headrace.cli.generate import generate
from headrace.cli.import_ import app as import_app
from headrace.errors import ConfigError
from headrace.logs.generate import GenerateConfig

app = typer.Typer()
app.command()(generate)
app.add_typer(import_app, name="import")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("command", [["generate"], ["import", "criteo"], ["import", "clicks"]])
def test_help_of_each_has_an_example(command: list[str]) -> None:
    assert f"Example: headrace {' '.join(command)} " in run(*command, "--help").stdout


def test_generate_prints_the_bound_of_each_window(tmp_path: Path) -> None:
    result = run("generate", tmp_path / "logs", "--rows", 3000, "--windows", 2, "--id-lists", 1)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("window 000: 1,500 rows, label rate 0.")
    assert "best reachable: normalised entropy 0." in lines[1]
    assert lines[2] == f"3,000 rows in 2 windows: {tmp_path / 'logs'}"
    assert "list_1" not in pq.read_schema(tmp_path / "logs" / "window=001" / "part-00000.parquet").names


def test_generate_takes_a_file_and_options_win_over_it(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("rows: 500\nwindows: 5\nuser_dense: 1\n")
    run("generate", tmp_path / "logs", "--config", tmp_path / "spec.yaml", "--windows", 2)
    assert len(list((tmp_path / "logs").glob("window=*"))) == 2
    names = pq.read_schema(tmp_path / "logs" / "window=000" / "part-00000.parquet").names
    assert "user_x0" in names
    assert "user_x1" not in names


def test_every_default_named_in_the_help_of_generate_is_the_real_one() -> None:
    text = " ".join(run("generate", "--help").stdout.replace("│", " ").split())
    for name, default in (("rows", "300000"), ("windows", "3"), ("seed", "7"), ("users", "20000"), ("zipf", "1.05")):
        assert f"[{default}]" in text
        assert GenerateConfig().model_dump()[name] == float(default)


def test_mistakes_of_generate_name_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"generate: label_rate: given 2\.0"):
        run("generate", tmp_path / "logs", "--label-rate", 2.0)
    (tmp_path / "spec.yaml").write_text("- rows\n")
    with pytest.raises(ConfigError, match=r"spec.yaml: given list, expected a mapping"):
        run("generate", tmp_path / "logs", "--config", tmp_path / "spec.yaml")


def test_import_criteo_says_what_became_of_the_lines(tmp_path: Path) -> None:
    good = "\t".join(["1", *["3"] * 13, *["000000ff"] * 26])
    (tmp_path / "a.tsv").write_text(f"{good}\nbad\n{good}\n")
    result = run("import", "criteo", tmp_path / "a.tsv", tmp_path / "out", "--parts", 2, "--bad-lines", "quarantine")
    bad = tmp_path / "out-quarantine"
    assert result.stdout == f"2 rows in 2 files: {tmp_path / 'out'}, 1 bad lines in {bad}\n"
    result = run("import", "criteo", tmp_path / "a.tsv", tmp_path / "dropped", "--bad-lines", "drop")
    assert result.stdout.endswith("1 bad lines dropped\n")


def test_import_clicks_takes_columns_by_name(tmp_path: Path) -> None:
    (tmp_path / "clicks").mkdir()
    for hour in range(3):
        lines = "".join(f"{user},{user},{user + hour},{3600 * hour + user},4\n" for user in range(5))
        (tmp_path / "clicks" / f"{hour}.csv").write_text("who,visit,what,when,os\n" + lines)
    columns = ["--user", "who", "--session", "visit", "--item", "what", "--timestamp", "when", "--unit", "s"]
    command = ["import", "clicks", tmp_path / "clicks", tmp_path / "out", *columns, "--negatives", 1]
    result = run(*command, "--context", "system=os")
    assert result.stdout == f"20 impressions of 15 clicks in 2 hours, 1 hours without rows: {tmp_path / 'out'}\n"
    assert pq.read_table(tmp_path / "out" / "hour=002")["system"].to_pylist() == [4] * 10
    assert "in 2 hours (2 already finished)" in run(*command, "--context", "system=os").stdout
    with pytest.raises(ConfigError, match="--context: given 'system', expected NAME=COLUMN"):
        run(*command, "--context", "system")
