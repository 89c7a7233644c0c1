"""An import of clicks that is killed in the middle, and called again, leaves the same files as a whole one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from headrace.logs.importers import import_clicks

HOURS, CLICKS = 30, 3000
START_MS = 1_506_825_000_000
COLUMNS = (
    "user_id,session_id,click_article_id,click_timestamp,click_environment,click_deviceGroup,click_os,"
    "click_country,click_region,click_referrer_type"
)
RUN = "import sys; from headrace.logs.importers import import_clicks; import_clicks(sys.argv[1], sys.argv[2])"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "clicks"
    folder.mkdir()
    random = np.random.default_rng(0)
    for hour in range(HOURS):
        columns = [
            random.integers(0, 2000, CLICKS),
            hour * CLICKS + random.integers(0, 1000, CLICKS),
            random.zipf(1.5, CLICKS) % 500,
            START_MS + hour * 3_600_000 + random.integers(0, 7_200_000, CLICKS),
            *random.integers(1, 5, (6, CLICKS)),
        ]
        np.savetxt(folder / f"h{hour:03d}.csv", np.stack(columns, 1), "%d", ",", header=COLUMNS, comments="")
    return folder


def files_below(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def kill_after(hour: int, log: Path, out: Path) -> None:
    """Start an import and kill it as soon as an hour has appeared."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(log), str(out)])
    try:
        while not (out / f"hour={hour:03d}").exists():
            assert process.poll() is None, "the import ended before it was killed"
            time.sleep(0.001)
    finally:
        process.kill()
        code = process.wait()
    assert code == -signal.SIGKILL


def test_killed_twice_and_resumed_equals_one_whole_run(log: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    kill_after(3, log, out)
    kill_after(11, log, out)
    finished = {path.name for path in out.glob("hour=*")}
    assert {"hour=003", "hour=011"} <= finished
    assert f"hour={HOURS - 1:03d}" not in finished
    inodes = {path.name: os.stat(path).st_ino for path in out.glob("hour=*")}
    done = import_clicks(log, out)
    assert done.hours_kept == len(finished)
    assert all(os.stat(out / name).st_ino == inode for name, inode in inodes.items())
    import_clicks(log, whole)
    assert files_below(out) == files_below(whole)
