"""The audit log in admin: read only, newest first, with proofs to take away.

Lists are read by `audit.reading`, so that any filter costs the same at any age and size of the log.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

import audit
from audit import checking, proving, reading
from audit.admin_tools import KeysetAdmin, KeysetChangeList, badge, number
from audit.models import AuditEntry, AuditState, Checkpoint, LedgerOutboxEntry, OutboxEntry, PendingBatch
from audit.showing import TONES, Shown
from audit.walking import fault_of

VERIFIER = Path(audit.__file__).resolve().parent.parent / "tools" / "verify_audit.py"
SEAL_S = 10.0  # how long a page waits for what was booked a moment ago: signed every second, later on a busy machine
_DAY = timedelta(days=1)
_TIMES = {"day": ("Last 24 hours", _DAY), "week": ("Last 7 days", 7 * _DAY), "month": ("Last 31 days", 31 * _DAY)}
_LEVELS = ("info", "warning", "error", "critical")
_SOURCES = {
    "site": "Operators and sign-ins",
    "ledger": "Money",
    "usage": "Requests",
    "log": "The log itself",
}


class ProvingSite(Protocol):
    """What the admin site offers to the pages of the log: it knows requests, which the log does not."""

    def request_proofs(self, request_id: str) -> list[dict[str, Any]] | None:
        """One proof file for each attempt of a request; None when the text is no request's id. `ProofError`."""

    def entry_of_request(self, request_id: str) -> int | None:
        """The entry a request is in; None when it is not in the log (yet)."""


class _AskedFilter(admin.SimpleListFilter):
    """A filter whose value `AuditChangeList` reads itself."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        """Unchanged."""
        return queryset


class KindFilter(_AskedFilter):
    """The first part of the action: key, route, operator, …"""

    title = "kind"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The kinds that occur."""
        return [(kind, kind) for kind in reading.kinds()]


class LevelFilter(_AskedFilter):
    """The known levels, without asking the table which ones occur."""

    title = "level"
    parameter_name = "level"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list."""
        return [(level, level.capitalize()) for level in _LEVELS]


class OutboxLevelFilter(LevelFilter):
    """The same for rows on their way."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Rows of the chosen level."""
        return queryset.filter(level=self.value()) if self.value() else queryset


class SourceFilter(_AskedFilter):
    """Where an entry comes from."""

    title = "about"
    parameter_name = "source"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list."""
        return list(_SOURCES.items())


class TimeFilter(_AskedFilter):
    """A stretch of time."""

    title = "time"
    parameter_name = "time"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list."""
        return [(name, title) for name, (title, _length) in _TIMES.items()]


class AuditChangeList(KeysetChangeList):
    """A page of the log as `audit.reading` finds it."""

    def get_results(self, request: HttpRequest) -> None:
        """Entries with the names in them: few small queries."""
        found = self._found(request)
        for read in reading.readable(found.entries):
            read.entry.shown = Shown(read)  # type: ignore[attr-defined]  # what the columns show
        before = number(request.GET.get("before", ""))
        self.show_page(list(found.entries), "" if found.next is None else str(found.next), continued=before is not None)

    def _found(self, request: HttpRequest) -> reading.Page:
        get = request.GET
        text, kind, time = get.get("q", "").strip(), get.get("kind", ""), _TIMES.get(get.get("time", ""))
        parts: dict[str, Any] = {
            "action": f"{kind}." if kind else "",
            "level": get.get("level", ""),
            "source": get.get("source", ""),
            "since": timezone.now() - time[1] if time else None,
            "before": number(get.get("before", "")),
        }
        if not text:
            return reading.page(reading.Question(**parts), self.list_per_page)
        seq = number(text) if number(text) is not None else self._site().entry_of_request(text)
        if seq is not None:
            row = reading.entry(seq)
            return reading.Page([] if row is None else [row], None)
        named = {"action": text} if text.endswith(".") or reading.is_action(text) else {"name": text}
        return reading.page(reading.Question(**{**parts, **named}), self.list_per_page)

    def _site(self) -> ProvingSite:
        return cast(ProvingSite, self.model_admin.admin_site)


@admin.register(AuditEntry)
class AuditEntryAdmin(KeysetAdmin[AuditEntry]):
    """Who did what to which row, with what it was before and what it became, and the proof of it."""

    keyset = ("seq",)
    list_display = ("time", "what", "about", "who", "level_badge", "place")
    list_display_links = ("time", "what")
    list_filter = (TimeFilter, LevelFilter, SourceFilter, KindFilter)
    search_fields = ("=action",)
    search_help_text = "An exact name (who did it or what it is about), action, request id or number of an entry."
    change_list_template = "admin/audit/auditentry/change_list.html"
    change_form_template = "admin/audit/auditentry/change_form.html"
    fields = ("seq",)

    def get_urls(self) -> list[Any]:
        """The pages of the log, before those of single entries."""
        view = self.admin_site.admin_view
        return [
            path("verification/", view(self.verification_view), name="audit_verification"),
            path("verification/proof/", view(self.proof_view), name="audit_proof"),
            path("verification/verify_audit.py", view(self.verifier_view), name="audit_verifier"),
            *super().get_urls(),
        ]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that `audit.reading` reads."""
        return AuditChangeList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[AuditEntry], search_term: str
    ) -> tuple[QuerySet[AuditEntry], bool]:
        """Nothing to do here: the list reads the search itself."""
        return queryset, False

    @admin.display(description="time (UTC)")
    def time(self, entry: AuditEntry) -> SafeString:
        """When it happened."""
        return format_html(
            '<span class="hoosh-number" title="{}">{}</span>', entry.at.isoformat(), f"{entry.at:%Y-%m-%d %H:%M:%S}"
        )

    @admin.display(description="action")
    def what(self, entry: AuditEntry) -> str:
        """What happened."""
        return entry.action

    @admin.display(description="about")
    def about(self, entry: Any) -> str:
        """What or who it happened to."""
        return str(entry.shown.target)

    @admin.display(description="by")
    def who(self, entry: Any) -> str:
        """Who did it."""
        return str(entry.shown.actor)

    @admin.display(description="level")
    def level_badge(self, entry: AuditEntry) -> SafeString:
        """The level as a coloured label."""
        return badge(entry.level, TONES.get(entry.level, ""))

    @admin.display(description="entry")
    def place(self, entry: AuditEntry) -> SafeString:
        """Its number."""
        return format_html('<span class="hoosh-number quiet">{}</span>', entry.seq)

    # --- pages --------------------------------------------------------------------------------------------------------

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """One entry: what happened, what it commits to, and its proof."""
        row = self.get_object(request, object_id) if self.has_view_permission(request) else None
        context: dict[str, Any] = {}
        if row is not None:
            (read,) = reading.readable([row])
            context = {"title": row.action, "subtitle": None, "shown": Shown(read), "fault": fault_of(row)}
            context["log"] = proving.log_of(row.seq).name
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def verification_view(self, request: HttpRequest) -> HttpResponse:
        """What is signed, by which key, where it is anchored, and whether all of it still holds."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        keys = proving.vkeys()
        last = proving.last_checkpoint()
        context = {
            **self.admin_site.each_context(request),
            "title": "Verification",
            "opts": self.opts,
            "verdict": checking.look(),
            "last": last,
            "log": proving.log_of_checkpoint(last) if last is not None else None,
            "checkpoints": [(row, bytes(row.root).hex()[:16]) for row in Checkpoint.objects.order_by("-id")[:6]],
            "first_key": keys[0] if keys else "",
            "current_key": keys[-1] if keys else "",
            "epoch": len(keys),
            "anchors": _anchors(),
            "keeper": _state("keeper"),
            "waiting": OutboxEntry.objects.count() + LedgerOutboxEntry.objects.count(),
            "waiting_batches": PendingBatch.objects.count(),
            "has_verifier": VERIFIER.exists(),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/audit/verification.html", context)

    def proof_view(self, request: HttpRequest) -> HttpResponse:
        """The proof of an entry or a request, as a file; what is not signed yet is waited for."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        text = request.GET.get("of", "").strip()
        site = cast(ProvingSite, self.admin_site)
        seq = number(text)
        try:
            found = proving.awaited(
                lambda: [proving.inclusion(seq)] if seq is not None else site.request_proofs(text), SEAL_S
            )
        except proving.ProofError as exc:
            return self._no_proof(request, str(exc))
        if found is None:
            return self._no_proof(request, "Give the number of an entry or the id of a request (x-hoosh-request).")
        name = f"proof-{seq}.json" if seq is not None else f"proof-{text.lower()[:36]}.json"
        return _download(b"".join(proving.proof_bytes(each) for each in found), name, "application/json")

    def verifier_view(self, request: HttpRequest) -> HttpResponse:
        """The verifier, to be read and run elsewhere."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return _download(VERIFIER.read_bytes(), VERIFIER.name, "text/x-python; charset=utf-8")

    def _no_proof(self, request: HttpRequest, why: str) -> HttpResponse:
        self.message_user(request, why, messages.ERROR)
        return HttpResponseRedirect(reverse("admin:audit_verification", current_app=self.admin_site.name))


@admin.register(OutboxEntry)
class OutboxEntryAdmin(KeysetAdmin[OutboxEntry]):
    """What is recorded and not in the log yet: usually nothing, because it waits there for a second."""

    list_display = ("at", "action", "target", "actor", "level_badge")
    list_display_links = ("at", "action")
    list_filter = (OutboxLevelFilter,)
    search_fields = ("=action", "=actor", "=target")
    search_help_text = "Exact action, actor or target."
    fields = ("at", "action", "target", "actor", "level", "pretty_data")
    readonly_fields = fields

    @admin.display(description="level")
    def level_badge(self, entry: OutboxEntry) -> SafeString:
        """The level as a coloured label."""
        return badge(entry.level, TONES.get(entry.level, ""))

    @admin.display(description="data")
    def pretty_data(self, entry: OutboxEntry) -> SafeString:
        """The recorded values, indented."""
        shown = json.dumps(entry.data, indent=2, ensure_ascii=False, sort_keys=True, default=str)
        return format_html('<pre class="hoosh-code">{}</pre>', shown)


def _download(data: bytes, name: str, kind: str) -> HttpResponse:
    return HttpResponse(data, content_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _state(name: str) -> dict[str, Any]:
    text = AuditState.objects.filter(name=name).values_list("value", flat=True).first()
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _anchors() -> list[dict[str, Any]]:
    """The places checkpoints are taken to, with what became of the last one."""
    titles = {"file": "File", "syslog": "Syslog", "event": "Webhooks"}
    return [{**told, "name": titles.get(name, name)} for name, told in _state("anchors").items()]
