"""The admin page that shows requests while they are settled: a stream for browsers, plain questions as the fallback."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.db import close_old_connections
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse

from audit.admin_tools import number
from budgets.admin_usage import search_of
from budgets.usage_search import FIELDS, Search
from hoosh_site.usage_tail import Names, Tail, after, hub, newest, told

MAY_WATCH = "budgets.view_usage"


def tail_view(page: Any, request: HttpRequest) -> HttpResponse:
    """The page."""
    search = _search(page, request)
    context = {
        **page.admin_site.each_context(request),
        "title": "Live requests",
        "words": request.GET.get("q", "")[:1000],
        "fields": FIELDS,
        "problems": search.problems,
        "query": request.GET.urlencode(),
        "last": newest(),
    }
    return TemplateResponse(request, "admin/hoosh/tail.html", context)


def tail_rows_view(page: Any, request: HttpRequest) -> HttpResponse:
    """Rows behind `after` that match, as JSON, oldest first; without it only where to begin."""
    search = _search(page, request)
    behind = number(request.GET.get("after", ""))
    if behind is None:
        return JsonResponse({"rows": [], "skipped": 0, "last": newest()})
    rows, skipped = after(behind)
    shown = told([row for row in rows if search.matches(row)], Names(), page.admin_site.provider_names())
    return JsonResponse({"rows": shown, "skipped": skipped, "last": rows[-1].pk if rows else behind})


class TailResponse(StreamingHttpResponse):
    """A watch, closed when its reader leaves: Django closes what `aiter` gives it."""

    def __init__(self, tail: Tail) -> None:
        super().__init__(tail, content_type="text/event-stream")
        self._tail = tail
        self["X-Accel-Buffering"] = "no"

    def __aiter__(self) -> Tail:
        return self._tail


def tail_stream_view(page: Any, request: HttpRequest) -> HttpResponseBase:
    """The stream: each event is a JSON object with `rows` and `skipped`. 503 when too many are open, 204 where the web
    server has no streams that wait: browsers then do not try again, and the page asks for rows instead."""
    search = _search(page, request)
    if not isinstance(request, ASGIRequest):
        return HttpResponse(status=204)
    user: Any = request.user

    def allowed() -> bool:
        row: Any = get_user_model().objects.filter(pk=user.pk, is_active=True, is_staff=True).first()
        return row is not None and row.has_perm(MAY_WATCH)

    tail = hub.open(search, page.admin_site.provider_names(), allowed)
    if tail is None:
        return JsonResponse({"error": "Too many live pages are open."}, status=503)
    close_old_connections()  # what follows may take hours
    return TailResponse(tail)


def _search(page: Any, request: HttpRequest) -> Search:
    if not request.user.has_perm(MAY_WATCH):
        raise PermissionDenied
    return search_of({"q": request.GET.get("q", "")}, page.admin_site)[0]
