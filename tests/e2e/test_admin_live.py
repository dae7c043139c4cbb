"""An operator in a real browser before the real processes: what is clicked in admin decides the next request."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests import environment
from tests.browser import WAIT_MS, launch, needs_browser
from tests.servers import Gateway, LlamaServer
from tests.upstream import FaultUpstream, text_of

pytestmark = [pytest.mark.processes, pytest.mark.browser, needs_browser]

_VIOLATIONS = "document.addEventListener('securitypolicyviolation', event => console.error('CSP ' + event.blockedURI))"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway(environment.session_dir() / "admin-live", workers=2) as running:
        yield running


@pytest.fixture
def page() -> Iterator[tuple[Page, list[str]]]:
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = launch(playwright)
        opened = browser.new_page()
        opened.set_default_timeout(WAIT_MS)
        opened.add_init_script(_VIOLATIONS)
        opened.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        yield opened, complaints
        browser.close()


def sign_in(page: Page, gateway: Gateway) -> None:
    told = (gateway.data_dir / "first-run.txt").read_text(encoding="utf-8")
    password = re.search(r"password:\s*(\S+)", told)
    assert password is not None
    page.goto(f"{gateway.base_url}/admin/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(password[1])
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()


def add_provider(page: Page, gateway: Gateway, name: str, kind: str, url: str) -> None:
    page.goto(f"{gateway.base_url}/admin/providers/provider/add/")
    page.get_by_label("Kind").select_option(kind)
    page.locator("#id_name").fill(name)
    page.get_by_label("Base URL").fill(url)
    page.get_by_role("button", name="Save and continue editing").click()
    expect(page.get_by_text("was added successfully")).to_be_visible()


def add_route(page: Page, gateway: Gateway, name: str, provider: str, upstream_model: str) -> None:
    page.goto(f"{gateway.base_url}/admin/providers/route/add/")
    page.locator("#id_name").fill(name)
    page.locator("#id_pattern").fill("team-model")
    choose_provider(page, provider)
    page.locator("#id_upstream_model").fill(upstream_model)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("was added successfully")).to_be_visible()


def choose_provider(page: Page, provider: str) -> None:
    page.locator("#id_provider").select_option(label=provider)


def create_key(page: Page, gateway: Gateway) -> str:
    page.goto(f"{gateway.base_url}/admin/budgets/apikey/add/")
    page.locator("#id_name").fill("laptop")
    for field, text in (("agent", "default / default"), ("pool", "default")):
        page.locator(f".field-{field} .select2-selection").click()
        page.get_by_role("option", name=text, exact=True).click()
    page.get_by_role("button", name="Save", exact=True).click()
    return page.locator("#hoosh-key").inner_text()


def ask(gateway: Gateway, key: str) -> httpx.Response:
    payload = {"model": "team-model", "messages": [{"role": "user", "content": "say a few words"}], "max_tokens": 5}
    return httpx.post(
        f"{gateway.base_url}/v1/chat/completions", json=payload, headers={"authorization": f"Bearer {key}"}, timeout=20
    )


def wait_for_route(gateway: Gateway, key: str, route: str) -> float:
    """Seconds until five answers in a row came by that route."""
    started, hits = time.monotonic(), 0
    while hits < 5:
        reply = ask(gateway, key)
        hits = hits + 1 if reply.headers.get("x-hoosh-route") == route else 0
        if hits == 1:
            first = time.monotonic()
        assert time.monotonic() - started < 10, reply.text
    return first - started


def test_a_route_made_in_admin_streams_from_llama_cpp_and_an_edit_moves_the_next_request(
    gateway: Gateway, llama: LlamaServer, page: tuple[Page, list[str]]
) -> None:
    browser, complaints = page
    with FaultUpstream() as upstream:
        sign_in(browser, gateway)
        add_provider(browser, gateway, "workshop", "llamacpp", llama.base_url)
        browser.get_by_role("button", name="Test connection").click()
        expect(browser.get_by_text("works", exact=True)).to_be_visible()
        add_provider(browser, gateway, "second", "custom", upstream.url)
        add_route(browser, gateway, "first-route", "workshop", "tiny")
        key = create_key(browser, gateway)
        assert wait_for_route(gateway, key, "first-route") < 3

        with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
            chunks = list(
                client.chat.completions.create(
                    model="team-model",
                    messages=[{"role": "user", "content": "say a few words"}],
                    max_tokens=8,
                    stream=True,
                )
            )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

        browser.goto(f"{gateway.base_url}/admin/providers/route/")
        browser.get_by_role("link", name="first-route", exact=True).first.click()
        choose_provider(browser, "second")
        browser.locator("#id_upstream_model").fill("ok")
        browser.get_by_role("button", name="Save", exact=True).click()
        expect(browser.get_by_text("was changed successfully")).to_be_visible()
        saved = time.monotonic()
        while ask(gateway, key).json()["choices"][0]["message"]["content"] != text_of(5):
            assert time.monotonic() - saved < 2, "the edit must be live within a second"
        assert upstream.inference
        calls = len(upstream.inference)
        browser.goto(f"{gateway.base_url}/admin/providers/route/")
        browser.get_by_role("link", name="Where would this go?").click()
        browser.get_by_label("Model").fill("team-model")
        browser.get_by_role("button", name="Ask").click()
        expect(browser.get_by_role("cell", name="first-route")).to_be_visible()
        expect(browser.get_by_role("cell", name="second", exact=True)).to_be_visible()
        assert len(upstream.inference) == calls, "nobody is called to answer the question"
        browser.goto(f"{gateway.base_url}/admin/budgets/usage/")
        expect(browser.get_by_text("team-model").first).to_be_visible()
    assert complaints == []
