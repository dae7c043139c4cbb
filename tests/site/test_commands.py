"""The client commands against a real server that answers like the gateway."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.test import TestCase

from budgets import access, keys
from gateway import accelerators
from hoosh_site.management.remote import printable
from providers import services
from providers.models import Provider
from tests.small_server import SmallServer, closed_port, silent_port

ERROR = {"error": {"message": "This API key is not known or was revoked.", "type": "x", "param": None, "code": "y"}}
HEALTH = {"status": "ok", "version": "1", "config_version": 4, "providers_configured": 2, "providers_down": 0}
PROVIDERS = {"providers": [{"provider": "openai", "status": "unhealthy", "detail": "No connection."}]}


def run(*arguments: str, server: SmallServer | str) -> str:
    out = StringIO()
    url = server if isinstance(server, str) else server.url
    call_command(*arguments, "--server", url, stdout=out)
    return out.getvalue()


def chat(text: str = "Hi there") -> tuple:
    return (200, {"choices": [{"message": {"role": "assistant", "content": text}}]})


def stream(*events: str) -> tuple:
    return (200, "".join(f"{event}\n\n" for event in events).encode(), {"content-type": "text/event-stream"})


def delta(text: str) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False)


def test_models_prints_one_line_per_model_with_its_provider():
    reply = {"data": [{"id": "gpt-4o", "owned_by": "openai"}, {"id": "m", "owned_by": "ollama"}]}
    with SmallServer({"/v1/models": (200, reply)}) as server:
        lines = run("models", "--key", "hk-test", server=server).splitlines()
        assert [line.split() for line in lines] == [["gpt-4o", "openai"], ["m", "ollama"]]
        assert server.asked[0][2]["authorization"] == "Bearer hk-test"
        assert json.loads(run("models", "--json", server=server)) == reply


def test_models_says_so_when_there_are_none():
    with SmallServer({"/v1/models": (200, {"data": []})}) as server:
        assert "No models" in run("models", server=server)


def test_the_key_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("HOOSH_API_KEY", "hk-from-environment")
    with SmallServer({"/v1/models": (200, {"data": []})}) as server:
        run("models", server=server.url + "/v1/")
        assert server.asked[0][2]["authorization"] == "Bearer hk-from-environment"


def test_a_refused_key_is_told_in_the_gateways_words(monkeypatch):
    monkeypatch.delenv("HOOSH_API_KEY", raising=False)
    words = r"not known or was revoked.*HTTP 401.*HOOSH_API_KEY"
    with SmallServer({"/v1/models": (401, ERROR)}) as server, pytest.raises(CommandError, match=words):
        run("models", server=server)


def test_no_gateway_is_told_in_plain_words():
    for command in (("models",), ("infer", "hi", "-m", "m"), ("health",)):
        with pytest.raises(CommandError, match="No gateway answers"):
            run(*command, server=f"http://127.0.0.1:{closed_port()}")


def test_a_silent_server_is_given_up():
    with silent_port() as port, pytest.raises(CommandError, match="did not answer in time"):
        run("models", "--timeout", "0.2", server=f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("server", ["ftp://x", "127.0.0.1:8088", "http://[::", "http://a b"])
def test_an_address_that_is_none_is_refused(server):
    with pytest.raises(CommandError):
        run("models", server=server)


def test_something_that_is_no_gateway_is_told():
    with (
        SmallServer({"/v1/models": (200, b"<html>")}) as server,
        pytest.raises(CommandError, match="not answer like a gateway"),
    ):
        run("models", server=server)


def test_infer_sends_the_prompt_and_prints_the_answer():
    with SmallServer({"/v1/chat/completions": chat()}) as server:
        options = ("--model", "m", "--system", "Be short.", "--max-tokens", "5")
        assert run("infer", "Hello", *options, server=server) == "Hi there\n"
        body = json.loads(server.asked[0][3])
        roles = [message["role"] for message in body["messages"]]
        assert (body["model"], body["max_tokens"], roles) == ("m", 5, ["system", "user"])
        assert json.loads(run("infer", "Hello", "-m", "m", "--json", server=server))["choices"]


def test_infer_streams_the_answer_and_a_line_separator_inside_a_text_ends_no_event():
    events = (": ping", delta("a\u2028b"), delta(" c"), 'data: {"choices": [], "usage": {}}', "data: [DONE]")
    with SmallServer({"/v1/chat/completions": stream(*events)}) as server:
        assert run("infer", "x", "-m", "m", "--stream", server=server) == "a�b c\n"
        assert json.loads(server.asked[0][3])["stream"] is True
        lines = run("infer", "x", "-m", "m", "--stream", "--json", server=server).strip("\n").split("\n")
        assert json.loads(lines[0])["choices"][0]["delta"]["content"] == "a\u2028b"
        assert len(lines) == 3


def test_a_stream_that_is_cut_or_carries_an_error_fails():
    with SmallServer({"/v1/chat/completions": stream(delta("a"))}) as server:
        with pytest.raises(CommandError, match="cut before its end"):
            run("infer", "x", "-m", "m", "--stream", server=server)
        server.replies["/v1/chat/completions"] = stream(delta("a"), 'data: {"error": {"message": "Provider away."}}')
        with pytest.raises(CommandError, match="Provider away"):
            run("infer", "x", "-m", "m", "--stream", server=server)


def test_what_a_model_writes_cannot_steer_the_terminal():
    with SmallServer({"/v1/chat/completions": chat("\x1b]0;owned\x07 fine\r")}) as server:
        text = run("infer", "x", "-m", "m", server=server)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "fine" in text
    assert printable("a\tb\nü€") == "a\tb\nü€"


def test_health_is_0_when_well_and_lists_providers_with_a_key():
    with SmallServer({"/v1/health": (200, HEALTH), "/v1/health/providers": (200, PROVIDERS)}) as server:
        text = run("health", server=server)
    assert "is ok: 2 providers configured, 0 down" in text
    assert "openai  unhealthy: No connection." in text


@pytest.mark.parametrize(("status", "word"), [(200, "degraded"), (503, "down"), (503, "unavailable")])
def test_health_exits_1_when_not_well(status, word):
    reply = (status, {**HEALTH, "status": word})
    with SmallServer({"/v1/health": reply}) as server, pytest.raises(SystemExit) as ended:
        run("health", "--json", server=server)
    assert ended.value.code == 1


def test_accelerators_never_fail_and_say_why_there_are_none():
    devices, reason = accelerators.nvidia()
    assert bool(devices) != bool(reason)
    assert accelerators.describe()


@pytest.mark.database
class InfoTest(TestCase):
    databases = "__all__"

    def test_info_shows_the_installation_and_the_running_gateway_without_secrets(self):
        agent = access.agent_named("t", "a", actor="test")
        _, text = keys.create_key(agent, access.default_pool("test"), "k", actor="test")
        services.save_provider(Provider(name="demo", kind="demo"), actor="test")
        with SmallServer({"/v1/health": (200, HEALTH)}) as server:
            shown = run("info", server=server)
            found = json.loads(run("info", "--json", server=server))
        assert found["gateway"]["config_version"] == 4
        assert found["rows"]["keys"] == 1
        assert found["rows"]["providers"] == "demo"
        assert found["accelerators"]
        assert text not in shown
        assert "Settings" in shown

    def test_info_works_without_a_running_gateway(self):
        found = json.loads(run("info", "--json", server=f"http://127.0.0.1:{closed_port()}"))
        assert "No gateway answers" in found["gateway"]["status"]
