"""What is saved and not published, before anybody publishes it; and the way back to an earlier version.

Both pages show the change in words and, on demand, what it would have done with the last requests.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone

from audit.admin_tools import operator
from hoosh_site.dry_run import DryRun, dry_run
from providers import config, differences, drafts, publish, revert
from providers.compile import compile_document, problems
from providers.config import ConfigDocument, ProviderDoc
from providers.models import ConfigVersion, DraftChange, ScheduledPublication

CHANGE = "providers.change_gatewaysettings"
VIEW = "providers.view_configversion"
COUNTS = (100, 1000, 10_000)
CHANGES_SHOWN = 200


class PublishForm(forms.Form):
    """What goes with a publication."""

    note = forms.CharField(max_length=300, required=False, help_text="Why; it stands in the history.")
    at = forms.DateTimeField(
        label="not before", required=False, help_text="UTC, for example 2027-01-31 06:00. Blank = now."
    )
    seen = forms.CharField(max_length=64, widget=forms.HiddenInput)

    def clean_at(self) -> dt.datetime | None:
        """A moment to come."""
        at: dt.datetime | None = self.cleaned_data["at"]
        if at is not None and at <= timezone.now():
            raise ValidationError("This moment has passed.")
        return at


def draft_view(page: Any, request: HttpRequest) -> HttpResponse:
    """The draft: what it changes, who changed it, what it would do, and the buttons."""
    if not request.user.has_perm(VIEW):
        raise PermissionDenied
    if request.method == "POST":
        return _act(page, request)
    return TemplateResponse(request, "admin/hoosh/draft.html", _draft_context(page, request))


def _draft_context(page: Any, request: HttpRequest, form: PublishForm | None = None) -> dict[str, Any]:
    document, now = compile_document(), drafts.in_force()
    digest = config.digest(document)
    found = publish.latest()
    differs = found is None or digest != config.digest(now)
    return {
        **page.admin_site.each_context(request),
        **_weighed(request, now, document, differs=differs),
        "title": "Draft",
        "number": found[0] if found else None,
        "differs": differs,
        "problems": problems(document),
        "is_reviewed": publish.is_reviewed(),
        "waits": publish.waits(),
        "waiting": DraftChange.objects.order_by("-id")[:50],
        "deleted": _deleted(document, now) if request.user.has_perm("providers.change_provider") else (),
        "refusal": drafts.refusal(operator(request)),
        "may_publish": request.user.has_perm(CHANGE),
        "form": form or PublishForm(initial={"seen": digest}),
        "scheduled": ScheduledPublication.objects.order_by("-id")[:10],
    }


def _deleted(draft: ConfigDocument, now: ConfigDocument) -> list[ProviderDoc]:
    """Providers that are deleted in the draft and still called: they have no page of their own any more."""
    known = {provider.id for provider in draft.providers}
    return [provider for provider in now.providers if provider.enabled and provider.id not in known]


def _weighed(request: HttpRequest, before: ConfigDocument, after: ConfigDocument, *, differs: bool) -> dict[str, Any]:
    """The change in words, and what a dry run found where one is asked for."""
    changes = differences.described(before, after)
    run: DryRun | None = None
    asked = request.GET.get("requests", "")
    if asked.isdecimal() and len(asked) < 6 and differs:
        run = dry_run(before, after, requests=int(asked))
    return {
        "changes": changes[:CHANGES_SHOWN],
        "more_changes": max(0, len(changes) - CHANGES_SHOWN),
        "run": run,
        "counts": COUNTS,
    }


def _act(page: Any, request: HttpRequest) -> HttpResponse:
    if not request.user.has_perm(CHANGE):
        raise PermissionDenied
    actor, back = operator(request), HttpResponseRedirect(reverse("admin:draft"))
    if request.POST.get("cancel", "").isdecimal():
        row = ScheduledPublication.objects.filter(pk=int(request.POST["cancel"][:18])).first()
        if row is None or not drafts.cancel(row, actor):
            messages.error(request, "It does not wait any more.")
        return back
    if "discard" in request.POST:
        return _discard(page, request, actor, back)
    form = PublishForm(request.POST)
    if not form.is_valid():
        return TemplateResponse(request, "admin/hoosh/draft.html", _draft_context(page, request, form))
    note, at, seen = (form.cleaned_data[name] for name in ("note", "at", "seen"))
    try:
        if at is not None:
            row = drafts.schedule(actor, at, seen=seen, note=note)
            messages.success(request, f"The draft is published at {row.at:%Y-%m-%d %H:%M} UTC, unless it changes.")
            return back
        version = drafts.approve(actor, note=note, seen=seen)
    except (drafts.DraftError, publish.PublishError, ValidationError) as exc:
        messages.error(request, f"Not published. {' '.join(getattr(exc, 'messages', [str(exc)]))}")
        return back
    page.admin_site.wake()
    messages.success(request, f"{version} is in force.")
    return HttpResponseRedirect(reverse("admin:providers_configversion_change", args=(version.number,)))


def _discard(page: Any, request: HttpRequest, actor: str, back: HttpResponse) -> HttpResponse:
    if "sure" not in request.POST:
        messages.error(request, "Nothing was discarded. Tick the box above the button: a draft cannot be brought back.")
        return back
    try:
        for warning in drafts.discard(actor, seen=request.POST.get("seen", "")):
            messages.warning(request, warning)
    except (drafts.DraftError, revert.RevertError) as exc:
        messages.error(request, str(exc))
        return back
    page.admin_site.wake()
    messages.success(request, "The draft is what is in force again.")
    return back


def revert_view(page: Any, request: HttpRequest, number: int) -> HttpResponse:
    """Ask whether to go back to a version, showing what that changes; then do it."""
    if not request.user.has_perm(CHANGE) or not request.user.has_perm(VIEW):
        raise PermissionDenied
    version = ConfigVersion.objects.filter(number=number).first()
    if version is None:
        raise Http404
    if request.method == "POST":
        try:
            made = revert.revert(version.number, actor=operator(request), note=request.POST.get("note", "")[:300])
        except revert.RevertError as exc:
            messages.error(request, f"Nothing was changed. {exc}")
            return HttpResponseRedirect(reverse("admin:version_revert", args=(number,)))
        for warning in made.warnings:
            messages.warning(request, warning)
        page.admin_site.wake()
        if made.waits:
            messages.success(request, f"The draft says what version {number} said. Somebody else has to publish it.")
            return HttpResponseRedirect(reverse("admin:draft"))
        messages.success(request, f"{made.version} is in force: it says what version {number} said.")
        return HttpResponseRedirect(reverse("admin:providers_configversion_change", args=(made.version.number,)))
    then, now = config.unpack(bytes(version.document)), drafts.in_force()
    context = {
        **page.admin_site.each_context(request),
        **_weighed(request, now, then, differs=then != now),
        "title": f"Back to version {number}",
        "version": version,
        "is_live": then == now,
        "becomes_draft": revert.waits(version.number),
        "waiting": DraftChange.objects.order_by("-id")[:50],
    }
    return TemplateResponse(request, "admin/hoosh/revert.html", context)


def disable_view(page: Any, request: HttpRequest, provider_id: int) -> HttpResponse:
    """Switch a provider off at once, whatever waits for a review."""
    from providers.models import Provider

    if request.method != "POST" or not request.user.has_perm("providers.change_provider"):
        raise PermissionDenied
    there = Provider.objects.filter(pk=provider_id).exists()
    try:
        name, version = drafts.disable_now(provider_id, operator(request))
    except drafts.DraftError:
        raise Http404 from None
    except publish.PublishError as exc:
        messages.error(request, f"Nothing was changed. {exc}")
    else:
        page.admin_site.wake()
        messages.success(request, f"“{name}” is off. {version} is in force.")
    if not there:  # it is deleted in the draft
        return HttpResponseRedirect(reverse("admin:draft"))
    return HttpResponseRedirect(reverse("admin:providers_provider_change", args=(provider_id,)))
