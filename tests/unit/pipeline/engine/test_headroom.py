"""Work is started only as far as the process has memory for it, by what earlier work was seen to take."""

import pytest

from headrace.errors import ConfigError
from headrace.pipeline.engine.headroom import (
    FIRST_FACTOR,
    MAX_FACTOR,
    TEMPLATE_BYTES,
    WORKER_BYTES,
    Headroom,
    MemoryLook,
    WorkerMemory,
    check_floor,
)
from headrace.resources import Memory, MemoryLimit

MIB = 1 << 20


def look(available: int, used: int = 100, peak: int = 100) -> MemoryLook:
    return MemoryLook(available * MIB, used * MIB, peak * MIB)


def start(headroom: Headroom, result_mib: int) -> bool:
    """Start work if there is room for it."""
    growth = headroom.growth(result_mib * MIB, None)
    fits = headroom.fits(growth)
    if fits:
        headroom.started(result_mib * MIB, growth)
    return fits


def test_before_the_first_look_nothing_is_limited() -> None:
    headroom = Headroom()
    assert start(headroom, 10**9)
    assert not headroom.wants_look


def test_work_is_started_until_what_it_will_take_fills_what_is_available() -> None:
    headroom = Headroom()
    headroom.look(look(30), 0.0)
    assert start(headroom, 5)
    assert not start(headroom, 5), "half of what was seen is gone"
    assert headroom.wants_look
    headroom.look(look(30), 15.0 * MIB)  # the first has not taken anything yet
    assert start(headroom, 5)
    headroom.look(look(30), 30.0 * MIB)
    assert not start(headroom, 1)
    assert not headroom.wants_look, "nothing has changed since the last look"
    headroom.finished(5 * MIB, 5 * MIB)
    assert headroom.wants_look


def test_a_batch_that_was_taken_is_a_reason_to_look_again() -> None:
    headroom = Headroom()
    headroom.look(look(1), 0.0)
    assert not start(headroom, 5)
    assert not headroom.wants_look
    headroom.taken()
    assert headroom.wants_look


@pytest.mark.parametrize(
    ("used", "peak", "expected"), [(110, 150, 5.0), (140, 100, 4.0), (105, 100, 1.0), (9000, 100, MAX_FACTOR)]
)
def test_growth_is_learned_from_the_first_work(used: int, peak: int, expected: float) -> None:
    headroom = Headroom()
    assert headroom.factor == FIRST_FACTOR
    headroom.look(look(1000), 0.0)
    start(headroom, 1)
    headroom.finished(1 * MIB, 10 * MIB)  # it became larger than anybody knew
    headroom.look(look(1000, used, peak), 0.0)
    assert headroom.factor == expected


def test_growth_beside_hardly_any_work_teaches_nothing() -> None:
    headroom = Headroom()
    headroom.look(look(1000), 0.0)
    headroom.started(1000, 3000.0)
    headroom.look(look(1000, 900), 0.0)
    assert headroom.factor == FIRST_FACTOR


def test_a_worker_process_that_has_yet_to_start_needs_more_than_one_that_is_there() -> None:
    workers = WorkerMemory()
    assert workers.need_bytes(MIB, 0) == TEMPLATE_BYTES + WORKER_BYTES + FIRST_FACTOR * MIB
    started = 1
    workers.num_started = lambda: started
    workers.learn(5 * MIB, 35 * MIB, 10 * MIB)
    assert workers.need_bytes(10 * MIB, 0) == 30 * MIB
    assert workers.need_bytes(10 * MIB, 1) == 35 * MIB
    started = 2
    assert workers.need_bytes(10 * MIB, 1) == 30 * MIB


def test_a_larger_element_needs_more_in_its_worker_process_and_a_smaller_one_no_less_than_was_seen() -> None:
    workers = WorkerMemory()
    workers.num_started = lambda: 1
    workers.learn(5 * MIB, 35 * MIB, 10 * MIB)
    assert workers.need_bytes(30 * MIB, 0) == 90 * MIB
    assert workers.need_bytes(1 * MIB, 0) == 30 * MIB


def test_what_functions_need_in_a_worker_process_is_not_counted_twice() -> None:
    assert Headroom().growth(10, 7) == 17
    assert Headroom().growth(10, None) == 10 * FIRST_FACTOR


def test_a_limit_below_the_floor_is_refused_with_the_floor_and_its_parts() -> None:
    own = MemoryLimit("user", 210 * MIB, 0, "HEADRACE_MEMORY")
    memory = Memory((MemoryLimit("machine", 10_000 * MIB, 0, "x"), own))
    check_floor(memory, 150 * MIB, 30 * MIB, uses_processes=False)
    with pytest.raises(ConfigError) as caught:
        check_floor(memory, 150 * MIB, 30 * MIB, uses_processes=True)
    assert str(caught.value) == (
        "memory: the limit is 210 MiB (user: HEADRACE_MEMORY), expected at least 266 MiB: "
        "150 MiB for Python and loaded modules, 60 MiB for one element and its result, 56 MiB for worker processes"
    )
