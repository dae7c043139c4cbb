"""An operator's budgets in a real browser before the real processes: limits, corrections and reporting periods."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests import environment
from tests.browser import WAIT_MS, launch, needs_browser
from tests.e2e.test_admin_live import sign_in
from tests.servers import Gateway

pytestmark = [pytest.mark.processes, pytest.mark.browser, needs_browser]

LIVE_S = 15.0  # a change is live within a second; the machine may be busy


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway(environment.session_dir() / "admin-budgets-live", workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = launch(playwright)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, gateway: Gateway) -> Iterator[Page]:
    context = browser.new_context()
    context.set_default_timeout(WAIT_MS)
    opened = context.new_page()
    sign_in(opened, gateway)
    yield opened
    context.close()


def ask(gateway: Gateway) -> httpx.Response:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}
    return httpx.post(f"{gateway.base_url}/v1/chat/completions", json=body, headers=gateway.auth, timeout=30)


def open_pool(page: Page, gateway: Gateway) -> None:
    page.goto(f"{gateway.base_url}/admin/budgets/pool/")
    page.get_by_role("link", name="default", exact=True).click()


def spent(page: Page, gateway: Gateway) -> int:
    """The tokens the page of the pool says are spent."""
    open_pool(page, gateway)
    shown = page.locator(".hoosh-purse").first.locator(".committed dd").inner_text()
    return int(re.sub(r"\D", "", shown))


def settled(page: Page, gateway: Gateway) -> int:
    """The tokens spent, once all that was answered is booked."""
    before, now = -1, spent(page, gateway)
    while now != before:
        page.wait_for_timeout(500)
        before, now = now, spent(page, gateway)
    return now


def set_limit(page: Page, gateway: Gateway, tokens: int) -> None:
    open_pool(page, gateway)
    page.locator("#id_capacity_tokens").fill(str(tokens))
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("was changed successfully")).to_be_visible()


def wait_for(gateway: Gateway, status: int) -> httpx.Response:
    """The first answer with this status, which comes within a second of the change."""
    ends_at = time.monotonic() + LIVE_S
    while (reply := ask(gateway)).status_code != status:
        assert time.monotonic() < ends_at, reply.text
    return reply


def test_a_limit_set_below_what_is_used_refuses_and_a_raised_one_admits_again(gateway: Gateway, page: Page) -> None:
    assert ask(gateway).status_code == 200
    ends_at = time.monotonic() + LIVE_S
    while spent(page, gateway) == 0:
        assert time.monotonic() < ends_at
    set_limit(page, gateway, 1)
    expect(page.get_by_text("nothing new is admitted")).to_be_visible()
    assert wait_for(gateway, 429).json()["error"]["code"] == "insufficient_quota"
    set_limit(page, gateway, 10_000_000)
    wait_for(gateway, 200)


def test_a_correction_is_carried_out_once_and_shows_on_the_pool(gateway: Gateway, page: Page) -> None:
    before = settled(page, gateway)
    page.get_by_role("link", name="Correct", exact=True).click()
    page.get_by_label("Amount").fill("1000")
    page.get_by_label("Why").fill("a bill that came later")
    page.get_by_role("button", name="Place the correction").click()
    expect(page.get_by_text("+1,000 tokens charged.")).to_be_visible()
    assert spent(page, gateway) == before + 1000
    expect(page.get_by_text("a bill that came later")).to_be_visible()


def test_a_new_reporting_period_counts_from_zero_and_keeps_the_one_before(gateway: Gateway, page: Page) -> None:
    assert ask(gateway).status_code == 200
    settled(page, gateway)
    page.goto(f"{gateway.base_url}/admin/costs/period/")
    page.get_by_label("Why").fill("the month is billed")
    page.get_by_role("button", name="Start a new period").click()
    expect(page.get_by_text("Reporting period 1 began.")).to_be_visible()
    page.goto(f"{gateway.base_url}/admin/costs/")
    expect(page.get_by_text("Nothing was used in this time.")).to_be_visible()
    page.get_by_label("Reporting period").select_option("0")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("heading", name="By team")).to_be_visible()
    expect(page.get_by_text("Nothing was used in this time.")).to_have_count(0)
