"""`Tuner`: a thread that runs a policy on a live pipeline every second and applies the allowed changes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Protocol, Self

from headrace.errors import ConfigError
from headrace.pipeline.engine.explanation import Explanation
from headrace.tuning.adapter import Job
from headrace.tuning.explaining import explain, total
from headrace.tuning.guard import Guard
from headrace.tuning.live import LiveJob
from headrace.tuning.observation import Observation
from headrace.tuning.policies import Policy, Proposal, make_policy

__all__ = ["Recorder", "Tuner"]

WINDOW_S = 1.0
"""Seconds between decisions; long compared with the age of the engine's totals, a quarter second at most."""
NUM_KEPT = 10
"""Windows kept for predicting gains."""
EXPLAIN_EVERY_S = 30.0
"""The bottleneck is determined this often, and recorded if it has changed ..."""
EXPLAIN_AGAIN_S = 300.0
"""... or if the last record is this old, so that `headrace explain` of a running job is up to date."""


class Recorder(Protocol):
    """Receiver of decisions, for instance a `headrace.observe.DecisionLog`."""

    def record(
        self, who: str, change: Mapping[str, tuple[Any, Any]], reason: str, snapshot: Mapping[str, Any] | None = None
    ) -> Any:
        """Record one decision."""
        ...


class Tuner:
    """Tunes a job until closed. A context manager.

    If the policy raises, it is disabled and the job continues with the current settings: a tuner must not end a job.

    Attributes:
        failure: The exception that the policy raised, or None.
    """

    def __init__(
        self,
        job: Job,
        policy: str | Policy = "auto",
        *,
        decisions: Recorder | None = None,
        window_s: float | None = None,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """Start tuning with the policy's first setting.

        Args:
            job: The job to tune.
            policy: A policy or its name.
            decisions: Records every change with its reason, and every new reason for no change.
            window_s: Seconds between decisions; None for the job's preference, or 1 s if it has none.
            clock: Returns the CPU seconds of the calling thread.
        """
        self.failure: Exception | None = None
        self._job, self._decisions, self._clock = job, decisions, clock
        self._window_s = window_s or getattr(job, "window_s", WINDOW_S)
        self._policy = make_policy(policy) if isinstance(policy, str) else policy
        self._guard = Guard(job.space)
        self._last_reason, self._last_change = "", (0.0, "")
        self._seen: deque[Observation] = deque(maxlen=NUM_KEPT)
        self._whole: Observation | None = None
        self._cpu_s, self._began = 0.0, time.monotonic()
        self._explained_s, self._written_s, self._limit = self._began, -EXPLAIN_AGAIN_S, ("", "")
        self._stop = threading.Event()
        observation = job.observe()
        self._carry_out(observation, self._guard.check(observation, self._policy.start(job.space, observation)))
        self._thread = threading.Thread(target=self._loop, name="headrace-tuner", daemon=True)
        self._thread.start()

    @property
    def cpu_ratio(self) -> float:
        """CPU seconds of the tuner per second since it started."""
        return self._cpu_s / max(time.monotonic() - self._began, 1e-9)

    def explain(self) -> Explanation:
        """Explain the bottleneck since the job started; gains are predicted from the last windows.

        Raises:
            ConfigError: Nothing has been delivered yet.
        """
        seen, whole = list(self._seen), self._whole
        if isinstance(self._job, LiveJob):
            whole = self._job.look()
            if seen:  # the windows know more about the machine than a single reading
                lately = total(seen)
                busy_ratio = max(whole.machine_busy_ratio, lately.machine_busy_ratio)
                whole = replace(whole, machine_busy_ratio=busy_ratio, gil_wait_s=lately.gil_wait_s)
        return explain(seen, self._job.space, whole=whole, tuner=self._did())

    def close(self) -> None:
        """Stop tuning and keep the current settings. Idempotent."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _did(self) -> str:
        """The last change and its age, and the policy's current statement."""
        at, change = self._last_change
        if not change:
            return f"changed nothing; now: {self._latest}"
        ago = f"{time.monotonic() - at:.0f} s ago {change}"
        return ago if change.endswith(self._latest) else f"{ago}; now: {self._latest}"

    def _loop(self) -> None:
        while not self._stop.wait(self._window_s):
            try:
                observation = self._job.observe()
                if observation.window_s > 0:
                    self._seen.append(observation)
                    self._whole = observation if self._whole is None else total([self._whole, observation])
                    self._carry_out(observation, self._guard.check(observation, self._policy.decide(observation)))
                    self._explain_now_and_then()
            except Exception as error:
                self.failure = error
                self._record({}, f"disabled, because it raised {type(error).__name__}: {error}", {})
                return
            self._cpu_s = self._clock()

    def _carry_out(self, observation: Observation, proposal: Proposal) -> None:
        change = {
            name: (observation.values.get(name), value)
            for name, value in proposal.values.items()
            if observation.values.get(name) != value
        }
        self._job.apply({name: after for name, (_, after) in change.items()})
        if change:
            changes = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in change.items())
            self._last_change = time.monotonic(), f"{changes}: {proposal.reason}"
        self._latest = proposal.reason
        kind = proposal.reason.split("(")[0] if not change else ""
        if change or kind != self._last_reason:
            seen = {"rate_per_s": observation.rate_per_s, "cpus": observation.cpus, "memory": observation.memory_ratio}
            self._record(change, proposal.reason, seen)
        self._last_reason = kind

    def _explain_now_and_then(self) -> None:
        now = time.monotonic()
        if now - self._explained_s < EXPLAIN_EVERY_S:
            return
        self._explained_s = now
        try:
            found = self.explain()
        except ConfigError:  # nothing was delivered in the last windows
            return
        if (found.limit, found.stage) == self._limit and now - self._written_s < EXPLAIN_AGAIN_S:
            return
        self._limit, self._written_s = (found.limit, found.stage), now
        if self._decisions is not None:
            self._decisions.record("explain", {}, found.reason, {**asdict(found), "text": str(found)})

    def _record(self, change: Mapping[str, tuple[Any, Any]], reason: str, snapshot: Mapping[str, Any]) -> None:
        if self._decisions is not None:
            self._decisions.record("tuner", change, reason, snapshot)
