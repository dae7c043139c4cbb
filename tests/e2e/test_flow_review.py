"""Changes that somebody else has to look at: what its author cannot do, what the reviewer can, what clients notice."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests import environment
from tests.browser import needs_browser
from tests.e2e import flow_case
from tests.e2e.flow_case import ADMIN, PASSWORD, People, ask, wait_until
from tests.servers import Gateway, ProviderEntry
from tests.upstream import FaultUpstream

pytestmark = [pytest.mark.processes, pytest.mark.browser, needs_browser]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """Its only route, made from the file, sends the model "ok" to a real server."""
    directory = environment.session_dir() / "flow-review"
    with (
        FaultUpstream() as upstream,
        Gateway(directory, workers=2, providers=[ProviderEntry(upstream.url, models=["other"])]) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def people(gateway: Gateway) -> Iterator[People]:
    """Ann and rex are operators; changes are reviewed."""
    with flow_case.people(gateway) as found:
        page = found.signed_in(ADMIN, flow_case.password_of(gateway))
        for name in ("ann", "rex"):
            page.goto("/admin/")
            flow_case.add_person(page, name, "operator")
        flow_case.menu(page, "Gateway settings")
        page.get_by_label("Review before publishing").check()
        flow_case.save(page)
        yield found


@pytest.fixture(scope="module")
def ann(people: People) -> Page:
    return people.signed_in("ann", PASSWORD)


@pytest.fixture(scope="module")
def rex(people: People) -> Page:
    return people.signed_in("rex", PASSWORD)


def change(page: Page, name: str, pattern: str) -> None:
    """A new route of the provider there is, which asks it for the model "ok"."""
    page.goto("/admin/providers/route/add/")
    provider = page.locator("#id_provider option").filter(has_not_text=re.compile("demo|---")).inner_text()
    flow_case.add_route(page, name, pattern, provider, "ok")
    expect(page.get_by_text("not in force yet: somebody else has to look at it and publish it")).to_be_visible()


def open_draft(page: Page) -> None:
    page.goto("/admin/")
    expect(page.get_by_text("Saved changes are not published yet.")).to_be_visible()
    page.get_by_role("link", name="See what changes, and publish it").click()


def status(gateway: Gateway, model: str) -> int:
    return ask(gateway, gateway.key, model).status_code


def test_a_change_waits_for_somebody_else(gateway: Gateway, people: People, ann: Page, rex: Page) -> None:
    people.complaints.clear()
    change(ann, "approved", "first-model")
    assert status(gateway, "first-model") == 404

    open_draft(ann)
    expect(ann.get_by_text("You changed this draft: somebody else has to publish it.")).to_be_visible()
    expect(ann.get_by_role("button", name="Publish", exact=True)).to_have_count(0)
    seen = force_publication(ann)
    assert "Not published. You changed this draft" in seen, "nor by a form made by hand"
    assert status(gateway, "first-model") == 404

    open_draft(rex)
    expect(rex.get_by_role("row", name=re.compile("approved.*(new|added)"))).to_be_visible()
    expect(rex.get_by_text("ann: route.created approved")).to_be_visible()
    rex.get_by_label("Note").fill("looks right")
    rex.get_by_role("button", name="Publish", exact=True).click()
    expect(rex.get_by_text("is in force.")).to_be_visible()
    expect(rex.get_by_text("looks right (changes by ann)")).to_be_visible()
    wait_until(gateway, gateway.key, "first-model", lambda reply: reply.headers.get("x-hoosh-route") == "approved")
    assert people.complaints == []


def test_a_refused_change_is_gone_and_was_never_in_force(
    gateway: Gateway, people: People, ann: Page, rex: Page
) -> None:
    people.complaints.clear()
    change(ann, "refused", "second-model")
    open_draft(rex)
    rex.get_by_label("Everything above is lost").check()
    rex.get_by_role("button", name="Discard the draft").click()
    expect(rex.get_by_text("The draft is what is in force again.")).to_be_visible()
    ann.goto("/admin/providers/route/")
    expect(ann.get_by_role("link", name="approved", exact=True)).to_be_visible()
    expect(ann.get_by_role("link", name="refused", exact=True)).to_have_count(0)
    assert status(gateway, "second-model") == 404
    assert people.complaints == []


def test_whoever_joins_a_draft_reviews_it_no_more_and_to_end_reviews_is_reviewed(
    gateway: Gateway, people: People, ann: Page, rex: Page
) -> None:
    people.complaints.clear()
    change(ann, "mine", "third-model")
    change(rex, "yours", "third-*")
    open_draft(rex)
    expect(rex.get_by_text("You changed this draft")).to_be_visible()
    third = people.contexts[0].pages[0]  # the first operator took no part
    third.goto("/admin/")
    flow_case.menu(third, "Gateway settings")
    third.get_by_label("Review before publishing").uncheck()
    flow_case.save(third)
    open_draft(third)
    expect(third.get_by_text("You changed this draft")).to_be_visible()
    assert status(gateway, "third-model") == 404
    third.get_by_label("Everything above is lost").check()
    third.get_by_role("button", name="Discard the draft").click()
    expect(third.get_by_text("The draft is what is in force again.")).to_be_visible()
    assert people.complaints == []


def force_publication(page: Page) -> str:
    """What the page says to a publication that its buttons do not offer."""
    token = page.locator("input[name=csrfmiddlewaretoken]").first.input_value()
    reply = page.request.post(
        "/admin/draft/",
        form={"csrfmiddlewaretoken": token, "seen": "0" * 64, "note": "mine"},
        headers={"referer": page.url},
    )
    assert reply.ok
    return reply.text()
