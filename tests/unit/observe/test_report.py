"""The report of synthetic runs: every plot is there, nothing is loaded, odd runs do not stop it."""

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from synthetic_run import CONFIG, write_run

from headrace.errors import ConfigError
from headrace.observe.plots import Level, Plot, Series, render_plot
from headrace.observe.report import write_report
from headrace.observe.run_data import RunData
from headrace.observe.scales import bucket_means, nice_ticks, tick_writer

TITLES = [
    "AUC",
    "Normalised entropy",
    "Log loss",
    "Calibration",
    "Rows per second",
    "Where a step&#x27;s time goes",
    "Workers",
    "Busy CPUs",
    "Memory use",
    "Queue depth",
    "Bytes in flight",
    "Memory",
]


class Tags(HTMLParser):
    """Collects tags and attributes, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "line", "rect", "circle", "path", "polygon", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def report_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def titles_of(page: str) -> list[str]:
    return re.findall(r"<figcaption><b>(.*?)</b>", page)


def test_a_full_run_shows_every_plot_the_windows_the_decisions_and_the_job(tmp_path: Path) -> None:
    page = report_of(write_run(tmp_path / "daily ads"))
    assert titles_of(page) == TITLES
    assert page.count("<svg ") == len(TITLES)
    for text in ("daily ads", "2026-11-03", "best reachable", "baseline", "read.workers 1 → 2", "wait for batch"):
        assert text in page
    assert CONFIG in page


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = report_of(write_run(tmp_path / "run"))
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#clip-)", page)
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    names = {name for name, _ in tags.attributes}
    assert not names & {"src", "href", "srcset", "action", "xlink:href"}
    policy = dict(tags.attributes)["content"] is not None and "default-src 'none'" in page
    assert policy


def test_hover_data_matches_the_plots(tmp_path: Path) -> None:
    page = report_of(write_run(tmp_path / "run", num_steps=30))
    blocks = [json.loads(text) for text in re.findall(r'application/json">(.*?)</script>', page)]
    assert len(blocks) == len(TITLES)
    auc = blocks[0]
    assert [series["n"] for series in auc["s"]] == ["so far in the window", "of the window", "baseline"]
    assert len(auc["x"]) == len(auc["t"]) == len(auc["s"][0]["v"]) == 30
    assert auc["x"] == sorted(auc["x"])
    assert auc["w"][0] == "2026-11-01"
    assert auc["w"][-1] == "2026-11-03"
    assert auc["s"][2]["v"] == ["0.6800"] * 30


def test_the_tuning_plots_show_a_resize_the_limits_and_each_change_by_its_number(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", num_steps=60)
    page = report_of(folder)
    blocks = [json.loads(text) for text in re.findall(r'application/json">(.*?)</script>', page)]
    workers, memory = blocks[TITLES.index("Workers")], blocks[TITLES.index("Memory use")]
    by_name = {series["n"]: series["v"] for series in workers["s"]}
    assert (by_name["CPUs available"][10], by_name["CPUs available"][-1]) == ("2", "4")
    assert by_name["CPUs available"].count("2") == 29
    assert by_name["shared by all"][-1] == "4"
    assert {series["n"]: series["v"][0] for series in memory["s"]}["in flight / budget"] == "23 %"
    said = [text for text in workers["w"] if text]
    assert said == ["1: tuner: read.workers 1 -> 2: the trainer waits 48 % of its time and read is busy 97 %"]
    assert "<tr><td>1</td>" in page  # and the same number in the table of decisions
    assert "The tuner made 1 change." in page


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)))


def test_the_page_is_titled_by_run_model_and_data_and_says_how_to_repeat_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", num_steps=60)
    (folder / "config.yaml").write_text("data: {path: logs/2026}\nmodel: {kind: dcnv2}\n")
    page = report_of(folder)
    assert "<title>run: dcnv2 on logs/2026 · headrace</title>" in page
    assert "To repeat it: headrace train run/config.yaml" in page
    (folder / "config.yaml").write_text("[")
    assert "<title>run · headrace</title>" in report_of(folder)


def test_tiles_are_about_the_run_weighted_by_the_rows_of_its_windows(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    windows = [
        {"kind": "window", "window": "a", "rows": 900, "auc": 0.7, "ne": 0.9, "baseline_auc": 0.3},
        {"kind": "window", "window": "b", "rows": 100, "auc": 0.6, "ne": 1.0, "baseline_auc": 0.2},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(window) + "\n" for window in windows))
    text = text_of(report_of(folder))
    assert "AUC, mean of windows 0.6900 last window 0.6000" in text
    assert "NE, mean of windows 0.9100" in text
    assert "Baseline AUC 0.2900 no better than chance" in text  # and no gain over it in green
    assert "+0.4" not in text


def test_looks_that_changed_nothing_lie_folded_beside_the_changes_with_bytes_in_their_unit(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", num_steps=60)
    look = {"time_s": 1.0, "who": "tuner", "change": {}, "reason": "the trainer hardly waits", "snapshot": {}}
    change = look | {"change": {"memory": [67108864, 134217728]}, "reason": "there is memory"}
    (folder / "decisions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [look] * 120 + [change]))
    page = report_of(folder)
    changes, looks = page.split("checks without changes")
    assert "memory 64 MiB → 128 MiB" in changes
    assert "67108864" not in page
    assert changes.count("the trainer hardly waits") == 0
    assert looks.count("the trainer hardly waits") == 120
    assert "120 checks without changes" in page
    assert "1 change<" in page


def test_cpus_at_work_count_the_trainer_too(tmp_path: Path) -> None:
    page = report_of(write_run(tmp_path / "run", num_steps=60))
    blocks = [json.loads(text) for text in re.findall(r'application/json">(.*?)</script>', page)]
    names = [series["n"] for series in blocks[TITLES.index("Busy CPUs")]["s"]]
    assert "trainer" in names


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("num_points", [12, 400])
def test_one_outlier_does_not_flatten_a_plot_and_is_told(stacked: bool, num_points: int) -> None:
    values = np.linspace(90.0, 110.0, num_points)
    values[num_points // 2] = 50_000.0
    plot = Plot("Rate", "", np.arange(float(num_points)), "time", (Series("rows", values, "blue"),), stacked=stacked,
                y_format="count", from_zero=True)  # fmt: skip
    svg = render_plot(plot)
    ticks = [float(text) for text in re.findall(r'text-anchor="end">([\d.]+)</text>', svg)]
    assert max(ticks) < 200
    assert "up to " in svg


def test_names_from_the_data_cannot_become_markup(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", num_steps=3)
    (folder / "config.yaml").write_text("name: </pre><script>alert(1)</script>\n")
    record = {"kind": "step", "step": 4, "rows": 4, "time_s": 9, "stages": {"</script><b>": {"queue": 1}}}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.write(json.dumps({"kind": "window", "window": "<img src=x>", "rows": 4, "auc": 0.7}) + "\n")
    page = report_of(folder)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "</script><b>" not in page
    tags = Tags()
    tags.feed(page)
    assert tags.open == []


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_run_of_few_points_is_drawn(tmp_path: Path, num_steps: int) -> None:
    page = report_of(write_run(tmp_path / "run", num_steps=num_steps, num_windows=1))
    assert titles_of(page)[:4] == TITLES[:4]
    assert ("<circle" in page) == (num_steps == 1)
    assert "nan" not in page.split("<script>")[0]


def test_a_long_run_is_thinned(tmp_path: Path) -> None:
    page = report_of(write_run(tmp_path / "run", num_steps=6_000, num_windows=48))
    assert len(page) < 400_000
    assert titles_of(page) == TITLES
    assert "48 windows</summary>" in page


def test_a_run_in_progress_with_a_torn_last_line_is_reported(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", num_steps=40)
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text[: len(text) // 2])
    run = RunData.read(folder)
    assert 15 < len(run) < 25
    assert len(run.windows) == 1
    assert titles_of(report_of(folder)) == TITLES


def test_a_run_without_any_record_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    page = report_of(tmp_path)
    assert "0 windows finished" in page
    assert titles_of(page) == []


def test_windows_alone_are_enough_for_the_quality_plots(tmp_path: Path) -> None:
    windows = [{"kind": "window", "window": f"h{hour}", "rows": 100, "auc": 0.6 + hour / 50} for hour in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(window) + "\n" for window in windows))
    page = report_of(tmp_path)
    assert titles_of(page) == ["AUC"]
    hover = json.loads(re.findall(r'application/json">(.*?)</script>', page)[0])
    assert hover["t"] == ["100 rows", "200 rows", "300 rows"]
    assert hover["s"][0]["v"] == ["0.6000", "0.6200", "0.6400"]


def test_missing_keys_and_nulls_are_tolerated(tmp_path: Path) -> None:
    records = [
        {"kind": "step", "loss": 0.7},
        {"kind": "step", "rows": 10, "auc": None, "surprise": [1, 2]},
        {"kind": "step", "rows": 20, "loss": 0.6, "seconds": {"wait": 1.0, "sorting": 2.0}},
        {"kind": "note", "text": "unknown kinds are skipped"},
        {"kind": "window", "auc": None, "best_ne": None},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = report_of(tmp_path)
    assert titles_of(page) == ["Log loss", "Where a step&#x27;s time goes"]
    assert "sorting <b>66.7 %</b>" in page


def test_a_resumed_process_that_counts_from_zero_continues_the_axes(tmp_path: Path) -> None:
    records = [
        {"kind": "step", "step": step, "rows": rows, "time_s": time_s}
        for step, rows, time_s in ((1, 10, 1.0), (2, 20, 2.0), (3, 10, 0.5), (4, 20, 1.5))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run = RunData.read(tmp_path)
    assert run.rows.tolist() == [10, 20, 30, 40]
    assert run.time_s.tolist() == [1.0, 2.0, 2.5, 3.5]


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such run folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"has no metrics\.jsonl, expected a run folder"):
        write_report(tmp_path)


def test_bucket_means_ignore_what_is_missing() -> None:
    values = np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.nan, 7.0, 7.0])
    mean, low, high = bucket_means(values, 4)
    np.testing.assert_allclose(mean, [2.0, 5.0, np.nan, 7.0])
    np.testing.assert_allclose(low, [1.2, 5.0, np.nan, 7.0])
    np.testing.assert_allclose(high, [2.8, 5.0, np.nan, 7.0])
    assert bucket_means(values, 8)[0] is values


def test_gaps_in_a_line_stay_gaps() -> None:
    x = np.arange(1.0, 6.0)
    values = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    figure = render_plot(Plot("a", "b", x, "count", (Series("s", values, "blue"),)))
    path = re.findall(r'class="line blue" d="(.*?)"', figure)[0]
    assert path.count("M") == 2
    assert path.count("L") == 2


def test_levels_hold_from_after_their_first_row_to_their_last() -> None:
    level = Level("w", ((0.0, 2.0, 10.0), (2.0, 4.0, 20.0), (4.0, 6.0, math.nan)), "green")
    figure = render_plot(Plot("a", "b", np.arange(1.0, 6.0), "count", (), (level,)))
    hover = json.loads(re.findall(r'json">(.*?)</script>', figure)[0])
    assert hover["s"][0]["v"] == ["10", "10", "20", "20", ""]


@pytest.mark.parametrize(
    ("low", "high", "kind", "texts"),
    [
        (0.0, 1.0, "number", ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.702, 0.748, "number", ["0.71", "0.72", "0.73", "0.74"]),
        (0.0, 2.4e6, "count", ["0", "0.5M", "1.0M", "1.5M", "2.0M"]),
        (0.0, 17 * 2**20, "bytes", ["0 B", "4 MiB", "8 MiB", "12 MiB", "16 MiB"]),
        (0.0, 4000.0, "time", ["0", "15:00", "30:00", "45:00", "1:00:00"]),
    ],
)
def test_ticks_are_round(low: float, high: float, kind: str, texts: list[str]) -> None:
    ticks = nice_ticks(low, high, 5, kind=kind)
    write = tick_writer(kind, ticks)
    assert [write(tick) for tick in ticks] == texts


def write_budgeted_run(folder: Path) -> Path:
    """A run whose tables are under a budget: rows move from users to items."""
    write_run(folder, num_steps=40, num_windows=1)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for number, line in enumerate(each for each in lines if each["kind"] == "step"):
        line["budget"] = {
            "user": {"rows": 5_000 - 10 * number, "gained": 5_000, "lost": 10 * number},
            "item": {"rows": 6_000 + 10 * number, "gained": 6_000 + 10 * number, "lost": 0},
        }
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_under_a_budget_shows_rows_by_table(tmp_path: Path) -> None:
    page = report_of(write_budgeted_run(tmp_path / "run"))
    assert titles_of(page) == [*TITLES[:4], "Rows under the budget", *TITLES[4:]]
    assert page.index(">item<") < page.index(">user<")  # by descending rows
