"""The end of `headrace demo`: a server answers a request with the newest version of the model."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from headrace.errors import HeadraceError

__all__ = ["serve_once"]

NUM_ROWS = 200
START_S = 120.0


def serve_once(job: Path, logs: Path, out: Path) -> str:
    """Start `headrace serve`, ask it for scores of the first rows of a log, and compare them with `headrace predict`.

    Args:
        job: The job file.
        logs: A log whose rows are scored.
        out: Folder for the predictions.

    Returns:
        Lines for the user, with a `curl` to repeat.
    """
    import numpy as np

    missing = [name for name in ("starlette", "uvicorn", "orjson") if importlib.util.find_spec(name) is None]
    if missing:
        return "not served, because packages are missing: pip install 'headrace[serve]'"
    records, expected = _predictions(job, logs, out)
    command = [sys.executable, "-m", "headrace", "serve", str(job), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            url = _url_of(server)
            answer = _ask(url, records)
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.communicate(timeout=30)
            server.kill()
    (scores,) = answer["scores"].values()
    num_equal = int(np.sum(np.array(scores, np.float32) == np.array(expected, np.float32)))
    curl = f"curl -d '{{\"records\": [{json.dumps(_shown(records[0]))}]}}' http://127.0.0.1:8080/v1/score"
    return (
        f"served: version {answer['version']} answers over HTTP; {num_equal:,} of {len(scores):,} rows score the same "
        f"bits as in headrace predict. To ask it yourself:\n\n    headrace serve {job} &\n    {curl}"
    )


def _predictions(job: Path, logs: Path, out: Path) -> tuple[list[dict[str, Any]], list[float]]:
    """Some rows as records, and their predictions."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from headrace.scoring import Scorer
    from headrace.training import JobConfig

    config = JobConfig.from_file(job)
    file = min(logs.glob("*.parquet"))
    Scorer(config).predict(str(file), out / "predictions.parquet")
    predicted = pq.read_table(out / "predictions.parquet")
    rows = pq.ParquetFile(file).read_row_group(0).slice(0, NUM_ROWS)
    row_id = config.schema_of_logs.row_id
    assert row_id is not None
    places = pc.index_in(rows[row_id].cast(pa.int64()), predicted["row_id"])
    label = config.schema_of_logs.labels[0].name
    scores: list[float] = predicted[f"p_{label}"].take(places).to_pylist()
    return rows.drop_columns([label]).to_pylist(), scores


def _url_of(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    said = []
    for line in server.stdout:
        said.append(line.strip())
        if match := re.search(r"answering on (\S+)", line):
            return match[1]
    raise HeadraceError(f"headrace serve ended: {' '.join(said[-3:])}")


def _ask(url: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    until = time.monotonic() + START_S
    while not _is_ready(url) and time.monotonic() < until:
        time.sleep(0.05)
    body = json.dumps({"records": records}).encode()
    with urlopen(Request(f"{url}/v1/score", body, {"content-type": "application/json"}), timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def _is_ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/readyz", timeout=60):
            return True
    except HTTPError as error:
        error.close()
        return False


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    """A part of a record, short enough for a line; columns that are missing are null."""
    return {name: record[name] for name in ("user", "item") if name in record}
