"""The plots of a run's report by section; plots without data are omitted."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from headrace.observe.plots import Level, Mark, Plot, Series
from headrace.observe.run_data import Floats, RunData

__all__ = ["PARTS", "decision_numbers", "pipeline_plots", "quality_plots", "speed_plots", "time_shares", "tuning_plots"]

PARTS = {
    "wait": ("wait for batch", "warm"),
    "pull": ("embedding pull", "blue"),
    "forward": ("forward", "green"),
    "backward": ("backward", "teal"),
    "push": ("embedding push", "sky"),
    "dense_optimizer": ("dense optimizer", "violet"),
    "checkpoint": ("checkpoint", "grey"),
}
"""Phases of a step in stacking order, with label and colour; others follow under their own name."""

STAGE_COLORS = ("blue", "green", "warm", "violet", "sky", "rose", "teal", "olive", "grey")
SMOOTHED_S = 2.0
NUM_WINDOW_MARKS = 120
NUM_DECISION_MARKS = 60
"""More marks would be only a few pixels apart and grey out the plot."""


def quality_plots(run: RunData) -> Iterator[Plot]:
    """Model quality over rows: AUC, normalised entropy, errors, loss, calibration, and factors of learning rates."""
    borders = tuple(Mark(span.last_row, span.name) for span in run.windows)
    marks = borders if len(borders) <= NUM_WINDOW_MARKS else ()

    def plot(title: str, note: str, series: tuple[Series, ...], levels: tuple[Level, ...], y_format: str) -> Plot:
        return Plot(title, note, run.rows, "count", series, levels, marks=marks, y_format=y_format)

    auc = _known(Series("so far in the window", run.column("auc"), "blue"))
    levels = _levels(run, ("auc", "of the window", "green", False), ("baseline_auc", "baseline", "warm", True))
    if auc or levels:
        yield plot("AUC", "predictions made before training on the rows", auc, levels, "metric")
    ne = _known(Series("so far in the window", run.column("ne"), "blue"))
    levels = _levels(run, ("ne", "of the window", "green", False), ("best_ne", "best reachable", "warm", True))
    if ne or levels:
        yield plot("Normalised entropy", "1 means always predicting the mean; lower is better", ne, levels, "metric")
    relative = _known(Series("so far in the window", run.column("relative_mse"), "blue"))
    levels = _levels(run, ("relative_mse", "of the window", "green", False))
    if relative or levels:
        yield plot("Relative squared error", "1 means always predicting the mean", relative, levels, "metric")
    rmse = _known(Series("so far in the window", run.column("rmse"), "blue"))
    levels = _levels(run, ("rmse", "of the window", "green", False))
    if rmse or levels:
        yield plot("Root mean squared error", "in the unit of the label", rmse, levels, "number")
    loss = _known(Series("training", run.column("loss"), "blue"))
    levels = _levels(run, ("log_loss", "of the window", "green", False))
    if loss or levels:
        title, note = ("Loss", "mean over labels") if run.is_regression else ("Log loss", "nats a row")
        yield plot(title, note, loss, levels, "metric")
    levels = _levels(run, ("calibration", "of the window", "green", False))
    if levels:
        ideal = Level("ideal", ((0.0, run.windows[-1].last_row, 1.0),), "warm", dashed=True)
        yield plot("Calibration", "predicted over actual positives", (), (*levels, ideal), "metric")
    rates = _known(Series("all rates", run.column("lr_factor"), "blue"))
    if rates:
        yield plot("Learning rates", "times those of the job", rates, (), "metric")
    rows = _rows_of_tables(run)
    if rows:
        yield plot("Rows under the budget", "by table, those with the most rows", rows, (), "count")


def speed_plots(run: RunData) -> Iterator[Plot]:
    """Speed, and the time of a step by phase, over time."""
    marks = _decision_marks(run)
    rate = _known(Series("rows/s", run.column("rows_per_s"), "blue"))
    if rate:
        yield Plot(
            "Rows per second",
            "since the previous record",
            run.time_s,
            "time",
            rate,
            marks=marks,
            y_format="count",
            from_zero=True,
        )
    steps = run.since_last(run.column("step"))
    num_steps = np.where(np.isfinite(steps), steps, 1.0)
    parts = tuple(
        Series(label, 1000 * run.column(f"seconds.{part}") / num_steps, color) for part, label, color in _parts(run)
    )
    if parts:
        note = "ms per step, stacked"
        yield Plot(
            "Where a step's time goes",
            note,
            run.time_s,
            "time",
            parts,
            marks=marks,
            y_format="ms",
            from_zero=True,
            stacked=True,
        )

    moved = _known(
        Series("as it was", run.column("placement.num_bytes") / num_steps, "blue"),
        Series("with reads and updates in every step", run.column("placement.num_plain_bytes") / num_steps, "grey"),
    )
    if moved:
        title, note = "Moved between trainers and shards", "bytes per step of a trainer"
        yield Plot(title, note, run.time_s, "time", moved, marks=marks, y_format="bytes", from_zero=True)
    from_files = _known(
        Series("used", run.column("storage.num_used_rows") / num_steps, "grey"),
        Series("read from files", run.column("storage.num_read_rows") / num_steps, "blue"),
        Series("read only when needed", run.column("storage.num_late_rows") / num_steps, "warm"),
    )
    if from_files:
        title, note = "Rows from memory and from files", "rows per step"
        yield Plot(title, note, run.time_s, "time", from_files, marks=marks, y_format="count", from_zero=True)


def pipeline_plots(run: RunData) -> Iterator[Plot]:
    """Queues, bytes in flight and memory of the pipeline, over time."""
    marks = _decision_marks(run)

    def plot(title: str, note: str, series: tuple[Series, ...], y_format: str, *, stacked: bool = False) -> Plot:
        return Plot(
            title, note, run.time_s, "time", series, marks=marks, y_format=y_format, from_zero=True, stacked=stacked
        )

    queues = _stages(run, "queue")
    if queues:
        yield plot("Queue depth", "elements waiting after each stage", queues, "count")
    held = _stages(run, "bytes")
    if held:
        yield plot("Bytes in flight", "by stage, stacked", held, "bytes", stacked=True)
    elif total := _known(Series("all stages", run.column("bytes_in_flight"), "blue")):
        yield plot("Bytes in flight", "between source and trainer", total, "bytes")
    memory = _known(Series("resident", run.column("memory_bytes"), "violet"))
    if memory:
        yield plot("Memory", "resident memory of the process", memory, "bytes")


def tuning_plots(run: RunData) -> Iterator[Plot]:
    """Workers, available resources, and the resulting speed over time, with decisions as marks."""
    marks = _decision_marks(run)

    def plot(
        title: str,
        note: str,
        series: tuple[Series, ...],
        y_format: str,
        levels: tuple[Level, ...] = (),
        *,
        stacked: bool = False,
    ) -> Plot:
        return Plot(
            title,
            note,
            run.time_s,
            "time",
            series,
            levels,
            marks=marks,
            y_format=y_format,
            from_zero=True,
            stacked=stacked,
        )

    cpus = _held(run, "cpus", "CPUs available", "rose")
    if workers := _stages(run, "workers"):
        shared = _known(Series("shared by all", run.column("threads"), "grey"))
        yield plot("Workers", "of each stage, and shared threads", (*workers, *shared), "count", cpus)
    busy = tuple(Series(s.name, _a_second(run, s.values), s.color) for s in _stages(run, "busy_s"))
    if busy:
        worked = [run.column(f"seconds.{part}") for part, _, _ in _parts(run) if part != "wait"]
        if worked:
            seconds = np.sum(np.nan_to_num(worked), axis=0)
            busy = (Series("trainer", _a_second(run, seconds), "ink"), *busy)
        note = f"trainer (while not waiting) and stages, stacked; means over {SMOOTHED_S:g} s"
        yield plot("Busy CPUs", note, busy, "cpus", cpus, stacked=True)
    shares = _known(
        Series("in flight / budget", run.column("bytes_in_flight") / _positive(run, "budget_bytes"), "blue"),
        Series("resident / limit", run.column("memory_bytes") / _positive(run, "memory_limit_bytes"), "violet"),
    )
    if shares:
        full = Level("all of it", ((0.0, float(run.time_s[-1]), 1.0),), "rose", dashed=True)
        yield plot("Memory use", "fraction of the limit in use", shares, "ratio", (full,))


def time_shares(run: RunData) -> list[tuple[str, str, float]]:
    """(label, colour, share) of each phase of the steps over the whole run, in stacking order."""
    totals = [(label, color, float(np.nansum(run.column(f"seconds.{part}")))) for part, label, color in _parts(run)]
    total = sum(seconds for _, _, seconds in totals)
    return [(label, color, seconds / total) for label, color, seconds in totals if total > 0]


def _parts(run: RunData) -> list[tuple[str, str, str]]:
    present = [name for name in run.names_below("seconds") if np.nansum(run.column(f"seconds.{name}")) > 0]
    ordered = [name for name in PARTS if name in present] + [name for name in present if name not in PARTS]
    spare = iter(("rose", "olive", "grey", "warm") * 8)
    return [(name, *(PARTS[name] if name in PARTS else (name.replace("_", " "), next(spare)))) for name in ordered]


def _stages(run: RunData, key: str) -> tuple[Series, ...]:
    names = run.names_below("stages")
    return _known(
        *(
            Series(name, run.column(f"stages.{name}.{key}"), STAGE_COLORS[index % len(STAGE_COLORS)])
            for index, name in enumerate(names)
        )
    )


def _rows_of_tables(run: RunData) -> tuple[Series, ...]:
    """Rows of the tables that have the most in the latest record."""
    columns = {name: run.column(f"budget.{name}.rows") for name in run.names_below("budget")}
    most = sorted(columns, key=lambda name: -np.nan_to_num(columns[name][-1]))[: len(STAGE_COLORS)]
    return _known(*(Series(name, columns[name], color) for name, color in zip(most, STAGE_COLORS, strict=False)))


def _known(*series: Series) -> tuple[Series, ...]:
    return tuple(one for one in series if np.isfinite(one.values).any())


def _levels(run: RunData, *wanted: tuple[str, str, str, bool]) -> tuple[Level, ...]:
    levels = []
    for key, name, color, dashed in wanted:
        spans = tuple((span.first_row, span.last_row, span.value(key)) for span in run.windows)
        if any(math.isfinite(value) for _, _, value in spans):
            levels.append(Level(name, spans, color, dashed))
    return tuple(levels)


def decision_numbers(run: RunData) -> dict[int, int]:
    """Numbers of the decisions that changed something, by index; shared by plots and table."""
    changes = [place for place, decision in enumerate(run.decisions) if decision.change]
    return {place: number for number, place in enumerate(changes, start=1)}


def _decision_marks(run: RunData) -> tuple[Mark, ...]:
    end_s = float(run.time_s[-1]) if len(run) else 0.0
    newest = list(decision_numbers(run).items())[-NUM_DECISION_MARKS:]
    found = [(run.decisions[place], str(number)) for place, number in newest]
    return tuple(Mark(each.time_s, f"{label}: {each}", label) for each, label in found if each.time_s <= end_s)


def _held(run: RunData, column: str, name: str, color: str) -> tuple[Level, ...]:
    """A value that changes occasionally, as one level per constant period."""
    values = run.column(column)
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return ()
    starts = known[np.flatnonzero(np.diff(values[known], prepend=np.nan) != 0)]
    # A record covers the time since the previous one.
    begins = [0.0, *(float(run.time_s[start - 1]) for start in starts[1:])]
    ends = [*begins[1:], float(run.time_s[-1])]
    spans = tuple((first, last, float(values[at])) for first, last, at in zip(begins, ends, starts, strict=True))
    return (Level(name, spans, color, dashed=True),)


def _a_second(run: RunData, values: Floats) -> Floats:
    """Windowed values per second, averaged over recent seconds, because work counts in the record in which it ends."""
    total, begin = np.cumsum(np.nan_to_num(values)), np.maximum(run.time_s - SMOOTHED_S, 0.0)
    before = np.interp(begin, np.insert(run.time_s, 0, 0.0), np.insert(total, 0, 0.0))
    elapsed = run.time_s - begin
    return np.where(elapsed > 0, (total - before) / np.where(elapsed > 0, elapsed, 1.0), np.nan)


def _positive(run: RunData, column: str) -> Floats:
    values = run.column(column)
    return np.where(values > 0, values, np.nan)
