"""HTML pages with plots: self-contained, with the style sheet and the script of the run report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from headrace.observe.plots import Plot, render_plot
from headrace.observe.report_assets import SCRIPT, STYLE

__all__ = ["html_page", "plot_page"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content security policy of a page, with which the browser refuses to load external resources."""


def html_page(title: str, body: str) -> str:
    """A page.

    Args:
        title: Title, as text.
        body: HTML.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · headrace</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def plot_page(title: str, lead: str, plots: Sequence[Plot]) -> str:
    """A page with a heading, a line below it, and plots."""
    heading = f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>'
    return html_page(title, f'{heading}<div class="grid">{"".join(map(render_plot, plots))}</div>')
