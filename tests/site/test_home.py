"""The live part of the first page: its figures, who sees which, and its stream."""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest
from django.contrib.auth.models import User
from django.test import AsyncClient, TransactionTestCase
from django.urls import reverse

from budgets.models import UsageRollup
from gateway import plane
from hoosh_site import home
from hoosh_site.live_figures import Sample, figures
from providers import services
from providers.models import Provider, ProviderProbe
from tests.admin_case import AdminTestCase
from tests.budgets.ledger_rows import add_usage

pytestmark = pytest.mark.database


class HomeTest(AdminTestCase):
    def setUp(self) -> None:
        super().setUp()
        home.forget()
        self.addCleanup(home.forget)
        self.addCleanup(figures._samples.clear)

    def test_it_shows_what_workers_do_and_what_was_spent(self) -> None:
        now = time.time()
        add_usage(2, at_s=now, cost_pico=10**12)
        names = {"team_id": 1, "agent_id": 1, "key_id": 1, "pool_id": 1, "provider_id": 1, "route_id": 1}
        UsageRollup.objects.create(
            start=int(now) // 3600 * 3600,
            endpoint="chat",
            model="m",
            requests=5,
            errors=2,
            cost_milli_usd=1500,
            **names,
        )
        figures._samples.extend(
            [
                Sample(0.0, requests={"2xx": 0.0}),
                Sample(60.0, requests={"2xx": 30.0, "5xx": 10.0}, refusals={"rate_limited": 3.0}, inflight=2.0),
            ]
        )
        provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        ProviderProbe.objects.create(provider=provider, ok=False, detail="refused", checked_at="2026-01-01T00:00:00Z")
        html = self.page("index")
        for text in ("40 <small>a minute", "25 % not answered", "2 being answered", "rate_limited: 3", "refused"):
            self.assertIn(text, html)
        self.assertIn("Requests per hour", html)
        self.assertIn(": requests 3, failed calls 2</title>", html)
        found = home.spending(now)
        self.assertGreaterEqual(found.month_usd, found.today_usd)
        self.assertEqual(found.today_usd, Decimal("3.5"))

    def test_each_part_is_for_who_may_see_its_rows(self) -> None:
        services.save_provider(Provider(name="lamp-of-it", kind="ollama"), actor="test")
        self.allow(self.bob, "view_provider")
        html = self.page("live")
        self.assertIn("lamp-of-it", html)
        self.assertNotIn("Requests", html)
        self.allow(self.bob, "view_usage")
        html = self.page("live")
        self.assertNotIn("lamp-of-it", html)
        self.assertIn("Requests", html)
        self.allow(self.bob)
        for name in ("live", "live_stream"):
            self.assertEqual(self.client.get(self.url(name)).status_code, 403)

    def test_figures_of_nothing_are_dashes(self) -> None:
        html = self.page("live")
        self.assertIn("\N{EN DASH}", html)
        self.assertNotIn("None", html)

    def test_one_look_serves_all_pages(self) -> None:
        self.page("live")
        with self.queries(2):  # the session and its user
            self.page("live")


class StreamTest(TransactionTestCase):
    databases = "__all__"

    async def test_the_stream_tells_the_part_at_once_and_ends_with_the_right_to_it(self) -> None:
        home.forget()
        ada = await User.objects.acreate_superuser("ada", "", "pw")
        client = AsyncClient()
        await client.aforce_login(ada)
        response = await client.get(reverse("admin:live_stream"))
        assert response.headers["content-type"] == "text/event-stream"
        pieces = aiter(response.streaming_content)
        assert await anext(pieces) == b"retry: 3000\n\n"
        told = await asyncio.wait_for(anext(pieces), 5)
        assert told.startswith(b"data: ")
        assert told.endswith(b"\n\n")
        assert b"\n\n" not in told[:-2]
        assert b"Requests" in told
        await client.alogout()
        assert [piece async for piece in pieces] == []
        assert home._open == 0

    async def test_the_stream_ends_with_the_worker_it_goes_through(self) -> None:
        home.forget()
        client = AsyncClient()
        await client.aforce_login(await User.objects.acreate_superuser("ada", "", "pw"))
        workers = [{"owner": "w-old", "status": {"draining": True}}, {"owner": "w-1", "status": {"draining": False}}]
        before, plane.current = plane.current, cast(Any, SimpleNamespace(workers=lambda: workers))
        try:
            pieces = aiter((await client.get(reverse("admin:live_stream"))).streaming_content)
            await anext(pieces)
            assert (await asyncio.wait_for(anext(pieces), 5)).startswith(b"data: ")
            workers[1]["status"] = {"draining": True}
            async with asyncio.timeout(20):
                assert [piece async for piece in pieces] == []
        finally:
            plane.current = before
