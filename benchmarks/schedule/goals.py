"""Goals of the scheduler in each case, and whether its bounds allow them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.scheduling.bounds import StepParts

__all__ = ["goals_of_case", "goals_of_peers"]

OVER_SERIAL = 1.36  # RECS (SIGMOD-Companion 2025) reports this over existing solutions
OVER_PREFETCH = 1.1
EARLY_OVER_PREFETCH = 1.36
SHARE_OF_BOUND = 0.9
NEVER_BELOW = 0.98
OVER_TENSORFLOW = 2.0
COMMUNICATION = (0.25, 0.6)  # range of shares of the serial step in which `recs` can hide much of it
EARLY_COMMUNICATION = 0.4
FEATURE_HEAVY = ("rm2", "industrial")

Goal = dict[str, Any]


def goals_of_case(case: str, parts: StepParts, step_s: Mapping[str, float]) -> list[Goal]:
    """Return the goals that apply to one workload on one link.

    Args:
        case: Name of the case, which starts with that of the workload.
        parts: Measured phases of a step under `serial`.
        step_s: Median seconds per step under "serial", "batch_prefetch" (its best setting), "recs" and "recs_early".
    """
    serial, prefetch, recs, early = (step_s[name] for name in ("serial", "batch_prefetch", "recs", "recs_early"))
    strict, exact = parts.strict_s, parts.early_exact_s
    share = parts.communication_ratio
    goals = []
    if case.startswith(FEATURE_HEAVY) and COMMUNICATION[0] <= share <= COMMUNICATION[1]:
        goals += [
            _goal(f"{case}: recs over serial", OVER_SERIAL, serial / recs, serial / strict),
            _goal(f"{case}: recs over the best batch_prefetch", OVER_PREFETCH, prefetch / recs, prefetch / strict),
        ]
    if share >= EARLY_COMMUNICATION:
        what = f"{case}: recs_early over the best batch_prefetch"
        goals.append(_goal(what, EARLY_OVER_PREFETCH, prefetch / early, prefetch / exact))
    best = min(serial, prefetch)
    return [
        *goals,
        _goal(f"{case}: recs at its bound", SHARE_OF_BOUND, strict / recs),
        _goal(f"{case}: recs_early at its exact bound", SHARE_OF_BOUND, exact / early),
        _goal(f"{case}: recs over the best of serial and batch_prefetch", NEVER_BELOW, best / recs, best / strict),
        _goal(f"{case}: recs_early over the best of both", NEVER_BELOW, best / early, best / exact),
    ]


def goals_of_peers(case: str, step_s: Mapping[str, float]) -> list[Goal]:
    """Return the goal against TensorFlow, if it was measured, given the median seconds per step of each arm."""
    theirs = [seconds for name, seconds in step_s.items() if name.startswith("tensorflow")]
    return [_goal(f"{case}: recs over TensorFlow", OVER_TENSORFLOW, theirs[0] / step_s["recs"])] if theirs else []


def _goal(what: str, wanted: float, reached: float, bound: float | None = None) -> Goal:
    """Return a row of the table of goals; it shows the bound if that makes the goal impossible."""
    impossible = bound is not None and bound < wanted
    target = f"{wanted:g} (the bound is {bound:.2f})" if impossible else f"{wanted:g}"
    return {"what": what, "wanted": target, "reached": f"{reached:.2f}", "met": reached >= wanted}
