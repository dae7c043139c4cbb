"""Which pages `bench.console` asks for: all that the admin site registers, its own pages, and the first pages of APIs.

Runs inside the gateway's settings. What is registered later is measured without a change here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin import ModelAdmin
from django.contrib.admin.utils import quote
from django.db.models import CharField, Field, ForeignKey, TextField
from django.test import Client
from django.urls import NoReverseMatch, URLPattern, reverse

from budgets.models import Usage
from hoosh_site.draft_page import COUNTS
from hoosh_site.management_api import urls as management_urls

_OF_A_MODEL = ("changelist", "add", "change", "history", "delete")
_STREAMS = ("live_stream", "tail_stream")
_OFFSET = 1_000  # how far into a table the row is that single pages are asked for

Page = tuple[str, str]  # name, URL


def pages(client: Client) -> list[Page]:
    """Every page by its name. Some are found by asking for lists, so that takes a while."""
    found = [*_site_pages(), *_report_pages()]
    for model, page in admin.site._registry.items():
        found += _model_pages(client, model, page)
    found += _api_pages()
    return list(dict(found).items())


def _site_pages() -> Iterator[Page]:
    yield "overview", reverse("admin:index")
    for pattern in admin.site.get_urls():
        if isinstance(pattern, URLPattern) and pattern.name and pattern.name not in ("index", *_STREAMS):
            for arguments in ((), (1,)):
                try:
                    yield f"page {pattern.name}", reverse(f"admin:{pattern.name}", args=arguments)
                except NoReverseMatch:
                    continue
    for count in COUNTS:
        yield f"page draft, with a dry run of {count:,} requests", f"{reverse('admin:draft')}?requests={count}"
    yield "people: teams", reverse("people:team")
    yield "management API: its description", reverse("management-docs")
    for app in ("budgets", "providers"):
        yield f"menu of {app}", reverse("admin:app_list", args=(app,))


def _report_pages() -> Iterator[Page]:
    """Costs: each grouping, and each grouping within one value of each other dimension."""
    busy = Usage.objects.filter(model="model-3", status=200).earliest("id")
    values = {name: getattr(busy, f"{name}_id") for name in ("team", "agent", "key", "provider", "route", "pool")}
    values["model"] = busy.model
    costs = reverse("admin:costs")
    for group in (*values, "day"):
        yield f"costs by {group}", f"{costs}?group={group}"
        yield f"costs by {group}, all", f"{costs}?group={group}&period=all"
        for name, value in values.items():
            if name != group:
                yield f"costs by {group} of a {name}", f"{costs}?{urlencode({'group': group, name: value})}"


def _model_pages(client: Client, model: type[Any], page: ModelAdmin[Any]) -> Iterator[Page]:
    opts = model._meta
    label, start = f"{opts.app_label}.{opts.model_name}", f"admin:{opts.app_label}_{opts.model_name}"
    row = _sample(model, page)
    for kind in _OF_A_MODEL:
        if kind in ("changelist", "add"):
            yield f"{label}: {kind}", reverse(f"{start}_{kind}")
        elif row is not None:
            yield f"{label}: {kind}", reverse(f"{start}_{kind}", args=(quote(row.pk),))
    yield from _list_pages(client, f"{label}: list", reverse(f"{start}_changelist"), page, row)
    known = {f"{opts.app_label}_{opts.model_name}_{kind}" for kind in _OF_A_MODEL}
    for pattern in page.get_urls():
        name = getattr(pattern, "name", None)
        if name is None or name in known:
            continue
        for arguments in ((), (row.pk,) if row is not None else ()):
            try:
                yield f"{label}: {name}", reverse(f"admin:{name}", args=arguments)
            except NoReverseMatch:
                continue
    for field in page.autocomplete_fields:
        asked = {"app_label": opts.app_label, "model_name": opts.model_name, "field_name": field}
        for term in ("", "7"):
            yield (
                f"{label}: choices of {field} {term}".rstrip(),
                f"{reverse('admin:autocomplete')}?{urlencode(asked | {'term': term})}",
            )


def _sample(model: type[Any], page: ModelAdmin[Any]) -> Any:
    rows = model._default_manager.order_by("pk")
    return rows[_OFFSET : _OFFSET + 1].first() or rows.last()


def _list_pages(client: Client, label: str, url: str, page: ModelAdmin[Any], row: Any) -> Iterator[Page]:
    response = client.get(url)
    changelist = (getattr(response, "context_data", None) or {}).get("cl")
    if changelist is None:
        return
    for spec in getattr(changelist, "filter_specs", ()):
        choices = [str(choice["query_string"]) for choice in spec.choices(changelist) if choice.get("query_string")]
        for number, choice in enumerate(dict.fromkeys((*choices[1:2], *choices[-1:]))):
            yield f"{label}, {spec.title} {number + 1}", url + choice
    if page.get_search_fields(response.wsgi_request):
        yield f"{label}, searched", f"{url}?{urlencode({'q': _search_text(row)})}"
        yield f"{label}, searched for what is not there", f"{url}?q=nobody-has-this"
    if getattr(changelist, "paginator", None) is not None and changelist.multi_page:
        last = changelist.paginator.num_pages
        yield f"{label}, its last page", f"{url}?p={last}"
    if changelist.list_display and getattr(changelist, "sortable_by", None) != ():
        yield f"{label}, by its second column", f"{url}?o=2"
        yield f"{label}, by its second column, backwards", f"{url}?o=-2"


def _search_text(row: Any) -> str:
    if row is None:
        return "7"
    texts: list[Field[Any, Any]] = [
        field
        for field in row._meta.fields
        if isinstance(field, CharField | TextField) and not isinstance(field, ForeignKey) and not field.choices
    ]
    found = [str(value) for field in texts if (value := getattr(row, field.attname))]
    return found[0] if found else "7"


def _api_pages() -> Iterator[Page]:
    for pattern in management_urls.urlpatterns:
        route = str(pattern.pattern)
        actions = getattr(pattern.callback, "actions", None) or {}
        if "<" not in route and "get" in actions and not route.endswith("/"):
            yield f"/api/v1/{route}", f"/api/v1/{route}"
    for by in ("team", "agent", "model,provider", "team,day", "team,model"):
        yield f"/api/v1/reports/usage by {by}", f"/api/v1/reports/usage?group_by={by}"
        yield f"/v1/costs by {by}", f"/v1/costs?group_by={by}"
    for path in ("audit", "audit/checkpoint", "events/recent", "tokens/pools", "health/providers", "cache/stats"):
        yield f"/v1/{path}", f"/v1/{path}"
    yield "/metrics", "/metrics"
