"""The live page in a real browser, with a real gateway: the stream, the pause, the fallback, and nothing but text."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.browser import WAIT_MS, launch, needs_browser
from tests.servers import Gateway, ProviderEntry
from tests.upstream import FaultUpstream

pytestmark = [pytest.mark.browser, needs_browser]

EVIL = "<img src=x>"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with FaultUpstream() as up:
        entries = [ProviderEntry(up.url, models=["ok", "status-500"]), ProviderEntry(up.url, models=["<img*"])]
        with Gateway(tmp_path_factory.mktemp("tail") / "gateway", providers=entries) as gateway:
            yield gateway


@pytest.fixture
def page(gateway: Gateway) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(base_url=gateway.base_url)
        page.set_default_timeout(WAIT_MS)
        told = (gateway.data_dir / "first-run.txt").read_text()
        found = re.search(r"password:\s*(\S+)", told)
        assert found is not None
        page.goto("/admin/tail/")
        page.get_by_label("Username").fill("admin")
        page.get_by_label("Password").fill(found[1])
        page.get_by_role("button", name="Log in").click()
        yield page
        browser.close()


def ask(gateway: Gateway, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    httpx.post(f"{gateway.base_url}/v1/chat/completions", headers=gateway.auth, json=body, timeout=20, trust_env=False)


def test_requests_appear_as_they_are_settled_and_can_be_paused(gateway: Gateway, page: Page) -> None:
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto("/admin/tail/")
    state, rows = page.locator("#tail-state"), page.locator("#tail tbody tr")
    expect(state).to_have_text("Live.")
    ask(gateway, "ok")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("200")
    page.get_by_role("button", name="Pause").click()
    ask(gateway, EVIL)
    expect(page.get_by_text("1 waiting")).to_be_visible()
    expect(rows).to_have_count(1)
    page.get_by_role("button", name="Go on").click()
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text(EVIL)
    assert page.locator("#tail img").count() == 0
    rows.first.get_by_role("link").click()
    expect(page.get_by_role("heading", name="Request", exact=True)).to_be_visible()
    assert complaints == []


def test_only_what_matches_is_shown(gateway: Gateway, page: Page) -> None:
    page.goto("/admin/tail/")
    page.get_by_label("Only").fill("model:ok")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("#tail-state")).to_have_text("Live.")
    ask(gateway, EVIL)
    ask(gateway, "ok")
    expect(page.locator("#tail tbody tr")).to_have_count(1)
    expect(page.locator("#tail tbody tr")).to_contain_text("ok")


def test_what_was_settled_while_no_stream_held_is_caught_up_once(gateway: Gateway, page: Page) -> None:
    page.route("**/admin/tail/stream/**", lambda route: route.abort(), times=1)  # the browser tries again by itself
    page.goto("/admin/tail/")
    expect(page.locator("#tail-state")).to_have_text("Connecting…")
    ask(gateway, "ok")
    expect(page.locator("#tail-state")).to_have_text("Live.")
    expect(page.locator("#tail tbody tr")).to_have_count(1)


def test_where_no_stream_holds_the_page_asks_again_and_again(gateway: Gateway, page: Page) -> None:
    page.route("**/admin/tail/stream/**", lambda route: route.fulfill(status=503, body="{}"))
    page.goto("/admin/tail/")
    ask(gateway, "ok")
    expect(page.locator("#tail-state")).to_contain_text("Asking")
    expect(page.locator("#tail tbody tr")).to_have_count(1)


def test_the_page_fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for path in ("/admin/tail/", "/admin/budgets/usage/"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0, path
