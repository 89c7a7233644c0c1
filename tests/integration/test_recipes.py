"""The recipes on real logs, in their fast variants; the logs are not part of this project."""

import os
import sys
import tarfile
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
DATA = Path(os.environ["HEADRACE_DATA"]) if os.environ.get("HEADRACE_DATA") else None


def data(name: str) -> Path:
    if DATA is None:
        pytest.skip("HEADRACE_DATA is not set: the real logs are not part of this project")
    path = DATA / name
    if not path.exists():
        pytest.skip(f"HEADRACE_DATA holds no {name}")
    return path


@pytest.fixture(autouse=True)
def recipes_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))


def test_criteo_beats_logistic_regression_from_the_first_window_on(tmp_path: Path) -> None:
    import criteo

    criteo.RATES = (0.003, 0.01)
    outcome = criteo.run(data("criteo/criteo_kaggle_137139.tsv.gz"), tmp_path, windows=1)
    model, baseline = criteo.last(outcome.model), criteo.last(outcome.baseline)
    assert model.rows == baseline.rows == 34_284
    assert model.auc > baseline.auc > 0.70
    assert model.log_loss < baseline.log_loss
    assert model.auc > 0.715


def first_hours(tmp_path: Path, hours: int) -> Path:
    """A folder with the first hours of clicks."""
    with tarfile.open(data("globo/clicks_hourly.tar.gz")) as archive:
        for member in archive:
            if member.isfile():
                archive.extract(member, tmp_path / "clicks", filter="data")
            if len(list((tmp_path / "clicks").rglob("*.csv"))) == hours:
                break
    (folder,) = {path.parent for path in (tmp_path / "clicks").rglob("*.csv")}
    return folder


def test_news_rises_above_popularity_hour_after_hour(tmp_path: Path) -> None:
    import news

    outcome = news.run(first_hours(tmp_path, 10), tmp_path, hours=9)
    assert [window.name for window in outcome.windows] == [f"hour={hour:03d}" for hour in range(1, 10)]
    assert outcome.windows[-1].scores["click"].auc > 0.66
    assert all(window.scores["click"].auc > window.baseline_auc for window in outcome.windows)
    assert outcome.report.exists()
    sys.modules.pop("news")


def test_news_are_served_while_they_are_trained(tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="needs the extra serve")
    import served_news

    traffic, page = served_news.run(first_hours(tmp_path, 5), tmp_path, hours=3)
    assert traffic.versions == sorted(traffic.versions)
    assert traffic.quality["rows"] >= served_news.ROWS_OF_A_REQUEST
    assert "Age of what was served" in page.read_text()
    sys.modules.pop("served_news")
    sys.modules.pop("news")


def test_large_tables_train_with_an_eighth_of_their_memory(tmp_path: Path) -> None:
    import large_tables

    outcome = large_tables.run(tmp_path, num_rows=60_000, memory="600KiB")
    assert sum(window.rows.num_used for window in outcome.windows) == 60_000
    assert outcome.table_bytes > 8 * (600 << 10)
    assert 0.25 < outcome.from_memory < 1
