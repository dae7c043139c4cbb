"""What the first admin page shows. A fixed number of small queries, each with a limit, none inside a transaction.

Each section is read only for users who may see the pages it is taken from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from django.db.models import Count, Q
from django.urls import reverse
from django.utils import timezone

from audit import reading
from budgets.balances import PoolBalance, balances
from budgets.models import ApiKey, Pool, PoolAlert, Usage
from budgets.records import PRICE_UNKNOWN
from budgets.scopes import PRIVILEGED
from hoosh_site import playground
from providers import publish
from providers.models import ConfigVersion, Provider, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from django.contrib.auth.models import AbstractUser, AnonymousUser
    from django.db.models import QuerySet

    from audit.reading import Readable

_RECENT = 200  # usage rows looked at
_SHOWN = 6
_POOLS_READ = 1000
_EXPIRES_SOON = timedelta(days=7)
DEMO = "demo"  # the kind of the built-in provider


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do before an app's first request is answered."""

    text: str
    url: str
    done: bool


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool with its balance; one nothing was drawn from is shown full."""

    pk: int
    name: str
    balance: PoolBalance


@dataclass(slots=True)
class Overview:
    """The figures of the first page, of the sections its reader may see."""

    sections: set[str] = field(default_factory=set)
    version: ConfigVersion | None = None
    is_behind: bool = False  # the saved rows differ from what is in force
    waits: bool = False  # that is meant so: they wait as a draft
    providers_enabled: int = 0
    providers_disabled: int = 0
    providers_up: int = 0
    providers_down: int = 0
    providers_unknown: int = 0
    keys_active: int = 0
    keys_inactive: int = 0
    keys_expiring: int = 0
    pools: list[PoolState] = field(default_factory=list)
    recent_requests: int = 0
    recent_failures: int = 0
    recent_unpriced: int = 0  # of the last requests: used tokens no price is known for
    alerts: Sequence[tuple[PoolAlert, str]] = ()  # the last ones, each with its pool's name
    failures: Sequence[Usage] = ()
    events: Sequence[Readable] = ()
    steps: Sequence[Step] = ()
    has_asked: bool = False  # a request of the last ones went to a provider that is not the built-in one

    @property
    def mostly_failing(self) -> bool:
        """Whether more than half of the last requests failed."""
        return self.recent_failures * 2 > self.recent_requests


def _configuration(found: Overview) -> None:
    found.version = ConfigVersion.objects.defer("document", "owners").order_by("-number").first()
    try:
        digest = publish.draft_digest()
    except publish.PublishError:  # told by `hoosh_site.attention`
        return
    found.is_behind = found.version is None or found.version.digest != digest
    found.waits = found.is_behind and publish.waits()


def _providers(found: Overview) -> None:
    for provider in Provider.objects.select_related("probe"):
        probe = getattr(provider, "probe", None)
        if not provider.enabled:
            found.providers_disabled += 1
            continue
        found.providers_enabled += 1
        if probe is None or probe.checked_at is None:
            found.providers_unknown += 1
        elif probe.ok:
            found.providers_up += 1
        else:
            found.providers_down += 1


def _keys(found: Overview) -> None:
    now = timezone.now()
    alive = Q(revoked_at__isnull=True) & (Q(expires_at__isnull=True) | Q(expires_at__gt=now))
    counts = ApiKey.objects.aggregate(
        every=Count("id"),
        active=Count("id", filter=alive),
        expiring=Count("id", filter=alive & Q(expires_at__lte=now + _EXPIRES_SOON)),
    )
    found.keys_active = counts["active"]
    found.keys_inactive = counts["every"] - counts["active"]
    found.keys_expiring = counts["expiring"]


def _pools(found: Overview) -> None:
    rows = list(Pool.objects.filter(enabled=True)[:_POOLS_READ])
    known = balances(rows)
    states = [PoolState(row.pk, row.name, known[row.pk]) for row in rows]
    states.sort(key=lambda state: (-state.balance.used_permille, state.name))
    found.pools = states[:_SHOWN]


def _alerts(found: Overview) -> None:
    rows = list(PoolAlert.objects.order_by("-id")[:_SHOWN])
    names = dict(Pool.objects.filter(pk__in={row.pool_id for row in rows}).values_list("pk", "name"))
    found.alerts = [(row, names.get(row.pool_id) or f"#{row.pool_id}") for row in rows]


def _requests(found: Overview) -> None:
    recent = list(Usage.objects.order_by("-at", "-id")[:_RECENT])
    failed = [usage for usage in recent if usage.error or usage.status >= 400]
    found.recent_requests, found.recent_failures = len(recent), len(failed)
    found.recent_unpriced = sum(1 for usage in recent if usage.price_id == PRICE_UNKNOWN and usage.tokens)
    found.failures = failed[:_SHOWN]
    demo = set(Provider.objects.filter(kind=DEMO).values_list("pk", flat=True)) if recent else set()
    found.has_asked = any(usage.provider_id not in demo for usage in recent)


def _events(found: Overview) -> None:
    found.events = reading.readable(reading.page(reading.Question(source="site"), _SHOWN * 2).entries)


def _steps(found: Overview, user: AbstractUser | AnonymousUser) -> None:
    """What the first start makes by itself (the demo model, a key for the operator) counts as nothing done."""
    own = Provider.objects.exclude(kind=DEMO)
    steps: list[Step] = []
    if user.has_perm("providers.add_provider"):
        steps.append(Step("Add a provider", reverse("admin:providers_provider_add"), own.exists()))
    if user.has_perm("providers.add_route"):
        done = Route.objects.exclude(provider__kind=DEMO).exists()
        steps.append(Step("Add a route to it", "" if done else _route_url(own, user), done))
    if user.has_perm("budgets.add_apikey"):
        apps = ApiKey.objects.exclude(agent__team__name=playground.TEAM)
        for scope in PRIVILEGED:
            apps = apps.exclude(scopes__contains=scope)
        steps.append(Step("Create an API key for an app", reverse("admin:budgets_apikey_add"), apps.exists()))
        if "requests" in found.sections and playground.may_play(user):
            steps.append(Step("Ask a model, from the app or here", reverse("admin:playground"), found.has_asked))
    if not all(step.done for step in steps):
        found.steps = steps


def _route_url(providers: QuerySet[Provider], user: AbstractUser | AnonymousUser) -> str:
    """The models of the newest provider, each with a button for its route; the empty form while there is none."""
    newest = providers.order_by("-pk").first() if user.has_perm("providers.view_provider") else None
    if newest is None:
        return reverse("admin:providers_route_add")
    return reverse("admin:providers_provider_found", args=(newest.pk,))


# Section -> who reads it, and the permissions of which any one shows it.
_SECTIONS: dict[str, tuple[Callable[[Overview], None], tuple[str, ...]]] = {
    "configuration": (_configuration, ("providers.view_configversion", "providers.change_gatewaysettings")),
    "providers": (_providers, ("providers.view_provider",)),
    "keys": (_keys, ("budgets.view_apikey",)),
    "pools": (_pools, ("budgets.view_pool",)),
    "alerts": (_alerts, ("budgets.view_poolalert",)),
    "requests": (_requests, ("budgets.view_usage",)),
    "events": (_events, ("audit.view_auditentry",)),
}


def overview(user: AbstractUser | AnonymousUser) -> Overview:
    """Look once at everything this user may see."""
    found = Overview()
    for name, (read, permissions) in _SECTIONS.items():
        if any(user.has_perm(permission) for permission in permissions):
            found.sections.add(name)
            read(found)
    _steps(found, user)
    return found
