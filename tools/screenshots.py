"""Screenshots of the console's main pages, from demo data: `python -m tools.screenshots [DIRECTORY]`.

A gateway of its own is started and filled by `manage.py demo_data`; what is there already is overwritten. Needs the
packages of requirements-dev.txt and a Chromium.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.browser import launch
from tests.servers import Gateway

DIRECTORY = Path(__file__).resolve().parent.parent / "docs" / "images"
PAGES = {
    "overview": "/admin/",
    "routes": "/admin/providers/route/",
    "requests": "/admin/budgets/usage/",
    "verification": "/admin/audit/auditentry/verification/",
}
SIZE = {"width": 1200, "height": 900}
_SAMPLES_MS = 25_000  # the first page needs two samples of the metrics


def main(directory: Path) -> None:
    """Start, fill, look."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shots") as place, Gateway(Path(place) / "gateway") as gateway:
        print(gateway.manage("demo_data", "--url", gateway.base_url, timeout_s=180))
        told = (gateway.data_dir / "first-run.txt").read_text()
        found = re.search(r"password:\s*(\S+)", told)
        assert found is not None
        with sync_playwright() as playwright:
            browser = launch(playwright)
            page = browser.new_page(viewport=SIZE, base_url=gateway.base_url)  # type: ignore[arg-type]
            _sign_in(page, found[1])
            gateway.manage("demo_data", "--url", gateway.base_url, "--requests", "60", timeout_s=180)
            page.wait_for_timeout(_SAMPLES_MS)
            for name, path in PAGES.items():
                page.goto(path)
                page.wait_for_timeout(1000)
                page.screenshot(path=str(directory / f"{name}.png"))
            browser.close()


def _sign_in(page: Page, password: str) -> None:
    page.goto("/admin/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY)
