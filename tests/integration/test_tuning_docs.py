"""The code on the pages about tuning runs; blocks marked "no-run" need a pipeline of the reader's."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["tuning.md", "adding-a-policy.md"])
def test_the_code_of_a_page_runs(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    if "gymnasium" in text.lower():
        pytest.importorskip("gymnasium")
    for block in blocks:
        exec(compile(block, page, "exec"), names)
