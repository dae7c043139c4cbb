"""What on the first page wants an operator: one list over everything that can be wrong, or has an end near.

A fixed number of small queries by an index, each with a limit; what compiles the rows does so only where they changed.
Each part is for who may see the rows it is made of, and is kept for some seconds for all pages.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AbstractUser, AnonymousUser
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from audit import checking
from budgets import bad_journals
from budgets.admin_orders import quarantined_owners
from budgets.models import Anomaly, ApiKey
from events.models import Webhook
from gateway import plane
from hoosh_site import importing, playground
from hoosh_site.kept import Kept
from hoosh_site.people.models import SignInFailure
from providers import admin_tls, publish, sequences
from providers.models import DraftChange, Provider, ScheduledPublication

SHOWN = 5  # of each kind; beyond that the list of them is named
PROVIDERS_READ = 200
KEY_DAYS = 7
FAILED_DAYS = 2  # so long a publication that did not happen is shown
_TEXT = 300
BAD, WARN, PLAIN = "bad", "warn", ""


@dataclass(frozen=True, slots=True)
class Alert:
    """One line of the list."""

    kind: str  # in a word
    tone: str  # BAD: something does not work; WARN: it soon will not; PLAIN: it waits for somebody
    text: str
    url: str = ""
    button: str = ""  # what can be done about it at once,
    action: str = ""  # the address that does it by a POST,
    needs: str = ""  # and the permission for that


@dataclass(frozen=True, slots=True)
class Shown:
    """A line as one user sees it."""

    alert: Alert
    may_act: bool


def _listed(kind: str, tone: str, alerts: Sequence[Alert], url: str) -> list[Alert]:
    """At most `SHOWN` of them, and that there are more."""
    if len(alerts) <= SHOWN:
        return list(alerts)
    return [*alerts[:SHOWN], Alert(kind, tone, "There are more of them.", url)]


def _configuration() -> list[Alert]:
    return [*_workers(), *_unpublished(), *_drafts(), *_scheduled()]


def _workers() -> Iterator[Alert]:
    if plane.current is None:  # a bare web server: nobody to ask
        return
    for worker in plane.current.workers():
        status, name = worker.get("status") or {}, f"Worker {worker.get('index')}"
        if status.get("build_error"):
            text = f"{name} keeps version {status.get('config_version')}: {status['build_error']}"
            yield Alert("Worker", BAD, text[:_TEXT])
        if status.get("journal_writable") is False:
            yield Alert("Worker", BAD, f"{name} cannot write its journal and admits nothing. Is the disk full?")


_looked: tuple[int, tuple[str, ...]] = (-1, ())  # the counter of the rows, and why they cannot run


def _unpublished() -> Iterator[Alert]:
    global _looked
    if importing.last_failure:
        yield Alert("Configuration", BAD, importing.last_failure[:_TEXT])
    counter = sequences.current(sequences.CONFIG)
    if _looked[0] != counter or _looked[1]:  # where they cannot run it may be for another kind of row than this counts
        try:
            publish.draft_digest()
            _looked = counter, ()
        except publish.PublishError as exc:
            _looked = counter, tuple(str(problem)[:_TEXT] for problem in exc.problems[: SHOWN + 1])
    url = reverse("admin:draft")
    found = [Alert("Configuration", BAD, f"What is saved here cannot be published. {each}", url) for each in _looked[1]]
    yield from _listed("Configuration", BAD, found, url)


def _drafts() -> Iterator[Alert]:
    if not publish.is_reviewed():
        return
    waiting = list(DraftChange.objects.order_by("id").values_list("at", "author")[: SHOWN + 1])
    if waiting:
        many = f"More than {SHOWN}" if len(waiting) > SHOWN else str(len(waiting))
        authors = ", ".join(dict.fromkeys(author for _, author in waiting))
        text = f"{many} changes by {authors} wait for a review since {_time(waiting[0][0])}."
        yield Alert("Draft", PLAIN, text[:_TEXT], reverse("admin:draft"))


def _scheduled() -> Iterator[Alert]:
    state = ScheduledPublication.State
    since = timezone.now() - dt.timedelta(days=FAILED_DAYS)
    rows = ScheduledPublication.objects.filter(state__in=(state.WAITING, state.FAILED), at__gte=since).order_by("at")
    for row in rows[:SHOWN]:
        if row.state == state.WAITING:
            text, tone = f"The draft of {row.author} is to be published at {_time(row.at)}.", PLAIN
        else:
            text, tone = f"What was to be published at {_time(row.at)} was not. {row.result}", BAD
        yield Alert("Schedule", tone, text[:_TEXT], reverse("admin:draft"))


def _log() -> list[Alert]:
    trouble = checking.trouble()
    return [Alert("Audit log", BAD, trouble[:_TEXT], reverse("admin:audit_verification"))] if trouble else []


def _leases() -> list[Alert]:
    found = []
    owners = quarantined_owners()
    for owner, amounts in owners[: SHOWN + 1]:
        text = f"{owner} ended with a damaged journal; {', '.join(amounts)} stay counted until somebody decides."
        found.append(Alert("Lease", BAD, text[:_TEXT], f"{reverse('admin:budgets_lease_changelist')}?q={owner}"))
    known = {owner for owner, _ in owners}
    for owner in bad_journals.owners(settings.HOOSH_JOURNAL_DIR)[: SHOWN + 1]:
        if owner not in known:
            text = f"The journal of {owner} is damaged and set aside: manage.py budget_recover shows what is in it."
            found.append(Alert("Journal", BAD, text))
    return _listed("Lease", BAD, found, reverse("admin:budgets_lease_changelist"))


def _providers() -> list[Alert]:
    rows = Provider.objects.filter(enabled=True).select_related("probe", "client_certificate").order_by("name")
    found = []
    for provider in rows.defer("probe__models")[:PROVIDERS_READ]:
        url = reverse("admin:providers_provider_change", args=(provider.pk,))
        probe = getattr(provider, "probe", None)
        if probe is not None and probe.checked_at is not None and not probe.ok:
            text = f"{provider.name} is down. {probe.detail or 'The last connection test failed.'}"
            found.append(Alert("Provider", BAD, text[:_TEXT], url))
        found += [Alert("Certificate", *each, url) for each in _ending(provider)]
    return _listed("Provider", BAD, found, reverse("admin:providers_provider_changelist"))


def _ending(provider: Provider) -> Iterator[tuple[str, str]]:
    for each in admin_tls.all_of(provider):
        if each.ends_soon:
            told = "ended" if each.has_ended else "ends"
            text = f"{provider.name}: the certificate “{each.name}” ({each.role}) {told} on {each.not_after:%Y-%m-%d}."
            yield BAD if each.has_ended else WARN, text[:_TEXT]
    if lost := admin_tls.lost_pins(provider):
        yield WARN, f"{provider.name}: {len(lost)} of its pins fit no certificate the server showed last."


def _keys() -> list[Alert]:
    """Those that end without a successor: an overlap of a rotation and the playground's own keys are meant to end."""
    now = timezone.now()
    soon = ApiKey.objects.filter(expires_at__gt=now, expires_at__lte=now + dt.timedelta(days=KEY_DAYS))
    of_playground = Q(agent__team__name=playground.TEAM, agent__name=playground.AGENT)
    rows = soon.filter(revoked_at__isnull=True, rotated_to__isnull=True).exclude(of_playground)
    rows = rows.select_related("agent__team").order_by("expires_at")
    found = []
    for row in rows[: SHOWN + 1]:
        assert row.expires_at is not None
        text = f"The key {row.name} ({row.prefix}…) of {row.agent} ends at {_time(row.expires_at)}."
        found.append(Alert("Key", WARN, text, reverse("admin:budgets_apikey_change", args=(row.pk,))))
    return _listed("Key", WARN, found, reverse("admin:budgets_apikey_changelist"))


def _anomalies() -> list[Alert]:
    rows = Anomaly.objects.filter(state=Anomaly.State.OPEN).select_related("agent__team").order_by("-id")
    found = []
    for row in rows[: SHOWN + 1]:
        amount = f"${row.observed:,.4f}" if row.unit == "usd" else f"{row.observed:,.0f} {row.unit}"
        usual = f"${row.expected:,.4f}" if row.unit == "usd" else f"{row.expected:,.0f}"
        text = f"{row}: {amount} where {usual} is {'the limit' if row.kind == Anomaly.Kind.LOOP else 'usual'}"
        found.append(
            Alert(
                "Anomaly",
                BAD if row.throttled else WARN,
                f"{text}, at {_time(row.at)}.",
                reverse("admin:budgets_anomaly_change", args=(row.pk,)),
                "Acknowledge",
                reverse("admin:budgets_anomaly_acknowledge", args=(row.pk,)),
                "budgets.change_anomaly",
            )
        )
    return _listed("Anomaly", WARN, found, f"{reverse('admin:budgets_anomaly_changelist')}?state__exact=open")


def _webhooks() -> list[Alert]:
    rows = Webhook.objects.filter(enabled=True, failing_since__isnull=False).order_by("failing_since")
    return [
        Alert(
            "Webhook",
            WARN,
            f"{row.name} takes nothing since {_time(row.failing_since)}. {row.last_error}"[:_TEXT],
            reverse("admin:events_webhook_change", args=(row.pk,)),
        )
        for row in rows[:SHOWN]
        if row.failing_since is not None
    ]


def _lockouts() -> list[Alert]:
    rows = SignInFailure.objects.filter(locked_until__gt=timezone.now()).order_by("-since")
    url = reverse("admin:people_signinfailure_changelist")
    found = [
        Alert("Sign-in", PLAIN, f"{row} is locked out until {_time(row.locked_until)}.", url)
        for row in rows[: SHOWN + 1]
        if row.locked_until is not None
    ]
    return _listed("Sign-in", PLAIN, found, url)


def _time(moment: dt.datetime) -> str:
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"


_Part = tuple[Kept[list[Alert]], tuple[str, ...]]


def _part(read: Callable[[], list[Alert]], *permissions: str) -> _Part:
    return Kept(read), permissions


# What is looked at, and the permissions of which any one shows it.
_PARTS: tuple[_Part, ...] = (
    _part(_configuration, "providers.view_configversion", "providers.change_gatewaysettings"),
    _part(_log, "audit.view_auditentry"),
    _part(_leases, "budgets.view_lease"),
    _part(_providers, "providers.view_provider"),
    _part(_anomalies, "budgets.view_anomaly"),
    _part(_webhooks, "events.view_webhook"),
    _part(_keys, "budgets.view_apikey"),
    _part(_lockouts, "people.view_signinfailure"),
)
_TONES = {BAD: 0, WARN: 1, PLAIN: 2}


def attention(user: AbstractUser | AnonymousUser, *more: Iterable[Alert]) -> list[Shown]:
    """What this user should know of, the worst first, `more` (of which they may see everything) among it."""
    found = [alert for part in more for alert in part]
    for kept, permissions in _PARTS:
        if any(user.has_perm(permission) for permission in permissions):
            found += kept.get()
    found.sort(key=lambda alert: _TONES[alert.tone])
    return [Shown(alert, bool(alert.action) and user.has_perm(alert.needs)) for alert in found]


def is_for(user: AbstractUser | AnonymousUser) -> bool:
    """Whether there is anything this user might be told."""
    return any(user.has_perm(permission) for _, permissions in _PARTS for permission in permissions)


def forget() -> None:
    """Look at everything anew: an operator has changed something."""
    for kept, _ in _PARTS:
        kept.forget()


def forget_rows() -> None:
    """Compile the rows anew as well: for tests, whose database goes back behind its counters."""
    global _looked
    _looked = (-1, ())
    forget()


def running_out(pools: Iterable[Any]) -> list[Alert]:
    """The pools of the first page's forecast (`hoosh_site.home.RunningOut`) as lines."""
    return [
        Alert(
            "Pool",
            each.outlook.tone,
            f"{each.name} ({each.outlook.unit}): {each.outlook.text}",
            reverse("admin:budgets_pool_change", args=(each.pk,)),
        )
        for each in pools
    ]
