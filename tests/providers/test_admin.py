"""The pages of providers, routes, policies, cards, settings and versions: they work, and they refuse in words."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.admin import site
from django.db import connection, connections
from django.test import Client, TransactionTestCase
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from audit.admin_tools import BULK_LIMIT
from audit.models import OutboxEntry
from gateway import plane
from providers import differences, drafts, publish, services
from providers.config import ConfigDocument, RouteDoc, SettingsDoc, unpack
from providers.models import ConfigVersion, Credential, GatewaySettings, Provider, ProviderProbe, Route, RoutingPolicy
from tests.admin_case import AdminCase, AdminTestCase
from tests.small_server import SmallServer, closed_port

pytestmark = pytest.mark.database

SECRET = "sk-canary-abcdefghijklmnop-wxyz"
MODELS = {"/v1/models": (200, {"data": [{"id": "small"}, {"id": "large"}]})}


def provider_form(name="local", kind="ollama", base_url="", credentials=(), initial=0, **more):
    """The fields a browser sends for the provider form."""
    form = {
        "name": name,
        "kind": kind,
        "base_url": base_url,
        "enabled": "on",
        "ca_pem": "",
        "note": "",
        "credentials-TOTAL_FORMS": len(credentials),
        "credentials-INITIAL_FORMS": initial,
        **more,
    }
    for number, row in enumerate(credentials):
        form.update({f"credentials-{number}-{field}": value for field, value in row.items()})
    return form


def route_form(provider, name="all", pattern="*", **more):
    """The fields a browser sends for the route form."""
    return {
        "name": name,
        "pattern": pattern,
        "provider": provider.pk,
        "priority": 10,
        "weight": 1,
        "enabled": "on",
        "on_disconnect": "cancel",
        "disconnect_cap": 1024,
        **dict.fromkeys(("cache_s", "cache_price_percent", "semantic_threshold", "compact_percent"), 0),
        **more,
    }


class ProviderPagesTest(AdminTestCase):
    def add(self, **form):
        return self.post("providers_provider_add", provider_form(**form))

    def test_a_provider_is_added_with_its_kinds_usual_address_and_published_once(self):
        response = self.add()
        assert response.status_code == 302
        provider = Provider.objects.get()
        assert (provider.base_url, provider.address_class) == ("http://127.0.0.1:11434", "loopback")
        version = ConfigVersion.objects.get()
        assert version.author == "ada"
        assert unpack(bytes(version.document)).providers[0].name == "local"

    def test_a_provider_with_two_credentials_is_one_version(self):
        rows = [
            {"name": "main", "secret": SECRET, "enabled": "on"},
            {"name": "spare", "secret": SECRET[::-1]},
        ]
        self.add(name="box", kind="custom", base_url="http://127.0.0.1:9/v1/", credentials=rows)
        assert self.versions() == 1
        provider = Provider.objects.get()
        assert provider.base_url == "http://127.0.0.1:9"
        main, spare = provider.credentials.all()
        assert services.read_secret(main) == SECRET
        assert (main.enabled, spare.enabled) == (True, False)

    def test_a_secret_is_never_shown_again(self):
        self.add(kind="custom", base_url="http://127.0.0.1:9", credentials=[{"name": "main", "secret": SECRET}])
        provider = Provider.objects.get()
        credential = provider.credentials.get()
        pages = [
            self.page("providers_provider_change", provider.pk),
            self.page("providers_provider_history", provider.pk),
            self.page("providers_provider_changelist"),
            self.page("providers_provider_found", provider.pk),
            self.page("providers_configversion_change", ConfigVersion.objects.get().pk),
            self.page("index"),
            *(self.page("audit_outboxentry_change", entry.pk) for entry in OutboxEntry.objects.all()),
        ]
        for html in pages:
            assert SECRET not in html
            assert credential.ciphertext not in html
        assert f"…{SECRET[-4:]}" in pages[0]
        assert 'type="password"' in pages[0]

    def test_a_refused_form_does_not_send_the_secret_back(self):
        response = self.add(name="", credentials=[{"name": "main", "secret": SECRET}], client_key="KEY-CANARY")
        assert "required" in self.errors(response)
        html = self.clean_html(response)
        assert (SECRET in html, "KEY-CANARY" in html) == (False, False)
        for field in ("credentials-0-secret", "client_key"):
            assert f'id="id_{field}_lost">Not saved. Type it again' in html

    def test_a_blank_secret_keeps_the_stored_one_and_a_typed_one_replaces_it(self):
        self.add(kind="custom", base_url="http://127.0.0.1:9", credentials=[{"name": "main", "secret": SECRET}])
        provider = Provider.objects.get()
        credential = provider.credentials.get()
        row = {"id": credential.pk, "provider": provider.pk, "name": "renamed", "secret": "", "enabled": "on"}
        form = {"kind": "custom", "base_url": provider.base_url, "initial": 1}
        self.post("providers_provider_change", provider_form(credentials=[row], **form), provider.pk)
        credential.refresh_from_db()
        assert (credential.name, services.read_secret(credential)) == ("renamed", SECRET)
        row |= {"name": "renamed", "secret": "another-secret-123"}
        self.post("providers_provider_change", provider_form(credentials=[row], **form), provider.pk)
        credential = Credential.objects.get()
        assert services.read_secret(credential) == "another-secret-123"
        row |= {"DELETE": "on", "secret": ""}
        self.post("providers_provider_change", provider_form(credentials=[row], **form), provider.pk)
        assert not Credential.objects.exists()

    def test_another_base_url_asks_for_the_secret_again(self):
        self.add(kind="custom", base_url="http://127.0.0.1:9", credentials=[{"name": "main", "secret": SECRET}])
        provider = Provider.objects.get()
        credential = provider.credentials.get()
        row = {"id": credential.pk, "provider": provider.pk, "name": "main", "secret": "", "enabled": "on"}
        form = provider_form(kind="custom", base_url="http://127.0.0.1:10", credentials=[row], initial=1)
        self.post("providers_provider_change", form, provider.pk)
        html = self.page("providers_provider_change", provider.pk)
        assert "must be typed again" in html
        assert unpack(bytes(ConfigVersion.objects.first().document)).providers[0].credentials == ()

    def test_each_bad_value_is_refused_in_words_and_nothing_is_published(self):
        self.add(name="taken")
        before = self.versions()
        for form, words in (
            ({"name": "taken"}, "already exists"),
            ({"name": "a\tb"}, "visible ASCII"),
            ({"kind": "custom"}, "needed"),
            ({"base_url": "ftp://x"}, "http://"),
            ({"base_url": "http://user:pw@127.0.0.1"}, "user and password"),
            ({"base_url": "http://169.254.169.254"}, ""),
            ({"base_url": "demo://local"}, "belong together"),
            ({"kind": "nonsense"}, "valid choice"),
            ({"ca_pem": "rubbish"}, "PEM"),
            ({"credentials": [{"name": "main", "secret": ""}]}, "Enter the secret"),
            ({"credentials": [{"name": "main", "secret": "two words"}]}, "visible ASCII"),
        ):
            response = self.add(**({"name": "fresh"} | form))
            shown = self.errors(response)
            assert shown, form
            assert words in shown, (form, shown)
        assert self.versions() == before
        assert Provider.objects.count() == 1

    def test_the_connection_test_really_connects_and_offers_routes(self):
        with SmallServer(MODELS) as server:
            self.add(
                kind="custom", base_url=server.url, credentials=[{"name": "main", "secret": SECRET, "enabled": "on"}]
            )
            provider = Provider.objects.get()
            response = self.post("providers_provider_test", {}, provider.pk)
            assert response["location"] == self.url("providers_provider_found", provider.pk)
            assert server.asked[0][2]["authorization"] == f"Bearer {SECRET}"
        html = self.page("providers_provider_found", provider.pk)
        assert "works" in html
        assert "small" in html
        assert "large" in html
        before = self.versions()
        self.post("providers_provider_route", {"model": "small"}, provider.pk)
        assert self.versions() == before + 1
        assert Route.objects.get().pattern == "small"
        self.post("providers_provider_route", {"model": "*"}, provider.pk)
        html = self.page("providers_provider_found", provider.pk)
        assert "already answers every model" in html

    def test_a_failed_connection_is_told_in_plain_words(self):
        self.add(kind="custom", base_url=f"http://127.0.0.1:{closed_port()}")
        provider = Provider.objects.get()
        self.post("providers_provider_test", {}, provider.pk)
        html = self.page("providers_provider_found", provider.pk)
        assert "failed" in html
        assert ProviderProbe.objects.get().detail in html
        assert "Correct it under" in html
        assert provider.name in self.page("index")

    def test_what_comes_next_is_said_behind_the_first_route_and_where_no_model_is_listed(self):
        with SmallServer({"/v1/models": (404, {})}) as server:
            self.add(kind="custom", base_url=server.url)
            provider = Provider.objects.get()
            self.post("providers_provider_test", {}, provider.pk)
        html = self.page("providers_provider_found", provider.pk)
        assert "It answers, and lists no models." in html
        assert f'href="{self.url("providers_route_add")}?provider={provider.pk}"' in html
        ProviderProbe.objects.update(models=["small"])
        html = self.page("providers_provider_found", provider.pk)
        assert "Create a route for each chosen model" in html
        key = f'<a href="{self.url("budgets_apikey_add")}">Create an API key'
        assert key not in html
        self.post("providers_provider_route", {"model": "small"}, provider.pk)
        html = self.page("providers_provider_found", provider.pk)
        assert "Create a route for each chosen model" not in html
        assert key in html

    def test_model_names_of_a_hostile_provider_are_shown_as_text(self):
        self.add(name="evil")
        provider = Provider.objects.get()
        names = ["<script>alert(1)</script>", '"><img src=x>']
        ProviderProbe.objects.create(provider=provider, ok=True, models=names, checked_at=timezone.now())
        html = self.page("providers_provider_found", provider.pk)
        assert "<script>alert" not in html
        assert "<img src=x" not in html
        self.post("providers_provider_route", {"model": names[0]}, provider.pk)
        self.page("providers_route_changelist")

    def test_a_route_cannot_be_made_from_rubbish(self):
        self.add()
        provider = Provider.objects.get()
        before = self.versions()
        for model in ("", "a\nb", "x" * 300, "**"):
            self.post("providers_provider_route", {"model": model}, provider.pk)
        assert not Route.objects.exists()
        assert self.versions() == before

    def test_emergency_disable_of_several_is_one_version(self):
        for name in ("a", "b", "c"):
            self.add(name=name)
        before = self.versions()
        self.act("providers_provider_changelist", "disable_now", list(Provider.objects.exclude(name="c")))
        assert self.versions() == before + 1
        assert list(Provider.objects.filter(enabled=True).values_list("name", flat=True)) == ["c"]
        self.act("providers_provider_changelist", "enable", list(Provider.objects.all()))
        assert self.versions() == before + 2
        assert OutboxEntry.objects.filter(action="provider.changed", actor="ada").count() == 4

    def test_deleting_several_is_one_version_and_takes_routes_along(self):
        for name in ("a", "b"):
            self.add(name=name)
        provider = Provider.objects.get(name="a")
        self.post("providers_route_add", route_form(provider))
        before = self.versions()
        rows = list(Provider.objects.all())
        self.act("providers_provider_changelist", "delete_selected", rows, post="yes")
        assert not Provider.objects.exists()
        assert not Route.objects.exists()
        assert self.versions() == before + 1

    def test_the_address_can_be_looked_up_again(self):
        self.add()
        provider = Provider.objects.get()
        Provider.objects.update(address_class="private")
        self.post("providers_provider_observe", {}, provider.pk)
        provider.refresh_from_db()
        assert provider.address_class == "loopback"

    def test_buttons_answer_posts_only_and_unknown_ids_are_not_found(self):
        self.add()
        provider = Provider.objects.get()
        for name in ("test", "route", "observe"):
            assert self.client.get(self.url(f"providers_provider_{name}", provider.pk)).status_code == 405
            assert self.post(f"providers_provider_{name}", {}, 999).status_code == 404
        assert self.client.get(self.url("providers_provider_found", 999)).status_code == 404


class RoutePagesTest(AdminTestCase):
    def setUp(self):
        super().setUp()
        self.provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")

    def test_a_route_is_added_changed_and_deleted_each_with_one_version(self):
        self.post("providers_route_add", route_form(self.provider))
        route = Route.objects.get()
        assert self.versions() == 1
        self.post("providers_route_change", route_form(self.provider, pattern="llama*"), route.pk)
        assert self.versions() == 2
        self.post("providers_route_change", route_form(self.provider, pattern="llama*"), route.pk)
        assert self.versions() == 2, "nothing changed, nothing published"
        self.post("providers_route_delete", {"post": "yes"}, route.pk)
        assert self.versions() == 3
        assert not Route.objects.exists()
        entry = OutboxEntry.objects.get(action="route.changed")
        assert entry.data["fields"]["pattern"] == ["*", "llama*"]

    def test_each_bad_value_is_refused_in_words(self):
        self.post("providers_route_add", route_form(self.provider, name="taken"))
        for form, words in (
            ({"name": "taken"}, "already exists"),
            ({"pattern": ""}, "required"),
            ({"pattern": "a**"}, "single *"),
            ({"pattern": "a\x07b"}, "control"),
            ({"upstream_model": "gpt*"}, "no meaning"),
            ({"provider": "999"}, "valid choice"),
            ({"connect_timeout_s": "-1"}, "greater"),
            ({"connect_timeout_s": "nan"}, "number"),
            ({"output_cap": "-5"}, "greater"),
            ({"first_byte_timeout_s": "30", "total_timeout_s": "29"}, "cannot be shorter"),
            ({"connect_timeout_s": "30", "total_timeout_s": "29"}, "cannot be shorter"),
            ({"tags": "UPPER"}, "label"),
        ):
            shown = self.errors(self.post("providers_route_add", route_form(self.provider) | {"name": "new"} | form))
            assert words in shown, (form, shown)
        assert Route.objects.count() == 1

    def test_editing_many_rows_in_the_list_is_one_version(self):
        for number in range(4):
            self.post("providers_route_add", route_form(self.provider, name=f"r{number}", pattern=f"m{number}"))
        before = self.versions()
        form = {"form-TOTAL_FORMS": 4, "form-INITIAL_FORMS": 4, "_save": "Save"}
        for number, route in enumerate(Route.objects.order_by("priority", "name")):
            form |= {f"form-{number}-id": route.pk, f"form-{number}-priority": 50 - number}
        response = self.post("providers_route_changelist", form)
        assert response.status_code == 302
        assert self.versions() == before + 1
        assert list(Route.objects.values_list("priority", "enabled")) == [
            (47, False),
            (48, False),
            (49, False),
            (50, False),
        ]

    def test_a_bad_value_in_the_list_changes_no_row(self):
        for number in range(2):
            self.post("providers_route_add", route_form(self.provider, name=f"r{number}"))
        before = self.versions()
        first, second = Route.objects.order_by("priority", "name")
        form = {"form-TOTAL_FORMS": 2, "form-INITIAL_FORMS": 2, "_save": "Save"}
        form |= {"form-0-id": first.pk, "form-0-priority": 1, "form-1-id": second.pk, "form-1-priority": "x"}
        assert "whole number" in self.errors(self.post("providers_route_changelist", form))
        assert set(Route.objects.values_list("priority", flat=True)) == {10}
        assert self.versions() == before

    def test_clones_are_disabled_and_named_apart(self):
        self.post("providers_route_add", route_form(self.provider, tags="fast"))
        route = Route.objects.get()
        before = self.versions()
        response = self.post("providers_route_clone", {}, route.pk)
        copy = Route.objects.get(name="all copy")
        assert response["location"] == self.url("providers_route_change", copy.pk)
        assert (copy.enabled, copy.tags, copy.pattern) == (False, "fast", "*")
        self.act("providers_route_changelist", "clone", [route, copy])
        assert set(Route.objects.values_list("name", flat=True)) == {"all", "all copy", "all copy 2", "all copy copy"}
        assert self.versions() == before + 2

    def test_pages_say_which_policy_orders_a_route(self):
        self.post("providers_route_add", route_form(self.provider, pattern="llama*"))
        ProviderProbe.objects.create(
            provider=self.provider, ok=True, models=["llama3", "qwen"], checked_at=timezone.now()
        )
        route = Route.objects.get()
        assert "No policy matches" in self.page("providers_route_change", route.pk)
        form = {"name": "spread", "pattern": "llama*", "strategy": "round_robin", "position": 0, "enabled": "on"}
        self.post("providers_routingpolicy_add", form)
        html = self.page("providers_route_change", route.pk)
        assert "spread" in html
        assert "llama3" in html
        assert "qwen" not in html
        assert "spread" in self.page("providers_route_changelist")

    def test_the_list_asks_the_same_number_of_questions_for_one_route_and_for_many(self):
        self.post("providers_route_add", route_form(self.provider))
        self.page("providers_route_changelist")
        with self.queries(8):
            self.page("providers_route_changelist")
        for number in range(20):
            services.save_route(Route(name=f"r{number}", pattern=f"m{number}", provider=self.provider), actor="test")
        with self.queries(8):
            self.page("providers_route_changelist")


class OtherPagesTest(AdminTestCase):
    def test_policies_refuse_bad_patterns_and_fallbacks(self):
        form = {"name": "p", "pattern": "*", "strategy": "priority", "position": 0, "enabled": "on"}
        for change, words in (
            ({"pattern": "a**b"}, "single *"),
            ({"strategy": "magic"}, "valid choice"),
            ({"fallbacks": "a*"}, "no meaning"),
        ):
            assert words in self.errors(self.post("providers_routingpolicy_add", form | change))
        self.post("providers_routingpolicy_add", form)
        assert RoutingPolicy.objects.get().name == "p"
        assert self.versions() == 1

    def test_cards_are_live_and_publish_nothing(self):
        form = {"pattern": "llama*", "context_tokens": 8192, "min_bytes_per_token": "1.0"}
        assert self.post("providers_modelcard_add", form).status_code == 302
        assert self.versions() == 0
        assert "already exists" in self.errors(self.post("providers_modelcard_add", form))
        bad = self.post("providers_modelcard_add", form | {"pattern": "x", "min_bytes_per_token": "0"})
        assert "greater than or equal" in self.errors(bad)

    def test_settings_are_one_form_that_neither_adds_nor_deletes(self):
        response = self.client.get(self.url("providers_gatewaysettings_changelist"))
        assert response["location"] == self.url("providers_gatewaysettings_change", 1)
        html = self.page("providers_gatewaysettings_change", 1)
        assert "Delete" not in html
        assert self.client.get(self.url("providers_gatewaysettings_add")).status_code == 403
        assert self.post("providers_gatewaysettings_delete", {"post": "yes"}, 1).status_code == 403
        row = GatewaySettings.objects.get()
        form = {field.name: getattr(row, field.name) for field in row._meta.fields if field.name != "id"}
        form["privacy_policy"] = ""
        self.post("providers_gatewaysettings_change", form | {"strategy": "round_robin"}, 1)
        assert GatewaySettings.objects.get().strategy == "round_robin"
        assert self.versions() == 1
        late = self.post("providers_gatewaysettings_change", form | {"total_timeout_s": 1}, 1)
        assert "shorter" in self.errors(late)

    def test_versions_are_read_only_and_show_what_changed(self):
        provider = services.save_provider(Provider(name="first", kind="ollama"), actor="test")
        publish.publish("eve", "the first")
        Provider.objects.filter(pk=provider.pk).update(name="renamed")
        version = publish.publish("eve", "the second")
        html = self.page("providers_configversion_change", version.pk)
        assert '<span class="del">-      &quot;name&quot;: &quot;first&quot;,</span>' in html
        assert '<span class="add">+      &quot;name&quot;: &quot;renamed&quot;,</span>' in html
        assert version.digest in html
        assert "the second" in html
        assert "in force" in html
        assert "the first" in self.page("providers_configversion_changelist")
        for view in ("add", "delete"):
            args = (version.pk,) if view == "delete" else ()
            assert self.post(f"providers_configversion_{view}", {"post": "yes"}, *args).status_code == 403
        self.post("providers_configversion_change", {"note": "forged"}, version.pk)
        version.refresh_from_db()
        assert version.note == "the second"

    def test_old_versions_are_reached_without_counting(self):
        document = publish.publish("eve").document
        rows = [ConfigVersion(digest=f"{number:064}", document=document, note=f"note {number}") for number in range(60)]
        ConfigVersion.objects.bulk_create(rows)
        html = self.page("providers_configversion_changelist")
        assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", html)
        assert "note 59" in html
        assert "note 9<" not in html
        assert "Older" in html
        cursor = ConfigVersion.objects.order_by("-number")[49].number
        with self.queries(3):
            html = self.page("providers_configversion_changelist", query=f"?before={cursor}")
        assert "note 9<" in html
        assert "Older" not in html
        assert "Newest" in html
        for bad in ("x", "1-2", "-", "9" * 30, "²"):
            response = self.client.get(self.url("providers_configversion_changelist"), {"before": bad})
            assert response.status_code in (200, 302)


class RealCommitsTest(AdminCase, TransactionTestCase):
    """What is said behind a commit, with commits that really happen inside the request."""

    def setUp(self):
        self.make_people()
        super().setUp()

    def test_who_saves_is_told_that_it_waits_and_for_whom(self):
        self.post("providers_provider_add", provider_form(name="good"))
        good = Provider.objects.get(name="good")
        settings = services.gateway_settings()
        settings.review = True
        services.save_settings(settings, actor="test")
        self.post("providers_route_add", route_form(good))
        html = self.page("index")
        assert "not in force yet: somebody else has to look at it and publish it" in html
        assert "See what changes, and publish it" in html
        assert "Publish now" not in html
        settings.review, settings.drafts = False, True
        services.save_settings(settings, actor="test")
        drafts.approve("bob")
        assert "not published yet" not in self.page("index")
        self.post("providers_route_add", route_form(good, name="second"))
        assert "not in force yet: look at it there and publish it" in self.page("index")
        assert "waits here until somebody publishes it" in self.page("draft")
        assert len(drafts.in_force().routes) == 1
        self.post("draft", {"seen": publish.draft_digest()})
        assert len(drafts.in_force().routes) == 2

    def test_rows_that_cannot_run_are_told_at_the_save_and_on_the_first_page(self):
        self.post("providers_provider_add", provider_form(name="good"))
        Provider.objects.create(name="bad", kind="gone", base_url="http://127.0.0.1:1", address_class="loopback")
        good = Provider.objects.get(name="good")
        self.post("providers_route_add", route_form(good))
        assert self.versions() == 1
        html = self.page("index")
        assert f"not published (version {ConfigVersion.objects.get().number} stays in force)" in html
        html = self.page("index")
        assert "cannot be published" in html
        assert "Provider “bad”" in html
        response = self.post("providers_configversion_publish", {})
        assert response.status_code == 302
        assert "Not published" in self.page("index")
        services.delete_provider(Provider.objects.get(name="bad"), actor="test")
        self.post("providers_configversion_publish", {})
        html = self.page("index")
        assert "cannot be published" not in html
        assert self.versions() == 2

    def test_control_is_woken_once_behind_each_commit_and_a_page_does_not_fail_for_it(self):
        provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        seen = []

        class Plane:
            def wake(self):
                seen.append(self_versions())
                raise RuntimeError("the plane is just stopping")

        self_versions = self.versions
        before = self.versions()
        plane.current = Plane()
        self.addCleanup(setattr, plane, "current", None)
        assert self.post("providers_route_add", route_form(provider)).status_code == 302
        assert seen == [before + 1], "woken once, when the new version is there to be read"
        self.act("providers_route_changelist", "clone", list(Route.objects.all()))
        assert len(seen) == 2
        assert self.post("providers_route_add", route_form(provider)).status_code == 200
        assert len(seen) == 2, "a refused form wakes nobody"

    def test_two_operators_who_take_the_same_name_at_once_make_one_row_and_no_error(self):
        provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        start = threading.Barrier(4)

        def add(client):
            start.wait()
            try:
                return client.post(self.url("providers_route_add"), route_form(provider, name="twin")).status_code
            finally:
                connections.close_all()

        clients = [Client() for _ in range(4)]
        for client in clients:
            client.force_login(self.ada)
        with ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(add, clients))
        assert set(statuses) <= {200, 302}
        assert Route.objects.filter(name="twin").count() == 1

    def test_a_large_action_holds_no_transaction_long_and_is_one_version(self):
        provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        names = [f"r{number:02}" for number in range(50)]
        Route.objects.bulk_create([Route(name=name, pattern="*", provider=provider) for name in names])
        publish.publish("test")
        before = self.versions()
        # The 45th row cannot be written: its provider's name is fine but its pattern is not.
        Route.objects.filter(name="r44").update(pattern="a**")
        with CaptureQueriesContext(connection) as queries:
            response = self.act("providers_route_changelist", "clone", list(Route.objects.order_by("priority", "name")))
        assert "40 of 50 rows were done before" in self.messages(response)
        assert Route.objects.count() == 90
        lengths = statements_between_commits(queries)
        assert max(lengths) < 20 * 12, lengths
        Route.objects.filter(pattern="a**").update(pattern="a*")
        self.act("providers_route_changelist", "delete_selected", list(Route.objects.all()), post="yes")
        assert not Route.objects.exists()
        assert self.versions() == before + 1


def statements_between_commits(queries):
    """How many statements each transaction had."""
    lengths, running = [0], False
    for query in queries:
        statement = query["sql"].split(maxsplit=1)[0].upper()
        if statement in ("BEGIN", "COMMIT", "ROLLBACK"):
            running = statement == "BEGIN"
            lengths.append(0)
        elif running:
            lengths[-1] += 1
    return lengths


class WhoMayTest(AdminTestCase):
    PAGES = tuple(
        f"admin:{model._meta.app_label}_{model._meta.model_name}_{view}"
        for model in site._registry
        for view in ("changelist", "add")
    )

    def setUp(self):
        super().setUp()
        self.provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        self.route = services.save_route(Route(name="r", pattern="*", provider=self.provider), actor="test")
        self.buttons = (
            ("providers_provider_test", self.provider.pk),
            ("providers_provider_route", self.provider.pk),
            ("providers_provider_observe", self.provider.pk),
            ("providers_route_clone", self.route.pk),
            ("providers_configversion_publish",),
        )

    def test_an_address_that_names_no_provider_leads_to_the_first_page(self):
        for odd in ("²", "9" * 19, "9" * 5000):
            assert self.client.get(self.url("providers_provider_change", odd)).status_code == 302, odd

    def test_a_nul_in_the_query_string_is_refused_on_every_page(self):
        for name in (*self.PAGES, "admin:index", "admin:autocomplete"):
            for odd in ("?level=%00", "?%00=1"):
                assert self.client.get(reverse(name) + odd).status_code == 400, name

    def test_strangers_and_people_who_are_no_staff_are_sent_to_the_sign_in(self):
        for sign_in in (lambda: self.client.logout(), lambda: self.client.force_login(self.carl)):
            sign_in()
            for name in (*self.PAGES, "admin:index"):
                response = self.client.get(reverse(name))
                assert response.status_code == 302, name
                assert "/login/" in response["location"], name
            for name, *args in self.buttons:
                assert "/login/" in self.post(name, {}, *args)["location"], name

    def test_staff_without_permissions_see_an_empty_first_page_and_nothing_else(self):
        self.client.force_login(self.bob)
        assert "State of the gateway" not in self.page("index")
        for name in self.PAGES:
            assert self.client.get(reverse(name)).status_code == 403, name
        for name, *args in self.buttons:
            assert self.post(name, {"model": "x"}, *args).status_code == 403, name
        assert self.client.get(self.url("providers_provider_found", self.provider.pk)).status_code == 403

    def test_viewers_see_but_change_nothing(self):
        self.allow(self.bob, "view_provider", "view_route", "view_configversion", "view_gatewaysettings")
        for name in ("providers_provider_changelist", "providers_route_changelist", "index"):
            self.page(name)
        html = self.page("providers_provider_change", self.provider.pk)
        assert "Test connection" not in html
        assert 'name="_save"' not in html
        assert "Create route" not in self.page("providers_provider_found", self.provider.pk)
        for name, *args in self.buttons:
            assert self.post(name, {"model": "x"}, *args).status_code == 403, name
        response = self.post("providers_provider_change", provider_form(name="mine"), self.provider.pk)
        assert response.status_code == 403
        self.act("providers_provider_changelist", "disable_now", [self.provider])
        self.provider.refresh_from_db()
        assert self.provider.enabled
        assert self.provider.name == "local"

    def test_sign_ins_and_refused_ones_are_recorded_without_the_password(self):
        self.client.logout()
        form = {"username": "ada\x1b", "password": "guessed-password", "next": "/admin/"}
        self.client.post(self.url("login"), form)
        refused = OutboxEntry.objects.get(action="operator.sign_in_refused")
        assert (refused.target, refused.level) == ("ada?", "warning")
        self.client.post(self.url("login"), {"username": "ada", "password": "pw", "next": "/admin/"})
        signed_in = OutboxEntry.objects.filter(action="operator.signed_in").first()
        assert (signed_in.target, signed_in.personal) == ("ada", {"address": "127.0.0.1"})
        assert (signed_in.about, signed_in.data, refused.about, refused.data) == (True, {}, True, {})
        self.client.post(self.url("logout"))
        assert OutboxEntry.objects.filter(action="operator.signed_out", actor="ada").exists()
        assert not any("password" in str(entry.data) for entry in OutboxEntry.objects.all())

    def test_too_many_rows_at_once_are_refused_with_a_message_and_nothing_is_done(self):
        rows = [Route(name=f"n{number}", pattern="*", provider=self.provider) for number in range(BULK_LIMIT)]
        Route.objects.bulk_create(rows)
        before = self.versions()
        response = self.act("providers_route_changelist", "clone", [self.route], select_across=1)
        assert response.status_code == 302
        assert f"at most {BULK_LIMIT}" in self.messages(response)
        assert Route.objects.count() == BULK_LIMIT + 1
        assert self.versions() == before


def test_a_difference_starts_near_the_change_and_is_bounded():
    old = ConfigDocument(settings=SettingsDoc(max_attempts=3))
    new = ConfigDocument(settings=SettingsDoc(max_attempts=4))
    lines = differences.difference(old, new)
    assert [line.text.strip() for line in lines if line.kind in ("add", "del")] == [
        '-    "max_attempts": 3,',
        '+    "max_attempts": 4,',
    ]
    assert len(lines) < 12
    assert differences.difference(old, old) == []
    many = ConfigDocument(routes=tuple(RouteDoc(number, f"r{number}", "*", 1) for number in range(1000)))
    assert len(differences.difference(old, many)) == differences.LINE_LIMIT


def test_each_part_of_a_difference_names_the_row_it_is_in():
    def document(weight, enabled):
        return ConfigDocument(
            routes=(
                RouteDoc(1, "first", "*", 1),
                RouteDoc(2, 'a "quoted" name', "*", 1, enabled=enabled),
                RouteDoc(3, "third", "*", 1, weight=weight),
            )
        )

    lines = differences.difference(document(1, True), document(5, False))
    parts = [line.text for line in lines if line.kind == "hunk"]
    assert parts == ['⋯ routes, a \\"quoted\\" name', "⋯ routes, third"]
    gone = differences.difference(document(1, True), ConfigDocument())
    assert gone[0].kind == "hunk"
