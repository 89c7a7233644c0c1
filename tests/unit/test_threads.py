"""The thread plan is a function of CPUs, job and workers; a change of any of them is carried out once."""

import pytest

from headrace.threads import ThreadPlan, Threads, plan_threads


@pytest.mark.parametrize(
    ("cpus", "asked", "workers", "step", "arrow"),
    [
        (8.0, None, 0, 8, 8),
        (8.0, None, 3, 8, 5),
        (8.0, None, 12, 8, 1),
        (8.0, 4, 3, 4, 5),
        (2.5, None, 1, 2, 1),
        (0.5, None, 1, 1, 1),
        (2.0, 6, 0, 6, 2),
    ],
)
def test_plan(cpus: float, asked: int | None, workers: int, step: int, arrow: int) -> None:
    plan = plan_threads(cpus, step_threads=asked, workers=workers)
    assert (plan.step, plan.workers, plan.arrow) == (step, workers, arrow)


def test_threads_of_a_step_do_not_depend_on_the_tuner() -> None:
    assert len({plan_threads(8, workers=workers).step for workers in range(20)}) == 1


def test_arrow_and_workers_together_never_have_more_threads_than_cpus() -> None:
    for cpus in range(1, 20):
        for workers in range(cpus):
            plan = plan_threads(cpus, workers=workers)
            assert plan.workers + plan.arrow <= cpus


def test_reason_names_what_was_asked_for_and_what_there_is() -> None:
    assert plan_threads(2, step_threads=6).reason == (
        "training.threads: 6, but only 2 effective CPUs: threads will wait for each other"
    )
    assert plan_threads(2, workers=3).reason == (
        "the step uses the 2 effective CPUs; 3 workers use its idle time, Arrow's pool has 1"
    )


def test_update_carries_out_only_what_has_changed() -> None:
    cpus, applied = [4.0], list[ThreadPlan]()
    threads = Threads(None, cpus=lambda: cpus[0], apply=applied.append)
    assert threads.update() is not None
    assert threads.update() is None
    assert threads.update(workers=2) is not None  # Arrow's pool shrinks
    cpus[0] = 2.0  # the machine is resized
    plan = threads.update(workers=2)
    assert plan is not None
    assert [(plan.step, plan.arrow) for plan in applied] == [(4, 4), (4, 2), (2, 1)]
    assert threads.plan == plan


def test_threads_of_the_job_file_outlive_a_resize() -> None:
    cpus, applied = [4.0], list[ThreadPlan]()
    threads = Threads(3, cpus=lambda: cpus[0], apply=applied.append)
    threads.update()
    cpus[0] = 2.0
    threads.update()
    assert [plan.step for plan in applied] == [3, 3]
