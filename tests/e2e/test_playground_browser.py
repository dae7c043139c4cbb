"""The playground in a real browser, with a real gateway and a real provider behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from providers.validation import DEMO_URL
from tests.browser import WAIT_MS, launch, needs_browser
from tests.servers import Gateway, LlamaServer, ProviderEntry
from tests.upstream import FaultUpstream

pytestmark = [pytest.mark.browser, needs_browser]

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def page(tmp_path: Path, llama: LlamaServer) -> Iterator[Page]:
    with FaultUpstream() as up:
        entries = [
            ProviderEntry(llama.base_url, models=["tiny"]),
            ProviderEntry(up.url, models=["stall-first"]),
            ProviderEntry(DEMO_URL, kind="demo", models=["demo"]),
        ]
        with Gateway(tmp_path / "gateway", providers=entries) as gateway, sync_playwright() as playwright:
            browser = launch(playwright)
            page = browser.new_page(base_url=gateway.base_url)
            page.set_default_timeout(WAIT_MS)
            told = (gateway.data_dir / "first-run.txt").read_text()
            found = re.search(r"password:\s*(\S+)", told)
            assert found is not None
            page.goto("/admin/playground/")
            page.get_by_label("Username").fill("admin")
            page.get_by_label("Password").fill(found[1])
            page.get_by_role("button", name="Log in").click()
            page.goto("/admin/playground/")
            yield page
            browser.close()


def test_a_question_is_answered_beside_a_refusal_with_decision_cost_and_snippets(page: Page) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.locator("#model-A").fill("tiny")
    page.locator("#model-B").fill("nobody")
    page.get_by_label("Most output tokens").fill("12")
    page.get_by_role("button", name="Ask").click()
    left, right = page.locator("[data-side=A]"), page.locator("[data-side=B]")
    expect(left.locator(".hoosh-told")).to_contain_text("Request")
    expect(left.locator(".hoosh-told")).to_contain_text("Cost")
    expect(left.locator(".hoosh-told")).to_contain_text("priority")
    assert left.locator(".hoosh-answer").inner_text().strip()
    expect(right.locator(".hoosh-answer")).to_contain_text("404")
    left.locator("summary").click()
    expect(left.locator("#snippet-A-c")).to_contain_text('"model": "tiny"')
    expect(left.locator("#snippet-A-p")).to_contain_text('"stream": True')
    assert "hk-" not in page.content(), "the key stands nowhere in the page"
    left.get_by_role("link").click()
    expect(page.locator("#result_list")).to_contain_text("tiny")
    assert errors == []


def test_answers_are_text_whatever_is_in_them(page: Page) -> None:
    page.locator("#model-A").fill("demo")
    page.get_by_label("Question").fill(EVIL)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("[data-side=A] .hoosh-answer")).to_contain_text(EVIL)
    assert page.locator(".hoosh-answer img").count() == 0


def test_an_answer_can_be_stopped(page: Page) -> None:
    page.locator("#model-A").fill("stall-first")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("[data-side=A] .hoosh-answer")).to_contain_text("Stopped.")
    expect(page.get_by_role("button", name="Ask")).to_be_enabled()
