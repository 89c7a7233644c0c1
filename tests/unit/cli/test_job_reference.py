"""The page on the job file: its tables are up to date and complete, and its examples are accepted."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from headrace.training import JobConfig

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "job-file.md"


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_the_reference_is_up_to_date(text: str) -> None:
    wanted = runpy.run_path(str(ROOT / "scripts" / "job_reference.py"))["with_reference"](text)
    assert text == wanted, "run: python scripts/job_reference.py"


def test_every_key_has_a_meaning(text: str) -> None:
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row[0] for row in rows if not row[-1].strip(" |")] == []


def test_every_link_leads_to_a_heading(text: str) -> None:
    headings = {re.sub(r"[^\w-]", "", line.lstrip("# ").lower()) for line in text.splitlines() if line.startswith("#")}
    links = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert "embeddingsdefaultoptimizer" in links
    assert links <= headings


def test_the_examples_are_accepted(text: str) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        JobConfig.from_dict(yaml.safe_load(example), where="page")
