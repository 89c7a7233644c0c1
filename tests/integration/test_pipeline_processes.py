"""Worker processes: the same batches, and a kill, a bad row or a stuck function does no harm that is not told."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from headrace.errors import ConfigError, PipelineError
from headrace.logs.groups import expand, has_groups
from headrace.pipeline import from_source
from headrace.pipeline.processes import worker_template
from headrace.pipeline.processes.worker_process import ship
from headrace.testing import functions
from headrace.testing.pipelines import SyntheticSource, assert_resumes_everywhere, batches_of, rows_of
from headrace.testing.sessions import SessionSource, has_even_sum

SOURCE = SyntheticSource([[(20, 0, 0)]] * 5)


def processes(batches: object) -> list[int]:
    """Process ids of the rows of all batches."""
    return [pid for batch in batches for pid in batch["pid"].to_pylist()]


def test_batches_are_those_of_threads_and_random_numbers_too() -> None:
    pipe = from_source(SyntheticSource.random(4)).map(functions.add_noise).filter(functions.keep_even).batch(9)
    whole = {}
    for executor in ("inline", "thread", "process"):
        with pipe.open(workers=2, executor=executor) as batches:
            whole[executor] = [batch.to_pydict() for batch in batches]
            counters = batches.counters()
            stats = batches.take_row_stats()
    assert whole["inline"] == whole["thread"] == whole["process"]
    assert stats.num_read == SyntheticSource.random(4).num_rows
    assert counters.stages["map"].cpu_s > 0
    assert counters.stages["filter"].num_rows_in == counters.stages["map"].num_rows_out


def test_group_columns_go_through_processes_and_stay_groups() -> None:
    whole = {}
    for nested, executor in ((False, "inline"), (True, "process")):
        pipe = from_source(SessionSource(nested=nested)).filter(has_even_sum).batch(9)
        with pipe.open(workers=1, executor=executor) as batches:  # type: ignore[arg-type]
            found = list(batches)
        assert all(has_groups(batch.schema) == nested for batch in found)
        names = found[0].schema.names if not nested else whole[False].pop("names")
        whole[nested] = {"names": names, "rows": [expand(batch, names).to_pydict() for batch in found]}
    assert whole[True]["rows"] == whole[False]["rows"]


def test_a_stop_may_be_resumed_with_another_executor() -> None:
    pipe = from_source(SyntheticSource([[(20, 1, 0), (5, 0, 2)], [(0, 2, 0)]])).map(functions.hold_gil).batch(9)
    assert_resumes_everywhere(pipe, first={"workers": 1}, then={"workers": 1, "executor": "process"})


def template_processes() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if "headrace.pipeline.processes.template_main" in " ".join(child.cmdline())
    ]


def worker_processes() -> list[psutil.Process]:
    return [worker for template in template_processes() for worker in template.children()]


def seen_by_workers(function: Any, num_elements: int = 6) -> list[Any]:
    pipe = from_source(SyntheticSource([[(5, 0, 0)]] * num_elements)).map(function, executor="process").prefetch(0)
    with pipe.open(workers=1) as batches:
        return [batch["seen"][0].as_py() for batch in batches]


def test_workers_are_forked_from_one_template_that_runs_one_thread_and_is_replaced_when_it_dies() -> None:
    seen_by_workers(functions.see_parent)
    (template,) = template_processes()
    threads = [(Path(f"/proc/{template.pid}/task") / str(each.id) / "comm").read_text() for each in template.threads()]
    assert sum(not name.startswith("jemalloc") for name in threads) == 1  # Arrow's allocator knows of forks
    assert set(seen_by_workers(functions.see_parent)) == {template.pid}
    template.kill()
    template.wait()
    (parent,) = set(seen_by_workers(functions.see_parent))
    assert parent == template_processes()[0].pid != template.pid


def test_a_shortage_in_this_process_does_not_end_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = set(seen_by_workers(functions.see_parent))

    def short(*arguments: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as shortage:
        shortage.setattr("headrace.pipeline.processes.worker_template.socket.send_fds", short)
        with pytest.raises(PipelineError, match=r"cannot start a worker process: .*Too many open files"):
            seen_by_workers(functions.see_parent)
    assert set(seen_by_workers(functions.see_parent)) == {before}


def test_a_worker_has_the_surroundings_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen_by_workers(functions.see_surroundings)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_TEST_WORKER", "later")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        (seen,) = set(seen_by_workers(functions.see_surroundings))
    finally:
        os.sched_setaffinity(0, before)
    assert seen == f"{tmp_path} later {tmp_path / 'modules'} {[min(before)]} 1"


def test_workers_start_where_the_working_directory_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert len(seen_by_workers(functions.see_parent)) == 6


def test_a_fork_of_this_process_does_not_ask_its_template() -> None:
    (before,) = set(seen_by_workers(functions.see_parent))
    ended, theirs = os.pipe()
    if (child := os.fork()) == 0:
        os.write(theirs, b"has one" if worker_template._template is not None else b"has none")
        os._exit(0)
    os.waitpid(child, 0)
    told = os.read(ended, 100)
    for file in (ended, theirs):
        os.close(file)
    assert told == b"has none"
    assert set(seen_by_workers(functions.see_parent)) == {before}


def test_workers_do_not_all_draw_the_same_random_numbers() -> None:
    drawn = {seen_by_workers(functions.draw, num_elements=1)[0] for _ in range(3)}
    assert len(drawn) == 3


def test_functions_run_in_processes_of_their_own_that_are_kept_and_follow_a_resize() -> None:
    source = SyntheticSource([[(5, 0, 0)]] * 60)
    pipe = from_source(source).map(functions.add_process, executor="process").prefetch(0)
    with pipe.open(workers=3) as batches:
        seen = set()
        for number, batch in enumerate(batches):
            seen |= set(batch["pid"].to_pylist())
            if number == 30:
                batches.tunables["map.workers"].set(1)
            while number == 45 and len(worker_processes()) > 1:
                time.sleep(0.01)  # those that were still starting end when they are ready
    assert os.getpid() not in seen
    assert 1 <= len(seen) <= 3


def test_no_element_waits_for_a_worker_that_starts_while_another_could_take_it(tmp_path: Path) -> None:
    flag, source = tmp_path / "flag", SyntheticSource([[(5, 0, 0)]] * 30)
    pipe = from_source(source).map(functions.SlowToImport(str(flag)), executor="process").prefetch(0)
    taken = []
    with pipe.open(workers=1) as batches:
        for number, batch in enumerate(batches):
            taken.append(rows_of(batch))
            if number == 5:
                batches.tunables["map.workers"].set(3)
                (tmp_path / "wanted").touch()  # keeps the only worker busy until another is started
        assert len(list(tmp_path.glob("loading-*"))) >= 2
        assert not flag.exists()  # without which the others are not ready
    assert taken == batches_of(from_source(source), executor="inline")


def test_a_worker_that_dies_while_it_starts_is_told_and_stops_the_job_when_the_next_one_does_too() -> None:
    pipe = from_source(SOURCE).map(functions.DiesOnImport(), executor="process")
    with pipe.open(workers=1) as batches:
        with pytest.raises(PipelineError) as caught:
            next(batches)
        (first, _) = batches.decisions
    assert str(caught.value) == (
        "stage map: its worker processes die while starting: the last one exited with status 3"
    )
    assert "exited with status 3 while starting" in first.reason


def test_a_killed_worker_is_replaced_and_its_element_done_again_once(tmp_path: Path) -> None:
    function = partial(functions.kill_itself_once, flag=str(tmp_path / "flag"))
    pipe = from_source(SOURCE).map(function, executor="process").batch(10)
    with pipe.open(workers=2) as batches:
        seen = [rows_of(batch) for batch in batches]
        (decision,) = batches.decisions
    assert seen == batches_of(from_source(SOURCE).batch(10), executor="inline")
    assert decision.who == "stage map"
    assert "was killed by SIGKILL" in decision.reason
    assert "element 2.0 (20 rows of file 2, row group 0) is retried in another worker" in decision.reason


def test_an_idle_worker_that_is_killed_is_replaced() -> None:
    pipe = from_source(SyntheticSource([[(5, 0, 0)]] * 20)).map(functions.same, executor="process").prefetch(0)
    with pipe.open(workers=1) as batches:
        seen = [rows_of(next(batches)) for _ in range(3)]
        time.sleep(0.05)
        (child,) = worker_processes()
        child.send_signal(signal.SIGKILL)
        seen += [rows_of(batch) for batch in batches]
    assert len(seen) == 20


def test_an_element_that_kills_two_workers_stops_the_job_and_is_named() -> None:
    pipe = from_source(SOURCE).map(functions.kill_itself, executor="process")
    with pipe.open(workers=1) as batches:
        assert [len(next(batches)) for _ in range(2)] == [20, 20]
        with pytest.raises(PipelineError) as caught:
            next(batches)
    assert str(caught.value) == (
        "stage map: its worker process died twice on element 2.0 (20 rows of file 2, row group 0)"
    )


def test_bad_rows_are_found_in_the_worker_and_follow_the_policy() -> None:
    pipe = from_source(SOURCE).map(functions.fail_on_fifty, executor="process", bad_rows="quarantine").batch(10)
    with pipe.open(workers=2) as batches:
        rows = sum(batch.num_rows for batch in batches)
        stats = batches.take_row_stats()
    assert (rows, stats.num_read, stats.num_quarantined) == (99, 100, 1)
    (reject,) = stats.rejects[0].to_pylist()
    assert (reject["file"], reject["row"], reject["reason"]) == ("file 2", 10, "stage map: ValueError: fifty is bad")


def test_policy_fail_names_function_file_and_row_and_shows_the_workers_traceback() -> None:
    pipe = from_source(SOURCE).map(functions.fail_on_fifty, executor="process")
    with pipe.open(workers=2) as batches, pytest.raises(PipelineError) as caught:
        list(batches)
    assert str(caught.value).startswith("stage map (fail_on_fifty): ValueError: fifty is bad; at row id ")
    assert "functions.py" in caught.value.__notes__[0]


def test_a_stuck_function_is_reported_with_its_stack_and_ended() -> None:
    pipe = from_source(SOURCE).map(functions.never_return, executor="process", timeout_s=0.5)
    with pipe.open(workers=1) as batches, pytest.raises(PipelineError) as caught:
        next(batches)
    assert "no result within timeout_s=0.5 for element 0.0" in str(caught.value)
    assert "functions.py" in str(caught.value)
    assert "in never_return" in caught.value.__notes__[0]
    assert not worker_processes()


@pytest.mark.parametrize("busy", [False, True])
def test_closing_while_a_worker_starts_or_is_busy_ends_it(busy: bool, tmp_path: Path) -> None:
    flag = tmp_path / "in the function"
    stuck = partial(functions.never_return, flag=str(flag))
    pipe = from_source(SOURCE).map(functions.same).map(stuck, executor="process")
    batches = pipe.open(workers=2)
    batches.tunables["prefetch"].set(0)
    consumer = threading.Thread(target=lambda: next(batches, None))
    consumer.start()
    while busy and not flag.exists():
        time.sleep(0.01)
    batches.close()
    consumer.join()
    assert not worker_processes()


def test_a_lambda_is_sent_by_value() -> None:
    factor = 3
    pipe = from_source(SyntheticSource([[(5, 0, 0)]])).filter(
        lambda rows: [value % factor == 0 for value in rows["value"].to_pylist()], executor="process"
    )
    with pipe.open(workers=1) as batches:
        assert next(batches)["value"].to_pylist() == [0, 3]


SCRIPT = """
import pyarrow.compute as pc
from headrace.pipeline import from_source
from headrace.testing.pipelines import SyntheticSource

OFFSET = 100

def double(values):
    return pc.multiply(values, 2)

class Shift:
    def __init__(self, by):
        self.by = by

    def __call__(self, rows):
        return rows.set_column(0, "value", pc.add(double(rows["value"]), self.by))

def keep(rows):
    return pc.greater(rows["value"], OFFSET)

if __name__ == "__main__":
    pipe = from_source(SyntheticSource([[(5, 0, 0)]])).map(Shift(OFFSET)).filter(keep)
    with pipe.open(workers=1, executor="process") as batches:
        print(next(batches)["value"].to_pylist())
"""


def test_functions_and_classes_of_the_main_script_run_in_worker_processes(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("[102.0, 104.0, 106.0, 108.0]\n", "", 0)


def test_a_function_the_worker_cannot_import_is_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("module_of_this_process_only")
    exec("def f(rows):\n    return rows", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    pipe = from_source(SOURCE).map(module.f, executor="process")
    with pipe.open(workers=1) as batches, pytest.raises(PipelineError) as caught:
        next(batches)
    assert "stage map (f): the worker process cannot load the function" in str(caught.value)
    assert "No module named" in str(caught.value)


def test_a_function_that_holds_a_lock_is_refused() -> None:
    import threading

    lock = threading.Lock()
    pipe = from_source(SOURCE).map(lambda rows: rows.slice(0, 1 + lock.locked()))
    with pytest.raises(ConfigError, match="it refers to something that cannot be copied"):
        ship("map", [stage.transformation for stage in pipe.plan.stages])
