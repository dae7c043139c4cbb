"""First start: local servers and keys in the environment become rows, once."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager

import pytest
from django.test import TestCase, override_settings

from hoosh_site import discovery
from providers import publish, services
from providers.catalog import CATALOG
from providers.config import unpack
from providers.models import ConfigVersion, Provider, Route
from tests.small_server import SmallServer, closed_port, silent_port

pytestmark = pytest.mark.database

OLLAMA = {"/api/tags": (200, {"models": [{"name": "llama3.2:1b"}, {"name": "qwen3:4b"}]})}
LMSTUDIO = {"/v1/models": (200, {"object": "list", "data": [{"id": "phi-4", "object": "model"}]})}
LLAMACPP = {"/v1/models": (200, {"object": "list", "data": [{"id": "tiny", "owned_by": "llamacpp"}]})}
LOCALAI = {
    "/v1/models": (200, {"object": "list", "data": [{"id": "gpt-local", "object": "model"}]}),
    "/version": (200, {"version": "v3.1.0"}),
}
VLLM = {"/v1/models": (200, {"object": "list", "data": [{"id": "meta/Llama", "owned_by": "vllm"}]})}
UNKNOWN = {"/v1/models": (200, {"object": "list", "data": [{"id": "x", "owned_by": "somebody"}]})}


def nowhere() -> dict[str, int]:
    return {name: closed_port() for name in ("ollama", "lmstudio", "llamacpp", "vllm")}


@contextmanager
def environment(**variables: str):
    names = [kind.env for kind in CATALOG.values() if kind.env]
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class DiscoveryTest(TestCase):
    databases = "__all__"

    def discover(self, ports: dict[str, int] | None = None, timeout_s: float = 20, **variables: str) -> list[str]:
        with environment(**variables), self.captureOnCommitCallbacks(execute=True):
            return discovery.discover(ports={**nowhere(), **(ports or {})}, timeout_s=timeout_s)

    def routes(self, provider: str) -> dict[str, int]:
        return dict(Route.objects.filter(provider__name=provider).values_list("pattern", "priority"))

    def test_with_nothing_around_there_is_the_demo_and_a_published_version(self):
        told = self.discover()
        assert len(told) == 1
        assert "demo" in told[0]
        assert self.routes("demo") == {"demo": 1000}
        number, blob = publish.latest()
        assert [provider.name for provider in unpack(blob).providers] == ["demo"]
        assert number

    def test_each_local_server_is_recognised_by_its_answers(self):
        with (
            SmallServer(OLLAMA) as one,
            SmallServer(LMSTUDIO) as two,
            SmallServer(LLAMACPP) as three,
            SmallServer(VLLM) as four,
        ):
            ports = {"ollama": one.port, "lmstudio": two.port, "llamacpp": three.port, "vllm": four.port}
            told = self.discover(ports)
        assert len(told) == 5
        found = dict(Provider.objects.exclude(name="demo").values_list("name", "kind"))
        assert found == {name: name for name in ("ollama", "lmstudio", "llamacpp", "vllm")}
        assert self.routes("ollama") == {"llama3.2:1b": 10, "qwen3:4b": 10, "*": 100}
        assert self.routes("vllm") == {"meta/Llama": 10}  # only the first server takes everything else
        assert set(Provider.objects.values_list("address_class", flat=True)) == {"loopback"}
        assert ConfigVersion.objects.count() == 1

    def test_localai_on_the_same_port_is_told_apart_from_llama_cpp(self):
        with SmallServer(LOCALAI) as server:
            self.discover({"llamacpp": server.port})
        assert Provider.objects.exclude(name="demo").get().kind == "localai"

    def test_an_unknown_server_with_the_openai_shape_becomes_a_custom_provider(self):
        with SmallServer(UNKNOWN) as server:
            self.discover({"vllm": server.port})
        provider = Provider.objects.exclude(name="demo").get()
        assert (provider.kind, provider.name) == ("custom", f"local-{server.port}")

    def test_something_else_on_a_usual_port_is_left_alone(self):
        web = {"/v1/models": (200, b"<html>"), "/api/tags": (200, {"tags": []})}
        with SmallServer(web) as one, SmallServer({}) as two:
            self.discover({"ollama": one.port, "llamacpp": one.port, "vllm": two.port})
        assert list(Provider.objects.values_list("name", flat=True)) == ["demo"]

    def test_looking_takes_half_a_second_even_when_nothing_answers(self):
        with silent_port() as a, silent_port() as b, silent_port() as c, silent_port() as d:
            begin = time.perf_counter()
            self.discover({"ollama": a, "lmstudio": b, "llamacpp": c, "vllm": d}, timeout_s=discovery.TOTAL_S)
            took = time.perf_counter() - begin
        assert took < 4 * discovery.TOTAL_S  # one after the other would take this long

    def test_this_gateways_own_port_is_not_asked(self):
        with SmallServer(UNKNOWN) as server, override_settings(HOOSH_PORT=server.port):
            self.discover({"vllm": server.port})
            assert server.asked == []

    def test_a_key_in_the_environment_makes_a_provider_with_sensible_routes(self):
        told = self.discover(OPENAI_API_KEY="sk-test-0123456789", OPENROUTER_API_KEY="or-test-0123456789")
        assert not any("0123456789" in sentence for sentence in told)
        openai = Provider.objects.get(name="openai")
        assert openai.base_url == "https://api.openai.com"
        assert set(self.routes("openai")) == set(discovery.REMOTE_PATTERNS["openai"])
        assert services.read_secret(openai.credentials.get()) == "sk-test-0123456789"
        assert self.routes("openrouter") == {"*/*": 20}

    def test_a_key_that_cannot_be_sent_is_told_and_the_rest_still_made(self):
        told = self.discover(OPENAI_API_KEY="two words", XAI_API_KEY="xai-0123456789")
        assert any("OPENAI_API_KEY is set, but" in sentence for sentence in told)
        assert not any("two words" in sentence for sentence in told)
        assert set(Provider.objects.values_list("name", flat=True)) == {"grok", "demo"}

    def test_odd_model_names_get_readable_unique_route_names(self):
        models = {"data": [{"id": "a b/ü*"}, {"id": "a b/ü?"}, {"id": "x" * 200}, {"id": "ok"}]}
        with SmallServer({"/v1/models": (200, models)}) as server:
            told = self.discover({"lmstudio": server.port})
        names = list(Route.objects.filter(provider__name="lmstudio").values_list("name", flat=True))
        assert len(names) == len(set(names)) == 5
        assert all(len(name) <= 64 and name.isascii() for name in names)
        assert any("4 of 4" in sentence for sentence in told)

    def test_nothing_is_done_when_providers_exist_or_a_file_is_configured(self):
        with override_settings(HOOSH_CONFIG="/etc/hoosh.toml"):
            assert self.discover(OPENAI_API_KEY="sk-test-0123456789") == []
        assert self.discover()
        assert self.discover(OPENAI_API_KEY="sk-test-0123456789") == []
        assert Provider.objects.count() == 1

    def test_every_kind_with_a_key_variable_has_patterns(self):
        assert set(discovery.REMOTE_PATTERNS) == {kind.name for kind in CATALOG.values() if kind.env}
