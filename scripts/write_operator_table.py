"""Writes the generated table of operators into docs/features.md; `--check` only says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from headrace.features.registry import operator_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "features.md"
BEGIN = "<!-- operators: written by scripts/write_operator_table.py -->"
END = "<!-- end of operators -->"


def with_table(text: str) -> str:
    """The page with the table as it should be."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{operator_table()}\n\n{END}{after}"


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    wanted = with_table(text)
    if "--check" in sys.argv[1:]:
        if text != wanted:
            print(f"{PAGE} is out of date; run: python scripts/write_operator_table.py")
            return 1
        return 0
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
