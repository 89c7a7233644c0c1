"""Requests while versions change: whether each answer is wholly of one version, counted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headrace.embeddings import embedding_bags
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.publishing.served_tables import ServedTables, ServedVersion
from headrace.serving.model import ModelTemplate
from headrace.serving.service import Answer, Question, ScoringService
from headrace.training import JobConfig
from headrace.training.commits import table_group_name
from headrace.training.components import build_components

__all__ = ["Swaps", "requests_under_swaps"]

IN_FLIGHT = 256


@dataclass
class Swaps:
    """Counts.

    Attributes:
        requests, errors, torn: Requests, those that failed, and those with scores that are not those of their version.
        swaps, rollbacks: Versions taken into use, and those of them that are earlier ones.
    """

    requests: int = 0
    errors: int = 0
    torn: int = 0
    swaps: int = 0
    rollbacks: int = 0


def requests_under_swaps(
    job: JobConfig,
    rows: pa.RecordBatch,
    *,
    requests: int,
    swaps: int,
    rollbacks: int,
    on_request: Callable[[int], object],
) -> Swaps:
    """Ask for scores of `rows` as fast as they come, while a thread applies versions in which every row and every dense
    parameter changes.

    Args:
        job: A job with direct tables.
        rows: A few rows, scored in each request.
        requests, swaps, rollbacks: How many.
        on_request: Called now and then with the number of requests answered since.
    """
    template = ModelTemplate(job)
    tables, service, counts = ServedTables(keep=rollbacks + 2), ScoringService(num_threads=1), Swaps()
    expected: dict[int, bytes] = {}
    writer = _Writer(template, tables, service, rows, expected)
    writer.write(1)
    service.batcher.most_waiting_rows = 1 << 20
    service.batcher.most_rows = 1024
    service.start()
    room, finished = threading.Semaphore(IN_FLIGHT), threading.Event()

    def change() -> None:
        every = max(requests // (swaps + rollbacks), 1)
        version = 1
        for number in range(1, swaps + rollbacks + 1):
            while counts.requests < number * every and not finished.is_set():
                finished.wait(0.0005)
            if number % max((swaps + rollbacks) // rollbacks, 1) == 0 and counts.rollbacks < rollbacks:
                tables.serve(tables.versions[0])
                counts.rollbacks += 1
                service.use(template.at(tables.view.about, tables.view.read))
            else:
                version += 1
                writer.write(version)
            counts.swaps += 1

    def reply(answer: Answer | Exception) -> None:
        if isinstance(answer, Exception):
            counts.errors += 1
        elif answer.scores.tobytes() != expected[answer.model.version]:
            counts.torn += 1
        counts.requests += 1
        if counts.requests % 1000 == 0:
            on_request(1000)
        room.release()

    changing = threading.Thread(target=change)
    changing.start()
    for _ in range(requests):
        room.acquire()
        service.ask(Question(lambda: rows, rows.num_rows, reply))
    service.batcher.drain(60)
    finished.set()
    changing.join()
    return counts


class _Writer:
    """Applies versions with random numbers everywhere, and records what they score."""

    def __init__(
        self,
        template: ModelTemplate,
        tables: ServedTables,
        service: ScoringService,
        rows: pa.RecordBatch,
        expected: dict[int, bytes],
    ) -> None:
        self._template, self._tables, self._service, self._rows, self._expected = (
            template,
            tables,
            service,
            rows,
            expected,
        )
        module = build_components(template.job).model
        self._bags = {table_group_name(name): bags for name, bags in embedding_bags(module).items()}
        self._dense = {name: value.numpy() for name, value in module.state_dict().items()}
        batch = template.plan.apply(rows).with_keys(template.layouts)
        self._keys = [part.keys for layout in template.layouts for part in batch.keys_of(layout)]

    def write(self, version: int) -> None:
        random = np.random.default_rng(version)
        dense = {name: random.normal(0, 0.1, value.shape).astype(np.float32) for name, value in self._dense.items()}
        blocks, headers = [], {}
        for name, bags in self._bags.items():
            headers[name] = [TableGroupHeader.of(bags.tables, 0)]
            for keys in self._keys:
                weights = random.normal(0, 1, (len(keys), bags.embedding_dim)).astype(np.float32)
                blocks.append((name, "rows", {"tables": keys.tables, "ids": keys.ids, "weights": weights}))
        about = ServedVersion(version, version, 0.0, dense)
        self._tables.apply(about, headers, blocks, everything=True)
        view = self._tables.view
        self._expected[version] = self._template.at(view.about, view.read).score(self._rows).tobytes()
        self._service.use(self._template.at(view.about, view.read))
