"""The "History" button of every admin page: what the log says about that row, whatever it was called at the time.

Loaded while applications are still being set up, so models are imported inside the function.
"""

from __future__ import annotations

from typing import Any

from django.contrib.admin import ModelAdmin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from audit.changes import object_of

SHOWN = 100


class LogHistory:
    """For a `ModelAdmin`: its history pages show entries of the audit log instead of Django's own."""

    def history_view(
        self: Any, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The newest entries about a row, with what they changed."""
        from audit import reading
        from audit.models import OutboxEntry
        from audit.showing import Shown

        page: ModelAdmin[Any] = self
        row = page.get_object(request, unquote(object_id))
        if row is None:
            return HttpResponseRedirect(reverse("admin:index", current_app=page.admin_site.name))
        if not page.has_view_or_change_permission(request, row):
            raise PermissionDenied
        found = reading.page(reading.Question(object=object_of(row)), SHOWN)
        context = {
            **page.admin_site.each_context(request),
            "title": f"History of {row}",
            "subtitle": None,
            "object": row,
            "opts": page.opts,
            "entries": [Shown(each) for each in reading.readable(found.entries)],
            "waiting": OutboxEntry.objects.filter(data__object=object_of(row)).count(),
            "more": found.next is not None,
            "may_open": request.user.has_perm("audit.view_auditentry"),
            **(extra_context or {}),
        }
        request.current_app = page.admin_site.name
        return TemplateResponse(request, "admin/audit/history.html", context)
