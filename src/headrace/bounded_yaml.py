"""`BoundedLoader`: plain YAML values, without files that are small to write and too large, or too deep, to read."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["BoundedLoader"]

MAX_DEPTH = 64
"""Nesting; PyYAML recurses, and a job or schema needs six levels."""

MAX_ALIASED_VALUES = 100_000
"""Values of a file with every alias written out. Nine lines of aliases of aliases stand for a billion values."""


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader with a limit on nesting and on what aliases stand for; refuses as for a mistake in YAML."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._num_values = 0  # composed so far, aliases written out
        self._sizes: dict[int, int] = {}  # id of a finished node -> its values, aliases written out

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """See PyYAML; called for each node of the document."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            self._num_values += self._size_of(node, mark)
            if self._num_values > MAX_ALIASED_VALUES:
                raise _refusal(f"its aliases stand for more than {MAX_ALIASED_VALUES:,} values", mark)
            return node
        if self._depth == MAX_DEPTH:
            raise _refusal(f"nested more than {MAX_DEPTH} levels deep", mark)
        before = self._num_values
        self._num_values += 1
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[id(node)] = self._num_values - before
        return node

    def _size_of(self, node: yaml.Node | None, mark: yaml.Mark) -> int:
        if id(node) not in self._sizes:
            raise _refusal("an alias inside the value it stands for", mark)
        return self._sizes[id(node)]


def _refusal(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.composer.ComposerError(problem=problem, problem_mark=mark)
