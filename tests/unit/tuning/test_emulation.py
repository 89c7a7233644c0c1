"""Emulated CPUs: how many hold one at once, and what is counted."""

import threading
from types import SimpleNamespace

import pytest

import headrace.tuning.emulation as emulation
from headrace.tuning.emulation import EmulatedCpus


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_as_there_are_cpus_hold_one_at_once_and_never_more(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, holding, most, slept = threading.Lock(), 0, 0, 0.0
    together = threading.Barrier(count)

    def sleep(seconds: float) -> None:
        nonlocal holding, most, slept
        with lock:
            holding += 1
            most = max(most, holding)
            first = slept < count * seconds
            slept += seconds
        if first:
            together.wait()  # passes only if so many hold a CPU at the same time
        with lock:
            holding -= 1

    monkeypatch.setattr(emulation, "time", SimpleNamespace(monotonic=lambda: slept, sleep=sleep))
    cpus = EmulatedCpus(count)

    def work() -> None:
        for _ in range(5):
            cpus.sleep("work", 0.25)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, slept) == (count, 30 * 0.25)
    assert cpus.busy_s()["work"] >= 30 * 0.25
