"""Commands where nothing can be written beside the code, and on terminals that know ASCII only."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace

OBEY_PERMISSIONS = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
if os.geteuid() == 0 and ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0):
    sys.exit("root keeps its rights")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Python with the rights that files and folders give, for root too."""

RUN_COMMANDS = """
import sys
from headrace.cli import main
for command in sys.argv[1].split("|"):
    sys.argv = ["headrace", *command.split()]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    print("ended with", code, file=sys.stderr, flush=True)
"""
"""Several commands in one process, which imports everything once."""

JOB = """\
run: run
data: {path: logs, schema: schema.yaml}
model: {kind: dlrm, embedding_dim: 4, bottom: [8], top: [8]}
embeddings: {default: {kind: collisionless, num_embeddings: 64}}
training: {batch_size: 64, threads: 1, precision: fp32}
pipeline: {workers: 1}
"""


def make_job(folder: Path, text: str = "price") -> None:
    """A log with a column of that name and a job to train on it."""
    rng, rows = np.random.default_rng(1), np.arange(200)
    columns = {"click": rng.integers(0, 2, 200), "user": rng.integers(0, 9, 200), "session": rows // 4}
    (folder / "logs").mkdir(parents=True)
    pq.write_table(pa.table({**columns, text: rng.random(200)}), folder / "logs" / f"{text}.parquet")
    (folder / "job.yaml").write_text(JOB)


def run(commands: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run commands one after the other."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HEADRACE_", "NUMBA_"))}
    code = [sys.executable, "-c", OBEY_PERMISSIONS, "-c", RUN_COMMANDS, "|".join(commands)]
    environment = kept | environment
    return subprocess.run(code, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=600)


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Path]:
    """A folder with a copy of the package that cannot be written to, kernels included."""
    package = tmp_path / "site/headrace"
    shutil.copytree(Path(headrace.__file__).parent, package)
    folders = [package, *(path for path in package.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    yield tmp_path / "site"
    for path in folders:
        path.chmod(0o755)


def test_an_installation_that_cannot_be_written_to_works_without_a_home(installed: Path, tmp_path: Path) -> None:
    job, temporary = tmp_path / "job", tmp_path / "tmp"
    make_job(job)
    temporary.mkdir()
    environment = {"HOME": "/proc", "TMPDIR": str(temporary), "PYTHONPATH": str(installed)}
    commands = ["inspect logs --write-schema schema.yaml", "train job.yaml", "doctor"]
    done = run(commands, job, environment)
    if "root keeps its rights" in done.stderr:
        pytest.skip("this root cannot give up its rights, so nothing is read-only to it")
    assert "Traceback" not in done.stderr
    assert done.stderr.count("ended with 0") == len(commands), done.stderr
    (kept,) = temporary.glob("headrace-*")
    assert f"{kept}/kernels" in done.stdout.replace("\n", "")  # as doctor says


def test_commands_work_on_a_terminal_that_knows_ascii_only(tmp_path: Path) -> None:
    make_job(tmp_path / "gr\u00f6\u00dfe", "pr\u00e9cio\u2192")
    commands = [
        *(f"{name} --help" for name in ("demo", "import", "train", "launch", "explain", "doctor")),
        "inspect logs --write-schema schema.yaml",
        "inspect logs --json",
        "train job.yaml",
        "explain run",
        "predict job.yaml logs pr\u00e9dit",
        "train \u00e9.yaml",
        "demo --rows 1000 --out d\u00e9mo",
    ]
    environment = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "LANG": "C"}
    done = run(commands, tmp_path / "gr\u00f6\u00dfe", environment)
    assert "Traceback" not in done.stderr
    codes = [line for line in done.stderr.splitlines() if line.startswith("ended with")]
    wrong = [name for name, code in zip(commands, codes, strict=True) if code != "ended with 0"]
    assert wrong == ["train \u00e9.yaml"], done.stderr
    assert r"pr\xe9cio\u2192" in done.stdout
