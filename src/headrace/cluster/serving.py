"""`serve_model`: main function of a process that answers requests."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from headrace.cluster.shards import stop_signals
from headrace.config import parse_yaml
from headrace.embeddings.shards.security import ServerSecurity, split_address
from headrace.errors import HeadraceError
from headrace.observe.decisions import DecisionLog
from headrace.publishing.download import Source
from headrace.publishing.guard import GuardLimits
from headrace.publishing.publications import JOB, PublicationFolder
from headrace.publishing.replica import Replica
from headrace.publishing.replica_actions import replica_actions
from headrace.publishing.server import PublicationServer
from headrace.serving.following import ModelFollower
from headrace.serving.http import ServingLimits, ServingState, WithToken, serving_app
from headrace.serving.model import ModelTemplate
from headrace.serving.service import ScoringService
from headrace.serving.tuning import PromisePolicy, ServingJob
from headrace.training.job import JobConfig
from headrace.tuning.loop import Tuner
from headrace.user_code import no_imports

__all__ = ["READY", "ServeOptions", "serve_model"]

READY = "serve: answering on "
"""Prefix of the line with the URL, which a parent process may read."""
BACKLOG = 2048
IDLE_S = 60
"""Seconds after which an idle connection is closed."""


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Attributes:
        listen: HOST:PORT of HTTP.
        promise_s: Seconds within which 99 % of requests are to be answered.
        most_rows: Maximum rows of a batch.
        threads: Threads that score.
        drain_s: Seconds from a signal to stop until the server takes no more requests.
        replica_listen: HOST:PORT for other replicas and for `headrace rollback`; None for none.
        keep: Versions to keep on disk.
        in_memory: Versions in memory.
        limits: Limits of the guard.
        trusts_jobs: Whether a job may name code to import.
        requests: Limits of requests.
        security: Token and TLS.
        tls_cert, tls_key: Files of the certificate chain and its private key.
    """

    listen: str
    promise_s: float = 0.02
    most_rows: int = 2048
    threads: int = 1
    drain_s: float = 0.0
    replica_listen: str | None = None
    keep: int = 100
    in_memory: int = 10
    limits: GuardLimits | None = None
    trusts_jobs: bool = False
    requests: ServingLimits = field(default_factory=ServingLimits)
    security: ServerSecurity = field(default_factory=ServerSecurity)
    tls_cert: Path | None = None
    tls_key: Path | None = None


def serve_model(
    path: Path, sources: Sequence[Source], options: ServeOptions, *, on_message: Callable[[str], None]
) -> None:
    """Follow a published model, and answer requests until SIGTERM, SIGINT or SIGHUP.

    Args:
        path: Folder of its versions.
        sources: From whom versions are fetched.
        options: How to serve.
        on_message: Called with a line for each event.

    Raises:
        HeadraceError: An address is in use, or the folder cannot be used.
    """
    stop = stop_signals()
    folder = PublicationFolder(path, keep=options.keep)
    address = options.replica_listen or options.listen
    replica = Replica(
        folder, sources, address=address, keep=options.in_memory, limits=options.limits, on_message=on_message
    )
    replica.restore()
    service = ScoringService(num_threads=options.threads)
    follower = ModelFollower(
        replica.tables,
        service,
        read_job=lambda version: (folder.place(version) / JOB).read_text(encoding="utf-8"),
        make_template=lambda text: _template(text, trusts=options.trusts_jobs),
        on_message=on_message,
    )
    stopping = threading.Event()
    with ExitStack() as stack:
        listener = stack.enter_context(_listener(options.listen, options.security))
        status = replica.status
        if options.replica_listen is not None:
            actions = replica_actions(replica)
            flight = PublicationServer(folder, options.replica_listen, security=options.security, actions=actions)
            stack.enter_context(flight)
            host, _ = split_address(options.replica_listen)
            where = f"{f'[{host}]' if ':' in host else host}:{flight.port}"
            status = lambda: {"replica": where, **replica.status()}  # noqa: E731
        state = ServingState(service, status, options.requests)
        app = WithToken(serving_app(state), options.security)
        service.start()
        stack.enter_context(_tuner(service, options, path))
        for run in (replica.run, follower.run):
            threading.Thread(target=run, args=(stopping,), daemon=True).start()
        server = uvicorn.Server(_uvicorn_config(app, options))
        answering = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        answering.start()
        host, port = listener.getsockname()[:2]
        scheme = "http" if options.tls_key is None else "https"
        on_message(f"{READY}{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
        sys.stdout.flush()
        os.read(stop, 1)
        state.is_draining = True
        time.sleep(options.drain_s)
        server.should_exit = True
        answering.join(options.requests.answer_s)
        service.batcher.drain(options.requests.answer_s)
        stopping.set()
    with suppress(OSError):  # the terminal is gone
        sys.stdout.flush()
    os._exit(0)  # calls to sources may take long, and files appear by renames


def _tuner(service: ScoringService, options: ServeOptions, path: Path) -> Tuner:
    """Tunes the service, and records in `decisions.jsonl` what it changes, and why."""
    job = ServingJob(service.batcher, most_rows=options.most_rows, num_threads=options.threads)
    policy = PromisePolicy(options.promise_s, most_rows=options.most_rows)
    return Tuner(job, policy, decisions=DecisionLog(path / "decisions.jsonl"))


def _template(text: str, *, trusts: bool) -> ModelTemplate:
    with nullcontext() if trusts else no_imports():
        return ModelTemplate(JobConfig.from_dict(parse_yaml(text, where=JOB), where=JOB))


def _listener(listen: str, security: ServerSecurity) -> socket.socket:
    host, port = split_address(listen)
    security.check(host)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise HeadraceError(f"--listen {listen}: {error.strerror}") from error
    return listener


def _uvicorn_config(app: Any, options: ServeOptions) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=int(options.requests.answer_s),
    )
