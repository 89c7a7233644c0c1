"""Servers as processes pinned to a core, each measured alone: how they start, where they answer, how they stop."""

from __future__ import annotations

import http.client
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from serve.peers import Settings
from serve.workload import Workload

__all__ = ["OURS", "SERVERS", "Server", "free_port", "missing_for", "running"]

OURS = "headrace"
START_S = 60
FOLDER = Path(__file__).parents[1]


@dataclass(frozen=True)
class Server:
    """A server to measure.

    Attributes:
        name: Name in tables.
        package: Package that it needs.
        module: Module of `serve.peers`; empty for headrace.
        path: Path of the request.
        quick: Whether it is measured with `--quick`.
    """

    name: str
    package: str
    module: str = ""
    path: str = "/score"
    quick: bool = True


SERVERS = (
    Server(OURS, "headrace", path="/v1/score"),
    Server("FastAPI, uvicorn", "fastapi", "fastapi_server"),
    Server("Mosec", "mosec", "mosec_server", path="/inference"),
    Server("LitServe", "litserve", "litserve_server"),
    Server("BentoML", "bentoml", "bentoml_server", quick=False),
    Server("Ray Serve", "ray", "ray_server", quick=False),
)


def missing_for(server: Server) -> str:
    """What a server needs that is not there; empty if it can run."""
    return "" if importlib.util.find_spec(server.package) else f"needs {server.package}"


def free_port() -> int:
    """A port on 127.0.0.1 that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def pinned(core: int | None) -> list[str]:
    """The start of a command that runs on one core; empty where there is no `taskset`, or with None."""
    return [] if core is None or shutil.which("taskset") is None else ["taskset", "-c", str(core)]


@contextmanager
def running(
    server: Server, workload: Workload, settings: Settings, log: Path, *, core: int | None = 0
) -> Iterator[int]:
    """Start a server on one core, and yield its process id once it answers.

    Raises:
        RuntimeError: It ends or does not answer within a minute; with the end of its output.
    """
    if server.module:
        command = [sys.executable, "-m", f"serve.peers.{server.module}"]
    else:
        command = [sys.executable, "-m", "headrace", *_our_command(workload, settings)]
    variables = {
        **os.environ,
        **settings.to_environment(),
        **_one_thread(),
        "PYTHONPATH": os.pathsep.join([str(FOLDER), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*pinned(core), *command],
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=log.parent,
        )
    try:
        _wait(process, server, workload, settings, log)
        yield process.pid
    finally:
        _stop(process)


def _our_command(workload: Workload, settings: Settings) -> list[str]:
    return ["serve", str(workload.folder / "run"), "--listen", f"127.0.0.1:{settings.port}"]


def _one_thread() -> Mapping[str, str]:
    return {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}


def _wait(process: subprocess.Popen[bytes], server: Server, workload: Workload, settings: Settings, log: Path) -> None:
    body, until = workload.bodies(1, "json", most=1)[0], time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        connection = http.client.HTTPConnection("127.0.0.1", settings.port, timeout=10)
        try:
            connection.request("POST", server.path, body, {"Content-Type": "application/json"})
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise RuntimeError(f"{server.name}: no answer to POST {server.path} on port {settings.port}; its output:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, then end its process group, which has its workers."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
