"""Traces: what is kept, and Chrome's format."""

import json
from pathlib import Path

from headrace.scheduling.graph import Kind, Operator
from headrace.scheduling.trace import Span, Trace, chrome_trace, write_chrome_trace


def traced(num_steps: int) -> Trace:
    trace = Trace(num_steps=2)
    for batch in range(num_steps):
        start = 10.0 + batch
        trace.add(Span(Operator(Kind.FEATURES, batch, 1), "cpu 0", start, start + 0.2, "needed", 5))
        trace.add(Span(Operator(Kind.PULL, batch, 1), "network", start + 0.2, start + 0.5, "ready", 7))
        trace.add(Span(Operator(Kind.DENSE, batch), "trainer", start + 0.5, start + 0.9, "all here", 0))
        trace.add(Span(Operator(Kind.PUSH, batch), "network", start + 0.9, start + 1.0, "known", 7))
    return trace


def test_only_the_latest_steps_are_kept() -> None:
    assert {span.operator.batch for span in traced(10).spans()} == {8, 9}


def test_times_count_from_the_first_span() -> None:
    spans = traced(2).to_dict("recs")["spans"]
    assert spans[0] == {
        "kind": "features",
        "step": 0,
        "group": 1,
        "part": "",
        "lane": "cpu 0",
        "start_s": 0.0,
        "end_s": 0.2,
        "num_bytes": 5,
        "reason": "needed",
    }


def test_chrome_trace_has_a_named_lane_for_each_thread_and_kind_of_transfer(tmp_path: Path) -> None:
    trace = traced(2)
    trace.write(tmp_path / "trace.json", "recs")
    write_chrome_trace(json.loads((tmp_path / "trace.json").read_text()), tmp_path / "chrome.json")
    events = json.loads((tmp_path / "chrome.json").read_text())["traceEvents"]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert set(lanes.values()) == {"cpu 0", "network pull 1", "trainer", "network push"}
    dense = next(event for event in events if event["name"] == "dense of step 1")
    assert (dense["ph"], round(dense["ts"]), round(dense["dur"])) == ("X", 1_500_000, 400_000)
    assert dense["args"]["reason"] == "all here"
    assert all(event["tid"] in lanes for event in events if event["ph"] == "X")


def test_a_trace_without_spans_is_empty() -> None:
    assert chrome_trace(Trace().to_dict("serial")["spans"], "serial")["traceEvents"][0]["ph"] == "M"
