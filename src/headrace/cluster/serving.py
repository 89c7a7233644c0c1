"""`serve_models`: main function of a process that answers requests."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from headrace.cluster.followed_model import FollowedModel, ModelSource, ScoringOptions
from headrace.cluster.shards import stop_signals
from headrace.embeddings.shards.security import ServerSecurity, split_address
from headrace.errors import HeadraceError
from headrace.publishing.replica_actions import replica_actions
from headrace.publishing.server import PublicationServer
from headrace.serving.feedback import Feedback
from headrace.serving.http import WithToken, serving_app
from headrace.serving.http_bodies import RequestLimits
from headrace.serving.state import ServingState
from headrace.serving.traffic import Traffic

__all__ = ["READY", "ServeOptions", "serve_models"]

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
        replica_listen: HOST:PORT of the main model, for other replicas and for `headrace rollback`; None for none.
        address: HOST:PORT by which other replicas know this one; None for `replica_listen`.
        traffic: Which model answers a request.
        drain_s: Seconds from a signal to stop until the server takes no more requests.
        scoring: How models are scored.
        requests: Limits of requests.
        security: Token and TLS.
        tls_cert, tls_key: Files of the certificate chain and its private key.
    """

    listen: str
    traffic: Traffic
    replica_listen: str | None = None
    address: str | None = None
    drain_s: float = 0.0
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    requests: RequestLimits = field(default_factory=RequestLimits)
    security: ServerSecurity = field(default_factory=ServerSecurity)
    tls_cert: Path | None = None
    tls_key: Path | None = None


def serve_models(sources: Sequence[ModelSource], options: ServeOptions, *, on_message: Callable[[str], None]) -> None:
    """Follow published models, and answer requests until SIGTERM, SIGINT or SIGHUP; then exit.

    Args:
        sources: The models, the main one first.
        options: How to serve.
        on_message: Called with a line for each event.

    Raises:
        HeadraceError: An address is in use, or a folder cannot be used.
    """
    stop = stop_signals()
    address = options.address or options.replica_listen or options.listen
    models = {each.name: FollowedModel(each, address, options.scoring, on_message=on_message) for each in sources}
    feedback = Feedback(on_labels=lambda model, *labels: models[model].replica.feed_back(*labels))
    state = ServingState(
        {name: each.named for name, each in models.items()}, options.traffic, feedback, options.requests
    )
    with ExitStack() as stack:
        listener = stack.enter_context(_listener(options.listen, options.security))
        if options.replica_listen is not None:
            _answer_replicas(models[options.traffic.main], options, stack)
        for model in models.values():
            model.start(stack)
        server = uvicorn.Server(_uvicorn_config(WithToken(serving_app(state), options.security), options))
        answering = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        answering.start()
        scheme = "http" if options.tls_key is None else "https"
        on_message(f"{READY}{scheme}://{_written(*listener.getsockname()[:2])}")
        sys.stdout.flush()
        os.read(stop, 1)
        state.is_draining = True
        time.sleep(options.drain_s)
        server.should_exit = True
        answering.join(options.requests.answer_s)
        for model in models.values():
            model.named.service.batcher.drain(options.requests.answer_s)
    with suppress(OSError):  # the terminal is gone
        sys.stdout.flush()
    os._exit(0)  # calls to sources may take long, and files appear by renames


def _answer_replicas(model: FollowedModel, options: ServeOptions, stack: ExitStack) -> None:
    """Serve the versions of a model to other replicas, with the actions of a replica."""
    assert options.replica_listen is not None
    server = PublicationServer(
        model.folder, options.replica_listen, security=options.security, actions=replica_actions(model.replica)
    )
    stack.enter_context(server)
    host, _ = split_address(options.replica_listen)
    where = _written(host, server.port)
    model.named.read_status = lambda: {"replica": where, **model.replica.status()}


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
