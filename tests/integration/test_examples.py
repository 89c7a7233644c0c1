"""The examples run as they are printed, and do what they say."""

import ast
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from headrace.features import operators
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.registry import OPERATORS

EXAMPLES = Path(__file__).parents[2] / "examples"
Load = Callable[[str], Any]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "logs"
    generate_logs(GenerateConfig(rows=9_000, windows=3, users=300, items=100, seed=5), folder)
    return folder


@pytest.fixture(autouse=True)
def operators_of_examples_are_forgotten() -> Iterator[None]:
    """Other tests of this process know headrace's own operators."""
    before = set(operators())
    yield
    for name in set(operators()) - before:
        OPERATORS.unregister(name)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """The names an example defines, without running its main part."""
    monkeypatch.syspath_prepend(str(EXAMPLES))  # so that worker processes can import its functions
    return lambda name: SimpleNamespace(**runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name))


def test_every_example_says_what_it_is_and_how_to_run_it_and_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert f"python examples/{path.name}" in text, path.name
        assert f"`{path.name}`" in listed, path.name


def test_own_model_stopped_in_the_middle_ends_as_one_that_was_not(load: Load, logs: Path, tmp_path: Path) -> None:
    train = load("own_model").train
    once = train(logs, tmp_path / "once")
    assert train(logs, tmp_path / "twice", stop_after=7).rows == 7 * 512
    assert train(logs, tmp_path / "twice") == once
    assert once.rows == 9_000
    assert once.auc > 0.52
    assert train(logs, tmp_path / "twice") == once  # nothing is left


def test_own_function_leaves_out_what_it_cannot_handle(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    num_rows, stats = load("own_function").run()
    assert (stats.num_read, num_rows, stats.num_dropped) == (4, 3, 1)
    sites = [row for line in capsys.readouterr().out.splitlines() for row in ast.literal_eval(line)["site"]]
    assert sites[0] == sites[2] != sites[1]  # two pages of one site


def test_own_policy_feeds_the_slowest_stage_and_is_recorded(load: Load) -> None:
    example = load("own_policy")
    delivered = example.simulate()
    assert delivered["one_per_stage"] < 0.2 * delivered["FeedTheSlowest"] < delivered["auto"]
    rows, decisions = example.run_live(num_rows=20_000)
    assert rows == 20_000
    assert decisions[0] == "tuner: no change: nothing has been measured yet"


def test_incremental_trains_each_window_once(
    load: Load, logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    incremental = load("incremental")
    run = tmp_path / "run"
    windows = incremental.train(logs, run)
    assert [window.name for window in windows] == ["window=000", "window=001", "window=002"]
    assert [window.rows.num_used for window in windows] == [3000, 3000, 3000]
    assert incremental.train(logs, run) == []
    assert capsys.readouterr().out.splitlines()[-1] == "nothing new: all rows of 3 files are used"
    job = yaml.safe_load((run / "config.yaml").read_text())
    assert job["model"]["kind"] == "dcnv2"


def test_the_main_parts_run(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(logs / "window=000", tmp_path / "logs" / "window=000")
    shutil.copy(logs / "schema.yaml", tmp_path / "logs")
    last_lines = {
        "features": "labels: [1.0, 0.0, 0.0]",
        "incremental": f"report: {tmp_path / 'incremental' / 'report.html'}",
        "own_function": "4 rows read, 3 used, 1 dropped",
        "own_model": "3,000 rows, AUC",
    }
    for name, last_line in last_lines.items():
        monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "logs"), str(tmp_path / name)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert capsys.readouterr().out.splitlines()[-1].startswith(last_line)
