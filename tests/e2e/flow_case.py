"""What the tests of whole ways through the console share: the first start, browsers of several people, real clients.

Every page reports to `People.complaints`: script errors, refused resources, violations of the content security policy,
answers of 400 and above. A test that ends with an empty list saw none.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser import WAIT_MS, launch
from tests.servers import PROJECT_DIR, Gateway

VIOLATIONS = "document.addEventListener('securitypolicyviolation', event => console.error('CSP ' + event.blockedURI))"
ADMIN = "admin"
PASSWORD = "a-long-password-of-a-second-person"
LIVE_S = 15.0  # what was saved or published must be in force by then


@dataclass
class People:
    """A browser with one context for each person; `complaints` is what their pages reported."""

    browser: Browser
    base_url: str
    complaints: list[str] = field(default_factory=list)
    contexts: list[BrowserContext] = field(default_factory=list)

    def open(self) -> Page:
        """A page of somebody who is not signed in, with a clipboard."""
        context = self.browser.new_context(base_url=self.base_url)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=self.base_url)
        context.add_init_script(VIOLATIONS)
        context.on("page", self._listen)  # popups too
        self.contexts.append(context)
        return context.new_page()

    def signed_in(self, name: str, password: str) -> Page:
        """A page of this person, on the overview."""
        page = self.open()
        page.goto("/admin/")
        sign_in(page, name, password)
        return page

    def _listen(self, page: Page) -> None:
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda said: self._hear(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self._hear(str(error)))
        page.on("response", lambda reply: self._hear(f"{reply.status} {reply.url}") if reply.status >= 400 else None)

    def _hear(self, text: str) -> None:
        self.complaints.append(text)


@contextmanager
def people(gateway: Gateway) -> Iterator[People]:
    """A browser before this gateway."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        try:
            yield People(browser, gateway.base_url)
        finally:
            browser.close()


def first_start(directory: Path, **options: int) -> tuple[Gateway, str, str]:
    """A gateway as `make run` starts it on a terminal, serving, and what it printed: all, and the password."""
    gateway = Gateway(directory, **options)
    directory.mkdir(parents=True, exist_ok=True)
    told = _on_a_terminal(gateway, "init")
    password = re.search(r"password: (\S+)", told)
    key = re.search(r"\bhk-\S+", told)
    assert password is not None, told
    assert key is not None, told
    gateway.key = key[0]
    return gateway.start(), told, password[1]


def _on_a_terminal(gateway: Gateway, command: str) -> str:
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, "manage.py", command],
            cwd=PROJECT_DIR,
            env=gateway.environment(),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        said = bytearray()
        try:
            while piece := terminal.read(4096):
                said += piece
        except OSError:  # how a terminal ends whose last process has left
            pass
        assert process.wait(60) == 0, said.decode()
    return said.decode().replace("\r\n", "\n")


def password_of(gateway: Gateway) -> str:
    """The first operator's, of a gateway that was started without a terminal."""
    found = re.search(r"password:\s*(\S+)", (gateway.data_dir / "first-run.txt").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def sign_in(page: Page, name: str, password: str) -> None:
    """Fill in the form that is shown."""
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()


def menu(page: Page, name: str) -> None:
    """Follow the link of this name in the menu; from the overview through its list of pages."""
    page.get_by_role("link", name=name, exact=True).first.click()


def save(page: Page) -> None:
    """Press Save, and see that it was taken."""
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text(re.compile("was (added|changed) successfully"))).to_be_visible()


def add_provider(page: Page, kind: str, name: str, url: str) -> None:
    """By the form that is shown, up to what the connection test found."""
    page.get_by_label("Kind").select_option(kind)
    page.locator("#id_name").fill(name)
    page.get_by_label("Base URL").fill(url)
    page.get_by_role("button", name="Save and test the connection").click()
    expect(page.get_by_text("works", exact=True)).to_be_visible()


def add_route(page: Page, name: str, pattern: str, provider: str, upstream_model: str = "") -> None:
    """By the menu and the form."""
    page.goto("/admin/providers/route/add/")
    page.locator("#id_name").fill(name)
    page.locator("#id_pattern").fill(pattern)
    page.locator("#id_provider").select_option(label=provider)
    page.locator("#id_upstream_model").fill(upstream_model)
    save(page)


def add_person(page: Page, name: str, role: str) -> None:
    """Somebody with `PASSWORD` and one of the roles."""
    menu(page, "Users")
    page.get_by_role("link", name="Add user").click()
    page.get_by_label("Username").fill(name)
    page.locator("#id_password1").fill(PASSWORD)
    page.locator("#id_password2").fill(PASSWORD)
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_label("Staff status").check()
    page.locator("#id_groups_from").select_option(label=role)
    page.get_by_role("button", name=re.compile("Choose selected groups")).click()
    save(page)


def ask(gateway: Gateway, key: str, model: str) -> httpx.Response:
    """One small question."""
    body = {"model": model, "messages": [{"role": "user", "content": "say a few words"}], "max_tokens": 4}
    return httpx.post(
        f"{gateway.base_url}/v1/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {key}"},
        timeout=20,
        trust_env=False,
    )


def wait_until(gateway: Gateway, key: str, model: str, wanted: Callable[[httpx.Response], bool]) -> httpx.Response:
    """Ask until eight answers in a row are the wanted ones, since each worker learns by itself; the last of them."""
    end, hits = time.monotonic() + LIVE_S, 0
    while True:
        reply = ask(gateway, key, model)
        hits = hits + 1 if wanted(reply) else 0
        if hits == 8:
            return reply
        assert time.monotonic() < end, (reply.status_code, dict(reply.headers), reply.text)


def by_route(name: str) -> Callable[[httpx.Response], bool]:
    """Whether an answer came by this route."""
    return lambda reply: reply.is_success and reply.headers.get("x-hoosh-route") == name
