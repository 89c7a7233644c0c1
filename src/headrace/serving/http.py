"""`serving_app`: the HTTP interface of a serving process, as an ASGI application; see `docs/serving.md`."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.embeddings.shards.security import ServerSecurity
from headrace.errors import HeadraceError
from headrace.serving.http_bodies import error_answer, read_body
from headrace.serving.metrics import gauges, quality_lines
from headrace.serving.openapi import openapi_of, openapi_page
from headrace.serving.requests import BadRequest
from headrace.serving.scoring_route import ScoringRoute, read_ranking, read_records
from headrace.serving.service import NotReady
from headrace.serving.state import ServingState

__all__ = ["WithToken", "direct_routes", "metrics_text", "serving_app"]

OPEN_ROUTES = ("/healthz", "/readyz")


def direct_routes(state: ServingState) -> dict[str, ScoringRoute]:
    """The routes that are answered without a framework, by path."""
    score, rank = ScoringRoute(state, "score", read_records), ScoringRoute(state, "rank", read_ranking)
    return {"/v1/score": score, "/v1/rank": rank}


def serving_app(state: ServingState) -> ASGIApp:
    """The application."""
    score, rank = direct_routes(state).values()

    async def model(_: Request) -> Response:
        return _json({**state.main.describe(), "models": list(state.models)})

    async def models(_: Request) -> Response:
        return _json(_describe(state))

    async def labels(request: Request) -> Response:
        return _json(_add_labels(state, await read_body(request.receive, state.limits)))

    async def openapi(_: Request) -> Response:
        return _json(openapi_of(state.main.service.model))

    async def page(_: Request) -> Response:
        return HTMLResponse(openapi_page(openapi_of(state.main.service.model)))

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        return _ready(state)

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(metrics_text(state), media_type="text/plain; version=0.0.4")

    routes = [
        Route("/v1/score", score, methods=["POST"]),
        Route("/v1/rank", rank, methods=["POST"]),
        Route("/v1/models/{model}/score", score, methods=["POST"]),
        Route("/v1/models/{model}/rank", rank, methods=["POST"]),
        Route("/v1/model", model),
        Route("/v1/models", models),
        Route("/v1/labels", labels, methods=["POST"]),
        Route("/openapi.json", openapi),
        Route("/docs", page),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
    ]
    handlers = {404: _not_found, 405: _wrong_method, HeadraceError: _refused}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


class WithToken:
    """An ASGI application whose callers need the server's token, except for `/healthz` and `/readyz`.

    Args:
        app: The application.
        security: The token; without one, everyone may call.
    """

    def __init__(self, app: ASGIApp, security: ServerSecurity) -> None:
        self._app, self._security = app, security

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and self._security.token is not None and scope["path"] not in OPEN_ROUTES:
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not self._security.accepts(given.decode("latin-1")):
                answer = _json({"error": "authorization: expected the header Authorization: Bearer TOKEN"}, 401)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def metrics_text(state: ServingState) -> str:
    """All metrics in the text format of Prometheus."""
    values = {name: model.metrics() for name, model in state.models.items()}
    lines = [*state.counters.to_prometheus(), *gauges(values), *quality_lines(state.feedback.quality())]
    return "\n".join(lines) + "\n"


def _describe(state: ServingState) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for name, model in state.models.items():
        try:
            described[name] = model.describe()
        except NotReady as error:
            described[name] = {"name": name, "error": str(error)}
    traffic = {"main": state.traffic.main, "split": dict(state.traffic.shares), "shadow": list(state.traffic.shadows)}
    return {"models": described, "traffic": traffic, "quality": state.feedback.quality()}


def _add_labels(state: ServingState, body: bytes) -> dict[str, int]:
    try:
        values = orjson.loads(body)
    except ValueError as error:
        raise BadRequest(f"body: is not JSON: {error}") from error
    entries = values.get("labels") if isinstance(values, dict) else None
    if not isinstance(entries, list) or not all(isinstance(each, dict) and "request" in each for each in entries):
        raise BadRequest('body: expected {"labels": [{"request": ID, "LABEL": [VALUE, ...]}, ...]}')
    joined = [state.feedback.add(str(each.pop("request")), each) for each in entries]
    return {"rows": sum(joined), "unknown_requests": joined.count(0)}


def _ready(state: ServingState) -> Response:
    if state.is_draining:
        return PlainTextResponse("the server is stopping\n", 503)
    try:
        return PlainTextResponse(f"version {state.main.service.model.version}\n")
    except NotReady as error:
        return PlainTextResponse(f"{error}\n", 503)


def _json(values: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(values), status, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    status, headers, body = error_answer(error)
    return Response(body, status, {name.decode(): value.decode() for name, value in headers})


async def _not_found(request: Request, error: Exception) -> Response:
    return _json({"error": f"{request.url.path[:200]}: no such route; the routes are in /openapi.json"}, 404)


async def _wrong_method(request: Request, error: Exception) -> Response:
    return _json({"error": f"{request.url.path[:200]}: does not take {request.method[:20]}"}, 405)
