"""The description of a server's routes as OpenAPI 3.1, with the columns of its model, and as a page."""

from __future__ import annotations

from html import escape
from typing import Any

from headrace.logs.schema import Schema
from headrace.logs.source import ROW_ID
from headrace.observe.pages import html_page
from headrace.serving.model import ServedModel
from headrace.version import __version__

__all__ = ["openapi_of", "openapi_page"]

ARROW = "application/vnd.apache.arrow.stream"
ERRORS = {
    "400": "not what the route takes",
    "422": "a column or a value is wrong",
    "503": "overloaded, or no version yet",
}


def openapi_of(model: ServedModel) -> dict[str, Any]:
    """The description, as JSON-able values."""
    schema = model.plan.schema
    names = [name for name in model.plan.columns if name != ROW_ID]
    record = {"type": "object", "properties": {name: _type_of(schema, name) for name in names}}
    records = {"type": "array", "items": {"$ref": "#/components/schemas/Record"}}
    scored = {"type": "array", "items": {"type": "number", "format": "float"}}
    scores = {
        "type": "object",
        "properties": {
            "scores": {"type": "object", "properties": dict.fromkeys(model.label_names, scored)},
            "version": {"type": "integer"},
            "age_s": {"type": "number"},
            "request": {"type": "string"},
        },
    }
    ranking = {"context": {"$ref": "#/components/schemas/Record"}, "candidates": records}
    labels = {
        "type": "object",
        "properties": {"request": {"type": "string"}, **dict.fromkeys(model.label_names, scored)},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "headrace",
            "version": __version__,
            "description": "Scores of rows, with the newest version.",
        },
        "paths": {
            "/v1/score": {"post": _scoring("Scores of rows", {"records": records})},
            "/v1/rank": {"post": _scoring("Scores of candidates that share a context", ranking)},
            "/v1/models/{model}/score": {
                "post": _scoring("Scores of rows by one model", {"records": records}, "model")
            },
            "/v1/models/{model}/rank": {"post": _scoring("Scores of candidates by one model", ranking, "model")},
            "/v1/labels": {
                "post": _post("What happened after requests", {"labels": {"type": "array", "items": labels}})
            },
            "/v1/model": {"get": _get("Version, step and age of the main model")},
            "/v1/models": {"get": _get("All models, with their quality on labels")},
            "/healthz": {"get": _get("Whether the process answers")},
            "/readyz": {"get": _get("Whether there is a version, and the server is not about to stop")},
            "/metrics": {"get": _get("Metrics for Prometheus")},
        },
        "components": {"schemas": {"Record": record, "Scores": scores}},
    }


def openapi_page(description: dict[str, Any]) -> str:
    """The description as a page that needs nothing else."""
    routes = "".join(
        f"<tr><td><code>{method.upper()} {escape(path)}</code></td><td>{escape(what['summary'])}</td></tr>"
        for path, methods in description["paths"].items()
        for method, what in methods.items()
    )
    columns = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_written(kind))}</td></tr>"
        for name, kind in description["components"]["schemas"]["Record"]["properties"].items()
    )
    body = (
        '<header><h1>headrace</h1><p class="lead">Routes of this server, also as '
        '<a href="/openapi.json">OpenAPI</a></p></header>'
        f"<section><h2>Routes</h2><table>{routes}</table></section>"
        f"<section><h2>Columns of a record</h2><table>{columns}</table></section>"
    )
    return html_page("Routes", body)


def _scoring(summary: str, properties: dict[str, Any], *parameters: str) -> dict[str, Any]:
    found = _post(summary, properties)
    found["requestBody"]["content"][ARROW] = {"schema": {"type": "string", "format": "binary"}}
    answer = {"application/json": {"schema": {"$ref": "#/components/schemas/Scores"}}}
    found["responses"]["200"]["content"] = answer | {ARROW: {"schema": {"type": "string", "format": "binary"}}}
    found["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
    ]
    return found


def _post(summary: str, properties: dict[str, Any]) -> dict[str, Any]:
    body = {"type": "object", "properties": properties, "required": list(properties)}
    errors = {status: {"description": text} for status, text in ERRORS.items()}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "OK"}, **errors},
    }


def _get(summary: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "OK"}}}


def _type_of(schema: Schema, name: str) -> dict[str, Any]:
    ids = {column.name: column.type for column in schema.ids}
    lists = {column.name: column.type for column in schema.id_lists}
    weights = {column.weights for column in schema.id_lists}
    if name in ids:
        return {"type": [_id_type(ids[name]), "null"]}
    if name in lists:
        return {"type": ["array", "null"], "items": {"type": _id_type(lists[name])}}
    if name in weights:
        return {"type": ["array", "null"], "items": {"type": "number"}}
    return {"type": ["number", "null"]}


def _id_type(kind: str) -> str:
    return "integer" if kind == "int" else "string"


def _written(kind: dict[str, Any]) -> str:
    name = kind["type"][0]
    return f"array of {kind['items']['type']}" if name == "array" else str(name)
