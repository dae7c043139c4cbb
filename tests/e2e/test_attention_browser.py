"""In a real browser: what needs attention comes by itself and is acknowledged there; two operators in one form."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.browser import launch, needs_browser
from tests.servers import Gateway

pytestmark = [pytest.mark.browser, needs_browser]

VIOLATIONS = "document.addEventListener('securitypolicyviolation', event => console.error('CSP ' + event.blockedURI))"
ANOMALY = (
    "INSERT INTO budgets_anomaly (agent_id, kind, stretch, at, unit, observed, expected, sigma, prompt, throttled,"
    " state, acknowledged_by) SELECT id, 'spend', 1, datetime('now'), 'usd', 5.0, 1.0, 0.1, '', 0, 'open', ''"
    " FROM budgets_agent LIMIT 1"
)


def sign_in(page: Page, data_dir: Path) -> None:
    found = re.search(r"password:\s*(\S+)", (data_dir / "first-run.txt").read_text())
    assert found is not None
    page.goto("/admin/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(found[1])
    page.get_by_role("button", name="Log in").click()


def test_anomalies_come_by_themselves_and_are_acknowledged_and_changes_by_another_tab_are_told(tmp_path: Path) -> None:
    with Gateway(tmp_path / "gateway") as gateway, sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_context(base_url=gateway.base_url).new_page()
        page.add_init_script(VIOLATIONS)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        sign_in(page, gateway.data_dir)
        expect(page.locator("#hoosh-live-state")).to_have_text(re.compile("^Live"))
        (path,) = [each for each in gateway.data_dir.glob("*.sqlite3") if "ledger" not in each.name]
        with sqlite3.connect(path, timeout=10) as connection:
            connection.execute(ANOMALY)
        line = page.get_by_role("region", name="Needs attention").get_by_role("row", name="Anomaly")
        expect(line.get_by_role("link", name=re.compile("is usual"))).to_be_visible(timeout=30_000)
        page.set_viewport_size({"width": 390, "height": 800})  # a phone shows the sentence, not only its kind
        expect(line.get_by_role("link", name=re.compile("is usual"))).to_be_visible()
        page.set_viewport_size({"width": 1280, "height": 800})
        line.get_by_role("button", name=re.compile("^Acknowledge")).click()
        expect(page.get_by_text("Acknowledged.")).to_be_visible()
        expect(line).to_have_count(0)
        page.get_by_role("link", name="Pools", exact=True).first.click()
        page.get_by_role("link", name="default", exact=True).first.click()
        other = page.context.new_page()
        other.goto(page.url)
        other.get_by_label("Note").fill("of the other tab")
        other.get_by_role("button", name="Save", exact=True).click()
        expect(other.get_by_text("was changed successfully")).to_be_visible()
        page.get_by_label("Note").fill("of this one")
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page.get_by_text("Note is “of the other tab” now; yours is “of this one”.")).to_be_visible()
        expect(page.get_by_text(re.compile("Changed by admin at .* while you had it open"))).to_be_visible()
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page.get_by_text("was changed successfully")).to_be_visible()
        assert complaints == []
        browser.close()
