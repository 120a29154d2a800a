"""The description of the hooks API, made from its routes and models: `python -m workers.integration.openapi`."""

import json
import sys
from functools import cache
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from workers.integration import http_models as m
from workers.integration.http_routes import OPERATION, ROUTES, VM, Route

API_VERSION = "1.0.0"
_REF = "#/components/schemas/{model}"
_ABOUT = (
    "Served by the worker of each host on a Unix socket, for the VM manager of that host. Every hook is kept on the "
    "host's disk before it is answered, and is delivered also where Redis is away. Who may connect is told by the mode "
    "and group of the socket, and checked by peer credentials. See docs/hooks-api.md."
)
_ID = {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$"}
_OF_ANY = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
_WITH_BODY = (HTTPStatus.LENGTH_REQUIRED, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


@cache
def description() -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "metald reliability: hooks for VM managers", "version": API_VERSION, "description": _ABOUT},
        "servers": [{"url": "http://hooks", "description": "The name is not looked at: connect to the Unix socket."}],
        "paths": paths,
        "components": {"schemas": _schemas()},
    }


def text() -> str:
    return json.dumps(description(), indent=2, sort_keys=True) + "\n"


def _schemas() -> dict[str, Any]:
    taken = {each for route in ROUTES for each in (route.body, route.query) if each}
    given = {m.Error, *(route.answer for route in ROUTES)}
    ordered = sorted([(each, "validation") for each in taken] + [(each, "serialization") for each in given], key=str)
    _, schema = models_json_schema(ordered, ref_template=_REF)  # type: ignore[arg-type] # of literals
    queries = {route.query.__name__ for route in ROUTES if route.query}
    return {name: each for name, each in schema["$defs"].items() if name not in queries}


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "responses": {str(int(route.status)): _response(route.answer, HTTPStatus(route.status).phrase)},
    }
    if parameters := [*_of_path(route), *_of_query(route)]:
        operation["parameters"] = parameters
    if route.body:
        operation["requestBody"] = {"required": _is_needed(route.body), "content": _content(route.body)}
    for status in _errors(route):
        operation["responses"][str(int(status))] = _response(m.Error, status.phrase)
    operation["responses"]["default"] = _response(m.Error, "Any other error")
    return operation


def _errors(route: Route) -> list[HTTPStatus]:
    with_body = _WITH_BODY if route.body else ()
    return sorted({*_OF_ANY, *with_body, *route.errors})


def _response(model: type[BaseModel], words: str) -> dict[str, Any]:
    return {"description": words, "content": _content(model)}


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}


def _is_needed(model: type[BaseModel]) -> bool:
    return any(field.is_required() for field in model.model_fields.values())


def _of_path(route: Route) -> list[dict[str, Any]]:
    found = [part[1:-1] for part in (VM, OPERATION) if part in route.path.split("/")]
    return [{"name": name, "in": "path", "required": True, "schema": _ID} for name in found]


def _of_query(route: Route) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    schema = route.query.model_json_schema()
    return [_parameter(name, each) for name, each in schema["properties"].items()]


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    words = {"description": schema.pop("description")} if "description" in schema else {}
    return {"name": name, "in": "query", "required": False, "schema": schema, **words}


if __name__ == "__main__":
    sys.stdout.write(text())
