"""The pages of the draft and of going back."""

from __future__ import annotations

import datetime as dt

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from providers import drafts, publish, services
from providers.models import ConfigVersion, DraftChange, Provider, Route, ScheduledPublication
from tests.admin_case import AdminTestCase
from tests.budgets.ledger_rows import add_usage

pytestmark = pytest.mark.database


class DraftPageTest(AdminTestCase):
    def setUp(self) -> None:
        super().setUp()
        with self.captureOnCommitCallbacks(execute=True):
            self.provider = services.save_provider(
                Provider(name="local", kind="vllm", base_url="http://127.0.0.1:8000"), actor="root"
            )
            self.route = services.save_route(Route(name="all", pattern="*", provider=self.provider), actor="root")
            row = services.gateway_settings()
            row.review = True
            services.save_settings(row, actor="root")
        self.first = publish.publish("root", "first")

    def change(self, actor: str = "bob") -> None:
        self.route.priority = 99
        services.save_route(self.route, actor=actor)

    def seen(self) -> dict[str, str]:
        return {"seen": publish.draft_digest(), "note": "fine"}

    def test_it_says_what_changes_who_did_it_and_publishes_it(self) -> None:
        self.change()
        html = self.page("draft")
        for text in ("priority", "99", "bob", "route.changed all"):
            self.assertIn(text, html)
        response = self.post("draft", self.seen())
        self.assertEqual(response.status_code, 302)
        self.assertIn("is in force", self.messages(response))
        self.assertEqual(drafts.in_force().routes[0].priority, 99)
        self.assertIn("What is saved is in force", self.page("draft"))

    def test_the_draft_is_compiled_once(self) -> None:
        self.change()
        with CaptureQueriesContext(connections["default"]) as seen:
            self.page("draft")
        routes = [each["sql"] for each in seen.captured_queries if 'FROM "providers_route"' in each["sql"]]
        self.assertEqual(len(routes), 1, routes)

    def test_its_author_is_told_that_somebody_else_has_to(self) -> None:
        self.change("ada")
        self.assertIn("somebody else has to publish it", self.page("draft"))
        self.assertIn("Not published", self.messages(self.post("draft", self.seen())))
        self.assertEqual(drafts.in_force().routes[0].priority, 10)
        before = publish.latest()
        response = self.post("providers_configversion_publish", {})
        self.assertEqual(response["location"], self.url("draft"))
        self.assertIn("Look at them, then publish", self.messages(response))
        self.assertEqual(publish.latest(), before)

    def test_a_draft_that_changed_meanwhile_is_refused_in_words(self) -> None:
        self.change()
        response = self.post("draft", {"seen": "0" * 64})
        self.assertIn("has changed since you looked", self.messages(response))

    def test_it_can_be_tried_on_recorded_requests(self) -> None:
        add_usage(5, model="m")
        services.delete_route(self.route, actor="bob")
        html = self.page("draft", query="?requests=100")
        self.assertIn("Would be refused, and are answered now:", html)
        self.assertIn("m (5)", html)
        for odd in ("?requests=", "?requests=x", "?requests=999999999", "?requests=-1"):
            self.assertNotIn("Would be refused", self.page("draft", query=odd))

    def test_it_is_scheduled_and_cancelled(self) -> None:
        self.change()
        at = (timezone.now() + dt.timedelta(days=1)).strftime("%Y-%m-%d %H:%M")
        self.post("draft", self.seen() | {"at": at})
        row = ScheduledPublication.objects.get()
        self.assertEqual((row.author, row.state, row.note), ("ada", "waiting", "fine"))
        self.assertIn("Cancel", self.page("draft"))
        self.post("draft", {"cancel": row.pk})
        row.refresh_from_db()
        self.assertEqual(row.state, "cancelled")
        self.assertIn("does not wait any more", self.messages(self.post("draft", {"cancel": row.pk})))
        self.assertIn("has passed", self.errors(self.post("draft", self.seen() | {"at": "2020-01-01 00:00"})))

    def test_it_is_discarded(self) -> None:
        self.change()
        self.assertIn("Nothing was discarded", self.messages(self.post("draft", {"discard": "1"})))
        self.assertEqual(Route.objects.get().priority, 99)
        self.assertTrue(DraftChange.objects.exists())
        self.post("draft", {"discard": "1", "sure": "1"})
        self.assertEqual(Route.objects.get().priority, 10)
        self.assertFalse(DraftChange.objects.exists())

    def test_readers_see_it_and_change_nothing(self) -> None:
        self.change()
        self.allow(self.bob, "view_configversion")
        self.assertNotIn("Discard the draft", self.page("draft"))
        for data in (self.seen(), {"discard": "1", "sure": "1"}, {"cancel": "1"}):
            self.assertEqual(self.post("draft", data).status_code, 403)
        self.assertEqual(self.client.get(self.url("version_revert", self.first.number)).status_code, 403)
        self.assertEqual(self.post("provider_off", {}, self.provider.pk).status_code, 403)
        self.allow(self.bob)
        self.assertEqual(self.client.get(self.url("draft")).status_code, 403)

    def test_an_emergency_does_not_wait_for_a_review(self) -> None:
        self.act("providers_provider_changelist", "disable_now", [self.provider])
        self.assertFalse(drafts.in_force().providers[0].enabled)

    def test_a_provider_that_is_deleted_here_and_still_called_has_its_switch(self) -> None:
        number = self.provider.pk
        services.delete_provider(self.provider, actor="bob")
        self.assertIn("is deleted here, and still called", self.page("draft"))
        self.post("provider_off", {}, number)
        self.assertFalse(drafts.in_force().providers[0].enabled)
        self.assertNotIn("is deleted here, and still called", self.page("draft"))

    def test_the_way_back_becomes_the_draft(self) -> None:
        self.change()
        self.post("draft", self.seen())
        before = publish.latest()
        oldest = ConfigVersion.objects.order_by("number").first()
        html = self.page("version_revert", oldest.number)
        self.assertIn("somebody else has to publish", html)
        self.assertNotIn("published as a new version", html)
        response = self.post("version_revert", {}, oldest.number)
        self.assertIn("Somebody else has to publish it", self.messages(response))
        self.assertEqual(publish.latest(), before)


class RevertPageTest(AdminTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.provider = services.save_provider(
            Provider(name="local", kind="vllm", base_url="http://127.0.0.1:8000"), actor="root"
        )
        self.route = services.save_route(Route(name="all", pattern="*", provider=self.provider), actor="root")
        self.first = publish.publish("root", "first")
        self.route.priority = 99
        services.save_route(self.route, actor="bob")
        self.second = publish.publish("bob")

    def test_it_shows_the_way_back_and_goes_it(self) -> None:
        self.assertIn("Go back to this version", self.page("providers_configversion_change", self.first.number))
        self.assertNotIn("Go back to this version", self.page("providers_configversion_change", self.second.number))
        self.assertIn("priority", self.page("providers_configversion_change", self.second.number))
        html = self.page("version_revert", self.first.number)
        self.assertIn("99", html)
        self.assertIn("published as a new version", html)
        response = self.post("version_revert", {"note": "it broke"}, self.first.number)
        self.assertIn("it says what version", self.messages(response))
        self.assertEqual(Route.objects.get().priority, 10)
        found = publish.latest()
        self.assertGreater(found[0], self.second.number)

    def test_a_version_that_is_not_there_is_not_found(self) -> None:
        self.assertEqual(self.client.get(self.url("version_revert", 999_999)).status_code, 404)

    def test_a_provider_is_switched_off_by_a_button(self) -> None:
        self.assertIn("Switch off now", self.page("providers_provider_change", self.provider.pk))
        self.assertEqual(self.client.get(self.url("provider_off", self.provider.pk)).status_code, 403)
        self.post("provider_off", {}, self.provider.pk)
        self.assertFalse(Provider.objects.get().enabled)
        self.assertFalse(drafts.in_force().providers[0].enabled)
        self.assertEqual(self.post("provider_off", {}, 999_999).status_code, 404)
