"""Every page of the console is for everybody: found by axe-core in both colour schemes, and measured on a phone.

The pages are those of the addresses that the admin site and the pages of people have, so that a new one is looked at
from its first day.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import User
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.exceptions import BadRequest, PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path, reverse
from django.utils import timezone
from playwright.sync_api import Page, sync_playwright

from budgets.models import ApiKey, Usage
from hoosh_site import urls
from hoosh_site.people import urls as people_urls
from hoosh_site.people.models import TeamLead
from hoosh_site.templatetags.pages import ABOUT
from providers.models import RoutingPolicy, ScheduledPublication
from tests.browser import launch, needs_browser
from tests.e2e import accessibility
from tests.e2e.admin_browser import VIOLATIONS, AdminBrowserCase
from tests.servers import Gateway
from tests.site import test_roles
from tests.site.people_case import code_of

pytestmark = [pytest.mark.browser, needs_browser]

LONG = "a-rather-long-name-of-a-model-with-its-vendor-and-its-size-2026-11-preview"
VIEWS = ("changelist", "add", "change", "delete", "history")

_SEND = """([address, fields]) => {
    const form = document.createElement('form');
    form.method = 'post';
    form.action = address;
    for (const [name, value] of Object.entries(fields)) {
        const input = document.createElement('input');
        Object.assign(input, {type: 'hidden', name, value});
        form.append(input);
    }
    document.body.append(form);
    form.submit();
}"""
_FOCUS = r"""() => [...document.querySelectorAll(
    'a[href], button, input, select, textarea, summary, [tabindex]')].filter(each => {
    if (each.disabled || each.tabIndex < 0 || !each.checkVisibility() || each.type === 'hidden') return false;
    each.focus();
    const style = getComputedStyle(each);
    return each === document.activeElement && (style.outlineStyle === 'none' || parseFloat(style.outlineWidth) < 1.5);
}).map(each => each.outerHTML.slice(0, 160))"""


def fail(request: HttpRequest, how: str) -> HttpResponse:
    raise {"403": PermissionDenied, "400": BadRequest}.get(how, RuntimeError)("As asked.")


# The product's addresses, and some that fail.
handler400, handler404, handler500 = urls.handler400, urls.handler404, urls.handler500
urlpatterns = [path("admin/fail/<str:how>/", fail), *urls.urlpatterns]


class KeptFiles(StaticFilesHandler):
    """Static files as the gateway serves them: kept by the browser."""

    def get_response(self, request: HttpRequest) -> Any:
        response = super().get_response(request)
        response["cache-control"] = "max-age=600"
        return response


class PagesCase(test_roles.EveryRow, AdminBrowserCase):
    static_handler = KeptFiles

    def setUp(self) -> None:
        super().setUp()
        self.ada = User.objects.get(username="ada")
        type(self).carl = User.objects.create_user("carl", "", "pw")
        type(self).rows = self.make_rows()
        self.key, self.team = self.rows["budgets.apikey"], self.rows["budgets.team"]
        TeamLead.objects.create(user=self.ada, team=self.team)
        ApiKey.objects.update(requests_per_minute=60, tokens_per_minute=100_000, concurrent_requests=5)
        ids = {
            "key_id": self.key.pk,
            "agent_id": self.key.agent_id,
            "team_id": self.team.pk,
            "pool_id": self.key.pool_id,
        }
        for number, status in enumerate((200, 404, 502), 10):
            used = {"endpoint": "chat", "model": LONG, "status": status, "tokens": 90_000, "price_id": 0}
            error = "" if status == 200 else "upstream_timeout"
            Usage.objects.create(rid=f"{number:032}", at=timezone.now(), error=error, **ids, **used)
        RoutingPolicy.objects.create(name="not published yet", pattern="later-*")
        ScheduledPublication.objects.create(at=timezone.now(), author="ada", digest="0" * 64)
        self.client.force_login(self.ada)
        self.builds: set[str] = set()

    def tabs(self) -> tuple[Page, Page]:
        """Two pages of ada's browser."""
        context, page = self.open(viewport=accessibility.DESK, base_url=self.live_server_url)
        value = self.client.cookies[settings.SESSION_COOKIE_NAME].value
        context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": value, "url": self.live_server_url}])
        return page, self.new_tab(context)

    def addresses(self) -> Iterator[str]:
        """Of every page of admin and of people, for the rows there are."""
        for entry in test_roles.patterns(admin.site.get_urls()):
            if entry.name and entry.name not in test_roles.OPEN:
                model, _, view = entry.name.rpartition("_")
                label = model.replace("_", ".", 1)
                yield self.address(entry, label if view in VIEWS and label in self.rows else "")
        for entry in people_urls.urlpatterns:
            names = {"team_id": self.team.pk, "key_id": self.key.pk}
            yield reverse(f"people:{entry.name}", kwargs={name: names[name] for name in entry.pattern.converters})
        yield reverse("management-docs")

    def pages(self) -> Iterator[str]:
        """Those that answer a look with a page: not those for programs, nor a part of a page, nor a redirect."""
        for address in self.addresses():
            answer = self.client.get(address)
            start = b"" if answer.streaming else answer.content[:200].lstrip().lower()
            if answer.status_code == 200 and start.startswith(b"<!doctype html"):
                yield address

    def look(self, page: Page, name: str, *, expected: int = 200, menu: bool = False) -> list[str]:
        """What is wrong with the page that is open, and with all that the browser said since the last look."""
        found = accessibility.look(page, menu=menu, builds=self.builds)
        said = [each for each in self.complaints if expected == 200 or str(expected) not in each]
        self.complaints.clear()
        return [f"{name}: {each}" for each in (*found, *said)]

    def send(self, page: Page, address: str, fields: dict[str, Any] | None = None) -> None:
        cookies = {each["name"]: each["value"] for each in page.context.cookies()}
        token = {"csrfmiddlewaretoken": cookies[settings.CSRF_COOKIE_NAME]}
        with page.expect_navigation():
            page.evaluate(_SEND, [address, token | (fields or {})])


class EveryPageTest(PagesCase):
    def test_every_page_is_for_everybody(self) -> None:
        pages = [*self.pages()]
        assert len(pages) > 140
        wrong: list[str] = []
        tab, next_tab = self.tabs()
        tab.goto(pages[0])
        for place, address in enumerate(pages):
            if place + 1 < len(pages):  # loads while this one is looked at
                next_tab.evaluate("address => { window.location = address }", self.live_server_url + pages[place + 1])
            wrong += self.look(tab, address, menu=address in ("/admin/", "/admin/budgets/team/"))
            if place + 1 < len(pages):
                next_tab.wait_for_url(self.live_server_url + pages[place + 1])
            tab, next_tab = next_tab, tab
        assert not wrong, "\n".join(wrong)
        assert len(self.builds) > 80, "the check takes pages for the same that are not"


class AnswerTest(PagesCase):
    def test_what_comes_of_a_form_is_for_everybody(self) -> None:
        wrong: list[str] = []
        page, _ = self.tabs()
        for label in ("providers.provider", "budgets.apikey", "budgets.price", "auth.user", "events.webhook"):
            page.goto(reverse(f"admin:{label.replace('.', '_')}_add"))
            page.locator(".submit-row input[name=_save]").evaluate("button => { button.form.noValidate = true }")
            page.locator(".submit-row input[name=_save]").click()
            page.locator(".errorlist").first.wait_for()
            wrong += self.look(page, f"{label} with mistakes")
        team, key, hook = self.team, self.key, self.rows["events.webhook"]
        chosen = {"action": "delete_selected", "_selected_action": self.rows["budgets.warmquestion"].pk}
        mail = {"text": "Ask ana@example.org"}
        new = {"name": "one more", "like": key.pk, "agent": key.agent_id}
        for address, fields, heading in (
            (reverse("admin:budgets_warmquestion_changelist"), chosen, "Delete multiple objects"),
            (reverse("admin:budgets_apikey_rotate", args=(key.pk,)), {}, "was created"),
            (reverse("admin:events_webhook_secret", args=(hook.pk,)), {}, "Secret of"),
            (
                reverse("admin:providers_privacypolicy_try", args=(self.rows["providers.privacypolicy"].pk,)),
                mail,
                "Change privacy policy",
            ),
            (reverse("people:team_add_key", args=(team.pk,)), new, "was created"),
            (reverse("people:second_factor"), {"do": "begin"}, "Second factor"),
        ):
            self.send(page, address, fields)
            assert heading in page.locator("h1").inner_text(), (address, page.locator("main").inner_text())
            wrong += self.look(page, address)
        secret = page.locator("#hoosh-secret").inner_text()
        self.send(page, reverse("people:second_factor"), {"do": "confirm", "code": code_of(secret)})
        assert page.locator("#hoosh-codes").count() == 1
        wrong += self.look(page, "recovery codes")
        page.goto(reverse("people:second_factor"))
        wrong += self.look(page, "a second factor that is set up")
        page.goto(reverse("admin:budgets_team_changelist") + "?q=nobody-has-this-name")
        assert page.get_by_text("Nothing matches.").is_visible()
        wrong += self.look(page, "a search that finds nothing")
        assert not wrong, "\n".join(wrong)

    @override_settings(ROOT_URLCONF=__name__)
    def test_pages_that_tell_of_a_failure_are_for_everybody(self) -> None:
        wrong: list[str] = []
        page, _ = self.tabs()
        for address, status, heading in (
            ("/admin/nothing/", 404, "There is nothing here"),
            (f"/team/{self.team.pk + 1}/", 404, "There is nothing here"),
            ("/admin/fail/403/", 403, "You may not open this page"),
            ("/admin/fail/400/", 400, "This cannot be asked"),
            ("/admin/fail/500/", 500, "Something failed inside the gateway"),
        ):
            answer = page.goto(address)
            assert answer is not None
            assert (answer.status, page.locator("h1").inner_text()) == (status, heading)
            wrong += self.look(page, address, expected=status, menu=True)
        page.goto("/admin/budgets/team/")
        self.complaints.clear()
        self.send(page, "/admin/budgets/team/", {"csrfmiddlewaretoken": "0" * 64})
        assert page.locator("h1").inner_text() == "This form is too old"
        wrong += self.look(page, "a form without its token", expected=403, menu=True)
        assert not wrong, "\n".join(wrong)

    def test_the_sign_in_is_for_everybody(self) -> None:
        _, page = self.open(viewport=accessibility.DESK, base_url=self.live_server_url)
        page.goto("/admin/")
        wrong = self.look(page, "sign-in", menu=True)
        for _ in range(settings.HOOSH_SIGN_IN_ATTEMPTS + 1):
            page.get_by_label("Username").fill("ada")
            page.get_by_label("Password").fill("a wrong one")
            page.get_by_role("button", name="Log in").click()
            page.locator(".errornote").wait_for()
        assert "Too many" in page.locator(".errornote").inner_text()
        wrong += self.look(page, "locked out", expected=429, menu=True)
        assert not wrong, "\n".join(wrong)


class KeyboardTest(PagesCase):
    def test_what_has_the_focus_can_be_seen_and_the_first_key_leads_past_the_menu(self) -> None:
        page, _ = self.tabs()
        for address in (
            "/admin/",
            "/admin/providers/route/",
            "/admin/budgets/apikey/add/",
            f"/admin/auth/user/{self.carl.pk}/change/",
            "/admin/playground/",
            "/admin/tail/",
            f"/team/{self.team.pk}/",
        ):
            page.goto(address)
            page.keyboard.press("Tab")
            assert page.evaluate(_FOCUS) == [], address

        page.goto("/admin/budgets/team/")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to main content"
        box = page.locator(".skip-to-content-link").bounding_box()
        assert box is not None
        assert box["y"] >= 0
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "content-start"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('main') !== null")


class CheckTest(PagesCase):
    def test_the_check_finds_what_is_wrong_with_a_page(self) -> None:
        page, _ = self.tabs()
        page.goto("/admin/budgets/team/")
        page.evaluate(
            """() => {
                const main = document.querySelector('#content');
                main.append(document.createElement('input'));
                const pale = document.createElement('p');
                pale.className = 'hoosh-lead';
                pale.textContent = 'pale';
                pale.style.color = '#bbb';
                pale.style.background = '#fff';
                const wide = document.createElement('div');
                wide.style.width = '600px';
                wide.textContent = 'wide';
                main.append(pale, wide);
                console.error('said');
            }"""
        )
        found = " ".join(self.look(page, "bad"))
        for said in ("light: critical label: ", "light: serious color-contrast: ", "dark: serious color-contrast: "):
            assert said in found, said
        assert re.search(r"\d+ px wider than the phone", found)
        assert "said" in found


def test_pages_of_a_gateway_at_work_are_for_everybody(tmp_path: Path) -> None:
    wrong: list[str] = []
    with Gateway(tmp_path / "gateway") as gateway, sync_playwright() as playwright:
        told = re.search(r"password:\s*(\S+)", (gateway.data_dir / "first-run.txt").read_text())
        assert told is not None
        browser = launch(playwright)
        page = browser.new_context(base_url=gateway.base_url, viewport=accessibility.DESK).new_page()
        page.add_init_script(VIOLATIONS)
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.goto("/admin/")
        page.get_by_label("Username").fill("admin")
        page.get_by_label("Password").fill(told[1])
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("Live: these figures are kept fresh.").wait_for()
        wrong += accessibility.look(page, menu=True)
        page.goto("/admin/explain/")
        page.get_by_label("Model").fill("demo")
        page.get_by_role("button", name="Ask").click()
        page.get_by_role("region", name="Candidates").wait_for()
        wrong += accessibility.look(page)
        page.goto("/admin/tail/")
        page.get_by_text("Live.").wait_for()
        asking = page.context.new_page()
        asking.goto("/admin/playground/")
        asking.get_by_label("Model").first.fill("demo")
        asking.get_by_role("button", name="Ask").click()
        asking.locator(".hoosh-told:visible").first.wait_for()
        asking.get_by_text("The same from an app").first.click()
        wrong += accessibility.look(asking)
        page.locator("#tail tbody tr").first.wait_for()
        wrong += accessibility.look(page)
        browser.close()
    assert not wrong, "\n".join(wrong)


def test_every_list_says_what_it_is_about() -> None:
    assert {model._meta.label_lower for model in admin.site._registry} == ABOUT.keys()
