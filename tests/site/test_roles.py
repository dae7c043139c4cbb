"""The roles do exactly what docs/console.md says: every page of admin, by every role, looked at and sent to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import transaction
from django.template import engines
from django.template.response import SimpleTemplateResponse
from django.test import Client
from django.urls import URLPattern, URLResolver, reverse
from django.utils import timezone
from django.utils.deprecation import MiddlewareMixin

from audit.models import AuditEntry, OutboxEntry
from budgets import access
from budgets.keys import create_key
from budgets.models import (
    Anomaly,
    Lease,
    LedgerEntry,
    LedgerOrder,
    Pool,
    PoolAlert,
    PoolWindow,
    Price,
    Reservation,
    Team,
    Usage,
    WarmQuestion,
)
from events.models import Event, Webhook
from hoosh_site.people import groups, roles
from hoosh_site.people.models import ExternalIdentity, RoleOffer, SecondFactor, SignInFailure, TeamLead
from providers import publish, services
from providers.models import (
    DataPattern,
    ModelCard,
    PrivacyPolicy,
    Provider,
    Route,
    RoutingPolicy,
)
from tests.admin_case import AdminTestCase
from tests.audit.small_log import SmallLog

pytestmark = pytest.mark.database

SECRET_URL = "https://example.org/hook?token=canary"
UNCOUNTED = {Session, LogEntry}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "console.md"

Allowed = Callable[[User], bool]


def needs(*names: str) -> Allowed:
    return lambda user: user.has_perms(names)


STAFF: Allowed = lambda user: user.is_staff  # noqa: E731

# Pages that are no model's four: their names -> who may look (GET) and who may send (POST); None = never answered so.
OWN: dict[str, tuple[Allowed | None, Allowed | None]] = {
    "index": (STAFF, None),
    "app_list": (needs("budgets.view_pool"), None),
    "jsi18n": (STAFF, None),
    "autocomplete": (needs("budgets.view_pool"), None),
    "password_change": (STAFF, STAFF),
    "password_change_done": (STAFF, None),
    "live": (needs("budgets.view_usage"), None),
    "live_stream": (needs("budgets.view_usage"), None),
    "draft": (needs("providers.view_configversion"), needs("providers.change_gatewaysettings")),
    "version_revert": (needs("providers.view_configversion", "providers.change_gatewaysettings"),) * 2,
    "provider_off": (None, needs("providers.change_provider")),
    "playground": (needs("budgets.add_apikey", "providers.view_route"),) * 2,
    "playground_key": (None, needs("budgets.add_apikey", "providers.view_route")),
    "explain": (needs("providers.view_route"), None),
    "providers_route_matches": (needs("providers.view_route"), None),
    "providers_route_move": (None, needs("providers.change_route")),
    "budgets_anomaly_acknowledge": (None, needs("budgets.change_agent")),
    "tail": (needs("budgets.view_usage"), None),
    "tail_rows": (needs("budgets.view_usage"), None),
    "tail_stream": (needs("budgets.view_usage"), None),
    "audit_verification": (needs("audit.view_auditentry"), None),
    "audit_proof": (needs("audit.view_auditentry"), None),
    "audit_verifier": (needs("audit.view_auditentry"), None),
    "limits": (needs("budgets.view_team"), None),
    "costs": (needs("budgets.view_usage"), None),
    "costs_period": (needs("budgets.change_poolwindow"),) * 2,
    "budgets_pool_correct": (needs("budgets.change_poolwindow"),) * 2,
    "budgets_pool_transfer": (needs("budgets.change_poolwindow"),) * 2,
    "budgets_lease_resolve": (needs("budgets.change_poolwindow"),) * 2,
    "providers_provider_found": (needs("providers.view_provider"), None),
    "providers_privacypolicy_try": (needs("providers.view_privacypolicy"),) * 2,
    "providers_datapattern_try": (needs("providers.view_datapattern"),) * 2,
    "providers_provider_test": (None, needs("providers.change_provider")),
    "providers_provider_pin": (None, needs("providers.change_provider")),
    "providers_provider_observe": (None, needs("providers.change_provider")),
    "providers_provider_route": (None, needs("providers.view_provider", "providers.add_route")),
    "providers_route_clone": (None, needs("providers.add_route")),
    "providers_configversion_publish": (None, needs("providers.change_gatewaysettings")),
    "budgets_apikey_revoke": (needs("budgets.change_apikey"),) * 2,
    "budgets_apikey_rotate": (needs("budgets.add_apikey", "budgets.change_apikey"),) * 2,
    "events_webhook_test": (None, needs("events.change_webhook")),
    "events_webhook_secret": (None, needs("events.change_webhook")),
    "auth_user_second_factor": (needs("people.delete_secondfactor"),) * 2,
    "auth_user_password_change": (needs("auth.change_user"),) * 2,
}
OPEN = {"login", "logout", "view_on_site"}  # of Django, and nobody's data
_VIEWS = ("changelist", "add", "change", "delete", "history")
_NEVER = {  # pages of admin that allow something to nobody, whatever their permissions
    "add": {"providers.gatewaysettings", "people.secondfactor", "people.signinfailure", "people.externalidentity"},
    "change": {"budgets.price", "people.secondfactor", "people.signinfailure", "people.externalidentity"},
    "delete": {"providers.gatewaysettings", "budgets.apikey", "budgets.price"},
}
_LOGS = {
    *("providers.configversion", "budgets.ledgerorder", "budgets.poolwindow", "budgets.lease", "budgets.ledgerentry"),
    *("budgets.poolalert", "budgets.reservation", "budgets.usage", "events.event", "audit.outboxentry"),
    *("audit.auditentry", "budgets.anomaly"),
}


def logged() -> AuditEntry:
    """An entry of a log that has one more, which opened it."""
    log = SmallLog()
    log.open("2026-11")
    log.add("key.created", actor="ada", target="app")
    log.checkpoint()
    return AuditEntry.objects.get(seq=log.seq - 1)


def table(heading: str) -> list[list[str]]:
    """The rows of the table in the page whose first heading is this."""
    lines = PAGE.read_text().splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return rows


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def patterns(entries: Any) -> Iterator[URLPattern]:
    for entry in entries:
        if isinstance(entry, URLResolver):
            yield from patterns(entry.url_patterns)
        else:
            yield entry


class Unrendered(MiddlewareMixin):
    """Leaves pages blank: who may open them is decided before they are rendered."""

    def process_template_response(self, request: Any, response: Any) -> Any:
        return SimpleTemplateResponse(engines["django"].from_string(""), status=response.status_code)


class PageTest(AdminTestCase):
    def test_the_page_says_what_the_groups_are_made_from(self):
        written = {
            named(rows)[0]: (set(operator.split(", ")), set(security.split(", ")))
            for rows, operator, security in table("rows")
        }
        assert written == {model: (set(one), set(two)) for model, (one, two) in roles.MODELS.items()}
        others = {
            named(permission)[0]: tuple(cell.split(", ")) if cell else ()
            for permission, cell, _ in table("other permission")
        }
        assert others == roles.OTHERS
        assert {named(row[0])[0] for row in table("role")} == set(roles.ROLES)

    def test_the_page_names_every_page_that_asks_for_something_of_its_own(self):
        written = {name for row in table("page") for name in named(row[0])}
        assert written == OWN.keys() - {"password_change_done", "auth_user_password_change"}

    def test_every_model_of_admin_is_in_the_table(self):
        assert {model._meta.label_lower for model in admin.site._registry} == roles.MODELS.keys()


class GroupTest(AdminTestCase):
    def has(self, role: str) -> set[str]:
        found = Group.objects.get(name=role).permissions.values_list("content_type__app_label", "codename")
        return {".".join(each) for each in found}

    def test_groups_have_their_permissions_from_the_start(self):
        for role in (roles.VIEWER, roles.OPERATOR, roles.SECURITY):
            assert self.has(role) == roles.permissions(role), role
        every = Permission.objects.values_list("content_type__app_label", "codename")
        assert self.has(roles.ADMIN) == {".".join(each) for each in every}

    def test_what_somebody_took_from_a_group_is_not_given_again(self):
        group = Group.objects.get(name="operator")
        group.permissions.remove(Permission.objects.get(codename="add_price"))
        groups.offer("default")
        assert "budgets.add_price" not in self.has("operator")

    def test_a_group_that_was_deleted_or_renamed_is_not_made_again(self):
        Group.objects.get(name="viewer").delete()
        Group.objects.filter(name="security").update(name="guards")
        groups.offer("default")
        assert set(Group.objects.values_list("name", flat=True)) == {"operator", "admin", "guards"}

    def test_a_permission_that_is_new_is_added(self):
        RoleOffer.objects.filter(permission="budgets.view_pool").delete()
        Group.objects.get(name="viewer").permissions.remove(Permission.objects.get(codename="view_pool"))
        groups.offer("default")
        assert self.has("viewer") == roles.permissions("viewer")

    def test_a_group_of_that_name_from_before_is_left_alone(self):
        RoleOffer.objects.filter(role="viewer").delete()
        Group.objects.get(name="viewer").permissions.clear()
        groups.offer("default")
        assert self.has("viewer") == set()

    def test_the_command_gives_everything_back(self):
        Group.objects.get(name="viewer").delete()
        Group.objects.get(name="operator").permissions.clear()
        call_command("setup_roles", "--restore", stdout=StringIO())
        for role in (roles.VIEWER, roles.OPERATOR, roles.SECURITY):
            assert self.has(role) == roles.permissions(role), role
        assert OutboxEntry.objects.filter(action="group.restored").count() == 4


class EveryRow:
    """A row of every model of admin (`rows`, by its label), and with them the address of any of its pages."""

    carl: User
    rows: dict[str, Any]

    @classmethod
    def make_rows(cls) -> dict[str, Any]:
        now = timezone.now()
        agent = access.agent_named("Research", "notebook", actor="ada")
        pool = access.default_pool("ada")
        access.save_pool(Pool(name="spare", capacity_tokens=100), actor="ada")
        key, _ = create_key(agent, pool, "laptop", actor="ada")
        window = PoolWindow.objects.create(pool_id=pool.pk, capacity=10_000_000, committed=9, leased=5)
        ids = {"key_id": key.pk, "agent_id": agent.pk, "team_id": agent.team_id, "pool_id": pool.pk}
        used = {"endpoint": "chat", "model": "tiny", "status": 200, "tokens": 9, "price_id": 0}
        provider = Provider(name="workshop", kind="custom", base_url="http://127.0.0.1:9")
        services.save_provider(provider, actor="ada", address_class="loopback")
        lease = {"owner": "w-dead", "granted": 5, "remaining": 5, "state": "quarantined"}
        alert = {"percent": 80, "committed": 9, "capacity": 10, "at": now}
        reserved = {"draws": [], "tokens": 9, "created_at": now, "expires_at": now}
        rows = {
            "providers.provider": provider,
            "providers.route": services.save_route(Route(name="tiny", pattern="tiny", provider=provider), actor="ada"),
            "providers.routingpolicy": RoutingPolicy.objects.create(name="p", pattern="*"),
            "providers.privacypolicy": PrivacyPolicy.objects.create(name="strict"),
            "providers.datapattern": DataPattern.objects.create(name="badge", source="E[0-9]+"),
            "providers.modelcard": ModelCard.objects.create(pattern="tiny"),
            "providers.gatewaysettings": services.gateway_settings(),
            "providers.configversion": publish.publish("ada", "for the test"),
            "budgets.team": agent.team,
            "budgets.agent": agent,
            "budgets.apikey": key,
            "budgets.pool": pool,
            "budgets.price": access.add_price(Price(pattern="tiny", valid_from=now), actor="ada"),
            "budgets.usage": Usage.objects.create(rid="0" * 32, at=now, **ids, **used),
            "budgets.poolwindow": window,
            "budgets.poolalert": PoolAlert.objects.create(pool_id=pool.pk, **alert),
            "budgets.ledgerentry": LedgerEntry.objects.create(pool_id=pool.pk, kind="correction", amount=1),
            "budgets.ledgerorder": LedgerOrder.objects.create(kind="correction", actor="ada"),
            "budgets.lease": Lease.objects.create(window=window, **lease),
            "budgets.reservation": Reservation.objects.create(id="1" * 32, **ids, **reserved),
            "budgets.anomaly": Anomaly.objects.create(
                agent=agent, kind="loop", stretch=0, unit="requests", observed=9, expected=1
            ),
            "budgets.warmquestion": WarmQuestion.objects.create(key=key, model="tiny", question="Who?"),
            "events.event": Event.objects.create(topic="config", name="config.published"),
            "events.webhook": Webhook.objects.create(
                name="chat", url=SECRET_URL, address_class="public", ciphertext="x"
            ),
            "audit.auditentry": logged(),
            "audit.outboxentry": OutboxEntry.objects.create(action="x.y"),
            "auth.user": cls.carl,
            "auth.group": Group.objects.create(name="others"),
            "people.teamlead": TeamLead.objects.create(user=cls.carl, team=agent.team),
            "people.secondfactor": SecondFactor.objects.create(user=cls.carl, secret="x", confirmed_at=now),
            "people.signinfailure": SignInFailure.objects.create(name="eve", address="192.0.2.1", since=now),
            "people.externalidentity": ExternalIdentity.objects.create(user=cls.carl, issuer="https://i", subject="s"),
        }
        assert rows.keys() == roles.MODELS.keys()
        return rows

    def address(self, entry: URLPattern, label: str = "") -> str:
        assert entry.name is not None
        names = list(entry.pattern.converters) or list(entry.pattern.regex.groupindex)
        label = label or next((each for each in self.rows if entry.name.startswith(each.replace(".", "_"))), "")
        own = {"app_label": "budgets", "owner": "w-dead", "kind": "release"}
        own["number"] = self.rows["providers.configversion"].pk
        row_id = self.rows[label].pk if label else self.rows["providers.provider"].pk
        query = "?app_label=budgets&model_name=apikey&field_name=pool" if entry.name == "autocomplete" else ""
        return reverse(f"admin:{entry.name}", kwargs={each: own.get(each, row_id) for each in names}) + query


class MatrixTest(EveryRow, AdminTestCase):
    """Each request is made by each role, inside a savepoint, so that none finds what another did."""

    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_people()
        cls.rows = cls.make_rows()
        cls.staff = {}
        for role in roles.ROLES:
            cls.staff[role] = User.objects.create_user(f"{role}-person", "", "pw", is_staff=True)
            cls.staff[role].groups.add(Group.objects.get(name=role))
        cls.staff["nobody"] = cls.bob

    def cases(self) -> Iterator[tuple[str, str, Allowed | None, Allowed | None]]:
        """Every address of admin: its page's name, itself, who may look, who may send."""
        for entry in patterns(admin.site.get_urls()):
            name = entry.name
            if name is None or name in OPEN:
                continue  # the address without a page behind, and Django's redirects
            model, _, view = name.rpartition("_")
            if name in OWN:
                yield name, self.address(entry), *OWN[name]
            elif view in _VIEWS and model.replace("_", ".", 1) in roles.MODELS:
                label = model.replace("_", ".", 1)
                yield name, self.address(entry, label), *self.allowed(label, view)
            else:
                raise AssertionError(f"{name} asks for a permission nobody has written down: OWN, and docs/console.md")

    def allowed(self, label: str, view: str) -> tuple[Allowed | None, Allowed | None]:
        app, _, name = label.partition(".")

        def may(action: str) -> Allowed | None:
            if label in _NEVER.get(action, ()) or (label in _LOGS and action != "view"):
                return lambda user: False
            return needs(f"{app}.{action}_{name}")

        def look(user: User) -> bool:
            change = may("change")
            return needs(f"{app}.view_{name}")(user) or bool(change and change(user))

        if label == "budgets.ledgerorder":
            look = lambda user: user.has_perm("budgets.view_ledgerorder") or user.has_perm("budgets.change_poolwindow")  # noqa: E731
        if view == "history":
            return look, None
        if view == "changelist":
            return look, look
        if view == "change":
            return look, may("change")
        return may(view), may(view)

    def ask(self, client: Client, method: str, address: str) -> int:
        """The status of an answer; whatever it changed is undone."""
        names = {"default", settings.HOOSH_LEDGER_DB}
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(transaction.atomic(name))
            response = getattr(client, method)(address)
            for name in names:
                transaction.set_rollback(True, name)
        if response.status_code == 302 and "/login/" in response.headers["location"]:
            return 403
        return int(response.status_code)

    def test_every_page_answers_every_role_as_it_is_written(self):
        people = {**self.staff, "no staff": self.carl}
        clients = {role: Client() for role in people}
        for role, client in clients.items():
            client.force_login(people[role])
        wrong, asked = [], 0
        cases = list(self.cases())
        with self.modify_settings(MIDDLEWARE={"append": "tests.site.test_roles.Unrendered"}):
            for name, address, *who in cases:
                for method, may in zip(("get", "post"), who, strict=True):
                    asking = people if method == "get" else self.staff
                    for role in asking if may is not None else [roles.ADMIN]:
                        status = self.ask(clients[role], method, address)
                        asked += 1
                        refused = status in (403, 405) or (name == "app_list" and status == 404)
                        expected = may is not None and people[role].is_staff and may(people[role])
                        if refused is expected and (may is not None or method == "get"):
                            wrong.append(f"{role} {method} {name}: {status}, expected {expected}")
                        elif not refused and (status >= 500 or status == 404):
                            wrong.append(f"{role} {method} {name}: {status}")
        assert not wrong, "\n".join(wrong)
        assert asked > 1200

    def test_a_viewer_may_look_at_every_page_that_is_not_for_changing(self):
        self.client.force_login(self.staff["viewer"])
        for name, address, look, _ in self.cases():
            if look is not None and look(self.staff["viewer"]) and not name.startswith("password_change"):
                response = self.client.get(address)
                assert response.status_code in (200, 204, 302), (name, response.status_code)

    def test_a_viewer_changes_nothing_wherever_they_send(self):
        self.client.force_login(self.staff["viewer"])
        before = self.state()
        for _, address, *_ in self.cases():
            with transaction.atomic():
                self.client.post(address, {"post": "yes", "_selected_action": ["1"], "action": "delete_selected"})
        assert self.state() == before

    def state(self) -> dict[str, int]:
        return {
            model._meta.label: model._default_manager.count() for model in apps.get_models() if model not in UNCOUNTED
        }

    def test_a_viewer_sees_no_webhooks_url(self):
        row = self.rows["events.webhook"]
        self.client.force_login(self.staff["viewer"])
        for name, args, query in (
            ("events_webhook_change", (row.pk,), ""),
            ("events_webhook_changelist", (), ""),
            ("events_webhook_changelist", (), "?q=canary"),
        ):
            html = self.page(name, *args, query=query)
            assert "token=canary" not in html
            assert "chat" not in html or "?q=" not in query
        assert "example.org" in self.page("events_webhook_change", row.pk)
        assert self.client.get(self.url("events_webhook_changelist") + "?url__gt=a").status_code in (302, 400)
        self.client.force_login(self.staff["operator"])
        assert "canary" in self.page("events_webhook_change", row.pk)

    def test_operators_do_not_decide_what_may_leave_the_house(self):
        strict = self.rows["providers.privacypolicy"]
        team = self.rows["budgets.team"]
        form = {"name": team.name, "enabled": "on", "privacy_policy": strict.pk}
        self.client.force_login(self.staff["operator"])
        assert self.post("budgets_team_change", form, team.pk).status_code == 302
        assert Team.objects.get().privacy_policy is None
        settings_page = self.page("providers_gatewaysettings_change", self.rows["providers.gatewaysettings"].pk)
        assert 'name="strategy"' in settings_page
        assert 'name="privacy_policy"' not in settings_page
        self.client.force_login(self.staff["security"])
        assert self.post("budgets_team_change", form, team.pk).status_code == 302
        assert Team.objects.get().privacy_policy == strict
