"""However a program ends, it ends: Ctrl-C, a forgotten iterator, an exit in the middle, a kill of the parent."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from headrace.testing.processes import still_running

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes by Linux's pidfd")

PROGRAM = """
import os, signal, sys, threading, time
from headrace.pipeline import from_source
from headrace.testing import functions
from headrace.testing.pipelines import SyntheticSource

source = SyntheticSource([[(5, 0, 0)]] * 100_000)
pipe = from_source(source).map(functions.same).map(functions.hold_gil, executor={executor!r}).batch(3)
batches = pipe.open(workers=2)
next(batches)
print("started", flush=True)
{ending}
"""

ENDINGS = {
    "interrupt": (
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "for _ in batches: pass"
    ),
    "exit": "sys.exit(0)",
    "end": "",
    "exception": "raise SystemExit(7)",
}


@pytest.mark.parametrize(
    ("executor", "ending"), [*(("thread", ending) for ending in ENDINGS), ("process", "interrupt"), ("process", "end")]
)
def test_a_program_ends_and_leaves_no_process(executor: str, ending: str) -> None:
    program = PROGRAM.format(executor=executor, ending=ENDINGS[ending])
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    children = psutil.Process(process.pid).children(recursive=True)
    errors = b""

    def until_it_ends() -> None:
        nonlocal errors
        _, errors = process.communicate()

    try:
        left = still_running(children, until_it_ends)
    finally:
        process.kill()
    expected = {"interrupt": -signal.SIGINT, "exception": 7}.get(ending, 0)
    assert process.returncode == expected, errors.decode()
    assert ending == "interrupt" or not errors, errors.decode()
    assert left == []
