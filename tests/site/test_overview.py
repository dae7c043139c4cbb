"""What the first admin page says about workers, and to whom it says what."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import TestCase
from django.urls import reverse
from django.utils import timezone

from budgets import access
from budgets.keys import create_key
from budgets.models import Lease, Pool, PoolAlert, PoolWindow, Usage
from gateway import plane
from hoosh_site import home
from providers import services
from providers.models import Provider, ProviderProbe, Route
from tests.audit.small_log import SmallLog

pytestmark = pytest.mark.database


class Plane:
    """A control plane with workers as they report themselves."""

    writer: Any = None

    def __init__(self, *statuses: dict[str, Any]) -> None:
        self.statuses = statuses

    def wake(self, *, reimport: bool = False) -> None:
        """Nothing to look for."""

    def workers(self) -> list[dict[str, Any]]:
        return [{"index": index, "status": status} for index, status in enumerate(self.statuses)]


class OverviewTest(TestCase):
    databases = "__all__"

    def setUp(self) -> None:
        self.client.force_login(User.objects.create_superuser("ada"))
        home.forget()
        self.addCleanup(home.forget)
        self.addCleanup(setattr, plane, "current", plane.current)

    def page(self, *statuses: dict[str, Any]) -> str:
        plane.current = Plane(*statuses)
        home.forget()
        return self.client.get("/admin/").content.decode()

    def test_a_worker_that_could_not_load_a_version_is_named_with_the_reason(self) -> None:
        said = self.page({"build_error": "config: <bad> route", "config_version": 4, "journal_writable": True})
        self.assertIn("Worker 0 keeps version 4: config: &lt;bad&gt; route", said)

    def test_a_worker_without_a_journal_is_named(self) -> None:
        self.assertIn("Worker 1 cannot write its journal", self.page({}, {"journal_writable": False}))

    def test_well_workers_are_not_mentioned(self) -> None:
        self.assertNotIn("<td>Worker ", self.page({"build_error": "", "journal_writable": True}))


class FirstStepsTest(TestCase):
    """What the first start made counts as nothing done; each step that is done is ticked, and all of them go."""

    databases = "__all__"

    def setUp(self) -> None:
        self.client.force_login(User.objects.create_superuser("ada"))
        self.demo = services.save_provider(Provider(name="demo", kind="demo"), actor="init")
        services.save_route(Route(name="demo", pattern="demo", provider=self.demo), actor="init")
        self.pool = access.default_pool("init")
        agent = access.agent_named("default", "default", actor="init")
        create_key(agent, self.pool, "first key", ("inference", "operator"), actor="init")

    def steps(self) -> list[tuple[str, str]]:
        """(text, address) of the steps shown; a step that is done has no address."""
        html = self.client.get("/admin/").content.decode()
        found = re.search(r'(?s)<ol class="hoosh-steps">(.*?)</ol>', html)
        items = re.findall(r"(?s)<li>(.*?)</li>", found[1]) if found else []
        shown = []
        for item in items:
            link = re.search(r'<a href="([^"]*)">([^<]*)</a>', item)
            shown.append((link[2], link[1]) if link else (item.rpartition("</span>")[2].strip(), ""))
        return shown

    def asked(self, provider: Provider) -> None:
        ids = dict.fromkeys(("key_id", "agent_id", "team_id", "pool_id"), 1)
        rid = f"{provider.pk:032}"
        Usage.objects.create(rid=rid, model="m", status=200, at=timezone.now(), provider_id=provider.pk, **ids)

    def test_from_the_first_start_to_the_first_answer(self) -> None:
        add, key = reverse("admin:providers_provider_add"), reverse("admin:budgets_apikey_add")
        texts = (
            "Add a provider",
            "Add a route to it",
            "Create an API key for an app",
            "Ask a model, from the app or here",
        )
        route, play = reverse("admin:providers_route_add"), reverse("admin:playground")
        self.assertEqual(self.steps(), list(zip(texts, (add, route, key, play), strict=True)))
        self.asked(self.demo)
        mine = services.save_provider(Provider(name="mine", kind="ollama"), actor="ada")
        found = reverse("admin:providers_provider_found", args=(mine.pk,))
        self.assertEqual(self.steps(), list(zip(texts, ("", found, key, play), strict=True)))
        services.save_route(Route(name="r", pattern="m", provider=mine), actor="ada")
        agent = access.agent_named("operators", "playground", actor="ada")
        create_key(agent, self.pool, "playground ada", ("inference", "routes"), actor="ada")
        self.assertEqual(self.steps(), list(zip(texts, ("", "", key, play), strict=True)))
        self.asked(mine)
        create_key(access.agent_named("a", "b", actor="ada"), self.pool, "app", actor="ada")
        self.assertEqual(self.steps(), [])


class SectionsTest(TestCase):
    """Each section stands on the page of who may see what it is taken from, and of nobody else."""

    databases = "__all__"
    SIGNS = (
        ("Worker 0 cannot write", {"view_configversion", "change_gatewaysettings"}),
        ("<h2>Configuration</h2>", {"view_configversion", "change_gatewaysettings"}),
        ("Publish now", {"change_gatewaysettings"}),
        ("lonely-provider", {"view_provider"}),
        ("<h2>API keys</h2>", {"view_apikey"}),
        ("wide-pool", {"view_pool"}),
        ("failed-model", {"view_usage"}),
        ("No price is known for 1 of the last 1 requests", {"view_usage"}),
        ("Last alerts of pools", {"view_poolalert"}),
        ("w-quarantined", {"view_lease"}),
        ("thing.happened", {"view_auditentry"}),
        ("Add a route", {"add_route"}),
        ("Create an API key", {"add_apikey"}),
    )

    def setUp(self) -> None:
        self.addCleanup(setattr, plane, "current", plane.current)
        plane.current = Plane({"journal_writable": False})
        home.forget()
        self.addCleanup(home.forget)
        provider = Provider.objects.create(name="lonely-provider", kind="ollama")
        ProviderProbe.objects.create(provider=provider, ok=False, checked_at=timezone.now())
        Pool.objects.create(name="wide-pool")
        PoolAlert.objects.create(pool_id=987, percent=80, committed=8, capacity=10)
        window = PoolWindow.objects.create(pool_id=987, capacity=9, leased=5)
        Lease.objects.create(owner="w-quarantined", window=window, granted=5, remaining=5, state="quarantined")
        ids = dict.fromkeys(("key_id", "agent_id", "team_id", "pool_id"), 1)
        Usage.objects.create(rid="r", model="failed-model", status=502, tokens=5, at=timezone.now(), **ids)
        log = SmallLog()
        log.open()
        log.add("thing.happened")
        log.checkpoint()

    def page(self, *names: str) -> str:
        user, _ = User.objects.get_or_create(username="bob", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=names))
        self.client.force_login(user)
        response = self.client.get("/admin/")
        self.assertEqual(response.status_code, 200)
        return response.content.decode()

    def test_each_permission_shows_its_sections_and_no_other(self) -> None:
        for name in sorted(set().union(*(names for _, names in self.SIGNS))):
            html = self.page(name)
            for sign, names in self.SIGNS:
                self.assertEqual(sign in html, name in names, (name, sign))

    def test_the_pools_nearest_a_limit_of_either_unit_come_first(self) -> None:
        for name, unit, committed in (("half", 0, 50), ("nine tenths", 1, 90), ("over", 0, 120), ("idle", 1, 0)):
            pool = Pool.objects.create(name=name, capacity_tokens=100)
            PoolWindow.objects.create(
                pool_id=pool.pk, unit=unit, capacity=100, committed=committed, overrun=max(0, committed - 100)
            )
        Pool.objects.create(name="boundless", capacity_tokens=None)
        html = self.page("view_pool")
        names = re.findall(r">(half|nine tenths|over|idle|wide-pool|boundless)</a>", html)
        self.assertEqual(names, ["over", "nine tenths", "half", "idle", "wide-pool", "boundless"])

    def test_without_any_permission_the_page_is_empty(self) -> None:
        html = self.page()
        for sign in (
            *(sign for sign, _ in self.SIGNS),
            "State of the gateway",
            "Pools nearest their limit",
            "Last events",
        ):
            self.assertNotIn(sign, html)
