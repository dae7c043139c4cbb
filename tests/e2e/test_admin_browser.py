"""An operator's first minutes in a real browser: sign in, add a provider, test it, add a route, create a key.

The browser must report nothing: no script error, no refused resource, no violation of the content security policy.
"""

from __future__ import annotations

import re

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from budgets import access
from budgets.keys import create_key, digest_of
from budgets.models import ApiKey, Lease, LedgerOrder, Pool, PoolWindow, Usage
from providers import services
from providers.models import ConfigVersion, Provider, Route
from tests.browser import needs_browser
from tests.e2e.admin_browser import AdminBrowserCase
from tests.small_server import SmallServer

pytestmark = [pytest.mark.browser, needs_browser]

MODELS = {"/v1/models": (200, {"data": [{"id": "tiny"}, {"id": "large"}]})}
SECRET = "sk-canary-in-a-browser-0001"


class AdminBrowserTest(AdminBrowserCase):
    def add_provider(self, page: Page, url: str) -> None:
        page.get_by_role("link", name="Add a provider").click()
        page.get_by_label("Kind").select_option("openai")
        expect(page.get_by_label("Base URL")).to_have_attribute("placeholder", "https://api.openai.com")
        expect(page.get_by_text("Paste a key below, under Credentials.")).to_be_visible()
        expect(page.locator("#id_name")).to_have_value("openai")
        page.get_by_label("Kind").select_option("custom")
        page.locator("#id_name").fill("workshop")
        page.get_by_label("Base URL").fill(url)
        page.locator("#id_credentials-0-secret").fill(SECRET)
        page.get_by_role("button", name="Save and continue editing").click()
        expect(page.get_by_text("was added successfully")).to_be_visible()
        expect(page.locator("#id_credentials-0-secret")).to_have_value("")
        expect(page.get_by_text(f"…{SECRET[-4:]}", exact=True)).to_be_visible()

    def test_from_the_sign_in_to_a_key(self) -> None:
        with SmallServer(MODELS) as upstream:
            context, page = self.open()
            context.grant_permissions(["clipboard-read", "clipboard-write"])
            self.sign_in(page)
            self.add_provider(page, upstream.url)
            page.get_by_role("button", name="Test connection").click()
            expect(page.get_by_text("works", exact=True)).to_be_visible()
            assert upstream.asked[0][2]["authorization"] == f"Bearer {SECRET}"
        page.get_by_role("row", name="tiny").get_by_role("button", name="Create route").click()
        expect(page.get_by_text("was created")).to_be_visible()
        assert Route.objects.get().pattern == "tiny"
        assert Provider.objects.get().address_class == "loopback"
        assert ConfigVersion.objects.count() == 2
        self.create_key(page)
        self.look_around(page)
        assert self.complaints == []

    def create_key(self, page: Page) -> None:
        access.agent_named("Research", "notebook", actor="ada")
        access.default_pool("ada")
        page.goto(f"{self.live_server_url}/admin/")
        page.get_by_role("link", name="Create an API key").click()
        page.locator("#id_name").fill("laptop")
        for field, text in (("agent", "Research / notebook"), ("pool", "default")):
            page.locator(f".field-{field} .select2-selection").click()
            page.get_by_role("option", name=text).click()
        page.get_by_role("button", name="Save").click()
        shown = page.locator("#hoosh-key")
        expect(shown).to_have_text(re.compile(r"^hk-[A-Za-z0-9_-]{43}$"))
        text = shown.inner_text()
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == text
        assert ApiKey.objects.get().digest == digest_of(text)
        page.reload()
        expect(page.get_by_role("heading", name="Change API key")).to_be_visible()
        assert text not in page.content()
        page.go_back()
        page.go_forward()
        assert text not in page.content()
        assert ApiKey.objects.count() == 1, "neither a reload nor going back makes another key"

    def look_around(self, page: Page) -> None:
        """Every page of the menu opens without a complaint, and the theme can be switched."""
        page.goto(f"{self.live_server_url}/admin/providers/route/")
        page.locator("button.theme-toggle").first.click()
        links = [link.get_attribute("href") for link in page.locator("#nav-sidebar th a").all()]
        assert len(links) >= 13
        for link in links:
            assert page.goto(f"{self.live_server_url}{link}").ok

    def test_pages_fit_a_phone(self) -> None:
        _, page = self.open(viewport={"width": 390, "height": 844})
        self.sign_in(page)
        pool = f"budgets/pool/{self.spend().pk}/change/"
        for path in (
            "",
            "providers/provider/add/",
            "providers/gatewaysettings/",
            "budgets/apikey/add/",
            "budgets/pool/",
            pool,
            pool.replace("change", "correct"),
            pool.replace("change", "transfer"),
            "budgets/poolwindow/",
            "budgets/lease/",
            "budgets/lease/resolve/w-dead/write_off/",
            "budgets/price/add/",
            "budgets/usage/",
            "costs/",
            "costs/?group=key",
            "costs/period/",
        ):
            assert page.goto(f"{self.live_server_url}/admin/{path}").ok
            wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wider <= 0, f"{path} is {wider} pixels wider than the phone"
        assert self.complaints == []

    def spend(self) -> Pool:
        """A pool that is nearly spent, with a lease nobody can account for and usage without a price."""
        agent = access.agent_named("Research", "notebook with a long name", actor="ada")
        pool = access.default_pool("ada")
        access.save_pool(Pool(name="spare", capacity_tokens=100), actor="ada")
        key, _ = create_key(agent, pool, "laptop", actor="ada")
        window = PoolWindow.objects.create(pool_id=pool.pk, capacity=10_000_000, committed=9_000_000, leased=500_000)
        Lease.objects.create(owner="w-dead", window=window, granted=500_000, remaining=500_000, state="quarantined")
        ids = {"key_id": key.pk, "agent_id": agent.pk, "team_id": agent.team_id, "pool_id": pool.pk}
        values = {"endpoint": "chat", "model": "mystery", "status": 200, "tokens": 9_000_000, "price_id": 0}
        Usage.objects.create(rid="0" * 32, at=timezone.now(), **ids, **values)
        return pool

    def test_a_correction_is_placed_and_its_page_looks_again_until_it_is_done(self) -> None:
        pool = self.spend()
        _, page = self.open()
        self.sign_in(page)
        expect(page.get_by_text("stay counted until somebody decides").first).to_be_visible()
        page.get_by_role("link", name="default", exact=True).first.click()
        expect(page.get_by_text("1M tokens left of 10M tokens")).to_be_visible()
        page.get_by_role("link", name="Correct", exact=True).click()
        page.get_by_label("Amount").fill("-250")
        page.get_by_label("Why").fill("charged twice")
        page.get_by_role("button", name="Place the correction").click()
        expect(page.get_by_text("looks again every second")).to_be_visible()
        order = LedgerOrder.objects.get()
        assert order.payload == {"pool_id": pool.pk, "unit": 0, "window_start": 0, "amount": -250}
        LedgerOrder.objects.update(state="done", result="-250 tokens charged.")
        expect(page.get_by_text("-250 tokens charged.")).to_be_visible()  # without a click
        assert self.complaints == []

    def test_costs_lead_to_a_price_for_what_has_none(self) -> None:
        self.spend()
        _, page = self.open()
        self.sign_in(page)
        page.get_by_role("link", name="See which, and add prices").click()
        expect(page.get_by_role("heading", name="Tokens by day")).to_be_visible()
        page.get_by_label("By", exact=True).select_option("model")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("row", name="mystery")).to_contain_text("1 unpriced")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download CSV").click()
        assert download.value.suggested_filename == "costs-by-model.csv"
        page.get_by_role("link", name="add a price").click()
        expect(page.get_by_label("Pattern")).to_have_value("mystery")
        assert self.complaints == []

    def test_a_key_is_revoked_only_after_a_question(self) -> None:
        self.spend()
        _, page = self.open()
        self.sign_in(page)
        page.goto(f"{self.live_server_url}/admin/budgets/apikey/")
        page.get_by_role("link", name="laptop").click()
        page.get_by_role("link", name="Revoke").click()
        expect(page.get_by_role("heading", name="Revoke this key?")).to_be_visible()
        page.get_by_role("link", name="Cancel").click()
        assert ApiKey.objects.get().revoked_at is None
        page.get_by_role("link", name="Revoke").click()
        page.get_by_role("button", name="Revoke").click()
        expect(page.get_by_text("is revoked; workers refuse it")).to_be_visible()
        assert ApiKey.objects.get().revoked_at is not None
        assert self.complaints == []

    def test_a_mistake_in_a_part_that_is_folded_up_is_seen(self) -> None:
        """Also where it stands in a line of two fields."""
        services.save_provider(Provider(name="p", kind="demo"), actor="t")
        _, page = self.open()
        self.sign_in(page)
        page.goto(f"{self.live_server_url}/admin/providers/route/add/")
        total = page.locator("#id_total_timeout_s")
        expect(total).to_be_hidden()
        page.locator("#id_name").fill("short")
        page.locator("#id_pattern").fill("x")
        page.locator("#id_provider").select_option(label="p")
        page.get_by_text("Limits and times").click()
        page.locator("#id_first_byte_timeout_s").fill("9")
        total.fill("5")
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page.get_by_text("Please correct the error below.")).to_be_visible()
        expect(page.get_by_text("The total cannot be shorter")).to_be_visible()
        expect(total).to_be_visible()
        expect(page.locator("#id_tags")).to_be_hidden()  # nothing is wrong there
        assert self.complaints == []

    def test_a_violation_would_be_noticed(self) -> None:
        """The listener works: an inline script on one of our pages is refused and reported."""
        _, page = self.open()
        page.goto(f"{self.live_server_url}/admin/login/")
        page.evaluate(
            "document.body.appendChild(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
        )
        page.wait_for_timeout(100)
        assert page.evaluate("window.ran") is None
        assert any("Content Security Policy" in complaint or "CSP" in complaint for complaint in self.complaints)
