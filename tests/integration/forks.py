"""Runs code in forks of one process that has imported everything, which takes each process two seconds otherwise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAM = """
import json, os, sys
import headrace.cluster
from headrace.cli import main
from numba.core.registry import cpu_target

cpu_target.target_context.refresh()  # imports what the first kernel of each fork would

for line in sys.stdin:
    request = json.loads(line)
    if "pid" in request:
        answer = os.waitstatus_to_exitcode(os.waitpid(request["pid"], 0)[1])
    elif (answer := os.fork()) == 0:
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
            os.dup2(file, number)
        os.environ.update(request["environment"])
        try:
            exec(request["code"])
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        sys.stdout.flush()
        os._exit(code)
    print(answer, flush=True)
"""
"""Imports start no thread, so a fork behaves as a process of its own that has made the same imports."""


@dataclass
class Forks:
    """The process that forks; get one from `forks`.

    Attributes:
        process: The process, which ends when its input is closed.
    """

    process: subprocess.Popen[str]
    _running: list[int] = field(default_factory=list)

    def start(self, code: str, output: Path, **environment: str) -> int:
        """Run code in a fork; returns its process id. Its output is added to a file."""
        pid = self._ask({"code": code, "output": str(output), "environment": environment})
        self._running.append(pid)
        return pid

    def command(self, arguments: list[str], output: Path, **environment: str) -> int:
        """Run a `headrace` command in a fork; returns its process id."""
        return self.start(f"sys.argv = {['headrace', *arguments]!r}; main()", output, **environment)

    def wait(self) -> list[int]:
        """Wait for all forks; returns their exit codes, in the order in which they were started."""
        codes = [self._ask({"pid": pid}) for pid in self._running]
        self._running.clear()
        return codes

    def _ask(self, request: dict[str, object]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@contextmanager
def forks() -> Iterator[Forks]:
    """Start the process; it and what it has forked end here."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], text=True, **pipes) as process:  # type: ignore[call-overload]
        started = Forks(process)
        try:
            yield started
        except BaseException:
            for pid in started._running:
                os.kill(pid, signal.SIGKILL)
            raise
