"""Every operation of the management API, asked by every kind of caller: exactly those may who should."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client, TestCase
from django.urls import URLPattern

from audit.models import AuditEntry, OutboxEntry
from budgets.models import (
    Agent,
    Anomaly,
    Lease,
    LedgerEntry,
    LedgerOrder,
    Pool,
    PoolAlert,
    PoolWindow,
    Price,
    Team,
    Usage,
    WarmQuestion,
)
from budgets.scopes import ADMIN_PERMISSIONS
from events.models import Event, Webhook
from hoosh_site.management_api import docs
from hoosh_site.management_api.rows import ManagementView
from hoosh_site.management_api.urls import urlpatterns
from hoosh_site.people.models import ExternalIdentity, SecondFactor, SignInFailure, TeamLead
from providers import publish, services
from providers.models import (
    DataPattern,
    ModelCard,
    PrivacyPolicy,
    Provider,
    Route,
    RoutingPolicy,
    ScheduledPublication,
)
from providers.validation import DEMO_URL
from tests.audit.small_log import SmallLog
from tests.site.management_case import SECRET, ManagementCase

pytestmark = pytest.mark.database

PEOPLE = ("users", "groups", "team-leads", "second-factors", "failed-sign-ins", "external-identities")
# What does not follow from the method: POST that only reads, and what needs a gateway or the network to succeed.
UNTRIED = ("/test", "disable-now", "discard", "revert", "prices/import")  # they reach out, or change what others need
READING_POSTS = {"routes/explain", "privacy-policies/<int:pk>/trial", "data-patterns/<int:pk>/trial"}


def operations() -> Iterator[tuple[str, str]]:
    """Method and path pattern of every operation, from the table of paths."""
    for entry in urlpatterns:
        assert isinstance(entry, URLPattern)
        if hasattr(entry.callback, "actions") and not str(entry.pattern).endswith("/"):
            for method in set(entry.callback.actions) - {"head"}:  # which the first request adds
                yield method.upper(), str(entry.pattern)


OPERATIONS = sorted(operations())


def logged() -> AuditEntry:
    """An entry of the log."""
    log = SmallLog()
    log.open("2026-11")
    log.checkpoint()
    return AuditEntry.objects.get(seq=0)


class MatrixTest(ManagementCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()
        provider = services.save_provider(Provider(name="base", kind="demo", base_url=DEMO_URL), actor="test")
        services.set_credential(provider, "main", SECRET, actor="test")
        publish.publish("test")
        made = (
            Route.objects.create(name="r", pattern="m", provider=provider),
            RoutingPolicy.objects.create(name="p"),
            PrivacyPolicy.objects.create(name="p"),
            DataPattern.objects.create(name="p", source="x"),
            ModelCard.objects.create(pattern="m"),
            Price.objects.create(pattern="m", valid_from="2026-01-01T00:00:00Z"),
            LedgerOrder.objects.create(kind="period", actor="test"),
            Webhook.objects.create(name="w", url="http://127.0.0.1:9/", address_class="loopback"),
            Event.objects.create(topic="t", name="n"),
            logged(),
            PoolWindow.objects.create(pool_id=cls.pool.pk),
            PoolAlert.objects.create(pool_id=cls.pool.pk, percent=80, committed=1, capacity=1),
            LedgerEntry.objects.create(kind="correction", pool_id=cls.pool.pk, amount=1),
            ScheduledPublication.objects.create(at="2030-01-01T00:00:00Z", author="test", digest="x"),
            Usage.objects.create(
                **{"rid": "0" * 32, "at": "2026-01-01T00:00:00Z", "key_id": 1, "agent_id": 1, "team_id": 1},
                **{"pool_id": 1, "endpoint": "chat", "model": "m", "status": 200},
            ),
        )
        lease = Lease.objects.create(owner="w", window=made[10])
        imported = ModelCard.every.create(pattern="i", source="s")
        figures = {"kind": "spend", "stretch": 1, "unit": "usd", "observed": 2.0, "expected": 1.0}
        failure = SignInFailure.objects.create(name="x", since="2026-01-01T00:00:00Z")
        identity = ExternalIdentity.objects.create(user=cls.bob, issuer="https://i", subject="s")
        cls.ids = {
            "providers": provider.pk,
            "versions": publish.latest()[0],
            "keys": cls.make_key("routes")[0].pk,
            "users": cls.bob.pk,
            "groups": cls.bob.groups.create(name="g").pk,
            "teams": Team.objects.get().pk,
            "agents": Agent.objects.get().pk,
            "pools": Pool.objects.get().pk,
            "leases": lease.pk,
            "imported-model-cards": imported.pk,
            "anomalies": Anomaly.objects.create(agent=cls.agent, **figures).pk,
            "questions-asked-ahead": WarmQuestion.objects.create(key=cls.admin_key, model="m", question="?").pk,
            "team-leads": TeamLead.objects.create(user=cls.bob, team=cls.agent.team).pk,
            "second-factors": SecondFactor.objects.create(user=cls.bob, secret="x").pk,
            "failed-sign-ins": failure.pk,
            "external-identities": identity.pk,
            "audit-entries-on-their-way": OutboxEntry.objects.create(action="a.b").pk,
        }
        names = (
            *("routes", "routing-policies", "privacy-policies", "data-patterns", "model-cards", "prices"),
            *("ledger-orders", "webhooks", "events", "audit-entries", "pool-windows", "alerts", "ledger-entries"),
            *("scheduled-publications", "usage"),
        )
        cls.ids |= {name: row.pk for name, row in zip(names, made, strict=True)}
        cls.credential = provider.credentials.get().pk

    def path(self, pattern: str) -> str:
        filled = pattern.replace("<int:provider_pk>", str(self.ids["providers"]))
        if "/credentials/" in pattern:
            return filled.replace("<int:pk>", str(self.credential))
        return filled.replace("<int:pk>", str(self.ids.get(pattern.partition("/")[0], 0)))

    def status(self, method: str, path: str, **who: Any) -> int:
        """What an empty request is answered: 400 and what lies behind it mean that the caller was let in."""
        return int(self.call(method, path, None if method in ("GET", "DELETE") else {}, **who).status_code)

    def test_every_operation_is_open_to_exactly_those_who_may(self) -> None:
        viewer, nobody, superuser = (self.signed_in(each) for each in (self.vera, self.bob, self.ada))
        assert len(OPERATIONS) > 110
        for method, pattern in OPERATIONS:
            path, people = self.path(pattern), pattern.partition("/")[0] in PEOPLE
            with self.subTest(f"{method} {pattern}"):
                assert self.status(method, path, key="") == 401
                assert self.status(method, path, key=self.plain) == 403
                assert self.status(method, path, key=self.operator) == 403
                assert self.status(method, path, client=nobody) == 403
                reads = method == "GET" or pattern in READING_POSTS
                seen = self.status(method, path, client=viewer)
                assert (seen not in (401, 403)) if reads else seen == 403, seen
                for who in ({"client": superuser}, {}):
                    if people and not who:
                        assert self.status(method, path) == 403
                    elif method != "DELETE" and not path.endswith((*UNTRIED,)):
                        assert self.let_in(method, path, self.status(method, path, **who))

    def let_in(self, method: str, path: str, status: int) -> bool:
        if method == "GET":
            return status == 200 or (status == 404 and path.endswith("client-certificate"))
        return status in (200, 201, 204, 400, 409, 503)

    def test_the_key_has_every_permission_that_is_asked_for_but_peoples(self) -> None:
        wanted: set[str] = set()
        for entry in urlpatterns:
            if hasattr(entry.callback, "actions"):
                for action in entry.callback.actions.values():
                    view: ManagementView = entry.callback.cls(action=action, request=None)
                    wanted |= set(ManagementView.needed(view))
        assert {name for name in wanted if not name.startswith(("auth.", "people."))} <= ADMIN_PERMISSIONS
        known = {f"{app}.{code}" for app, code in Permission.objects.values_list("content_type__app_label", "codename")}
        assert known >= ADMIN_PERMISSIONS
        assert not [name for name in ADMIN_PERMISSIONS if name.startswith(("auth.", "people."))]

    def test_sessions_need_the_token_against_forgery(self) -> None:
        client = Client(enforce_csrf_checks=True)
        client.force_login(self.ada)
        self.refused(403, "POST", "teams", {"name": "x"}, client=client)
        client.get("/admin/")
        token = client.cookies["hoosh_csrf"].value
        self.ok("POST", "teams", {"name": "x"}, status=201, client=client, **{"X-CSRFToken": token})
        self.ok("GET", "teams", client=client)

    def test_people_have_the_permissions_of_the_pages_one_by_one(self) -> None:
        cases = (
            ("change_route", "PATCH", f"routes/{self.ids['routes']}", {"priority": 3}, 200),
            ("change_route", "GET", "routes", None, 200),
            ("change_route", "DELETE", f"routes/{self.ids['routes']}", None, 403),
            ("add_route", "GET", "routes", None, 403),
            ("change_provider", "POST", f"providers/{self.ids['providers']}/credentials", {"secret": SECRET}, 403),
            ("add_credential", "POST", f"providers/{self.ids['providers']}/credentials", {"secret": SECRET}, 201),
            ("change_gatewaysettings", "PATCH", "settings", {"max_attempts": 2}, 200),
            ("change_gatewaysettings", "PATCH", "settings", {"privacy_policy": "p"}, 403),
            ("change_poolwindow", "GET", "ledger-orders", None, 200),
            ("view_ledgerorder", "POST", "ledger-orders", {}, 403),
            ("change_provider", "POST", "import-config", {"toml": ""}, 403),
        )
        for permission, method, path, body, status in cases:
            with self.subTest(permission=permission, path=path):
                self.bob.user_permissions.set(Permission.objects.filter(codename=permission))
                client = self.signed_in(User.objects.get(pk=self.bob.pk))
                assert self.call(method, path, body, client=client).status_code == status

    def test_a_refusal_names_what_is_missing(self) -> None:
        told = self.refused(403, "POST", "routes", {}, client=self.signed_in(self.vera))
        assert "providers.add_route" in told["message"]
        assert "sign in" in self.refused(403, "GET", "users")["message"]
        assert "scope “admin”" in self.refused(403, "GET", "routes", key=self.operator)["message"]


class DescriptionTest(ManagementCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()

    def test_the_description_is_valid_and_has_every_operation(self) -> None:
        from drf_spectacular.drainage import GENERATOR_STATS
        from drf_spectacular.validation import validate_schema

        docs.description.cache_clear()
        with GENERATOR_STATS.silence():
            GENERATOR_STATS.reset()
            document = docs.description()
        assert not GENERATOR_STATS, (GENERATOR_STATS._warn_cache, GENERATOR_STATS._error_cache)
        validate_schema(document)
        told = {
            (method.upper(), path.removeprefix("/api/v1/"))
            for path, item in document["paths"].items()
            for method in item
        }
        named = {(method, pattern.replace("<int:pk>", "{id}")) for method, pattern in OPERATIONS}
        plain = {(method, path.replace("{number}", "{id}").replace("{seq}", "{id}")) for method, path in told}
        assert plain == {(method, path.replace("<int:provider_pk>", "{provider_pk}")) for method, path in named}
        ids = [each["operationId"] for item in document["paths"].values() for each in item.values()]
        assert len(ids) == len(set(ids))

    def test_the_description_is_for_callers_and_the_page_for_people(self) -> None:
        assert self.ok("GET", "schema/", key=self.plain)["info"]["title"] == "Hoosh management API"
        self.refused(401, "GET", "schema/", key="")
        assert self.call("GET", "docs/", key="")["Location"].startswith("/admin/login/")
        page = self.call("GET", "docs/", client=self.signed_in(self.bob))
        html = page.content.decode()
        assert "/api/v1/providers/{provider_pk}/credentials" in html
        assert "<script>" not in html
        assert " style=" not in html
        assert "unsafe" not in page["Content-Security-Policy"]
        assert self.call("POST", "docs/", {}, client=self.signed_in(self.bob)).status_code == 405
