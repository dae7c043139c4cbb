"""A key is rotated in the browser while clients send requests without a pause: none of them fails."""

from __future__ import annotations

import datetime as dt
import re
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests import environment
from tests.browser import needs_browser
from tests.e2e import flow_case
from tests.e2e.flow_case import ADMIN, People
from tests.servers import Gateway, ProviderEntry
from tests.upstream import FaultUpstream

pytestmark = [pytest.mark.processes, pytest.mark.browser, needs_browser]

CLIENTS = 4
PAUSE_S = 0.02  # between two requests of a client: 2 cores are shared with the browser
NEAR_S = 0.1  # requests sent so near to the old key's end may be answered either way


class Sent(NamedTuple):
    """One request: when, with which key, and what came of it (0 = no answer)."""

    at: float
    key: str
    status: int
    new_connection: bool


class Client(threading.Thread):
    """Asks again and again with `key`; every second connection ends with its answer, so that both workers are met."""

    def __init__(self, base_url: str, key: str) -> None:
        super().__init__(daemon=True)
        self.key, self.sent = key, list[Sent]()
        self._url, self._end = f"{base_url}/v1/chat/completions", threading.Event()

    def run(self) -> None:
        body = {"model": "ok", "messages": [{"role": "user", "content": "one two"}], "max_tokens": 3}
        with httpx.Client(timeout=20, trust_env=False) as client:
            while not self._end.wait(PAUSE_S):
                key, at, is_new = self.key, time.time(), len(self.sent) % 2 == 0
                headers = {"authorization": f"Bearer {key}", "connection": "close" if is_new else "keep-alive"}
                try:
                    reply = client.post(self._url, json=body, headers=headers)
                    status = reply.status_code
                except httpx.HTTPError:
                    status = 0
                self.sent.append(Sent(at, key, status, is_new))

    def stop(self) -> None:
        self._end.set()
        self.join(30)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    directory = environment.session_dir() / "flow-rotation"
    with (
        FaultUpstream() as upstream,
        Gateway(directory, workers=2, providers=[ProviderEntry(upstream.url, models=["ok"])]) as running,
    ):
        yield running


@pytest.fixture
def people(gateway: Gateway) -> Iterator[People]:
    with flow_case.people(gateway) as found:
        yield found


def test_clients_change_over_without_a_failure(gateway: Gateway, people: People) -> None:
    page = people.signed_in(ADMIN, flow_case.password_of(gateway))
    old = make_key(page, "fleet")
    flow_case.wait_until(gateway, old, "ok", lambda reply: reply.is_success)
    clients = [Client(gateway.base_url, old) for _ in range(CLIENTS)]
    straggler = Client(gateway.base_url, old)
    for client in (*clients, straggler):
        client.start()
    try:
        new = rotate(page, old)
        for client in clients:
            client.key = new
            time.sleep(0.5)
        see_who_is_left(page, old, new)
        end = end_the_old_one(page, old)
        time.sleep(max(0.0, end - time.time()) + 1.5)
        revoke(page, old)
    finally:
        for client in (*clients, straggler):
            client.stop()
    sent = [each for client in clients for each in client.sent]
    assert [each for each in sent if each.status != 200] == [], "nobody who changed over in time noticed anything"
    for key in (old, new):
        with_it = [each.new_connection for each in sent if each.key == key]
        assert with_it.count(True) > 10, "and both keys were under way"
        assert with_it.count(False) > 10
    before = {each.status for each in straggler.sent if each.at < end - NEAR_S}
    behind = {each.status for each in straggler.sent if each.at > end + NEAR_S}
    assert (before, behind) == ({200}, {401}), "an old key works to the second it ends, and no longer"
    assert people.complaints == []


def make_key(page: Page, name: str) -> str:
    """By the form, for the first start's agent; the only pool there is is chosen."""
    flow_case.menu(page, "API keys")
    page.get_by_role("link", name="Add API key").click()
    page.locator("#id_name").fill(name)
    page.locator(".field-agent .select2-selection").click()
    page.get_by_role("option", name="default / default", exact=True).click()
    page.get_by_role("button", name="Save", exact=True).click()
    return page.locator("#hoosh-key").inner_text()


def open_key(page: Page, key: str) -> None:
    page.goto("/admin/budgets/apikey/")
    page.get_by_role("row", name=re.compile(re.escape(key[:8]))).get_by_role("link", name="fleet").click()


def rotate(page: Page, old: str) -> str:
    open_key(page, old)
    page.get_by_role("link", name="Rotate").click()
    page.get_by_label("The old key works for").select_option(label="1 hour")
    page.get_by_role("button", name="Rotate").click()
    expect(page.get_by_role("heading", name="The old key")).to_be_visible()
    until = page.locator("dt", has_text="Works until").locator("+ dd").inner_text()
    left = dt.datetime.strptime(until, "%Y-%m-%d %H:%M UTC").replace(tzinfo=dt.UTC) - dt.datetime.now(dt.UTC)
    assert dt.timedelta(minutes=58) < left < dt.timedelta(minutes=61)
    new = page.locator("#hoosh-key").inner_text()
    assert new != old
    return new


def see_who_is_left(page: Page, old: str, new: str) -> None:
    """The new key's page says when the old one was last used: a straggler goes on with it."""
    open_key(page, new)
    said = page.locator(".field-rotation")
    expect(said).to_contain_text(f"replaces {old[:8]}")
    expect(said).to_contain_text(re.compile(r"which works until \S+ \S+ UTC and was last used: \d{4}-\d\d-\d\d"))


def end_the_old_one(page: Page, old: str) -> float:
    """Let it end in some seconds, by the form; the moment in Unix seconds."""
    open_key(page, old)
    end = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=8)
    page.locator("#id_expires_at_0").fill(f"{end:%Y-%m-%d}")
    page.locator("#id_expires_at_1").fill(f"{end:%H:%M:%S}")
    flow_case.save(page)
    assert dt.datetime.now(dt.UTC) < end - dt.timedelta(seconds=1), "the workers had no time to hear of it"
    return end.timestamp()


def revoke(page: Page, old: str) -> None:
    """What has ended is revoked for good."""
    open_key(page, old)
    expect(page.locator(".field-state")).to_contain_text("expired")
    page.get_by_role("link", name="Revoke").click()
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("is revoked; workers refuse it within a second")).to_be_visible()
    expect(page.locator(".field-state")).to_contain_text("revoked")
