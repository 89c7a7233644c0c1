"""`serve_models`: main function of a process that answers requests."""

from __future__ import annotations

import asyncio
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
import uvloop

from headrace.cluster.followed_model import FollowedModel, ModelSource, ScoringOptions
from headrace.cluster.node_model import NodeModel, NodeSource
from headrace.cluster.shards import stop_signals
from headrace.embeddings.shards.security import ServerSecurity, split_address
from headrace.errors import HeadraceError
from headrace.publishing.replica_actions import replica_actions
from headrace.publishing.row_service import row_actions
from headrace.publishing.server import PublicationServer
from headrace.serving.feedback import Feedback
from headrace.serving.http import WithToken, direct_routes, serving_app
from headrace.serving.http_bodies import RequestLimits
from headrace.serving.inline import InlineScoring
from headrace.serving.mailbox import Mailbox
from headrace.serving.protocol import scoring_protocol
from headrace.serving.service import use_one_thread
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


def serve_models(
    sources: Sequence[ModelSource | NodeSource], options: ServeOptions, *, on_message: Callable[[str], None]
) -> None:
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
    followed: dict[str, FollowedModel] = {}
    models: dict[str, FollowedModel | NodeModel] = {}
    for each in sources:
        if isinstance(each, NodeSource):
            models[each.name] = NodeModel(each, options.scoring, on_message=on_message)
        else:
            model = FollowedModel(each, address, options.scoring, on_message=on_message)
            models[each.name] = followed[each.name] = model

    def on_labels(name: str, version: int, predictions: Any, labels: Any) -> None:
        if name in followed:
            followed[name].replica.feed_back(version, predictions, labels)

    feedback = Feedback(on_labels=on_labels)
    state = ServingState(
        {name: each.named for name, each in models.items()}, options.traffic, feedback, options.requests
    )
    with ExitStack() as stack:
        listener = stack.enter_context(_listener(options.listen, options.security))
        if options.replica_listen is not None:
            _answer_replicas(followed[options.traffic.main], options, stack)
        for started in models.values():
            started.start(stack)
        server = uvicorn.Server(_uvicorn_config(state, options))
        answering = threading.Thread(target=_answer_http, args=(server, listener, state), daemon=True)
        answering.start()
        scheme = "http" if options.tls_key is None else "https"
        on_message(f"{READY}{scheme}://{_written(*listener.getsockname()[:2])}")
        sys.stdout.flush()
        os.read(stop, 1)
        state.is_draining = True
        time.sleep(options.drain_s)
        server.should_exit = True
        answering.join(options.requests.answer_s)
        for started in models.values():
            started.named.service.batcher.drain(options.requests.answer_s)
    with suppress(OSError):  # the terminal is gone
        sys.stdout.flush()
    os._exit(0)  # calls to sources may take long, and files appear by renames


def _answer_replicas(model: FollowedModel, options: ServeOptions, stack: ExitStack) -> None:
    """Serve the versions of a model to other replicas, with the actions of a replica."""
    assert options.replica_listen is not None
    server = PublicationServer(
        model.folder,
        options.replica_listen,
        security=options.security,
        actions=replica_actions(model.replica),
        raw_actions=row_actions(model.replica.tables),
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


def _answer_http(server: uvicorn.Server, listener: socket.socket, state: ServingState) -> None:
    """Run the event loop, in which models without threads of their own score."""

    async def answer() -> None:
        loop = asyncio.get_running_loop()
        if any(model.service.batcher.num_threads for model in state.models.values()):
            state.mailbox = Mailbox(loop)
        for model in state.models.values():
            if model.service.batcher.num_threads == 0:
                InlineScoring(model.service.batcher, loop)
        await server.serve(sockets=[listener])

    use_one_thread()
    uvloop.run(answer())


def _uvicorn_config(state: ServingState, options: ServeOptions) -> uvicorn.Config:
    routes = {path.encode(): route for path, route in direct_routes(state).items()}
    return uvicorn.Config(
        WithToken(serving_app(state), options.security),
        http=scoring_protocol(routes, options.requests, options.security),
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
