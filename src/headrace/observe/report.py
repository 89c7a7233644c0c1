"""Writes the report of a run: a self-contained HTML file with plots and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import numpy as np

from headrace.files import write_text
from headrace.messages import count_of
from headrace.observe.alarms import find_alarms
from headrace.observe.deduplication import deduplication_rows
from headrace.observe.pages import html_page
from headrace.observe.panels import (
    decision_numbers,
    pipeline_plots,
    quality_plots,
    speed_plots,
    time_shares,
    tuning_plots,
)
from headrace.observe.plots import Plot, render_plot
from headrace.observe.progress import format_count, format_duration
from headrace.observe.run_data import RunData, WindowSpan
from headrace.observe.timeline import draw_timeline, timeline_lead
from headrace.paths import local_path

__all__ = ["render_report", "write_report"]

CHANCE = 0.5
"""AUC of random guessing."""

NUM_DECISIONS = 300
"""Number of newest decisions in the table; decisions.jsonl has all."""


def write_report(run_folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the report of a run folder; the run may still be in progress.

    Args:
        run_folder: Folder with `metrics.jsonl`, and optionally `decisions.jsonl` and `config.yaml`.
        path: Output file; None for `report.html` in the run folder. It is written atomically.

    Returns:
        The path of the report.

    Raises:
        ConfigError: The folder does not exist or has no metrics.
        DataError: A metrics line is not JSON; the message names file and line.
    """
    path = Path(run_folder) / "report.html" if path is None else local_path(path, where="report")
    page = render_report(RunData.read(run_folder), made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    write_text(path, page)
    return path


def render_report(run: RunData, *, made: str) -> str:
    """Render the page as a string.

    Args:
        run: Data of the run.
        made: Creation time, for the top of the page.
    """
    quality, speed, tuning, pipeline = (
        list(plots(run)) for plots in (quality_plots, speed_plots, tuning_plots, pipeline_plots)
    )
    parts = [
        f'<header><p class="made">headrace run report · {escape(made)}</p><h1>{escape(_title(run))}</h1>'
        f'<p class="lead">{escape(_headline(run))}</p></header>',
        _alarms(run),
        _tiles(run),
        _section("Quality", _quality_lead(run), _plots(quality)),
        _section("Windows", "", _window_table(run)) if run.windows else "",
        _section("Speed", _speed_lead(run), _share_bar(run) + _plots(speed)),
        _section("Tuning", _tuning_lead(run), _plots(tuning)) if tuning else "",
        _section("Pipeline", "Each stage between the logs and the trainer.", _plots(pipeline)) if pipeline else "",
        _deduplication(run),
        _section("Schedule", timeline_lead(run.schedule), draw_timeline(run.schedule)) if run.schedule else "",
        _section("Decisions", "Automatic changes and their reasons.", _decision_table(run)) if run.decisions else "",
        _section("Job", "", _config(run)) if run.config else "",
        "<footer>Plots over the same axis share their crosshair. A line with too many records is drawn as means; if it "
        "is the only line, with its P10 to P90 range behind it. Dotted verticals are ends of windows (over rows) or "
        "decisions (over time), numbered as in the table of decisions.</footer>",
    ]
    return html_page(_title(run), "".join(parts))


def _section(title: str, lead: str, body: str) -> str:
    lead = f'<p class="lead">{escape(lead)}</p>' if lead else '<p class="lead"></p>'
    return f"<section><h2>{escape(title)}</h2>{lead}{body}</section>"


def _plots(plots: Iterable[Plot]) -> str:
    return f'<div class="grid">{"".join(map(render_plot, plots))}</div>'


def _alarms(run: RunData) -> str:
    """What is wrong with the model, in full; nothing if all is well."""
    return "".join(
        f'<div class="card alarm"><p><b>{escape(alarm.what)}</b></p><p>Likely reason: {escape(alarm.reason)}.</p>'
        f"<p>What to change: {escape(alarm.help)}.</p></div>"
        for alarm in find_alarms(run)
    )


def _headline(run: RunData) -> str:
    steps = run.column("step")
    last_step = f"step {np.nanmax(steps):,.0f}" if np.isfinite(steps).any() else f"{len(run):,} records"
    elapsed = format_duration(float(run.time_s[-1])) if len(run) else "no time"
    text = f"{_windows(run)} finished, up to {last_step}, in {elapsed}."
    return f"{text} To repeat it: headrace train {run.name}/config.yaml" if run.config else text


def _title(run: RunData) -> str:
    """Title with the run, its model and its data, if known."""
    model, data = run.job_value("model", "kind"), run.job_value("data", "path")
    return run.name + (f": {model}" if model else "") + (f" on {data}" if data else "")


def _windows(run: RunData) -> str:
    return f"{len(run.windows)} window{'' if len(run.windows) == 1 else 's'}"


def _tiles(run: RunData) -> str:
    first, last = (run.windows[0], run.windows[-1]) if run.windows else (None, None)
    rows = sum(span.value("rows") for span in run.windows if math.isfinite(span.value("rows")))
    rows = max(rows, float(run.rows[-1]) if len(run) else 0.0)
    tiles = [_tile("Rows trained on", format_count(rows), f"in {_windows(run)}")]
    auc, ne = _over_run(run, "auc"), _over_run(run, "ne")
    several = first is not last
    whole = run.whole()
    over = "" if not several or whole is None else ", mean of windows" if whole.is_mean else ", all rows"
    if math.isfinite(auc):
        latest = last.value("auc") if last and several else math.nan
        note = f"last window {latest:.4f}" if math.isfinite(latest) else "before training on the rows"
        tiles.append(_tile(f"AUC{over}", f"{auc:.4f}", note))
        model, baseline = run.auc_and_baseline() if run.windows else (auc, _over_run(run, "baseline_auc"))
        if math.isfinite(baseline):
            above = model - baseline
            # A baseline that predicts worse than chance is not worth comparing with.
            note, mood = (f"model {above:+.4f}", _mood(above)) if baseline > CHANCE else ("no better than chance", "")
            tiles.append(_tile("Baseline AUC", f"{baseline:.4f}", note, mood))
    if math.isfinite(ne):
        best = _over_run(run, "best_ne")
        note = f"best {best:.4f}" if math.isfinite(best) else "lower is better"
        tiles.append(_tile(f"NE{over}", f"{ne:.4f}", note))
    rmse, relative = _over_run(run, "rmse"), _over_run(run, "relative_mse")
    if math.isfinite(rmse):
        tiles.append(_tile(f"RMSE{over}", f"{rmse:.5g}", "before training on the rows"))
    if math.isfinite(relative):
        tiles.append(_tile(f"Relative MSE{over}", f"{relative:.4f}", "1 is always predicting the mean"))
    rates = run.column("rows_per_s")
    if np.isfinite(rates).any():
        low, middle, high = np.nanpercentile(rates, [10, 50, 90])
        spread = f"{low / 1000:,.0f}k to {high / 1000:,.0f}k" if low >= 10_000 else f"{low:,.0f} to {high:,.0f}"
        tiles.append(_tile("Rows/s, median", format_count(round(middle)), spread))
    tiles += _waiting_tile(run)
    bad = sum(_bad_rows(span) for span in run.windows)
    read = sum(span.value("read") for span in run.windows if math.isfinite(span.value("read")))
    if read > 0:
        note = f"{100 * bad / read:.2g} % of read" if bad else "of all rows read"
        tiles.append(_tile("Bad rows", format_count(bad), note, "bad" if bad else ""))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _waiting_tile(run: RunData) -> list[str]:
    shares = {label: share for label, _, share in time_shares(run)}
    waiting = shares.get("wait for batch")
    if waiting is None:
        return []
    if waiting < 0.1:
        note, mood = "the pipeline keeps up", "good"
    elif waiting == max(shares.values()):
        note, mood = "the pipeline is the bottleneck", "bad"
    else:
        note, mood = "of the trainer's time", ""
    return [_tile("Waiting for batches", f"{100 * waiting:.1f} %", note, mood)]


def _tile(label: str, value: str, note: str, mood: str = "") -> str:
    return (
        f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b>'
        f'<small class="{mood}">{escape(note)}</small></div>'
    )


def _mood(gain: float) -> str:
    return "" if not math.isfinite(gain) or gain == 0 else "good" if gain > 0 else "bad"


def _over_run(run: RunData, key: str) -> float:
    """A metric over all rows, or else its mean over the windows; before the first window ends, its last value."""
    whole = run.whole()
    if whole is not None:
        return float(getattr(whole, key)) if hasattr(whole, key) else run.mean_of_windows(key)
    values = run.column(key)
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else math.nan


def _bad_rows(span: WindowSpan) -> float:
    counts = (span.value("dropped"), span.value("quarantined"))
    return sum(count for count in counts if math.isfinite(count))


def _quality_lead(run: RunData) -> str:
    text = "Every row is predicted before it is trained on, so all numbers are on unseen rows."
    if run.windows:
        ne, best = run.windows[-1].value("ne"), run.windows[-1].value("best_ne")
        if math.isfinite(ne) and math.isfinite(best) and best < 1:
            reached = 100 * (1 - ne) / (1 - best)
            text += f" The last window achieves {reached:.0f} % of the possible entropy reduction."
    return text


def _speed_lead(run: RunData) -> str:
    shares = sorted(time_shares(run), key=lambda part: -part[2])[:3]
    if not shares:
        return ""
    return "Most of a step is " + ", ".join(f"{label} ({100 * share:.0f} %)" for label, _, share in shares) + "."


def _tuning_lead(run: RunData) -> str:
    """The pipeline's last known bottleneck, and how often the tuner made changes."""
    changes = sum(bool(decision.change) for decision in run.decisions if decision.who == "tuner")
    texts = [f"The tuner made {changes} change{'s' * (changes != 1)}."] if changes else []
    found = [decision for decision in run.decisions if decision.who == "explain"]
    if found:
        texts.append(f"At the end, {found[-1].reason}; {found[-1].snapshot.get('help', '')}".rstrip("; ") + ".")
    return " ".join(texts)


def _share_bar(run: RunData) -> str:
    shares = time_shares(run)
    if not shares:
        return ""
    bar = "".join(f'<i class="{color}" style="flex:{share:.4f}"></i>' for _, color, share in shares)
    legend = "".join(
        f'<li><i class="area {color}"></i>{escape(label)} <b>{100 * share:.1f} %</b></li>'
        for label, color, share in shares
    )
    return (
        '<div class="card split"><p><b>Share of the trainer\'s time</b> <span>over the whole run</span>'
        f'</p><div class="shares">{bar}</div><ul class="legend">{legend}</ul></div>'
    )


def _window_table(run: RunData) -> str:
    windows, whole = list(run.windows), run.whole()

    def count(value: float) -> str:
        return f"{value:,.0f}"

    def metric(value: float) -> str:
        return f"{value:.4f}"

    def number(value: float) -> str:
        return f"{value:.5g}"

    columns = [
        ("rows", "rows", count),
        ("seconds", "time", format_duration),
        ("rows_per_s", "rows/s", count),
        ("auc", "AUC", metric),
        ("baseline_auc", "baseline AUC", metric),
        ("log_loss", "log loss", metric),
        ("ne", "NE", metric),
        ("best_ne", "best NE", metric),
        ("calibration", "calibration", metric),
        ("rmse", "RMSE", number),
        ("mae", "MAE", number),
        ("relative_mse", "relative MSE", metric),
        ("bias", "bias", number),
        ("read", "read", count),
        ("filtered", "filtered", count),
        ("dropped", "dropped", count),
        ("quarantined", "quarantined", count),
    ]
    columns = [column for column in columns if any(math.isfinite(span.value(column[0])) for span in windows)]
    head = "".join(f"<th>{title}</th>" for _, title, _ in columns)
    body = []
    for span in windows:
        cells = [f"<td>{escape(span.name)}</td>"]
        for key, title, write in columns:
            value = span.value(key)
            bad = ' class="bad"' if key in ("dropped", "quarantined") and value > 0 else ""
            cells.append(f'<td{bad} data-label="{title}">{write(value) if math.isfinite(value) else "-"}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    if whole is not None and len(windows) > 1:
        cells = [f"<td>{'mean of windows' if whole.is_mean else 'whole run'}</td>"]
        for key, title, write in columns:
            value = float(getattr(whole, key, math.nan))
            cells.append(f'<td data-label="{title}">{write(value) if math.isfinite(value) else "-"}</td>')
        body.append(f'<tr class="total">{"".join(cells)}</tr>')
    head = f"<thead><tr><th>window</th>{head}</tr></thead>"
    table = f'<table class="log windows">{head}<tbody>{"".join(body)}</tbody></table>'
    if len(windows) <= 24:
        return f'<div class="card scroll">{table}</div>'
    summary = count_of(len(windows), "window")
    return f'<details class="card"><summary>{summary}</summary><div class="scroll">{table}</div></details>'


def _deduplication(run: RunData) -> str:
    """The savings from deduplication; empty if there were none."""
    saved = deduplication_rows(run)
    if not saved:
        return ""
    head = "<th>quantity</th><th>without</th><th>with</th><th>factor</th>"
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in saved)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    lead = "Amounts without and with deduplication of repeated values."
    return _section("Deduplication", lead, f'<div class="card scroll">{table}</div>')


def _decision_table(run: RunData) -> str:
    numbers = decision_numbers(run)
    changes, looks = [], []
    for place, decision in enumerate(run.decisions):
        change = decision.changes("→")
        cells = [decision.who, *([change] if change else []), decision.reason]
        texts = "".join(f'<td class="text">{escape(cell)}</td>' for cell in cells)
        row = f"<td>{escape(format_duration(decision.time_s))}</td>{texts}</tr>"
        if change:
            changes.append(f"<tr><td>{numbers[place]}</td>{row}")
        else:
            looks.append(f"<tr>{row}")
    said = '<th>at</th><th class="text">component</th>'
    why = '<th class="text">reason</th>'
    parts = [("change", f'<th></th>{said}<th class="text">change</th>{why}', changes)] if changes else []
    parts += [("check without changes", said + why, looks)] if looks else []
    return "".join(_folded(*part) for part in parts)


def _folded(what: str, head: str, rows: list[str]) -> str:
    """A collapsible table, initially open if it is short and lists changes."""
    shown = rows[-NUM_DECISIONS:]
    named = what if len(rows) == 1 else what.replace("check ", "checks ") if "check" in what else f"{what}s"
    more = f"<span> (the newest {len(shown):,})</span>" if len(shown) < len(rows) else ""
    is_open = " open" if len(shown) <= 12 and "check" not in what else ""
    return (
        f'<details class="card"{is_open}><summary>{len(rows):,} {named}{more}</summary><div class="scroll">'
        f'<table class="log"><thead><tr>{head}</tr></thead><tbody>{"".join(shown)}</tbody></table></div></details>'
    )


def _config(run: RunData) -> str:
    return (
        '<details class="card"><summary>config.yaml <span>as resolved, defaults included</span></summary>'
        f"<pre>{escape(run.config)}</pre></details>"
    )
