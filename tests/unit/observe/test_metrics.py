"""Metrics are declared once."""

from pathlib import Path

import pytest

from headrace.observe.metrics import METRICS, Kind, MetricRegistry


def test_a_name_declared_differently_is_refused_with_both_sides() -> None:
    registry = MetricRegistry()
    first = registry.declare("rows", unit="rows", kind=Kind.COUNTER, description="Rows used.")
    assert registry.declare("rows", unit="rows", kind=Kind.COUNTER, description="Rows used.") is not None
    with pytest.raises(ValueError, match=r"declared twice.*Rows used.*bytes"):
        registry.declare("rows", unit="bytes", kind=Kind.COUNTER, description="Rows used.")
    assert list(registry) == [first]


def test_every_declared_metric_is_explained() -> None:
    assert len(METRICS) > 20
    for metric in METRICS:
        assert metric.description.endswith(".")
        assert f"| `{metric.name}` |" in METRICS.to_markdown()


def test_the_documentation_lists_the_metrics_as_declared() -> None:
    page = Path(__file__).parents[3] / "docs" / "reports.md"
    assert METRICS.to_markdown() in page.read_text(encoding="utf-8")
