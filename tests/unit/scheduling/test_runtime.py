"""The runtime's threads, with operators that only take notes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from headrace.registry import STEP_POLICIES
from headrace.scheduling.graph import Kind, Operator
from headrace.scheduling.policies import RECS
from headrace.scheduling.policies.strategies import BY_GROUP
from headrace.scheduling.runtime import Done, StepRuntime
from headrace.scheduling.state import SchedulerState


class Notes:
    """Work that writes down what was asked of it; transfers end in a thread of their own, or when told to."""

    def __init__(
        self,
        num_batches: int,
        *,
        ends: Sequence[int] = (),
        fail_at: str = "",
        held_back: bool = False,
        num_groups: int = 2,
    ) -> None:
        self.num_batches = num_batches
        self.ends = list(ends)  # segments end before these batches, the last one at the end of all
        self.lines: list[str] = []
        self.waiting: list[Done] = []
        self.trainer = threading.get_ident()
        self._noted = threading.Condition()
        self.num_groups = num_groups
        self._fail_at = fail_at
        self._held_back = held_back

    def note(self, line: str) -> None:
        with self._noted:
            self.lines.append(line)
            self._noted.notify_all()
        if line == self._fail_at:
            raise ValueError(f"planted at {line}")

    def wait_for(self, line: str) -> None:
        with self._noted:
            self._noted.wait_for(lambda: line in self.lines)

    def read(self, batch: int) -> tuple[int, int] | None:
        if self.ends and batch == self.ends[0]:
            self.note(f"end {self.ends.pop(0)}")
            return None
        self.note(f"read {batch}")
        return (10, self.num_groups) if batch < self.num_batches else None

    def features(self, operator: Operator) -> int:
        self.note(f"features {operator.batch} {operator.group}")
        assert threading.get_ident() != self.trainer
        return 10

    def _transfer(self, lines: list[str], done: Done) -> list[int]:
        for line in lines:
            self.note(line)
        if self._held_back:
            self.waiting.append(done)
        else:
            done(None)
        return [10] * len(lines)

    def pull(self, operators: Sequence[Operator], after: int, defers: bool, done: Done) -> list[int]:
        return self._transfer([f"pull {operator.batch} {operator.group}" for operator in operators], done)

    def deferred_pull(self, operators: Sequence[Operator], after: int, done: Done) -> list[int]:
        return self._transfer([f"deferred {operator.batch} {operator.group}" for operator in operators], done)

    def dense(self, operator: Operator) -> int:
        self.note(f"dense {operator.batch}")
        assert threading.get_ident() == self.trainer
        return 0

    def push(self, batch: int, done: Done) -> int:
        return self._transfer([f"push {batch}"], done)[0]

    def update(self, batch: int) -> Any:
        self.note(f"update {batch}")
        return f"result {batch}"


def runtime(work: Notes, name: str = "recs") -> StepRuntime:
    return StepRuntime(work, SchedulerState(STEP_POLICIES[name], num_cores=2, num_segments=len(work.ends) + 1))


def inline(work: Notes, name: str = "recs") -> StepRuntime:
    state = SchedulerState(STEP_POLICIES[name], num_cores=1, num_segments=len(work.ends) + 1)
    return StepRuntime(work, state, is_inline=True)


def train_all(steps: StepRuntime) -> None:
    while steps.step() is not None:
        pass


@pytest.mark.parametrize("name", sorted(STEP_POLICIES))
def test_every_batch_is_trained_once_in_order(name: str) -> None:
    work = Notes(6)
    with runtime(work, name) as steps:
        results = [steps.step() for _ in range(7)]
    assert results == [*(f"result {batch}" for batch in range(6)), None]
    assert [line for line in work.lines if line.startswith("dense")] == [f"dense {batch}" for batch in range(6)]
    unapplied = 1 if name == "recs_early" else 0
    for batch in range(1 + unapplied, 6):
        pushed = work.lines.index(f"push {batch - 1 - unapplied}")
        pulls = [number for number, line in enumerate(work.lines) if line.startswith(f"pull {batch} ")]
        assert pulls
        assert min(pulls) > pushed


@pytest.mark.parametrize("place", ["read 2", "features 2 1", "pull 1 0", "dense 2", "push 1", "update 1"])
def test_what_an_operator_raises_reaches_the_caller_and_threads_end(place: str) -> None:
    work = Notes(6, fail_at=place)
    with runtime(work) as steps, pytest.raises(ValueError, match=f"planted at {place}"):
        train_all(steps)
    assert len(work.lines) < 40


def test_a_failed_runtime_goes_on_raising() -> None:
    with runtime(Notes(6, fail_at="dense 0")) as steps:
        for _ in range(2):
            with pytest.raises(ValueError, match="planted"):
                steps.step()


def test_nothing_is_read_before_the_first_step() -> None:
    work = Notes(3)
    with runtime(work):
        pass
    assert not work.lines


def test_settle_waits_until_the_updates_of_all_steps_are_applied() -> None:
    work = Notes(6)
    with runtime(work) as steps:
        steps.settle()
        for number in range(3):
            steps.step()
            steps.settle()
            assert steps.state.is_applied(number)
        assert steps.step() == "result 3"


def test_after_an_ordinary_step_rows_of_the_next_batch_are_asked_for() -> None:
    work = Notes(6)
    with runtime(work) as steps:
        steps.step()
        work.wait_for("pull 1 1")


def test_the_trace_keeps_whole_steps_and_only_the_latest() -> None:
    with StepRuntime(Notes(20), SchedulerState(replace(RECS, strategies=(BY_GROUP,)), num_cores=2)) as steps:
        train_all(steps)
        spans = steps.trace.spans()
    assert {span.operator.batch for span in spans} == set(range(12, 20))
    kinds = [span.operator.kind for span in spans if span.operator.batch == 15]
    counts = {kind.value: kinds.count(kind) for kind in kinds}
    assert counts.pop("pull") in (1, 2)  # groups that are ready together travel together
    assert counts == {"read": 1, "features": 2, "dense": 1, "push": 1, "update": 1}
    assert all(span.reason and span.end_s >= span.start_s for span in spans)
    assert {span.lane for span in spans if span.operator.kind is Kind.DENSE} == {"trainer"}


class InlineNotes(Notes):
    """Everything is the caller's, and features are in one group."""

    def __init__(self, num_batches: int, *, ends: Sequence[int] = (), fail_at: str = "") -> None:
        super().__init__(num_batches, ends=ends, fail_at=fail_at, num_groups=1)

    def features(self, operator: Operator) -> int:
        self.note(f"features {operator.batch} {operator.group}")
        assert threading.get_ident() == self.trainer
        return 10

    def read(self, batch: int) -> tuple[int, int] | None:
        assert threading.get_ident() == self.trainer
        return super().read(batch)


@pytest.mark.parametrize("name", sorted(STEP_POLICIES))
def test_an_inline_runtime_does_the_same_without_threads(name: str) -> None:
    work = InlineNotes(4)
    num_threads = threading.active_count()
    with inline(work, name) as steps:
        assert threading.active_count() == num_threads
        results = [steps.step() for _ in range(5)]
    assert results == [*(f"result {batch}" for batch in range(4)), None]
    trained = [line for line in work.lines if line.split()[0] in ("dense", "push", "update")]
    assert trained == [f"{kind} {batch}" for batch in range(4) for kind in ("dense", "push", "update")]


def test_an_inline_runtime_trains_what_it_has_before_it_reads_on() -> None:
    work = InlineNotes(4)
    with inline(work) as steps:
        steps.step()
        assert work.lines == ["read 0", "features 0 0", "pull 0 0", "dense 0", "push 0", "update 0"]


@pytest.mark.parametrize("place", ["read 2", "features 2 0", "pull 1 0", "dense 2", "push 1", "update 1"])
def test_what_an_operator_raises_inline_reaches_the_caller(place: str) -> None:
    with inline(InlineNotes(6, fail_at=place)) as steps, pytest.raises(ValueError, match=f"planted at {place}"):
        train_all(steps)


@pytest.mark.parametrize("open_runtime", [runtime, inline])
@pytest.mark.parametrize("name", sorted(STEP_POLICIES))
def test_each_segment_ends_by_itself_and_nothing_is_pulled_for_the_next_before(name: str, open_runtime: Any) -> None:
    work = (Notes if open_runtime is runtime else InlineNotes)(6, ends=[0, 2, 2, 5])
    found: list[list[Any]] = []
    with open_runtime(work, name) as steps:
        for segment in range(5):
            found.append([])
            while (result := steps.step()) is not None:
                found[-1].append(result)
            steps.settle()
            work.note(f"segment {segment}")
    assert found == [[], ["result 0", "result 1"], [], ["result 2", "result 3", "result 4"], ["result 5"]]
    for segment, batches in enumerate([[], [0, 1], [], [2, 3, 4], [5]]):
        for batch in batches:
            place = work.lines.index(f"segment {segment}")
            before = work.lines.index(f"segment {segment - 1}")
            of_batch = [
                n
                for n, line in enumerate(work.lines)
                if line.split()[:2] in (["pull", str(batch)], ["push", str(batch)])
            ]
            assert before < min(of_batch)
            assert max(of_batch) < place


def test_features_of_the_next_segment_are_computed_before_it_is_asked_for() -> None:
    work = Notes(4, ends=[2])
    with runtime(work) as steps:
        assert [steps.step() for _ in range(3)] == ["result 0", "result 1", None]
        work.wait_for("features 3 1")
        assert not any(line.startswith("pull 2") for line in work.lines)
        assert steps.step() == "result 2"


@pytest.mark.parametrize("place", ["read 2", "features 2 0", "features 3 0"])
@pytest.mark.parametrize("open_runtime", [runtime, inline])
def test_what_fails_in_the_next_segment_leaves_this_one_whole(open_runtime: Any, place: str) -> None:
    work = (Notes if open_runtime is runtime else InlineNotes)(6, ends=[2], fail_at=place)
    with open_runtime(work) as steps:
        assert [steps.step() for _ in range(2)] == ["result 0", "result 1"]
        if open_runtime is runtime and place != "features 3 0":  # which may have to wait until the segment has ended
            work.wait_for(place)
        assert steps.step() is None
        steps.settle()
        if place == "features 3 0":
            assert steps.step() == "result 2"
        for _ in range(2):
            with pytest.raises(ValueError, match=f"planted at {place}"):
                steps.step()
