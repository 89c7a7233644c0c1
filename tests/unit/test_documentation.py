"""The pages hang together: every link leads somewhere, and the index names every page."""

import re
from pathlib import Path

import pytest
import yaml

from headrace.cli.demo import JOB

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_or_heading_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(place), f"{page.name}: {target}"


def test_the_index_names_every_page() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {name for name in pages if f"]({name})" not in text} == set()


def test_the_quickstart_shows_the_job_of_the_demo() -> None:
    (job,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "quickstart.md").read_text(), re.DOTALL)
    assert yaml.safe_load(job) == yaml.safe_load(JOB.format(job="job.yaml"))


def test_following_one_row_passes_each_file_once_and_finds_the_functions_named() -> None:
    text = (ROOT / "docs" / "follow-one-row.md").read_text(encoding="utf-8")
    for way in text.split("\n## "):  # to the embeddings, and to the answer of a request
        rows = re.findall(r"^\| (\d+) \| `([^`]+)` \| ([^|]+) \|", way, re.MULTILINE)
        assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))
        assert 0 < len(rows) <= 20
        assert len({file for _, file, _ in rows}) == len(rows)
        for _, file, functions in rows:
            check_functions(file, functions)


def check_functions(file: str, functions: str) -> None:
    code = (ROOT / "src" / "headrace" / file).read_text(encoding="utf-8")
    for name in re.findall(r"`([^`]+)`", functions):
        *owner, function = name.split(".")
        assert re.search(rf"^ *(async )?def {function}\(", code, re.MULTILINE), f"{file}: no function {name}"
        assert not owner or re.search(rf"^class {owner[0]}\b", code, re.MULTILINE), f"{file}: no class {owner[0]}"


def test_files_that_design_notes_and_the_contributors_page_name_exist() -> None:
    folders = ("src", "tests", "scripts", "benchmarks", "examples", "recipes")
    files = [path.as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for page in (ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/design/*.md")):
        for name in re.findall(r"`([\w/]+\.py)`", page.read_text(encoding="utf-8")):
            assert any(file.endswith(f"/{name}") for file in files), f"{page.name} names {name}"
