"""The phases of a step without overlap, from the trace that a scheduled run leaves in its folder."""

from __future__ import annotations

from pathlib import Path

from headrace.observe.timeline import read_schedule

__all__ = ["PHASES", "phases_of"]

PHASES = {
    "F": ("features",),
    "P": ("pull", "deferred_pull"),
    "M": ("dense", "update"),
    "U": ("push",),
}
"""Features, pull, dense work, push, as in RECS; with the kinds of operators of each."""


def phases_of(run: Path) -> dict[str, float]:
    """Seconds per step of each phase in the last steps of a run; empty without a scheduler.

    Only with `serial` are they those of a step that does nothing at the same time.
    """
    schedule = read_schedule(run)
    if schedule is None or not schedule["spans"]:
        return {}
    spans = schedule["spans"]
    steps = {span["step"] for span in spans if span["kind"] == "dense"}
    found = {}
    for phase, kinds in PHASES.items():
        chosen = [each for each in spans if each["kind"] in kinds and each["step"] in steps]
        total, end = 0.0, float("-inf")
        for first, last in sorted((each["start_s"], each["end_s"]) for each in chosen):
            total += max(0.0, last - max(first, end))
            end = max(end, last)
        found[phase] = total / len(steps)
    return found
