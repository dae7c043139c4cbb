"""The order of routes in a real browser: dragged, by keyboard, without a script; and a pattern's models as it is typed.

The browser must report nothing: no script error, no refused resource, no violation of the content security policy.
"""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from providers import services
from providers.models import ConfigVersion, Provider, ProviderProbe, Route
from tests.browser import needs_browser
from tests.e2e.admin_browser import AdminBrowserCase

pytestmark = [pytest.mark.browser, needs_browser]


class RouteBrowserTest(AdminBrowserCase):
    def setUp(self) -> None:
        super().setUp()
        self.provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        for name in "abcd":
            services.save_route(Route(name=name, pattern="m", provider=self.provider), actor="test")
        ProviderProbe.objects.create(provider=self.provider, ok=True, models=["llama-1", "llama-2", "<i>x</i>"])

    def order(self) -> str:
        return "".join(Route.objects.order_by("priority", "name").values_list("name", flat=True))

    def shown(self, page: Page) -> str:
        page.wait_for_load_state()  # a click only waits until the next page begins
        return "".join(page.locator("#result_list .field-name").all_inner_texts())

    def drag(self, page: Page, row: int, onto: int) -> None:
        handles = page.locator(".hoosh-handle")
        start, end = handles.nth(row).bounding_box(), page.locator("#result_list tbody tr").nth(onto).bounding_box()
        assert start is not None
        assert end is not None
        page.mouse.move(start["x"] + 5, start["y"] + 10)
        page.mouse.down()
        page.mouse.move(end["x"] + 60, end["y"] + 4, steps=8)

    def test_a_row_is_dragged_to_its_place(self) -> None:
        _, page = self.open()
        self.sign_in(page)
        page.goto(f"{self.live_server_url}/admin/providers/route/")
        before = ConfigVersion.objects.count()
        self.drag(page, 3, 1)
        assert self.shown(page) == "adbc"
        page.keyboard.press("Escape")
        assert self.shown(page) == "abcd"
        page.mouse.up()
        assert self.order() == "abcd"
        self.drag(page, 3, 1)
        page.mouse.up()
        expect(page.get_by_text("is now before")).to_be_visible()
        assert self.order() == self.shown(page) == "adbc"
        assert ConfigVersion.objects.count() == before + 1
        assert self.complaints == []

    def test_the_keyboard_moves_a_row_again_and_again(self) -> None:
        _, page = self.open()
        self.sign_in(page)
        page.goto(f"{self.live_server_url}/admin/providers/route/")
        page.get_by_role("button", name="Move c up").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_text("is now before")).to_be_visible()
        expect(page.get_by_role("button", name="Move c up")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Move c up")).to_be_disabled()
        assert self.order() == "cabd"
        assert self.complaints == []

    def test_enter_in_the_list_saves_what_was_typed(self) -> None:
        _, page = self.open()
        self.sign_in(page)
        page.goto(f"{self.live_server_url}/admin/providers/route/")
        page.locator("#id_form-0-priority").fill("77")
        page.keyboard.press("Enter")
        expect(page.get_by_text("was changed successfully")).to_be_visible()
        assert Route.objects.get(name="a").priority == 77
        assert self.complaints == []

    def test_what_was_typed_in_the_list_is_not_lost_without_a_question(self) -> None:
        _, page = self.open()
        self.sign_in(page)
        page.goto(f"{self.live_server_url}/admin/providers/route/")
        page.locator("#id_form-0-priority").fill("77")
        page.once("dialog", lambda dialog: dialog.dismiss())
        page.get_by_role("button", name="Move c up").click()
        expect(page.locator("#id_form-0-priority")).to_have_value("77")
        assert self.order() == "abcd"
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Move c up").click()
        expect(page.get_by_text("is now before")).to_be_visible()
        assert self.order() == "acbd"

    def test_arrows_and_the_pattern_button_work_without_a_script(self) -> None:
        context, page = self.open(java_script_enabled=False)
        self.sign_in(page)
        page.goto(f"{self.live_server_url}/admin/providers/route/")
        page.get_by_role("button", name="Move a down").click()
        assert self.shown(page) == self.order() == "bacd"
        page.get_by_role("link", name="a", exact=True).click()
        page.locator("#id_pattern").fill("llama-*")
        with context.expect_page() as opened:
            page.get_by_role("button", name="Which models does the pattern mean?").click()
        expect(opened.value.locator("#content-main tbody tr")).to_have_count(2)

    def test_a_pattern_says_what_it_means_while_it_is_typed(self) -> None:
        _, page = self.open()
        self.sign_in(page)
        page.goto(f"{self.live_server_url}/admin/providers/route/add/")
        shown = page.locator(".hoosh-matches")
        page.locator("#id_pattern").fill("llama*")
        expect(shown).to_contain_text("2 of 4 known models match")
        expect(shown).to_contain_text("llama-2")
        page.locator("#id_pattern").fill("a**")
        expect(shown).to_contain_text("single *")
        page.locator("#id_pattern").fill("*")
        expect(shown).to_contain_text("<i>x</i>")
        assert shown.locator("i").count() == 0
        page.locator("#id_pattern").fill("")
        expect(shown).to_be_empty()
        assert self.complaints == []

    def test_the_list_fits_a_phone(self) -> None:
        _, page = self.open(viewport={"width": 390, "height": 844})
        self.sign_in(page)
        for path in ("providers/route/", "providers/route/add/"):
            page.goto(f"{self.live_server_url}/admin/{path}")
            assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0, path
