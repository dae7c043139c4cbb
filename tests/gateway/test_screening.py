"""Privacy policies on the request path, for every client's API with every provider's: what leaves, what comes back."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from providers.config import PatternDoc, PrivacyDoc, SettingsDoc
from tests.gateway.harness import held, hold_records, key_record
from tests.gateway.matrix_clients import CLIENTS, LIMIT, Client
from tests.gateway.matrix_world import NATIVE, SAME, Got, World, pairs
from tests.provider_fakes import ProviderFakes
from tests.provider_fakes_base import COUNTED, LEAKED, OUTPUT, TOOL, WEATHER, Json

MAIL, SSN, PROJECT = "alice.liddell@example.com", "078-05-1120", "Project Bluebird-77"
SECRETS = (MAIL, SSN, PROJECT)
SAID = f"ECHO I am {MAIL}, number {SSN}, of {PROJECT}. Write to {MAIL}!"
SENT = "ECHO I am [EMAIL_1], number [SSN_1], of [PROJECT_1]. Write to [EMAIL_1]!"
MASK = "[REDACTED:CREDIT_CARD]"
PATTERNS = (PatternDoc(1, "project", r"project bluebird-\d+", "confidential", ignore_case=True),)
_ALL: dict[str, dict[str, Any]] = {
    "allow": {"internal": "allow", "confidential": "allow", "restricted": "allow"},
    "redact": {"internal": "redact", "confidential": "redact", "restricted": "redact"},
    "local": {"internal": "local", "confidential": "local", "restricted": "local"},
    "refuse": {"internal": "refuse", "confidential": "refuse", "restricted": "refuse"},
}
_OPEN = _ALL["allow"]
POLICIES = {
    **_ALL,
    "mask": {**_OPEN, "scan_answers": True},
    "silence": {**_OPEN, "scan_answers": True, "answer_action": "refuse"},
    "both": {**_ALL["redact"], "scan_answers": True},
    "untold": {**_ALL["refuse"], "scan_tool_results": False},
}
PRIVACY = tuple(PrivacyDoc(id=id, name=name, **values) for id, (name, values) in enumerate(POLICIES.items(), 1))
KEYS = {name: f"hk-{name}-{'0123456789abcdefghijklmnopqrstuvwxyz'}ABCDEF"[:46] for name in POLICIES}


def assert_nowhere(directory: Path, *more: str) -> None:
    """No file holds one of the values."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert any(path.suffix == ".j" for path in files)
    for path in files:
        data = stored(path)
        for secret in (*SECRETS, LEAKED, *more):
            assert secret.encode() not in data, path


def stored(path: Path) -> bytes:
    """What a file holds, without its holes."""
    pieces = []
    with path.open("rb") as file:
        end = 0
        with contextlib.suppress(OSError):  # no more data
            while True:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                pieces.append(os.pread(file.fileno(), end - start, start))
    return b"".join(pieces)


class Screened(World):
    """A world in which each policy has a key."""

    def policy(self, name: str) -> Screened:
        """Ask as the team of this policy from now on."""
        self.http.headers["x-api-key"] = KEYS[name]
        return self


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screened]:
    directory = tmp_path_factory.mktemp("screened")
    keys = [key_record(id, text, privacy_policy_id=id) for id, text in enumerate(KEYS.values(), 1)]
    settings = SettingsDoc(breaker_failures=10**6)
    with ProviderFakes() as fakes:
        screened = Screened(directory, fakes, settings, patterns=PATTERNS, privacy=PRIVACY, keys=keys)
        with screened:
            yield screened
            assert held(screened.server) == 0
            assert screened.server.runtime.build_error == ""
            told = str(list(screened.server.runtime.happenings._items))
            assert not any(secret in told for secret in (*SECRETS, LEAKED))
        assert_nowhere(directory)


def sent(got: Got) -> bytes:
    """Every byte that providers got, heads included; none of the values is among them."""
    data = b"".join(
        f"{seen.path}?{seen.query}\n{seen.headers}\n".encode() + seen.body + json.dumps(seen.doc).encode()
        for seen in got.seen
    )
    for secret in SECRETS:
        assert secret.encode() not in data
    return data


def asked(client: Client, model: str, prompt: str = SAID, *, stream: bool, **more: Any) -> Json:
    return client.body(model, prompt, stream=stream, **more)


def refused(client: Client, got: Got, code: str = "privacy_refused") -> str:
    """The message of a 403 in the client's own shape."""
    assert got.status == 403, got.data
    message = client.error(got.data, 403)
    if client.name in ("openai", "completions", "responses"):
        assert json.loads(got.data)["error"]["code"] == code
    assert not any(secret in message for secret in (*SECRETS, LEAKED))
    return message


@pytest.mark.parametrize(("name", "row", "stream"), pairs())
def test_placeholders_are_sent_and_the_client_gets_its_own_values_back(
    world: Screened, name: str, row: str, stream: bool
) -> None:
    client = CLIENTS[name]
    got = world.policy("redact").ask(client, f"m-{row}", asked(client, f"m-{row}", stream=stream), stream=stream)
    reply = world.read(client, got, stream=stream)
    assert got.seen[0].talk.prompt == SENT
    assert sent(got)
    assert reply.text == SAID
    assert reply.ended


@pytest.mark.parametrize(("name", "row", "stream"), pairs(tools=True))
def test_values_come_back_into_arguments_and_go_out_of_results(
    world: Screened, name: str, row: str, stream: bool
) -> None:
    client, model = CLIENTS[name], f"m-{row}"
    body = asked(client, model, stream=stream, tools=True)
    got = world.policy("redact").ask(client, model, body, stream=stream)
    reply = world.read(client, got, stream=stream)
    assert [(call[1], call[2]) for call in reply.calls] == [(TOOL, {"city": SAID})]
    assert sent(got)
    told = json.dumps(client.answered(body, reply)).replace(WEATHER, f"{PROJECT.upper()} of {MAIL}, fine.")
    got = world.ask(client, model, json.loads(told), stream=stream)
    reply = world.read(client, got, stream=stream)
    assert reply.text == "It is sunny in Paris."
    data = sent(got)
    assert PROJECT.upper().encode() not in data
    assert b"[PROJECT_2] of [EMAIL_1], fine." in data
    assert data.count(b"[EMAIL_1]") > 2


@pytest.mark.parametrize(("name", "row", "stream"), pairs())
def test_what_may_not_leave_is_refused_and_nothing_is_sent_or_held(
    world: Screened, name: str, row: str, stream: bool
) -> None:
    client, model = CLIENTS[name], f"m-{row}"
    got = world.policy("refuse").ask(client, model, asked(client, model, stream=stream), stream=stream)
    message = refused(client, got)
    assert "restricted (email, project, ssn)" in message
    assert got.seen == []
    assert "x-hoosh-route" not in got.headers
    world.books.read()
    assert got.request_id not in world.books.rows
    got = world.ask(client, model, client.body(model, "hi", stream=stream), stream=stream)
    world.read(client, got, stream=stream)


@pytest.mark.parametrize(("name", "row", "stream"), pairs())
def test_what_may_pass_passes_as_it_is(world: Screened, name: str, row: str, stream: bool) -> None:
    client, model = CLIENTS[name], SAME[row]
    body = asked(client, model, stream=stream)
    for policy, prompt in (("allow", SAID), ("redact", "ECHO nothing of the kind"), ("local", SAID)):
        body = asked(client, model, prompt, stream=stream)
        got = world.policy(policy).ask(client, model, body, stream=stream)
        assert world.read(client, got, stream=stream).text == prompt
        (seen,) = got.seen
        assert seen.talk.prompt == prompt
        if row in NATIVE.get(name.removesuffix("_array"), ()) and name not in ("openai", "completions"):
            left = {key: value for key, value in seen.doc.items() if key != "stream"}
            assert left == {key: value for key, value in body.items() if key != "stream"}


@pytest.mark.parametrize(("name", "row", "stream"), pairs())
def test_private_values_in_answers_are_masked(world: Screened, name: str, row: str, stream: bool) -> None:
    client, model = CLIENTS[name], f"m-{row}"
    got = world.policy("mask").ask(client, model, asked(client, model, "LEAK it", stream=stream), stream=stream)
    reply = world.read(client, got, stream=stream)
    assert reply.text.startswith(f"So: {MASK}. And more. And more.")
    assert reply.text == f"So: {MASK}. " + "And more. " * 60
    assert reply.ended
    assert LEAKED.encode() in got.seen[0].sent.replace(b'"', b"") or stream
    assert world.row(got).status == 200


@pytest.mark.parametrize(("name", "row", "stream"), pairs(tools=True))
def test_private_values_in_arguments_are_masked(world: Screened, name: str, row: str, stream: bool) -> None:
    client, model = CLIENTS[name], f"m-{row}"
    body = asked(client, model, "LEAK it", stream=stream, tools=True)
    got = world.policy("mask").ask(client, model, body, stream=stream)
    reply = world.read(client, got, stream=stream)
    assert [(call[1], call[2]) for call in reply.calls] == [(TOOL, {"city": MASK})]


@pytest.mark.parametrize(("name", "row", "stream"), pairs())
def test_an_answer_that_may_not_be_told_is_a_refusal_or_a_cut_stream(
    world: Screened, name: str, row: str, stream: bool
) -> None:
    client, model = CLIENTS[name], f"m-{row}"
    got = world.policy("silence").ask(client, model, asked(client, model, "LEAK it", stream=stream), stream=stream)
    booked = world.row(got)
    assert (booked.status, booked.error) == (403, "privacy_answer_refused")
    assert booked.output_tokens > 0
    assert LEAKED[:9].encode() not in got.data
    if not stream:
        assert got.clean
        refused(client, got, "privacy_answer_refused")
    elif got.status == 200:
        assert not got.clean
        if name != "gemini_array":
            reply = client.streamed(got.data)
            assert not reply.ended
            assert "may not be shown" in client.in_band(reply)
    else:  # nothing had been told yet
        refused(client, got, "privacy_answer_refused")


@pytest.mark.parametrize(("name", "row", "stream"), pairs(tools=True))
def test_an_answer_whose_last_words_may_not_be_told_does_not_end_well(
    world: Screened, name: str, row: str, stream: bool
) -> None:
    client, model = CLIENTS[name], f"m-{row}"
    body = asked(client, model, "LEAK it", stream=stream, tools=True)
    got = world.policy("silence").ask(client, model, body, stream=stream)
    booked = world.row(got)
    assert (booked.status, booked.error) == (403, "privacy_answer_refused")
    assert booked.output_tokens == OUTPUT or (stream and 0 < booked.output_tokens < OUTPUT)
    assert LEAKED[:9].encode() not in got.data
    assert not (got.clean and got.status == 200)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("name", "row"), [(name, row) for name in ("openai", "anthropic") for row in SAME])
def test_the_next_provider_gets_no_more_than_the_first(world: Screened, name: str, row: str, stream: bool) -> None:
    client, model = CLIENTS[name], f"next-{row}"
    got = world.policy("redact").ask(client, model, asked(client, model, stream=stream), stream=stream)
    assert len(got.seen) == 2
    assert got.seen[0].refusal == ""
    assert sent(got).count(b"[SSN_1]") >= 2
    (reply,) = [client.streamed(got.data) if stream else client.whole(got.data)]
    assert reply.text == SAID


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_looked_at_before_the_clients_own_values_come_back(world: Screened, stream: bool) -> None:
    client = CLIENTS["openai"]
    prompt = f"ECHO my card is {LEAKED}, yours [CREDIT_CARD_1]"
    got = world.policy("both").ask(client, "m-custom", asked(client, "m-custom", prompt, stream=stream), stream=stream)
    assert LEAKED.encode() not in sent(got)
    assert got.seen[0].talk.prompt == "ECHO my card is [CREDIT_CARD_2], yours [CREDIT_CARD_1]"
    assert world.read(client, got, stream=stream).text == prompt


def test_results_of_tools_are_let_pass_where_the_policy_says_so(world: Screened) -> None:
    client = CLIENTS["openai"]
    body = client.body("m-custom", "hi", tools=True)
    reply = world.read(client, world.policy("untold").ask(client, "m-custom", body, stream=False), stream=False)
    told = json.dumps(client.answered(body, reply)).replace(WEATHER, MAIL)
    got = world.ask(client, "m-custom", json.loads(told), stream=False)
    assert world.read(client, got, stream=False).text == "It is sunny in Paris."
    got = world.policy("refuse").ask(client, "m-custom", json.loads(told), stream=False)
    refused(client, got)


NATIVE_ONLY: dict[str, tuple[str, Json, str]] = {
    "anthropic": ("anthropic", {"container": "c_1"}, "container"),
    "gemini": ("google", {"cachedContent": "cachedContents/1"}, "cachedContent"),
}


@pytest.mark.parametrize("name", NATIVE_ONLY)
@pytest.mark.parametrize("policy", ["redact", "mask"])
def test_what_cannot_be_translated_is_refused_where_it_had_to_be(world: Screened, name: str, policy: str) -> None:
    client, (row, more, param) = CLIENTS[name], NATIVE_ONLY[name]
    body = asked(client, SAME[row], stream=False, **more)
    got = world.policy(policy).send("POST", client.path(SAME[row], stream=False), body)
    assert param in refused(client, got)
    assert got.seen == []


EMBEDDERS: dict[str, tuple[str, Any]] = {
    "/v1/embeddings": ("input", lambda said, model: {"model": model, "input": ["x", said]}),
    "/api/embed": ("input", lambda said, model: {"model": model, "input": [said, "x"]}),
    "/api/embeddings": ("prompt", lambda said, model: {"model": model, "prompt": said}),
    "/v1beta/models/{}:embedContent": ("content", lambda said, model: {"content": {"parts": [{"text": said}]}}),
    "/v1beta/models/{}:batchEmbedContents": (
        "requests",
        lambda said, model: {"requests": [{"model": f"models/{model}", "content": {"parts": [{"text": said}]}}]},
    ),
}


@pytest.mark.parametrize("row", ["openai", "google", "ollama", "custom"])
@pytest.mark.parametrize("path", EMBEDDERS)
def test_texts_to_embed_are_redacted_and_refused_too(world: Screened, path: str, row: str) -> None:
    model = f"m-{row}"
    body = EMBEDDERS[path][1](SAID, model)
    for policy in ("redact", "both"):
        got = world.policy(policy).send("POST", path.format(model), body)
        assert got.status == 200, got.data
        assert b"[SSN_1]" in sent(got)
        assert b"0.5" in got.data
    got = world.policy("refuse").send("POST", path.format(model), body)
    assert (got.status, got.seen) == (403, [])


COUNTERS = {
    "anthropic": "/v1/messages/count_tokens",
    "responses": "/v1/responses/input_tokens",
    "gemini": "/v1beta/models/{}:countTokens",
}


@pytest.mark.parametrize("row", ["anthropic", "openai", "google"])
@pytest.mark.parametrize("name", COUNTERS)
def test_what_is_counted_is_looked_at_like_what_is_asked(world: Screened, name: str, row: str) -> None:
    client, model = CLIENTS[name], SAME[row]
    body = asked(client, model, stream=False)
    body = {key: value for key, value in body.items() if key not in ("max_tokens", "max_output_tokens", "store")}
    body.pop("generationConfig", None)
    path = COUNTERS[name].format(model)
    got = world.policy("redact").send("POST", path, body)
    assert got.status == 200, got.data
    data = sent(got)
    if got.seen:
        assert b"[SSN_1]" in data
        assert str(COUNTED).encode() in got.data
    else:
        assert got.headers["x-hoosh-estimated"] == "true"
    got = world.policy("refuse").send("POST", path, body)
    assert (got.status, got.seen) == (403, [])


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_repeats_the_request_as_its_client_put_it(world: Screened, stream: bool) -> None:
    tool = {"type": "custom", "name": TOOL, "description": "Takes any text."}
    told: Json = {"instructions": f"You serve {PROJECT}.", "metadata": {"who": MAIL}, "tools": [tool]}
    body = {"model": "m-custom", "input": f"ECHO {MAIL}", "stream": stream, **told}
    got = world.policy("redact").send("POST", "/v1/responses", body)
    assert got.status == 200, got.data
    assert b"EMAIL_1" in sent(got)
    assert b"EMAIL_1" not in got.data
    answer = json.loads(got.data.rsplit(b"data: ", 1)[1])["response"] if stream else json.loads(got.data)
    assert {name: answer[name] for name in told} == told
    (call,) = [item for item in answer["output"] if item["type"] == "custom_tool_call"]
    assert call["name"] == TOOL
    assert MAIL in call["input"]


def test_hosted_tools_are_taken_out_of_what_is_translated(world: Screened) -> None:
    body = {"model": "gpt-same", "input": SAID, "tools": [{"type": "web_search"}], "max_output_tokens": LIMIT}
    got = world.policy("redact").send("POST", "/v1/responses", body)
    assert got.status == 200, got.data
    assert sent(got)
    assert "tools.web_search" in got.headers["x-hoosh-dropped-params"]


@pytest.mark.parametrize("row", SAME)
def test_what_is_held_is_what_is_sent(world: Screened, row: str) -> None:
    client, model = CLIENTS["anthropic"], f"m-{row}"
    block = "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0B\n" * 400 + "-----END PRIVATE KEY-----"
    got = world.policy("redact").ask(client, model, asked(client, model, block, stream=False), stream=False)
    assert got.status == 200
    assert b"[PRIVATE_KEY_1]" in sent(got)
    holds = {record.rid.hex(): record for record in hold_records(world.books._directory)}
    assert holds[got.request_id].input_bound < 400
    mails = " ".join(f"a{number}@b.co" for number in range(1000))
    got = world.ask(client, model, asked(client, model, mails, stream=False), stream=False)
    holds = {record.rid.hex(): record for record in hold_records(world.books._directory)}
    assert holds[got.request_id].input_bound > len(" ".join(f"[EMAIL_{number}]" for number in range(1, 1001)))


def test_a_conversation_keeps_its_placeholders(world: Screened) -> None:
    """What was sent in the first request is repeated to the byte in the next: providers' prompt caches go by that."""
    client = CLIENTS["anthropic"]
    first = asked(client, "m-anthropic", stream=False)
    got = world.policy("redact").ask(client, "m-anthropic", first, stream=False)
    before = got.seen[0].doc["messages"]
    reply = world.read(client, got, stream=False)
    turns = [{"role": "assistant", "content": reply.turn}, {"role": "user", "content": f"bob@example.com and {MAIL}"}]
    got = world.ask(client, "m-anthropic", {**first, "messages": [*first["messages"], *turns]}, stream=False)
    after = got.seen[0].doc["messages"]
    assert after[:1] == before
    assert "[EMAIL_1]" in json.dumps(after[1])
    assert "[EMAIL_2] and [EMAIL_1]" in json.dumps(after[2])
