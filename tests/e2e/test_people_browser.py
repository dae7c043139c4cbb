"""Signing in, second factors, the identity provider and the team page in a real browser, which must report nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.test import override_settings
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect, sync_playwright

from budgets import access
from budgets.keys import create_key, digest_of
from budgets.models import ApiKey, PoolWindow, Usage
from hoosh_site.people.models import TeamLead
from tests.browser import WAIT_MS, launch, needs_browser
from tests.oidc_provider import CLIENT, SECRET, OidcProvider
from tests.site.people_case import code_of

pytestmark = [pytest.mark.browser, needs_browser]

_VIOLATIONS = "document.addEventListener('securitypolicyviolation', event => console.error('CSP ' + event.blockedURI))"
SHOTS = os.environ.get("TEST_SHOTS")  # a directory for pictures of every page, for people to look at


class PeopleBrowserTest(StaticLiveServerTestCase):
    databases = "__all__"
    browser: Browser

    @classmethod
    def setUpClass(cls) -> None:
        # Playwright's loop runs in this thread, which Django would take for an async context.
        os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
        super().setUpClass()
        cls.playwright = cls.enterClassContext(sync_playwright())
        cls.browser = launch(cls.playwright)
        cls.addClassCleanup(os.environ.pop, "DJANGO_ALLOW_ASYNC_UNSAFE")
        cls.addClassCleanup(cls.browser.close)

    def setUp(self) -> None:
        User.objects.create_superuser("ada", "", "a-long-password")
        self.complaints: list[str] = []
        self.expected: set[int] = set()

    def open(self, **options) -> Page:
        context = self.browser.new_context(**options)
        self.addCleanup(context.close)
        context.add_init_script(_VIOLATIONS)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: self.complain(message.type, message.text))
        page.on("pageerror", lambda error: self.complain("error", str(error)))
        return page

    def complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not any(f"status of {status}" in text for status in self.expected):
            self.complaints.append(text)

    def fits(self, page: Page, name: str) -> None:
        """Pictures in light and dark, on a desk and a phone; nothing is wider than the phone."""
        wide = page.viewport_size
        for size in ({"width": 390, "height": 844}, {"width": 1280, "height": 860}):
            page.set_viewport_size(size)
            for scheme in ("light", "dark") if SHOTS else ():
                page.emulate_media(color_scheme=scheme)
                page.wait_for_timeout(400)  # colours change slowly
                page.screenshot(path=Path(SHOTS or "") / f"{name}-{scheme}-{size['width']}.png", full_page=True)
            wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wider <= 0, f"{name} is {wider} pixels wider than {size['width']}"
        page.set_viewport_size(wide)

    def sign_in(self, page: Page, name: str, code: str = "", path: str = "/admin/") -> None:
        page.goto(f"{self.live_server_url}{path}")
        page.get_by_label("Username").fill(name)
        page.get_by_label("Password").fill("a-long-password")
        page.get_by_label("Code").fill(code)
        with page.expect_navigation():
            page.keyboard.press("Enter")

    def test_a_second_factor_is_set_up_with_the_keyboard_and_asked_for(self) -> None:
        with override_settings(HOOSH_REQUIRE_SECOND_FACTOR=True):
            page = self.open()
            page.goto(f"{self.live_server_url}/admin/")
            self.fits(page, "sign-in")
            self.sign_in(page, "ada")
            expect(page.get_by_text("A second factor is required here")).to_be_visible()
            self.fits(page, "factor-none")
            page.get_by_role("button", name="Set up").press("Enter")
            expect(page.locator(".hoosh-qr svg")).to_be_visible()
            self.fits(page, "factor-set-up")
            secret = page.locator("#hoosh-secret").inner_text()
            page.get_by_label("Code it shows").fill("000000")
            page.keyboard.press("Enter")
            expect(page.get_by_text("This code is wrong")).to_be_visible()
            self.fits(page, "factor-wrong")
            page.get_by_label("Code it shows").fill(code_of(secret))
            page.keyboard.press("Enter")
            page.get_by_role("button", name="Copy").click()
            codes = page.evaluate("navigator.clipboard.readText()").split()
            assert len(codes) == 10
            self.fits(page, "factor-codes")
            page.get_by_role("link", name="I have kept them").click()
            self.fits(page, "factor-there")
            page.get_by_role("link", name="Admin", exact=True).click()
            expect(page.get_by_role("heading", name="Overview")).to_be_visible()
            other = self.open()
            self.sign_in(other, "ada")
            expect(other.get_by_role("alert")).to_contain_text("The name, the password or the code is wrong")
            self.fits(other, "sign-in-refused")
            self.sign_in(other, "ada", codes[0])
            expect(other.get_by_role("heading", name="Overview")).to_be_visible()
            for path in (
                "auth/user/1/change/",
                "auth/user/1/second-factor/",
                "people/secondfactor/",
                "people/teamlead/",
            ):
                address = path.replace("/1/", f"/{User.objects.get().pk}/")
                assert other.goto(f"{self.live_server_url}/admin/{address}").ok
                self.fits(other, path.strip("/").replace("/", "-"))
        assert self.complaints == []

    def test_an_identity_provider_signs_in(self) -> None:
        with OidcProvider() as provider:
            provider.claims["groups"] = ["sre"]
            values = {
                "HOOSH_OIDC_ISSUER": provider.issuer,
                "HOOSH_OIDC_CLIENT_ID": CLIENT,
                "HOOSH_OIDC_CLIENT_SECRET": SECRET,
                "HOOSH_OIDC_GROUPS": [("operator", "sre")],
                "HOOSH_OIDC_NAME": "Example",
            }
            with override_settings(**values):
                page = self.open()
                page.goto(f"{self.live_server_url}/admin/providers/provider/")
                self.fits(page, "sign-in-provider")
                page.get_by_role("link", name="Sign in with Example").click()
                expect(page.get_by_role("heading", name="Providers", level=1, exact=True)).to_be_visible()
                provider.fault = "token with another nonce"
                other = self.open()
                other.goto(f"{self.live_server_url}/admin/")
                other.get_by_role("link", name="Sign in with Example").click()
                expect(other.get_by_text("Signing in did not work")).to_be_visible()
                self.fits(other, "sign-in-provider-refused")
        assert self.complaints == []

    def test_a_lead_makes_rotates_and_revokes_keys_of_the_team(self) -> None:
        agent = access.agent_named("Research", "notebook with a long name", actor="ada")
        pool = access.default_pool("ada")
        laptop, _ = create_key(agent, pool, "laptop", actor="ada", models_allowed=["tiny"])
        create_key(agent, pool, "gateway keeper", ["inference", "operator"], actor="ada")
        PoolWindow.objects.create(pool_id=pool.pk, capacity=10_000_000, committed=9_000_000, leased=500_000)
        ids = {"key_id": laptop.pk, "agent_id": agent.pk, "team_id": agent.team_id, "pool_id": pool.pk}
        Usage.objects.create(
            rid="0" * 32, at=timezone.now(), endpoint="chat", model="tiny", status=200, tokens=9, price_id=1, **ids
        )
        carl = User.objects.create_user("carl", "", "a-long-password")
        TeamLead.objects.create(user=carl, team=agent.team)
        page = self.open()
        self.sign_in(page, "carl")
        expect(page.get_by_role("heading", name="Research")).to_be_visible()
        self.fits(page, "team")
        page.get_by_role("link", name="New API key").click()
        page.get_by_label("Name").fill("phone")
        page.get_by_label("Agent").select_option("Research / notebook with a long name")
        self.fits(page, "team-add-key")
        page.get_by_role("button", name="Create").press("Enter")
        shown = page.locator("#hoosh-key")
        text = shown.inner_text()
        assert ApiKey.objects.get(name="phone").digest == digest_of(text)
        page.get_by_role("button", name="Copy").click()
        assert page.evaluate("navigator.clipboard.readText()") == text
        self.fits(page, "team-key")
        page.reload()
        expect(page.get_by_role("heading", name="Research")).to_be_visible()
        assert text not in page.content()
        page.get_by_role("button", name=f"Rotate laptop {laptop.prefix}").click()
        expect(page.get_by_text("The old key")).to_be_visible()
        self.fits(page, "team-rotated")
        page.get_by_role("link", name="I have copied it").click()
        page.get_by_role("link", name=f"Revoke laptop {laptop.prefix}").click()
        self.fits(page, "team-revoke")
        page.get_by_role("button", name="Revoke").click()
        expect(page.get_by_text("is revoked; it is refused within a second")).to_be_visible()
        laptop.refresh_from_db()
        assert laptop.revoked_at is not None
        page.get_by_role("link", name="Second factor").click()
        expect(page.get_by_text("None is set up")).to_be_visible()
        page.get_by_role("link", name="Password").click()
        self.fits(page, "password")
        page.get_by_role("link", name="Teams").click()
        page.get_by_role("button", name="Log out").click()
        assert self.complaints == []

    def test_a_locked_door_says_so(self) -> None:
        self.expected = {429}
        page = self.open()
        for _ in range(6):
            self.sign_in(page, "eve")
        expect(page.get_by_role("alert")).to_contain_text("Too many sign-ins failed")
        self.fits(page, "sign-in-locked")
        page = self.open()
        self.sign_in(page, "ada")
        page.goto(f"{self.live_server_url}/admin/people/signinfailure/")
        self.fits(page, "people-signinfailure")
        for path in ("budgets/apikey/add/", "auth/user/"):
            page.goto(f"{self.live_server_url}/admin/{path}")
            self.fits(page, path.strip("/").replace("/", "-"))
        assert self.complaints == []
