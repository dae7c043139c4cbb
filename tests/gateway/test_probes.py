"""Looks at providers: what is found, what is remembered, what an operator reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from asgiref.sync import sync_to_async
from django.test import TestCase, TransactionTestCase

from audit.models import OutboxEntry
from gateway import probes
from gateway.probes import DOWN_AFTER, down_providers, model_names, probe_all, probe_provider
from providers import feed, sequences, services
from providers.models import GatewaySettings, Provider, ProviderProbe
from tests.small_server import SmallServer, closed_port, silent_port

SECRET = "sk-canary-0123456789abcdef"
MODELS = {"/v1/models": (200, {"object": "list", "data": [{"id": "a"}, {"id": "b"}]})}


def make(name: str, url: str, *, kind: str = "custom", secret: str = "", enabled: bool = True) -> Provider:
    row = Provider(name=name, kind=kind, base_url=url, enabled=enabled)
    provider = services.save_provider(row, actor="test")
    if secret:
        services.set_credential(provider, "default", secret, actor="test")
    return provider


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'{"data": [{"id": "a"}, {"id": "b"}, {"id": "a"}]}', ("a", "b")),
        (b'{"models": [{"name": "llama3.2:1b", "size": 1}]}', ("llama3.2:1b",)),
        (b'[{"id": "x"}]', ("x",)),
        (b'{"data":[{"type":"model","id":"a","display_name":"A"},{"id":"b"},{"id":"a"}],"has_more":false}', ("a", "b")),
        (b'{"models":[{"name":"a:1","model":"a:1"},{"name":"b"}]}', ("a:1", "b")),
        (b'{"data": []}', ()),
        (b'{"data": [{"id": ""}, {"id": "a\\u0000b"}, {"id": "' + b"x" * 300 + b'"}]}', ()),
        (b'{"data": null}', None),
        (b'{"hello": 1}', None),
        (b'{"data": [1, 2]}', None),
        (b"<html>", None),
        (b"", None),
        (b'{"data": [{"id": "\xff"}]}', None),
    ],
)
def test_model_names_in_each_shape_of_list(body, names):
    assert model_names(body) == names


def test_a_list_of_a_million_models_is_cut():
    body = b'{"data": [' + b",".join(b'{"id": "m%d"}' % number for number in range(5000)) + b"]}"
    assert len(model_names(body)) == probes.MAX_MODELS


@pytest.mark.database
class ProbeProviderTest(TestCase):
    databases = "__all__"

    def look(self, replies: dict, **options) -> probes.Outcome:
        with SmallServer(replies) as server:
            self.server = server
            self.provider = make("p", server.url, **options)
            return probe_provider(self.provider.pk)

    def test_a_healthy_provider_lists_its_models_and_gets_its_own_key_only(self):
        outcome = self.look(MODELS, secret=SECRET)
        assert (outcome.ok, outcome.detail, outcome.models) == (True, "", ("a", "b"))
        assert outcome.latency_ms is not None
        _, path, headers, _ = self.server.asked[0]
        assert path == "/v1/models"
        assert headers["authorization"] == f"Bearer {SECRET}"
        row = ProviderProbe.objects.get(provider=self.provider)
        assert (row.ok, row.models, row.consecutive_failures) == (True, ["a", "b"], 0)
        assert row.checked_at is not None

    def test_each_kind_is_asked_with_its_own_header_and_read_in_its_own_way(self):
        names = {"data": [{"type": "model", "id": "claude-x", "display_name": "X"}], "has_more": False}
        found = self.look({"/v1/models?limit=1000": (200, names)}, kind="anthropic", secret=SECRET)
        assert (found.ok, found.models) == (True, ("claude-x",))
        headers = self.server.asked[0][2]
        assert (headers["x-api-key"], headers["anthropic-version"]) == (SECRET, "2023-06-01")
        assert "authorization" not in headers
        services.delete_provider(self.provider, actor="test")
        listed = [
            {"name": "models/gemini-x", "supportedGenerationMethods": ["generateContent"]},
            {"name": "models/imagen-x", "supportedGenerationMethods": ["predict"]},
        ]
        found = self.look({"/v1beta/models?pageSize=1000": (200, {"models": listed})}, kind="google", secret=SECRET)
        assert (found.ok, found.models) == (True, ("gemini-x",))
        assert self.server.asked[0][2]["x-goog-api-key"] == SECRET

    def test_without_a_credential_no_authorization_is_sent(self):
        self.look(MODELS)
        assert "authorization" not in self.server.asked[0][2]

    def test_what_went_wrong_is_told_in_plain_words(self):
        cases = [
            ({"/v1/models": (401, {"error": {"message": f"bad key {SECRET}"}})}, "refused the stored credential"),
            ({"/v1/models": (302, b"", {"location": "http://169.254.169.254/"})}, "redirect"),
            ({"/v1/models": (429, {})}, "too many requests"),
            ({"/v1/models": (500, b"<html>stack trace</html>")}, "an error (500)"),
            ({"/v1/models": (200, b"<html>hello</html>")}, "not a list of models"),
        ]
        for replies, words in cases:
            with self.subTest(words):
                outcome = self.look(replies, secret=SECRET)
                assert not outcome.ok
                assert words in outcome.detail
                assert SECRET not in outcome.detail
                assert "stack trace" not in outcome.detail
                assert len(self.server.asked) == 1  # a redirect is not followed
                services.delete_provider(self.provider, actor="test")

    def test_a_missing_credential_is_named(self):
        assert "none is stored" in self.look({"/v1/models": (401, {})}).detail

    def test_a_server_without_a_model_list_is_alive(self):
        outcome = self.look({})
        assert outcome.ok
        assert outcome.models == ()

    def test_nobody_there(self):
        outcome = probe_provider(make("p", f"http://127.0.0.1:{closed_port()}").pk)
        assert not outcome.ok
        assert "No connection" in outcome.detail

    def test_an_endless_list_is_given_up(self):
        huge = b'{"data": [' + b" " * (9 * 1024 * 1024) + b"]}"
        assert "too large" in self.look({"/v1/models": (200, huge)}).detail

    def test_an_address_that_changed_its_class_is_refused_and_explained(self):
        with SmallServer(MODELS) as server:
            provider = make("p", server.url)
            Provider.objects.filter(pk=provider.pk).update(address_class="public")
            outcome = probe_provider(provider.pk)
            assert not server.asked
        assert "another class" in outcome.detail
        assert "Look up address again" in outcome.detail

    def test_a_credential_saved_for_another_url_is_not_sent_anywhere(self):
        with SmallServer(MODELS) as server:
            provider = make("p", "http://127.0.0.1:9", secret=SECRET)
            provider.base_url = server.url
            services.save_provider(provider, actor="test")
            outcome = probe_provider(provider.pk)
            assert not server.asked
        assert "Type it again" in outcome.detail

    def test_a_credential_of_the_present_url_is_used_though_one_of_another_url_stands_before_it(self):
        with SmallServer(MODELS) as server:
            provider = make("p", "http://127.0.0.1:9", secret="sk-for-another-url-0123456789")
            provider.base_url = server.url
            services.save_provider(provider, actor="test")
            services.set_credential(provider, "second", SECRET, actor="test")
            outcome = probe_provider(provider.pk)
            assert outcome.ok
            assert [asked[2]["authorization"] for asked in server.asked] == [f"Bearer {SECRET}"]

    def test_a_provider_is_well_as_long_as_one_of_its_credentials_is(self):
        def reply(headers) -> tuple:
            works = headers["authorization"] == f"Bearer {SECRET}"
            return MODELS["/v1/models"] if works else (401, {})

        with SmallServer({"/v1/models": reply}) as server:
            provider = make("p", server.url, secret="sk-revoked-0123456789abcdef")
            assert not probe_provider(provider.pk).ok
            services.set_credential(provider, "second", SECRET, actor="test")
            outcome = probe_provider(provider.pk)
            assert (outcome.ok, outcome.models) == (True, ("a", "b"))
            assert "was refused (401); another one works" in outcome.detail

    def test_the_built_in_demo_needs_no_network(self):
        outcome = probe_provider(make("demo", "", kind="demo").pk)
        assert outcome.ok
        assert outcome.models

    def test_a_failure_does_not_forget_the_models_and_a_success_resets_the_count(self):
        replies = dict(MODELS)
        with SmallServer(replies) as server:
            provider = make("p", server.url)
            assert probe_provider(provider.pk).ok
            server.replies = {"/v1/models": (500, {})}
            probe_provider(provider.pk)
            row = ProviderProbe.objects.get(provider=provider)
            assert (row.ok, row.models, row.consecutive_failures) == (False, ["a", "b"], 1)
            server.replies = replies
            probe_provider(provider.pk)
        row.refresh_from_db()
        assert (row.ok, row.consecutive_failures, row.detail) == (True, 0, "")

    def test_workers_are_told_when_the_list_of_models_changed_and_only_then(self):
        with SmallServer(dict(MODELS)) as server:
            provider = make("p", server.url)
            probe_provider(provider.pk)
            first = sequences.current(sequences.CARDS)
            assert feed.discovered() == {provider.pk: ["a", "b"]}
            probe_provider(provider.pk)
            assert sequences.current(sequences.CARDS) == first
            server.replies = {"/v1/models": (200, {"data": [{"id": "c"}]})}
            probe_provider(provider.pk)
        assert sequences.current(sequences.CARDS) == first + 1

    def test_three_failures_are_down_one_success_is_up_and_both_are_audited_once(self):
        with SmallServer({"/v1/models": (500, {})}) as server:
            provider = make("p", server.url)
            for number in range(1, DOWN_AFTER + 2):
                probe_provider(provider.pk)
                assert (provider.pk in down_providers()) == (number >= DOWN_AFTER)
            server.replies = dict(MODELS)
            probe_provider(provider.pk)
        assert down_providers() == []
        actions = list(
            OutboxEntry.objects.filter(action__startswith="provider.").order_by("id").values_list("action", flat=True)
        )
        assert actions[-2:] == ["provider.down", "provider.up"]
        assert actions.count("provider.down") == 1

    def test_a_disabled_provider_is_no_hint_for_workers(self):
        provider = make("p", "http://127.0.0.1:9", enabled=False)
        ProviderProbe.objects.create(provider=provider, ok=False, consecutive_failures=9)
        assert down_providers() == []


@pytest.mark.database
class ProbeAllTest(TransactionTestCase):
    databases = "__all__"

    async def test_every_enabled_provider_is_looked_at_at_once(self):
        with SmallServer(dict(MODELS), delay_s=0.5) as server:
            create = sync_to_async(make)
            for name in ("a", "b", "c"):
                await create(name, server.url)
            off = await create("off", server.url, enabled=False)
            begin = asyncio.get_running_loop().time()
            outcomes = await probe_all()
            took = asyncio.get_running_loop().time() - begin
        assert [outcome.ok for outcome in outcomes.values()] == [True, True, True]
        assert off.pk not in outcomes
        assert took < 1.4  # one after the other would take 1.5
        assert await ProviderProbe.objects.acount() == 3

    async def test_a_provider_deleted_meanwhile_is_no_error(self):
        with SmallServer(dict(MODELS), delay_s=0.2) as server:
            provider = await sync_to_async(make)("p", server.url)
            looking = asyncio.create_task(probe_all())
            await asyncio.sleep(0.1)
            await Provider.objects.filter(pk=provider.pk).adelete()
            await looking
        assert await ProviderProbe.objects.acount() == 0

    async def test_the_loop_follows_the_interval_and_tells_of_a_change(self):
        settings = await sync_to_async(services.gateway_settings)()
        await GatewaySettings.objects.filter(pk=settings.pk).aupdate(probe_interval_s=0.02)
        changes: list[int] = []
        with SmallServer({"/v1/models": (500, {})}) as server:
            provider = await sync_to_async(make)("p", server.url)
            running = asyncio.create_task(probes.run_forever(lambda: changes.append(1)))
            try:
                for _ in range(200):
                    if await sync_to_async(down_providers)() == [provider.pk] and len(changes) >= 2:
                        break
                    await asyncio.sleep(0.02)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        assert len(changes) == 2  # the first round, and the third failure

    async def test_with_an_interval_of_zero_nobody_is_asked(self):
        settings = await sync_to_async(services.gateway_settings)()
        await GatewaySettings.objects.filter(pk=settings.pk).aupdate(probe_interval_s=0)
        with SmallServer(dict(MODELS)) as server:
            await sync_to_async(make)("p", server.url)
            running = asyncio.create_task(probes.run_forever())
            await asyncio.sleep(0.2)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert server.asked == []

    async def test_a_shorter_interval_need_not_wait_for_the_end_of_a_longer_one(self):
        settings = await sync_to_async(services.gateway_settings)()
        set_interval = GatewaySettings.objects.filter(pk=settings.pk).aupdate
        await set_interval(probe_interval_s=3600)
        with SmallServer(dict(MODELS)) as server:
            await sync_to_async(make)("p", server.url)
            running = asyncio.create_task(probes.run_forever(look_s=0.05))
            try:
                await until(lambda: len(server.asked) == 1)
                await asyncio.sleep(0.2)
                assert len(server.asked) == 1
                await set_interval(probe_interval_s=0.05)
                await until(lambda: len(server.asked) > 2)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    async def test_nobody_is_held_for_down_any_more_once_probes_are_off(self):
        settings = await sync_to_async(services.gateway_settings)()
        provider = await sync_to_async(make)("p", "http://127.0.0.1:9")
        await ProviderProbe.objects.acreate(provider=provider, ok=False, consecutive_failures=DOWN_AFTER)
        assert await sync_to_async(down_providers)() == [provider.pk]
        await GatewaySettings.objects.filter(pk=settings.pk).aupdate(probe_interval_s=0)
        assert await sync_to_async(down_providers)() == []


@pytest.mark.database
class SilentProviderTest(TestCase):
    databases = "__all__"

    def test_a_server_that_never_answers_costs_a_bounded_time(self):
        with silent_port() as port:
            outcome = probe_provider(make("p", f"http://127.0.0.1:{port}").pk, timeout_s=0.3)
        assert not outcome.ok
        assert "in time" in outcome.detail or "too long" in outcome.detail
