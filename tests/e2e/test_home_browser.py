"""The first page in a real browser: it stays fresh by itself, and reports nothing to the console."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.browser import launch, needs_browser
from tests.servers import Gateway, ProviderEntry
from tests.upstream import FaultUpstream

pytestmark = [pytest.mark.browser, needs_browser]

VIOLATIONS = "document.addEventListener('securitypolicyviolation', event => console.error('CSP ' + event.blockedURI))"


def test_the_first_page_shows_new_requests_without_a_reload(tmp_path: Path) -> None:
    with (
        FaultUpstream() as up,
        Gateway(tmp_path / "gateway", providers=[ProviderEntry(up.url, models=["ok"])]) as gateway,
        sync_playwright() as playwright,
    ):
        browser = launch(playwright)
        page = browser.new_page(base_url=gateway.base_url)
        page.add_init_script(VIOLATIONS)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        told = (gateway.data_dir / "first-run.txt").read_text()
        found = re.search(r"password:\s*(\S+)", told)
        assert found is not None
        page.goto("/admin/")
        page.get_by_label("Username").fill("admin")
        page.get_by_label("Password").fill(found[1])
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("#hoosh-live-state")).to_have_text(re.compile("^Live"))
        body = {"model": "ok", "messages": [{"role": "user", "content": "one"}], "max_tokens": 3}
        for _ in range(5):
            reply = httpx.post(
                f"{gateway.base_url}/v1/chat/completions",
                json=body,
                headers={"authorization": f"Bearer {gateway.key}"},
                trust_env=False,
            )
            assert reply.status_code == 200
        # Two samples, ten seconds apart, and the next look of the page.
        expect(page.get_by_role("img", name=re.compile(r"^Requests per minute, up to [1-9]"))).to_be_visible(
            timeout=40_000
        )
        assert complaints == []
        browser.close()
