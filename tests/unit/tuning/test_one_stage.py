"""What a loader of another library shows of itself, on a virtual clock: the tuner reads the right thing from it."""

from types import SimpleNamespace
from typing import cast

import pytest

import headrace.tuning.adapters.one_stage as one_stage
from headrace.resources import Resources
from headrace.tuning.adapters.one_stage import OneStageJob
from headrace.tuning.explaining import explain
from headrace.tuning.policies import Auto

MACHINE = cast(Resources, SimpleNamespace(cpus=SimpleNamespace(count=2.0), memory=SimpleNamespace(limit_bytes=1 << 40)))
BATCH_S, CPU_S, STEP_S = 0.04, 0.001, 0.002


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(
            one_stage, "time", SimpleNamespace(monotonic=lambda: self.now, perf_counter=lambda: self.now)
        )


class Loader(OneStageJob):
    """Each worker sleeps for every batch; the trainer takes a little time for each."""

    def __init__(self, clock: Clock, *, tells_times: bool) -> None:
        super().__init__("load", 1, max_workers=64, resources=lambda: MACHINE)
        self.clock, self.tells_times = clock, tells_times

    def run(self, seconds: float) -> int:
        until, before = self.clock.now + seconds, self.totals.delivered
        while self.clock.now < until:
            every_s = max(BATCH_S / self.workers, STEP_S)
            self.clock.now += every_s
            self.totals.delivered += 1
            self.totals.wait_s += every_s - STEP_S
            self.totals.busy_s += STEP_S
            self.totals.cpu_s += CPU_S
            if self.tells_times:
                self.totals.services += 1
                self.totals.wall_s += BATCH_S
        return self.totals.delivered - before


@pytest.mark.parametrize("tells_times", [True, False])
def test_the_tuner_gives_a_loader_that_waits_for_storage_the_workers_its_trainer_needs(
    tells_times: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, policy, seen = Loader(Clock(monkeypatch), tells_times=tells_times), Auto(), []
    loader.apply(policy.start(loader.space, loader.observe()).values)
    slow = loader.run(1.0)
    for _ in range(20):
        seen.append(loader.observe())
        loader.apply(policy.decide(seen[-1]).values)
        fast = loader.run(1.0)
    assert loader.workers >= BATCH_S / STEP_S * 0.9
    assert fast > 5 * slow
    assert explain(seen[:1], loader.space).limit == "storage"
