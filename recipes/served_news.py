"""A news portal's clicks, served while they are trained: each hour is scored by a server before it is trained on."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import news
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.logs.importers import ClicksConfig, import_clicks
from headrace.logs.importers.click_files import total_bytes
from headrace.observe.pages import plot_page
from headrace.observe.plots import Plot, Series
from headrace.observe.progress import Progress
from headrace.training import JobConfig, Trainer

ARROW = "application/vnd.apache.arrow.stream"
ROWS_OF_A_REQUEST = 200


def job(logs: Path, run: Path) -> JobConfig:
    """The job of `news`, which publishes a version every half second."""
    values = news.job(logs, run).model_dump(mode="json", by_alias=True)
    values["training"]["publish"] = {"every_s": 0.5}
    return JobConfig.from_dict(values, where="recipes/served_news.py").resolve(Path.cwd())


@dataclass
class Traffic:
    """What a client saw.

    Attributes:
        at_s: When each request was answered, in seconds since the first.
        age_s: The age of the version that answered.
        versions: The versions that answered.
        quality: What the server says of its scores, from the labels that it was sent.
    """

    at_s: list[float] = field(default_factory=list)
    age_s: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    quality: dict[str, Any] = field(default_factory=dict)


def run(source: Path, out: Path, *, hours: int = 12) -> tuple[Traffic, Path]:
    """Train hour after hour, while a server scores the rows of the next one; goes on where it stopped.

    Returns:
        What the client saw, and a page with the freshness of what was served.
    """
    logs = out / "logs"
    with Progress("import", total=total_bytes(source), unit="bytes") as progress:
        import_clicks(source, logs, ClicksConfig(), on_hour=lambda read, done: progress.update(read))
    config = job(logs, out / "run")
    Trainer(config).run(windows=1)
    names = sorted(path.name for path in logs.iterdir() if path.is_dir())[1 : hours + 1]
    traffic = Traffic()
    with served(out / "run") as url:
        for trained, scored in zip(names, [*names[1:], names[-1]], strict=True):
            _train_while_asking(config, url, _rows(logs / scored), traffic)
            print(f"trained {trained}; {len(traffic.at_s):,} requests, by {len(set(traffic.versions)):,} versions")
        traffic.quality = _get(f"{url}/v1/models")["quality"]["main"]["click"]
    return traffic, _write_page(traffic, out / "freshness.html")


@contextmanager
def served(run_folder: Path) -> Iterator[str]:
    """A server for a run, until it is no longer needed; gives its URL."""
    command = [sys.executable, "-m", "headrace", "serve", str(run_folder), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = next(found[1] for line in server.stdout if (found := re.search(r"answering on (\S+)", line)))
            threading.Thread(target=server.stdout.read, daemon=True).start()
            while "version" not in _get(f"{url}/v1/models")["models"]["main"]:
                time.sleep(0.05)
            yield url
        finally:
            server.terminate()


def _train_while_asking(config: JobConfig, url: str, rows: pa.Table, traffic: Traffic) -> None:
    trained = threading.Event()
    client = threading.Thread(target=_ask, args=(url, rows, traffic, trained))
    client.start()
    try:
        Trainer(config).run(windows=1)
    finally:
        trained.set()
        client.join()


def _ask(url: str, rows: pa.Table, traffic: Traffic, trained: threading.Event) -> None:
    """Have rows scored, and send what happened, until the model is trained or there are no more rows."""
    features = rows.drop_columns(["click"])
    for first in range(0, rows.num_rows, ROWS_OF_A_REQUEST):
        if trained.is_set():
            return
        part = slice(first, first + ROWS_OF_A_REQUEST)
        answer = _post(
            f"{url}/v1/score", _arrow_bytes(features[part]), {"content-type": ARROW, "accept": "application/json"}
        )
        traffic.at_s.append(time.monotonic())
        traffic.age_s.append(answer["age_s"])
        traffic.versions.append(answer["version"])
        labels = {"request": answer["request"], "click": rows["click"][part].to_pylist()}
        _post(f"{url}/v1/labels", json.dumps({"labels": [labels]}).encode(), {"content-type": "application/json"})


def _rows(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet")))


def _arrow_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _post(url: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    with urlopen(Request(url, body, headers), timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def _get(url: str) -> dict[str, Any]:
    with urlopen(url, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def _write_page(traffic: Traffic, path: Path) -> Path:
    at_s = np.array(traffic.at_s)
    at_s -= at_s[:1].sum()
    ages = np.array(traffic.age_s)
    shares = np.linspace(0, 100, 101)
    note = f"median {np.median(ages):.2f} s, 99 % below {np.percentile(ages, 99):.2f} s"
    plots = [
        Plot("Age of what was served", note, at_s, "time", (Series("seconds", ages, "blue"),), from_zero=True),
        Plot(
            "Versions",
            "Number of the version that answered",
            at_s,
            "time",
            (Series("version", np.array(traffic.versions, float), "green"),),
        ),
        Plot(
            "Ages in order",
            "Percent of the requests with a lower age",
            shares,
            "count",
            (Series("seconds", np.percentile(ages, shares), "blue"),),
            from_zero=True,
        ),
    ]
    count = len(set(traffic.versions))
    lead = f"{len(ages):,} requests of {ROWS_OF_A_REQUEST} rows, answered by {count:,} versions while training"
    path.write_text(plot_page("Freshness", lead, plots), encoding="utf-8")
    return path


def main() -> None:
    """Run the recipe, and print what the client saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="the hourly clicks, a tar archive or a folder of CSV files")
    parser.add_argument("out", type=Path, help="folder for logs and run")
    parser.add_argument("--hours", type=int, default=12, help="hours to train on while serving [12]")
    options = parser.parse_args()
    traffic, page = run(options.source, options.out, hours=options.hours)
    ages = np.array(traffic.age_s)
    print(f"age of what was served: median {np.median(ages):.2f} s, 99 % below {np.percentile(ages, 99):.2f} s")
    print(f"served scores: NE {traffic.quality['ne']:.4f} on {traffic.quality['rows']:,} rows")
    print(f"freshness: {page}")


if __name__ == "__main__":
    main()
