"""What the pages of configuration rows share: a save that was not published is said at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.contrib import messages
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.admin_tools import LiveAdmin, badge, operator
from providers import drafts, publish, sequences
from providers.models import ConfigVersion, ProviderProbe, Route


class PublishingAdmin(LiveAdmin[Any]):
    """A page whose rows are part of the published configuration."""

    def gate(self, request: HttpRequest, object_id: str | None) -> None:
        """Hold what writers of the configuration take first."""
        sequences.locked(sequences.CONFIG)

    @contextmanager
    def bulk(self, request: HttpRequest) -> Iterator[None]:
        """All chunks of an action become one version."""
        with super().bulk(request):
            try:
                with publish.held_back():
                    yield
            finally:
                publish.publish_on_commit(operator(request), "several rows at once")

    def committed(self, request: HttpRequest) -> None:
        """Wake control; say it when what was saved is not published."""
        super().committed(request)
        try:
            publish.draft_digest()
        except publish.PublishError as exc:
            last = ConfigVersion.objects.order_by("-number").values_list("number", flat=True).first()
            kept = f"version {last} stays in force" if last else "nothing is in force yet"
            first = "; ".join(str(problem) for problem in exc.problems[:3])
            self.message_user(request, f"Saved, but not published ({kept}). {first}", messages.ERROR)
            return
        if publish.waits() and drafts.differs():
            self.message_user(request, _waiting(operator(request)), messages.WARNING)


def _waiting(actor: str) -> SafeString:
    """What is still to be done where nothing is published by a save."""
    url = reverse("admin:draft")
    if drafts.refusal(actor):
        told = 'Saved in the <a href="{}">draft</a>, not in force yet: somebody else has to look at it and publish it.'
    else:
        told = 'Saved in the <a href="{}">draft</a>, not in force yet: look at it there and publish it.'
    return format_html(told, url)


def free_route_name(wanted: str) -> str:
    """The wanted name cut to fit, or with a number when it is taken."""
    base = " ".join("".join(char if "!" <= char <= "~" else " " for char in wanted).split())[:58].strip() or "route"
    taken = set(Route.objects.filter(name__startswith=base).values_list("name", flat=True))
    if base not in taken:
        return base
    return next(name for number in range(2, len(taken) + 3) if (name := f"{base} {number}") not in taken)


def probe_badge(probe: ProviderProbe | None) -> SafeString:
    """What the last look at a provider found, as a coloured label."""
    if probe is None or probe.checked_at is None:
        return badge("not checked")
    return badge("up", "good") if probe.ok else badge("down", "bad")
