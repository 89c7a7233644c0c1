"""The timeline of scheduled steps in the report."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from headrace.observe.timeline import draw_timeline, read_schedule, timeline_lead


def span(kind: str, step: int, lane: str, start_s: float, end_s: float, group: int = -1) -> dict[str, Any]:
    return {
        "kind": kind,
        "step": step,
        "group": group,
        "lane": lane,
        "start_s": start_s,
        "end_s": end_s,
        "num_bytes": 5000,
        "reason": "it < was & due",
    }


def steps(count: int) -> dict[str, Any]:
    """Steps of 10 ms: dense 4 ms, push 2 ms, pull 4 ms, of which features hide 3 ms."""
    spans = []
    for step in range(count):
        at = 0.010 * step
        spans += [
            span("dense", step, "trainer", at, at + 0.004),
            span("push", step, "network", at + 0.004, at + 0.006),
            span("pull", step + 1, "network", at + 0.006, at + 0.010, group=0),
            span("pull", step + 1, "network", at + 0.007, at + 0.010, group=1),
            span("features", step + 2, "cpu 0", at + 0.006, at + 0.009, group=1),
        ]
    return {"policy": "recs", "spans": spans}


def test_the_drawing_is_well_formed_and_names_what_ran_and_why() -> None:
    html = draw_timeline(steps(8))
    svg = ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    titles = [title.text or "" for title in svg.iter("title")]
    assert any(
        title.startswith("features 1 of step") and title.endswith("3.00 ms, 5 kB: it < was & due") for title in titles
    )
    assert {text.text for text in svg.iter("text")} >= {"trainer", "cpu 0", "pulls", "pushes"}


def test_only_the_latest_steps_are_drawn() -> None:
    html = draw_timeline(steps(8))
    assert "dense of step 7" in html
    assert "dense of step 4" in html
    assert "dense of step 3" not in html


def test_transfers_that_overlap_lie_in_lanes_of_their_own() -> None:
    html = draw_timeline(steps(8))
    svg = ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    pulls = [group for group in svg.iter("g") if (group.findtext("title") or "").startswith("pull")]
    heights = {rect.get("y") for group in pulls for rect in group.iter("rect")}
    assert len(heights) == 2


def test_the_lead_tells_what_share_of_transfers_is_hidden() -> None:
    lead = timeline_lead(steps(8))
    assert lead.startswith("The latest 4 steps under recs, ")
    assert "overlapped with other work" in lead
    # Three of the four steps have their pulls on the drawing: of 20 ms, features run beside 3 x 3 ms.
    assert "transfers took 20.0 ms, 45% of it" in lead


def test_a_run_without_whole_steps_has_no_timeline(tmp_path: Path) -> None:
    assert draw_timeline({"policy": "recs", "spans": []}) == ""
    assert read_schedule(tmp_path) is None
    (tmp_path / "schedule.json").write_text(json.dumps(steps(2)))
    assert read_schedule(tmp_path) == steps(2)
