"""The list "Needs attention": what stands in it, who sees what, how it is kept fresh and what it costs."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client, override_settings
from django.utils import timezone

from budgets import access, keys
from budgets.models import Agent, Anomaly, ApiKey, Lease, Pool, PoolWindow, Team
from events.models import Webhook
from hoosh_site import attention, home, importing, playground
from hoosh_site.people.models import SignInFailure
from providers import publish, services
from providers.models import DraftChange, Provider, ProviderProbe, Route, ScheduledPublication
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database

URL = "https://127.0.0.1:8443"


def certificate(name: str, days: int) -> dict[str, str]:
    ends = timezone.now() + dt.timedelta(days=days, hours=1)
    return {"name": name, "not_after": ends.isoformat(), "pin": f"sha256/{name}"}


class AttentionTest(AdminTestCase):
    def setUp(self) -> None:
        super().setUp()
        home.forget()
        self.addCleanup(home.forget)
        importing.last_failure = ""  # of another test's file
        access.save_team(team := Team(name="red"), actor="test")
        access.save_agent(agent := Agent(team=team, name="bot"), actor="test")
        self.agent, self.pool = agent, access.default_pool("test")

    def told(self, user: User | None = None) -> list[tuple[str, str, str]]:
        home.forget()
        shown = attention.attention(user or self.ada)
        return [(each.alert.kind, each.alert.tone, each.alert.text) for each in shown]

    def anomaly(self, stretch: int = 1, **more: Any) -> Anomaly:
        values = {"kind": Anomaly.Kind.SPEND, "unit": "usd", "observed": 5.0, "expected": 1.0, **more}
        return Anomaly.objects.create(agent=self.agent, stretch=stretch, **values)

    def provider(self, **probe: Any) -> Provider:
        provider = services.save_provider(Provider(name="far", kind="vllm", base_url=URL), actor="test")
        ProviderProbe.objects.create(provider=provider, checked_at=timezone.now(), **{"ok": True, **probe})
        return provider

    def test_where_all_is_well_there_is_no_list(self) -> None:
        publish.publish("test")
        assert self.told() == []
        assert "Needs attention" not in self.page("index")

    def test_open_anomalies_are_told_and_acknowledged_from_the_first_page(self) -> None:
        one = self.anomaly()
        self.anomaly(2, kind=Anomaly.Kind.LOOP, unit="requests", observed=90, expected=30, throttled=True)
        self.anomaly(3, state=Anomaly.State.ACKNOWLEDGED)
        found = self.told()
        assert [each[:2] for each in found] == [("Anomaly", "bad"), ("Anomaly", "warn")], "held back comes first"
        assert "Loop of red / bot: 90 requests where 30 is the limit" in found[0][2]
        assert "$5.0000 where $1.0000 is usual" in found[1][2]
        html = self.page("index")
        assert self.url("budgets_anomaly_change", one.pk) in html
        assert f'formaction="{self.url("budgets_anomaly_acknowledge", one.pk)}"' in html
        response = self.post("budgets_anomaly_acknowledge", {"back": "index"}, one.pk)
        assert response.headers["location"] == self.url("index")
        assert [each[2][:4] for each in self.told()] == ["Loop"]
        html = self.page("live")
        assert str(self.url("budgets_anomaly_acknowledge", one.pk)) not in html

    def test_the_button_is_for_who_may_press_it_and_carries_the_pages_token(self) -> None:
        one = self.anomaly()
        self.allow(self.bob, "view_anomaly")
        html = self.page("index")
        assert "is usual" in html
        assert "formaction" not in html
        self.allow(self.bob, "view_anomaly", "change_anomaly")
        client = Client(enforce_csrf_checks=True)
        client.force_login(self.bob)
        html = client.get(self.url("index")).content.decode()
        form = html.partition('<form id="hoosh-attention" method="post">')[2].partition("</form>")[0]
        token = form.partition('name="csrfmiddlewaretoken" value="')[2].partition('"')[0]
        url = self.url("budgets_anomaly_acknowledge", one.pk)
        assert client.post(url, {"back": "index"}).status_code == 403
        assert client.post(url, {"back": "index", "csrfmiddlewaretoken": token}).status_code == 302
        one.refresh_from_db()
        assert (one.state, one.acknowledged_by) == ("acknowledged", "bob")

    def test_certificates_near_their_end_and_pins_that_fit_nothing_are_told(self) -> None:
        chain = [certificate("leaf", 12), certificate("root", 400), certificate("old", -3)]
        provider = self.provider(certificates={"base_url": URL, "chain": chain})
        Provider.objects.filter(pk=provider.pk).update(pins="sha256/" + "A" * 43 + "=")
        texts = [each[1:] for each in self.told()]
        assert [tone for tone, _ in texts] == ["bad", "warn", "warn"]
        assert "“old” (above the server) ended on" in texts[0][1]
        assert "“leaf” (server) ends on" in texts[1][1]
        assert "1 of its pins fit no certificate" in texts[2][1]
        Provider.objects.update(enabled=False)
        assert self.told() == []

    def test_providers_that_are_down_are_told(self) -> None:
        self.provider(ok=False, detail="refused")
        assert self.told() == [("Provider", "bad", "far is down. refused")]

    def test_keys_that_end_within_a_week_are_told_and_others_are_not(self) -> None:
        now = timezone.now()
        for name, days in (("soon", 3), ("later", 9), ("past", -1), ("revoked", 2)):
            row, _ = keys.create_key(self.agent, self.pool, name, actor="test")
            ApiKey.objects.filter(pk=row.pk).update(expires_at=now + dt.timedelta(days=days))
        ApiKey.objects.filter(name="revoked").update(revoked_at=now)
        (found,) = self.told()
        row = ApiKey.objects.get(name="soon")
        assert found[:2] == ("Key", "warn")
        assert found[2].startswith(f"The key soon ({row.prefix}…) of red / bot ends at ")

    def test_keys_that_are_meant_to_end_are_not_told(self) -> None:
        tomorrow = timezone.now() + dt.timedelta(days=1)
        old, _ = keys.create_key(self.agent, self.pool, "old", actor="test")
        new, _ = keys.create_key(self.agent, self.pool, "old", actor="test")
        ApiKey.objects.filter(pk=new.pk).update(rotated_from=old.pk)
        mine = access.agent_named(playground.TEAM, playground.AGENT, actor="test")
        play, _ = keys.create_key(mine, self.pool, "playground ada", actor="test")
        ApiKey.objects.filter(pk__in=(old.pk, play.pk)).update(expires_at=tomorrow)
        assert self.told() == []
        ApiKey.objects.filter(pk=new.pk).update(rotated_from=None)
        assert len(self.told()) == 1

    def test_what_cannot_be_published_or_imported_is_told_until_it_is_mended(self) -> None:
        Provider.objects.create(name="bad", kind="gone", base_url="http://127.0.0.1:1", address_class="loopback")
        found = self.told()
        assert [each[:2] for each in found] == [("Configuration", "bad")]
        assert "cannot be published. Provider “bad”" in found[0][2]
        services.delete_provider(Provider.objects.get(), actor="test")
        assert self.told() == []
        self.addCleanup(setattr, importing, "last_failure", "")
        with pytest.raises(importing.ImportFileError):
            importing.import_if_changed(Path(__file__).parent / "no-such.toml")
        assert "no-such.toml" in self.told()[0][2]

    def test_drafts_that_wait_and_publications_to_come_are_told(self) -> None:
        settings = services.gateway_settings()
        settings.review = True
        services.save_settings(settings, actor="test")
        publish.publish("test")
        for author in ("eve", "eve", "finn"):
            DraftChange.objects.create(author=author, what="x")
        at = timezone.now() + dt.timedelta(hours=3)
        ScheduledPublication.objects.create(at=at, author="eve", digest="d")
        ago = timezone.now() - dt.timedelta(hours=3)
        ScheduledPublication.objects.create(at=ago, author="eve", digest="d", state="failed", result="It changed.")
        ScheduledPublication.objects.create(at=ago, author="eve", digest="d", state="done")
        old = timezone.now() - dt.timedelta(days=9)
        ScheduledPublication.objects.create(at=old, author="eve", digest="d", state="failed", result="Long ago.")
        found = self.told()
        assert [each[:2] for each in found] == [("Schedule", "bad"), ("Draft", ""), ("Schedule", "")]
        assert found[0][2].endswith("was not. It changed.")
        assert found[1][2].startswith("3 changes by eve, finn wait for a review since ")

    def test_damaged_journals_webhooks_lockouts_and_pools_are_told(self) -> None:
        window = PoolWindow.objects.create(pool_id=self.pool.pk, capacity=9, leased=5)
        Lease.objects.create(owner="w-1", window=window, granted=5, remaining=5, state="quarantined")
        Webhook.objects.create(name="ops", url="https://x", failing_since=timezone.now(), last_error="timed out")
        until = timezone.now() + dt.timedelta(minutes=5)
        SignInFailure.objects.create(name="mallory", attempts=9, since=timezone.now(), locked_until=until)
        Pool.objects.create(name="empty", capacity_tokens=10)
        spent = Pool.objects.get(name="empty")
        PoolWindow.objects.create(pool_id=spent.pk, capacity=10, committed=10)
        found = self.told()
        assert [each[0] for each in found] == ["Lease", "Webhook", "Sign-in"]
        assert "5 tokens stay counted" in found[0][2]
        assert "ops takes nothing since" in found[1][2]
        assert "mallory is locked out until" in found[2][2]
        assert "empty (tokens): " in self.page("live")

    def test_a_journal_set_aside_without_leases_is_told(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "w-7.lock.bad").touch()
            with override_settings(HOOSH_JOURNAL_DIR=Path(folder)):
                (found,) = self.told()
        assert found[0] == "Journal"
        assert "w-7" in found[2]

    def test_of_many_only_some_are_listed_with_a_link_to_the_rest(self) -> None:
        for stretch in range(attention.SHOWN + 3):
            self.anomaly(stretch)
        found = self.told()
        assert len(found) == attention.SHOWN + 1
        assert found[-1][2] == "There are more of them."

    def test_each_line_is_for_who_may_see_its_rows(self) -> None:
        self.anomaly()
        self.provider(ok=False, detail="refused")
        for names, kinds in (
            (("view_anomaly",), ["Anomaly"]),
            (("view_provider",), ["Provider"]),
            (("view_usage",), []),
        ):
            self.allow(self.bob, *names)
            assert [each[0] for each in self.told(User.objects.get(pk=self.bob.pk))] == kinds

    def test_it_costs_the_same_however_many_rows_there_are(self) -> None:
        self.provider()
        publish.publish("test")
        self.told()
        attention.forget()
        with self.queries(10):
            attention.attention(self.ada)
        for stretch in range(20):
            self.anomaly(stretch)
        for number in range(20):
            row, _ = keys.create_key(self.agent, self.pool, f"k{number}", actor="test")
            ApiKey.objects.filter(pk=row.pk).update(expires_at=timezone.now() + dt.timedelta(days=1))
            provider = services.save_provider(Provider(name=f"p{number}", kind="vllm", base_url=URL), actor="test")
            services.save_route(Route(name=f"r{number}", pattern="*", provider=provider), actor="test")
        publish.publish("test")
        self.told()
        attention.forget()
        with self.queries(10):
            attention.attention(self.ada)
        with self.queries(0):
            attention.attention(self.ada)

    def test_an_operators_change_is_seen_at_once(self) -> None:
        self.anomaly()
        assert "is usual" in self.page("live")
        Anomaly.objects.update(state=Anomaly.State.ACKNOWLEDGED)
        assert "is usual" in self.page("live"), "kept for some seconds"
        self.post("budgets_team_add", {"name": "blue", "enabled": "on"})
        assert "is usual" not in self.page("live")
