"""Memory pressure: prefetch is shed first, workers second, and both come back without swinging."""

import pytest

from headrace.pipeline.engine.decisions import Decisions
from headrace.pipeline.engine.state import Pressure
from headrace.pipeline.engine.watchdog import CHECK_EVERY_S, MemoryWatchdog, decide_pressure
from headrace.resources import Memory, MemoryLimit

NONE, PREFETCH, WORKERS = Pressure.NONE, Pressure.PREFETCH, Pressure.WORKERS


@pytest.mark.parametrize(
    ("now", "share", "then"),
    [
        (NONE, 0.5, NONE),
        (NONE, 0.89, NONE),
        (NONE, 0.91, PREFETCH),
        (NONE, 0.96, WORKERS),
        (PREFETCH, 0.96, WORKERS),
        (PREFETCH, 0.88, PREFETCH),
        (PREFETCH, 0.84, NONE),
        (WORKERS, 0.92, PREFETCH),
        (WORKERS, 0.88, PREFETCH),
        (WORKERS, 0.5, NONE),
    ],
)
def test_pressure_follows_the_share_used(now: Pressure, share: float, then: Pressure) -> None:
    decided, reason = decide_pressure(now, share)
    assert decided is then
    assert f"{share:.0%}" in reason


def test_a_change_is_decided_by_the_tightest_limit_and_logged_with_its_reason() -> None:
    limits = [MemoryLimit("machine", 1000, 100, "x"), MemoryLimit("cgroup", 100, 93, "y")]
    decisions = Decisions()
    watchdog = MemoryWatchdog(decisions, 0.0, lambda: Memory(tuple(limits)))
    assert watchdog.poll() is PREFETCH
    assert watchdog.poll() is PREFETCH
    limits[1] = MemoryLimit("cgroup", 100, 10, "y")
    assert watchdog.poll() is NONE
    assert [str(each) for each in decisions.list()] == [
        "memory watchdog: pressure none -> no prefetch: 93% of the memory limit is used, above 90%: "
        "prefetch stopped (cgroup, 100 B)",
        "memory watchdog: pressure no prefetch -> none: 10% of the memory limit is used, below 85%: "
        "prefetch resumed (machine, 1000 B)",
    ]


def test_only_one_caller_checks_each_time() -> None:
    watchdog = MemoryWatchdog(Decisions(), 0.0, lambda: Memory(()))
    assert not watchdog.is_due(CHECK_EVERY_S / 2)
    assert watchdog.is_due(CHECK_EVERY_S)
    assert not watchdog.is_due(CHECK_EVERY_S)
    assert watchdog.is_due(2 * CHECK_EVERY_S)
