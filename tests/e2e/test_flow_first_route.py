"""A newcomer's first way, by what the pages say alone: from the printed password to an answer, its row, its proof."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from playwright.sync_api import Page, expect

from tests import environment
from tests.browser import needs_browser
from tests.e2e import flow_case
from tests.e2e.flow_case import ADMIN, People
from tests.servers import PROJECT_DIR, Gateway, LlamaServer

pytestmark = [pytest.mark.processes, pytest.mark.browser, needs_browser]


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Gateway, str, str]]:
    """The gateway, all it printed, and the password in it."""
    gateway, told, password = flow_case.first_start(environment.session_dir() / "first-route", workers=2)
    yield gateway, told, password
    gateway.stop()


@pytest.fixture
def people(started: tuple[Gateway, str, str]) -> Iterator[People]:
    with flow_case.people(started[0]) as found:
        yield found


def test_from_the_first_start_to_an_answer_and_its_proof(
    started: tuple[Gateway, str, str], people: People, llama: LlamaServer, tmp_path: Path
) -> None:
    gateway, told, password = started
    page = people.open()
    printed = re.search(r"Admin:\s+(\S+)", told)
    assert printed is not None
    page.goto(printed[1])
    flow_case.sign_in(page, ADMIN, password)
    choose_a_password(page, password)
    make_a_route(page, llama)
    base_url, key = make_a_key(page)
    rid = ask_with_the_sdk(base_url, key)
    see_the_request(page, rid)
    prove_it(page, rid, tmp_path)
    assert not (gateway.data_dir / "first-run.txt").exists(), "what was printed is kept nowhere"
    assert people.complaints == []


def choose_a_password(page: Page, old: str) -> None:
    page.get_by_role("link", name="Change password").click()
    page.get_by_label("Old password").fill(old)
    page.get_by_label("New password:").fill(flow_case.PASSWORD)
    page.get_by_label("New password confirmation").fill(flow_case.PASSWORD)
    page.get_by_role("button", name="Change my password").click()
    page.get_by_role("link", name="Home").click()


def make_a_route(page: Page, llama: LlamaServer) -> None:
    steps = page.get_by_role("region", name="First steps")
    expect(steps.get_by_text("open", exact=True)).to_have_count(4)
    steps.get_by_role("link", name="Add a provider").click()
    page.get_by_label("Kind").select_option("llamacpp")
    expect(page.get_by_text("Leave the address blank for http://127.0.0.1:8080")).to_be_visible()
    page.get_by_label("Base URL").fill(llama.base_url.removeprefix("http://"))
    page.get_by_role("button", name="Save and test the connection").click()
    expect(page.get_by_text("for example http://127.0.0.1:8080")).to_be_visible()  # what is wrong, and what is right
    page.get_by_label("Base URL").fill(f"{llama.base_url}/v1/chat/completions")
    page.get_by_role("button", name="Save and test the connection").click()
    expect(page.get_by_text("works", exact=True)).to_be_visible()
    expect(page.get_by_text(llama.base_url, exact=True)).to_be_visible()
    page.get_by_role("row", name="tiny").get_by_role("button", name="Create route").click()
    expect(page.get_by_text("was created")).to_be_visible()
    expect(page.get_by_role("button", name="Create a route for each chosen model")).to_have_count(0)


def make_a_key(page: Page) -> tuple[str, str]:
    """By the link behind the route; team and agent are made beside the fields they are missed in."""
    page.get_by_role("region", name="Next").get_by_role("link", name="Create an API key").click()
    expect(page.get_by_text("The app that uses it; it belongs to a team.")).to_be_visible()
    page.get_by_label("Name").fill("invoice laptop")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Add another agent").click()
    agent = opened.value
    with agent.expect_popup() as opened:
        agent.get_by_role("link", name="Add another team").click()
    team = opened.value
    team.get_by_label("Name").fill("payments")
    with team.expect_event("close"):
        team.get_by_role("button", name="Save", exact=True).click()
    expect(agent.locator(".field-team .select2-selection")).to_contain_text("payments")
    agent.get_by_label("Name").fill("invoice-bot")
    with agent.expect_event("close"):
        agent.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(".field-agent .select2-selection")).to_contain_text("payments / invoice-bot")
    page.get_by_role("button", name="Save", exact=True).click()  # the only pool there is was chosen already
    expect(page.get_by_role("heading", name="Copy this key now")).to_be_visible()
    page.get_by_role("button", name="Copy").click()
    key: str = page.evaluate("navigator.clipboard.readText()")
    assert re.fullmatch(r"hk-[\w-]{43}", key)
    base_url = page.locator("dt", has_text="Base URL").locator("+ dd").inner_text()
    expect(page.get_by_text('"model": "tiny"')).to_be_visible()
    page.reload()  # it is not sent again, and shown no more
    assert key not in page.content()
    return base_url, key


def ask_with_the_sdk(base_url: str, key: str) -> str:
    """An answer and a stream; the request id of the answer."""
    question = [{"role": "user", "content": "say a few words"}]
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        reply = client.chat.completions.with_raw_response.create(model="tiny", messages=question, max_tokens=8)  # type: ignore[arg-type]
        assert reply.parse().choices[0].message.content
        assert reply.headers["x-hoosh-route"] == "llamacpp tiny"
        chunks = list(client.chat.completions.create(model="tiny", messages=question, max_tokens=8, stream=True))  # type: ignore[arg-type]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return reply.headers["x-hoosh-request"].rpartition("-")[2]


def see_the_request(page: Page, rid: str) -> None:
    """On the first page as a number, in the list as a row, on its own page with the decision."""
    page.get_by_role("link", name="Home").click()
    card = page.locator(".hoosh-card", has=page.get_by_role("heading", name="Last requests"))
    end = time.monotonic() + flow_case.LIVE_S
    while card.get_by_role("link").inner_text() != "2" and time.monotonic() < end:  # they are booked within a second
        page.reload()
    expect(card).to_contain_text("all answered")
    assert card.get_by_role("link").inner_text() == "2"
    expect(page.get_by_role("region", name="First steps")).to_have_count(0)
    card.get_by_role("link").click()
    rows = page.locator("#result_list tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.last).to_contain_text("invoice laptop")
    rows.last.get_by_role("link").first.click()  # the newest stands first
    expect(page.get_by_role("heading", name=f"Request {rid}")).to_be_visible()
    expect(page.get_by_role("region", name="Decision").get_by_role("row", name="llamacpp tiny")).to_be_visible()
    expect(page.get_by_text("payments / invoice-bot")).to_be_visible()


def prove_it(page: Page, rid: str, place: Path) -> None:
    """The proof is a file; it is verified outside of the gateway by the key that the pages show, and not if changed."""
    with page.expect_download() as begun:
        page.get_by_role("link", name="Download proof").click()
    proof = place / "proof.json"
    begun.value.save_as(proof)
    page.get_by_role("link", name="How to verify it").click()
    page.locator("#vkey + button").click()
    vkey: str = page.evaluate("navigator.clipboard.readText()")
    with page.expect_download() as begun:
        page.get_by_role("link", name="Download verify_audit.py").click()
    verifier = place / "verify_audit.py"
    begun.value.save_as(verifier)
    assert verifier.read_bytes() == (PROJECT_DIR / "tools" / "verify_audit.py").read_bytes()
    good = verify(verifier, proof, vkey)
    assert good.returncode == 0, good.stdout + good.stderr
    assert rid in good.stdout + proof.read_text()
    changed = place / "changed.json"
    changed.write_text(proof.read_text().replace(r"\"model\":\"tiny\"", r"\"model\":\"dear\""))
    assert changed.read_text() != proof.read_text()
    assert verify(verifier, changed, vkey).returncode == 1


def verify(verifier: Path, proof: Path, vkey: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(verifier), "--proof", str(proof), "--key", vkey]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
