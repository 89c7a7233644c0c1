"""What every test keeps to: nothing is left behind, and unit tests start no process, use no network, never sleep."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
from hypothesis import HealthCheck, settings

PATIENCE_S = 60.0
"""Only what really stays is waited for so long: a thread or process at its end may take a while to get a CPU."""

SHARED_THREADS = ("fsspecIO", "pytest_timeout", "ThreadPoolExecutor-fsspec", "Dummy-", "asyncio_", "Prefetcher")
"""Threads that libraries keep for the life of the process, by the beginning of their names."""

TEMPLATE = "headrace.pipeline.processes.template_main"
"""In the command of the process that forks workers, which are not children of the one that uses them."""

SHARED_PROCESSES = ("resource_tracker", "forkserver", TEMPLATE)
"""Helpers that `multiprocessing` and the pipeline keep for the life of the process."""

UNIT = Path(__file__).parent / "unit"

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # an example may take as long as it takes

# Under nohup closed terminals are ignored, also by all that is started from here; tests ask for it where they mean it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.fsync = lambda file: None  # no test cuts the power, and waiting for the disk takes longer than most tests

_sleep = time.sleep

_leaky: list[str] = []
"""The test that left something behind, if any: what that goes on to start must not be blamed on the tests after it."""


def _threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.is_alive() and not t.name.startswith(SHARED_THREADS)}


def _children() -> set[int]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # the usual answer, and a hundred times faster than a look at all processes
        return set()
    found = set()
    for child in psutil.Process().children():
        try:
            if not any(name in " ".join(child.cmdline()) for name in SHARED_PROCESSES):
                found.add(child.pid)
            found |= {worker.pid for worker in child.children() if TEMPLATE in " ".join(child.cmdline())}
        except psutil.Error:  # gone meanwhile, or a zombie, which its parent has yet to wait for
            if psutil.pid_exists(child.pid):
                found.add(child.pid)
    return found


def _temporary_files() -> set[str]:
    """Open descriptors of temporary files and of anonymous memory; Ray keeps its logs open for the process's life."""
    folder = Path("/proc/self/fd")
    found = set()
    for descriptor in folder.iterdir() if folder.is_dir() else ():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith((tempfile.gettempdir(), "/memfd:headrace")) and "/ray/session_" not in target:
            found.add(f"{descriptor.name} -> {target}")
    return found


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the first test after which a thread, a child process or an open temporary file remains."""
    before = _threads(), _children(), _temporary_files()
    yield
    if _leaky:
        return
    deadline = time.monotonic() + PATIENCE_S
    left = [after - was for was, after in zip(before, (_threads(), _children(), _temporary_files()), strict=True)]
    if any(left):
        gc.collect()
    while any(left) and time.monotonic() < deadline:
        _sleep(0.02)
        left = [after - was for was, after in zip(before, (_threads(), _children(), _temporary_files()), strict=True)]
    kinds = ("threads", "child processes", "open temporary files")
    rest = [f"{kind}: {sorted(map(str, things))}" for kind, things in zip(kinds, left, strict=True) if things]
    if rest:
        _leaky.append(request.node.nodeid)
    assert not rest, "the test left behind " + "; ".join(rest)


@pytest.fixture(autouse=True)
def unit_tests_stay_inside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tests/unit, make starting a process, using the network and sleeping raise."""
    if UNIT not in request.path.parents:
        return

    def refuse(what: str) -> object:
        def refused(*args: object, **kwargs: object) -> NoReturn:
            raise AssertionError(f"a unit test must not {what}; such a test belongs in tests/integration")

        return refused

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse("start a process"))
    monkeypatch.setattr(subprocess.Popen, "__del__", lambda self: None)
    monkeypatch.setattr(os, "fork", refuse("start a process"))
    monkeypatch.setattr(os, "posix_spawn", refuse("start a process"))
    monkeypatch.setattr(socket.socket, "connect", refuse("use the network"))
    monkeypatch.setattr(socket.socket, "bind", refuse("use the network"))
    monkeypatch.setattr(time, "sleep", refuse("sleep"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One Numba and one torch thread; what was before comes back."""
    import numba
    import torch

    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[0])
    torch.set_num_threads(before[1])
