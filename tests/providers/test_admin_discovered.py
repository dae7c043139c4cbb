"""From a provider to its routes: the guided form, a save with a test, routes for chosen models, uses of credentials."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from audit.models import OutboxEntry
from providers import services
from providers.models import Credential, Provider, ProviderProbe, Route
from providers.uses import Uses
from tests.admin_case import AdminTestCase
from tests.providers.test_admin import MODELS, SECRET, provider_form
from tests.small_server import SmallServer

pytestmark = pytest.mark.database


class DiscoveredModelsTest(AdminTestCase):
    def setUp(self):
        super().setUp()
        self.provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        ProviderProbe.objects.create(provider=self.provider, ok=True, models=["a", "b", "c"])

    def choose(self, *names):
        return self.post("providers_provider_route", {"model": names}, self.provider.pk)

    def test_routes_for_all_chosen_models_are_one_version(self):
        html = self.page("providers_provider_found", self.provider.pk)
        assert html.count('type="checkbox"') == 3
        before = self.versions()
        response = self.choose("a", "c")
        assert "2 route(s) were created" in self.messages(response)
        assert set(Route.objects.values_list("name", "pattern")) == {("local a", "a"), ("local c", "c")}
        assert self.versions() == before + 1
        assert self.page("providers_provider_found", self.provider.pk).count('type="checkbox"') == 1
        self.choose("a", "b", "b")
        assert sorted(Route.objects.values_list("pattern", flat=True)) == ["a", "b", "c"]

    def test_nothing_chosen_is_said_and_changes_nothing(self):
        before = self.versions()
        assert "Choose models" in self.messages(self.choose())
        assert self.versions() == before

    def test_a_bad_name_among_the_chosen_creates_none_of_its_chunk(self):
        response = self.choose("a", "x**")
        assert "single *" in self.messages(response)
        assert not Route.objects.exists()

    def test_only_who_may_add_routes_can_choose(self):
        self.allow(self.bob, "view_provider")
        assert 'type="checkbox"' not in self.page("providers_provider_found", self.provider.pk)
        assert self.choose("a", "b").status_code == 403


class GuidedFormTest(AdminTestCase):
    def test_each_kind_comes_with_its_address_and_what_it_needs(self):
        html = self.page("providers_provider_add")
        assert "data-hoosh-kinds" in html
        assert "Leave the address blank for https://api.openai.com." in html
        assert "only if the server asks for one" in html

    def test_a_save_with_a_test_shows_what_was_found(self):
        with SmallServer(MODELS) as server:
            response = self.post(
                "providers_provider_add", provider_form(kind="custom", base_url=server.url, _test="Save and test")
            )
            provider = Provider.objects.get()
            found = self.url("providers_provider_found", provider.pk)
            assert response["location"] == found
            assert ProviderProbe.objects.get().models == ["small", "large"]
            form = provider_form(kind="custom", base_url=server.url, note="changed", _test="Save and test")
            assert self.post("providers_provider_change", form, provider.pk)["location"] == found
        provider.refresh_from_db()
        assert provider.note == "changed"


class UsesTest(AdminTestCase):
    def setUp(self):
        super().setUp()
        provider = services.save_provider(
            Provider(name="p", kind="custom", base_url="http://127.0.0.1:9"), actor="test"
        )
        self.credential = services.set_credential(provider, "main", SECRET, actor="test")
        self.told = [{"credentials": {str(self.credential.pk): 30.0, "999": 1.0}}, {}, {"credentials": {}}]

    def test_the_last_use_that_any_worker_tells_is_kept_to_the_minute(self):
        assert "never" in self.page("providers_provider_change", self.credential.provider_id)
        versions, entries = self.versions(), OutboxEntry.objects.count()
        self.told.append({"credentials": {str(self.credential.pk): 600.0}})
        uses = Uses(lambda: self.told)
        assert uses.write() == 1
        used_at = Credential.objects.get().used_at
        assert timedelta(seconds=25) < timezone.now() - used_at < timedelta(seconds=60)
        assert f"{used_at:%Y-%m-%d %H:%M}" in self.page("providers_provider_change", self.credential.provider_id)
        assert uses.write() == 0, "not again within the minute"
        assert (self.versions(), OutboxEntry.objects.count()) == (versions, entries)

    def test_a_later_use_replaces_it_and_an_earlier_one_does_not(self):
        before = timezone.now() - timedelta(minutes=5)
        Credential.objects.update(used_at=before)
        self.told[0]["credentials"][str(self.credential.pk)] = 900.0
        assert Uses(lambda: self.told).write() == 0
        self.told[0]["credentials"][str(self.credential.pk)] = 1.0
        assert Uses(lambda: self.told).write() == 1
        assert Credential.objects.get().used_at > before

    def test_it_looks_only_now_and_then(self):
        asked = []
        uses = Uses(lambda: asked.append(1) or [], every=10)
        for _ in range(21):
            uses.look()
        assert len(asked) == 3
