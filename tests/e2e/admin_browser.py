"""What the browser tests of admin pages share: a server, a browser that tells all its complaints, a sign-in."""

from __future__ import annotations

import os

from django.contrib.auth.models import User
from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser import WAIT_MS, launch

VIOLATIONS = "document.addEventListener('securitypolicyviolation', event => console.error('CSP ' + event.blockedURI))"


class AdminBrowserCase(StaticLiveServerTestCase):
    """A server, a browser, the superuser "ada"; `complaints` is what the browser reported."""

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

    def open(self, **options) -> tuple[BrowserContext, Page]:
        context = self.browser.new_context(**options)
        self.addCleanup(context.close)
        context.add_init_script(VIOLATIONS)
        return context, self.new_tab(context)

    def new_tab(self, context: BrowserContext) -> Page:
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: self.complain(message.type, f"{page.url}: {message.text}"))
        page.on("pageerror", lambda error: self.complain("error", f"{page.url}: {error}"))
        page.on(
            "response",
            lambda reply: self.complain("error", f"{reply.status} {reply.url}") if reply.status >= 400 else None,
        )
        return page

    def complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def sign_in(self, page: Page) -> None:
        page.goto(f"{self.live_server_url}/admin/")
        page.get_by_label("Username").fill("ada")
        page.get_by_label("Password").fill("a-long-password")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
