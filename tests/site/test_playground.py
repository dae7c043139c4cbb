"""The playground's page and the key it makes. With a browser and a gateway: tests/e2e/test_playground_browser.py."""

from __future__ import annotations

import datetime as dt

import pytest
from django.utils import timezone

from budgets import access
from budgets.models import ApiKey, Pool
from providers import services
from providers.models import Provider, ProviderProbe, Route
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database


class PlaygroundTest(AdminTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.pool = access.save_pool(Pool(name="trials"), actor="test")
        provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        services.save_route(Route(name="tiny", pattern="tiny-model", provider=provider), actor="test")
        services.save_route(Route(name="rest", pattern="*", provider=provider), actor="test")
        ProviderProbe.objects.create(provider=provider, ok=True, models=["found-model"])

    def make(self) -> dict[str, object]:
        response = self.post("playground_key", {"pool": self.pool.pk})
        assert response.status_code == 200, response.content
        assert "no-store" in response.headers["cache-control"]
        return response.json()

    def test_the_page_offers_what_is_known_and_holds_no_key(self) -> None:
        html = self.page("playground")
        for text in ("tiny-model", "found-model", "<option>rest</option>", "trials"):
            self.assertIn(text, html)
        self.assertNotIn("hk-", html)
        self.assertIn("Playground", self.page("index"))

    def test_its_key_ends_within_the_hour_and_replaces_the_one_before(self) -> None:
        first, second = self.make(), self.make()
        self.assertNotEqual(first["key"], second["key"])
        old, new = ApiKey.objects.order_by("pk")
        self.assertIsNotNone(old.revoked_at)
        self.assertIsNone(new.revoked_at)
        self.assertLess(new.expires_at, timezone.now() + dt.timedelta(hours=1, seconds=1))
        self.assertEqual((new.pool, new.scopes), (self.pool, "inference,routes"))
        self.assertEqual((new.agent.team.name, new.agent.name, new.name), ("operators", "playground", "playground ada"))

    def test_who_may_not_make_keys_has_no_playground(self) -> None:
        self.allow(self.bob, "view_route")
        self.assertEqual(self.client.get(self.url("playground")).status_code, 403)
        self.assertEqual(self.post("playground_key", {"pool": self.pool.pk}).status_code, 403)
        self.assertNotIn("Playground", self.page("index"))
        self.assertFalse(ApiKey.objects.exists())

    def test_a_key_is_made_by_posts_for_pools_that_are_there(self) -> None:
        self.assertEqual(self.client.get(self.url("playground_key")).status_code, 405)
        for pool in ("", "999999", "x"):
            self.assertEqual(self.post("playground_key", {"pool": pool}).status_code, 400)
        self.assertFalse(ApiKey.objects.exists())
