"""`BoundedLoader`: loads plain YAML literally, and refuses files that are too large or too deep.

YAML 1.1 silently changes values: of two equal keys the last one wins, `no` is false, `010` is 8, `1:30` is 90 and
`2024-01-01` is a date. This loader refuses duplicate keys and numbers with a leading 0. As in YAML 1.2, only `true` and
`false` are Boolean, and times and dates are text. Boolean config fields still accept `yes`, `no`, `on` and `off`.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["AmbiguousYAML", "BoundedLoader"]

MAX_DEPTH = 64
"""Maximum nesting depth, because PyYAML recurses; a job or schema needs six levels."""

MAX_ALIASED_VALUES = 100_000
"""Maximum values of a file with all aliases expanded. Nine lines of nested aliases can expand to a billion values."""


TAG = "tag:yaml.org,2002:"
PLAIN = {
    f"{TAG}bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
    f"{TAG}int": re.compile(r"^(?:[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*))$"),
    f"{TAG}float": re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}
"""Patterns of unquoted values that are not text. There are fewer than in PyYAML, so text that it writes is read as
text."""
TEXT = (f"{TAG}timestamp", f"{TAG}value")
"""Values that PyYAML interprets as dates, or as a default value (`=`), are text."""
BEGINS_WITH_0 = re.compile(r"[-+]?0[0-9_]+")


class AmbiguousYAML(yaml.MarkedYAMLError):
    """Valid YAML that may be misunderstood."""


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with limits and literal values; violations are reported as YAML errors."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as PyYAML declares it)
        first: [(tag, PLAIN.get(tag, pattern)) for tag, pattern in resolvers if tag not in TEXT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._num_values = 0  # composed so far, with aliases expanded
        self._sizes: dict[int, int] = {}  # id of a finished node -> its values, with aliases expanded

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """See PyYAML; called for each node of the document."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            self._num_values += self._size_of(node, mark)
            if self._num_values > MAX_ALIASED_VALUES:
                raise _refusal(f"its aliases expand to more than {MAX_ALIASED_VALUES:,} values", mark)
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

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """See PyYAML; called for each value that is not a collection."""
        node = super().compose_scalar_node(anchor)
        if node.tag == f"{TAG}int" and BEGINS_WITH_0.fullmatch(node.value):
            bare = node.value.replace("_", "").lstrip("+-0") or "0"
            raise AmbiguousYAML(
                problem=f"given {node.value}, expected a number without a leading 0: write {bare} for a decimal "
                f"number, or '{node.value}' in quotes for text",
                problem_mark=node.start_mark,
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """See PyYAML; called for each mapping."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        marks: dict[Any, yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused by PyYAML, because keys must be hashable
            mark = marks.setdefault((key.tag, key.value), key.start_mark)
            if mark is not key.start_mark:
                problem = f"the key {key.value!r} is given twice, first on line {mark.line + 1}"
                raise AmbiguousYAML(problem=problem, problem_mark=key.start_mark)
        return node

    def _size_of(self, node: yaml.Node | None, mark: yaml.Mark) -> int:
        if id(node) not in self._sizes:
            raise _refusal("an alias inside the value that it refers to", mark)
        return self._sizes[id(node)]


def _refusal(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.composer.ComposerError(problem=problem, problem_mark=mark)
