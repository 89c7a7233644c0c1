"""`NodeModel`: a model of a serving process whose rows are in memory nodes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from headrace.cluster.followed_model import ScoringOptions, template_of, tuner_of
from headrace.publishing.client import PublicationClient
from headrace.serving.rows.following import NodeFollower
from headrace.serving.rows.memory_nodes import MemoryNodes
from headrace.serving.service import ScoringService
from headrace.serving.state import NamedModel

__all__ = ["NodeModel", "NodeSource"]


@dataclass(frozen=True)
class NodeSource:
    """A model whose rows are elsewhere.

    Attributes:
        name: Its name in paths and metrics.
        path: Folder for the dense parameters of the newest version.
        nodes: Replicas that have its rows.
        cache_bytes: Bytes of rows to keep here.
    """

    name: str
    path: Path
    nodes: Sequence[PublicationClient]
    cache_bytes: int


class NodeModel:
    """A follower of memory nodes, and the service that scores.

    Args:
        source: The model.
        options: How it is scored.
        on_message: Called with a line for each event.

    Attributes:
        named: The model for the routes.
    """

    def __init__(self, source: NodeSource, options: ScoringOptions, *, on_message: Callable[[str], None]) -> None:
        self._source, self._options = source, options
        service = ScoringService(num_threads=options.threads)
        self._follower = NodeFollower(
            MemoryNodes(source.nodes),
            service,
            source.path / "dense",
            cache_bytes=source.cache_bytes,
            make_template=lambda text: template_of(text, trusts=False),
            on_message=on_message,
        )
        self.named = NamedModel(source.name, service, self._follower.status)

    def start(self, stack: ExitStack) -> None:
        """Start the threads, which end when the stack is closed."""
        stopping = threading.Event()
        stack.callback(stopping.set)
        self.named.service.start()
        stack.enter_context(tuner_of(self.named.service, self._options, self._source.path))
        threading.Thread(target=self._follower.run, args=(stopping,), daemon=True).start()
