"""`followed_run`: the versions of a run on this machine, as a source, also if the run has only checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.publishing.config import PublishConfig
from headrace.publishing.local_source import LocalSource
from headrace.publishing.publications import PublicationFolder
from headrace.training.checkpoint_publisher import CheckpointPublisher, publishes_itself
from headrace.training.run_folder import RunFolder, find_run

__all__ = ["followed_run"]

POLL_S = 0.5


def followed_run(run: str | Path, *, on_message: Callable[[str], object]) -> tuple[Path, LocalSource]:
    """The folder of a run, and its versions as a source.

    Checkpoints of a run that does not publish are published by a thread, unless another process does so.

    Args:
        run: What the user named, see `find_run`.
        on_message: Called with a line for each event.

    Raises:
        ConfigError: There is no such run.
    """
    folder = find_run(run)
    source = LocalSource(PublicationFolder(RunFolder(folder).publications))
    if not publishes_itself(folder):
        try:
            publisher = CheckpointPublisher(folder, PublishConfig())
        except HeadraceError as error:
            on_message(f"follows what another process publishes: {error}")
            return folder, source
        threading.Thread(target=_publish, args=(publisher, on_message), daemon=True).start()
    return folder, source


def _publish(publisher: CheckpointPublisher, on_message: Callable[[str], object]) -> None:
    pause = threading.Event()
    while True:
        version, lines = publisher.step()
        for line in lines:
            on_message(line)
        if version is not None:
            on_message(f"published version {version.version}: step {version.step:,}, {version.rows_changed:,} rows")
        pause.wait(POLL_S)
