"""Edit, look, weigh, publish, go back: what waits changes nothing for clients, what is published does at once.

Also: a draft that is published at a moment to come, and two operators before one row.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests import environment
from tests.browser import needs_browser
from tests.e2e import flow_case
from tests.e2e.flow_case import ADMIN, People, ask, by_route, wait_until
from tests.servers import Gateway, LlamaServer
from tests.upstream import FaultUpstream

pytestmark = [pytest.mark.processes, pytest.mark.browser, needs_browser]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway(environment.session_dir() / "flow-publish", workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def dear() -> Iterator[FaultUpstream]:
    with FaultUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def people(gateway: Gateway, llama: LlamaServer, dear: FaultUpstream) -> Iterator[People]:
    """Drafts are on; the route "chat" goes to llama.cpp, the provider "dear" waits for something to do."""
    with flow_case.people(gateway) as found:
        page = found.signed_in(ADMIN, flow_case.password_of(gateway))
        for kind, name, url in (("llamacpp", "local", llama.base_url), ("custom", "dear", dear.url)):
            page.goto("/admin/providers/provider/add/")
            flow_case.add_provider(page, kind, name, url)
        flow_case.add_route(page, "chat", "team-model", "local", "tiny")
        price_the_dear_one(page)
        flow_case.add_person(page, "bea", "operator")
        flow_case.menu(page, "Gateway settings")
        page.get_by_label("Publish by hand").check()
        flow_case.save(page)
        yield found


@pytest.fixture
def page(people: People) -> Iterator[Page]:
    """The first operator's; whatever a page complained about fails the test."""
    people.complaints.clear()
    opened = people.contexts[0].pages[0]
    opened.goto("/admin/")
    yield opened
    assert people.complaints == []


def price_the_dear_one(page: Page) -> None:
    page.goto("/admin/budgets/price/add/?provider=dear&pattern=*")
    page.locator("#id_input_usd_per_mtok").fill("1000")
    page.locator("#id_output_usd_per_mtok").fill("2000")
    flow_case.save(page)


def edit_route(page: Page, **fields: str) -> None:
    """Change the route "chat" by the menu and its form, and save it."""
    page.goto("/admin/")
    flow_case.menu(page, "Routes")
    page.get_by_role("link", name="chat", exact=True).click()
    for name, value in fields.items():
        if name == "provider":
            page.locator("#id_provider").select_option(label=value)
        else:
            page.locator(f"#id_{name}").fill(value)
    flow_case.save(page)


def version_in_force(page: Page) -> int:
    page.goto("/admin/draft/")
    found = re.search(r"version (\d+)", page.locator("#content-main > p").first.inner_text())
    assert found is not None
    return int(found[1])


def test_a_change_is_looked_at_weighed_published_and_taken_back(gateway: Gateway, page: Page) -> None:
    for _ in range(5):
        assert by_route("chat")(wait_until(gateway, gateway.key, "team-model", by_route("chat")))
    before = version_in_force(page)
    edit_route(page, provider="dear", upstream_model="ok")
    expect(page.get_by_text("not in force yet")).to_be_visible()
    page.get_by_role("link", name="draft", exact=True).click()

    change = page.get_by_role("region", name="What changes")
    expect(change.get_by_role("row", name=re.compile("provider.*local.*dear"))).to_be_visible()
    expect(change.get_by_role("row", name=re.compile("model.*tiny.*ok"))).to_be_visible()
    expect(page.get_by_text("admin: route.changed chat")).to_be_visible()
    assert ask(gateway, gateway.key, "team-model").json()["model"] != "ok", "a draft sends nobody elsewhere"

    page.get_by_role("button", name="Try").click()
    run = page.get_by_role("region", name="Dry run")
    expect(run).to_be_visible()
    page.wait_for_load_state()
    facts = dict(zip(run.locator("dt").all_inner_texts(), run.locator("dd").all_inner_texts(), strict=True))
    count = int(facts["Requests"].split()[0])
    assert count >= 9
    assert facts["Would go elsewhere"] == str(count)
    assert re.fullmatch(r"0\.000000 → (?!0\.0+ )\d+\.\d+ USD", facts["Cost at today's prices"]), facts
    assert re.match(r"\d+ ms → ", facts["Expected time"]), facts
    assert facts["Refused"] == "0 → 0"

    page.get_by_label("Note").fill("the local one is too small")
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.get_by_text(f"Version {before + 1} is in force.")).to_be_visible()
    expect(page.get_by_text("the local one is too small")).to_be_visible()
    moved = wait_until(gateway, gateway.key, "team-model", lambda reply: reply.json().get("model") == "ok")
    assert int(moved.headers["x-hoosh-config"]) == before + 1

    page.get_by_role("link", name=f"Older (v{before})").click()
    page.get_by_role("link", name="Go back to this version").click()
    expect(page.get_by_role("row", name=re.compile("provider.*dear.*local"))).to_be_visible()
    page.get_by_role("button", name=f"Go back to version {before}").click()
    expect(page.get_by_text(f"Version {before + 2} is in force: it says what version {before} said.")).to_be_visible()
    wait_until(gateway, gateway.key, "team-model", lambda reply: reply.is_success and reply.json()["model"] != "ok")


def test_a_draft_is_published_at_its_moment_and_a_moment_that_has_passed_is_none(gateway: Gateway, page: Page) -> None:
    before = version_in_force(page)
    edit_route(page, priority="7")
    page.get_by_role("link", name="draft", exact=True).click()
    page.get_by_label("Not before").fill("2020-01-01 00:00")
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.get_by_text("This moment has passed.")).to_be_visible()
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=4)
    page.get_by_label("Not before").fill(f"{soon:%Y-%m-%d %H:%M:%S}")
    page.get_by_label("Note").fill("at night")
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.get_by_text("The draft is published at")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("at night.*waiting"))).to_be_visible()
    assert int(ask(gateway, gateway.key, "team-model").headers["x-hoosh-config"]) == before
    reply = wait_until(
        gateway, gateway.key, "team-model", lambda reply: int(reply.headers["x-hoosh-config"]) == before + 1
    )
    assert dt.datetime.now(dt.UTC) >= soon.replace(microsecond=0)
    assert reply.is_success
    page.reload()
    expect(page.get_by_role("row", name=re.compile(f"at night.*published.*Version {before + 1}"))).to_be_visible()
    expect(page.get_by_text("What is saved is in force")).to_be_visible()


def test_two_operators_do_not_overwrite_what_they_have_not_seen(people: People, page: Page) -> None:
    other = people.signed_in("bea", flow_case.PASSWORD)
    for each in (page, other):
        each.goto("/admin/")
        flow_case.menu(each, "Routes")
        each.get_by_role("link", name="chat", exact=True).click()
    other.locator("#id_priority").fill("21")
    flow_case.save(other)
    page.locator("#id_weight").fill("5")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text(re.compile("Changed by bea at .* while you had it open"))).to_be_visible()
    expect(page.get_by_text(re.compile("Priority is “21” now; yours is"))).to_be_visible()
    expect(page.locator("#id_weight")).to_have_value("5")
    page.locator("#id_priority").fill("21")
    flow_case.save(page)  # what was told is a decision now

    # In the list: who looked before does not put back what another changed since, where they touched other cells.
    page.goto("/admin/providers/route/")
    cell = page.get_by_role("row", name=re.compile("chat")).locator("input[type=number]")
    expect(cell).to_have_value("21")
    edit_route(other, priority="33")
    page.get_by_role("row", name=re.compile("demo")).locator("input[type=number]").fill("91")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("1 route was changed successfully")).to_be_visible()
    expect(cell).to_have_value("33")

    # On the draft's page: what changed behind the reader's back is not published.
    page.goto("/admin/draft/")
    edit_route(other, priority="34")
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.get_by_text("has changed since you looked at it")).to_be_visible()
    page.get_by_label("Everything above is lost").check()
    page.get_by_role("button", name="Discard the draft").click()
    expect(page.get_by_text("The draft is what is in force again.")).to_be_visible()
    page.goto("/admin/providers/route/")
    expect(cell).to_have_value("7")
