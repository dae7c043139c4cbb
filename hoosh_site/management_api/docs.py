"""The description of this API: as OpenAPI for programs, as a page for people. The page has no script."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from django.contrib import admin
from django.contrib.admin.views.decorators import staff_member_required
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.views.decorators.http import require_safe
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from gateway.api.authentication import HasKey
from gateway.api.views import ControlView
from hoosh_site import __version__

_URLS = "hoosh_site.management_api.schema_urls"
_METHODS = ("get", "post", "put", "patch", "delete")
_TITLE = "Hoosh management API"
_ABOUT = (
    "Everything the admin pages can do, for programs. A key needs the scope `admin`; people have the permissions of "
    "their accounts. See docs/management-api.md."
)
_NO_LIMIT = 2**31 - 1  # from here on it is the database's
_DEPTH = 2  # objects within objects, as far as the page shows them


@functools.cache
def description() -> dict[str, Any]:
    """The OpenAPI document, made once per process."""
    made = SchemaGenerator(urlconf=_URLS)  # type: ignore[no-untyped-call]
    found: dict[str, Any] = made.get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    found["info"] = {"title": _TITLE, "version": __version__, "description": _ABOUT}
    tags = dict.fromkeys(told["tags"][0] for item in found["paths"].values() for told in item.values())
    found["tags"] = [{"name": tag, "description": _resources().get(tag, "")} for tag in tags]
    return found


def _resources() -> dict[str, str]:
    """What the resources say of themselves, by the first part of their paths."""
    from hoosh_site.management_api.urls import urlpatterns  # it has this module's views in it

    found: dict[str, str] = {}
    for entry in urlpatterns:
        view: Any = getattr(entry.callback, "cls", None)
        if view is not None:
            found.setdefault(str(entry.pattern).partition("/")[0], " ".join((view.__doc__ or "").split()))
    return found


class Schema(ControlView):
    """The description for programs."""

    permission_classes = (HasKey,)

    @extend_schema(exclude=True)
    def get(self, request: Request) -> Response:
        """OpenAPI 3, as JSON, for every caller with a key."""
        return Response(description())


class Field(NamedTuple):
    """One field of a body, or one parameter."""

    name: str
    type: str
    notes: str
    about: str


class Operation(NamedTuple):
    """One thing that can be asked."""

    method: str
    path: str
    summary: str
    text: str
    parameters: list[Field]
    request: list[Field]
    response: list[Field]
    status: str


@require_safe
@staff_member_required(login_url="admin:login")  # type: ignore[untyped-decorator]
def docs_view(request: HttpRequest) -> HttpResponse:
    """The description for people who may sign in."""
    context = {**admin.site.each_context(request), "title": _TITLE, "groups": groups()}
    return TemplateResponse(request, "admin/hoosh/management_docs.html", context)


@functools.cache
def groups() -> list[tuple[str, str, list[Operation]]]:
    """All operations by the first part of their path, with what that says of itself."""
    document = description()
    found: dict[str, list[Operation]] = {}
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                told = item[method]
                found.setdefault(told["tags"][0], []).append(_operation(document, method, path, told))
    return [(tag["name"], tag["description"], found[tag["name"]]) for tag in document["tags"]]


def _operation(document: Mapping[str, Any], method: str, path: str, told: Mapping[str, Any]) -> Operation:
    status, answer = next((code, each) for code, each in told["responses"].items() if code.startswith("2"))
    summary, text = told.get("summary", ""), told.get("description", "")
    return Operation(
        method.upper(),
        path,
        summary,
        "" if text.rstrip(".") == summary.rstrip(".") else text,
        [
            Field(each["name"], _type(document, each["schema"]), _notes(each["schema"]), each.get("description", ""))
            for each in told.get("parameters", ())
            if each["in"] != "path"
        ],
        list(_fields(document, _content(told.get("requestBody", {})), writing=True)),
        list(_fields(document, _content(answer), writing=False)),
        status,
    )


def _content(body: Mapping[str, Any]) -> Mapping[str, Any]:
    content = body.get("content", {})
    first: Mapping[str, Any] = next(iter(content.values()), {})
    found: Mapping[str, Any] = first.get("schema", {})
    return found


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    while True:
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        elif len(schema.get("allOf", ())) == 1:
            schema = schema["allOf"][0]
        else:
            return schema


def _fields(
    document: Mapping[str, Any], schema: Mapping[str, Any], *, writing: bool, prefix: str = "", depth: int = 0
) -> Iterator[Field]:
    schema = _resolved(document, schema)
    if schema.get("type") == "array":
        yield from _fields(document, schema["items"], writing=writing, prefix=f"{prefix}[]", depth=depth)
        return
    required = schema.get("required", ())
    for name, given in schema.get("properties", {}).items():
        inner = _resolved(document, given)
        if (writing and given.get("readOnly")) or (not writing and given.get("writeOnly")):
            continue
        shown = f"{prefix}.{name}" if prefix else name
        notes = _notes({**inner, **given})
        if writing and name in required:
            notes = f"required{', ' if notes else ''}{notes}"
        yield Field(shown, _type(document, given), notes, given.get("description", "") or "")
        if depth < _DEPTH:
            yield from _fields(document, inner, writing=writing, prefix=shown, depth=depth + 1)


def _type(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    schema = _resolved(document, schema)
    if schema.get("type") == "array":
        return f"array of {_type(document, schema['items'])}"
    if options := schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(document, each) for each in options))
    if "enum" in schema and None in schema["enum"] and len(schema["enum"]) == 1:
        return "null"
    kind = str(schema.get("format") or schema.get("type") or "any")
    return {"int64": "integer", "double": "number"}.get(kind, kind)


def _notes(schema: Mapping[str, Any]) -> str:
    found = []
    if choices := [str(each) for each in schema.get("enum", ()) if each not in ("", None)]:
        found.append("one of " + ", ".join(choices))
    if schema.get("nullable"):
        found.append("may be null")
    if "default" in schema and schema["default"] not in ("", None):
        found.append(f"default {schema['default']}")
    for name, words in (("minimum", "from {}"), ("maximum", "to {}"), ("maxLength", "up to {} characters")):
        if name in schema and abs(schema[name]) < _NO_LIMIT:
            value = schema[name]
            found.append(words.format(f"{value:g}" if isinstance(value, float) else value))
    return ", ".join(found)
