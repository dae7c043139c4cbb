"""The answer cache of a worker: keys, the Cache-Control header, what may be kept, and where."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cache.control import PLAIN, Control, control_of, not_cached
from gateway.cache.keeping import is_keepable
from gateway.cache.key import BODY_MAX, IGNORED, KEY_BYTES, TAG_BYTES, key_of, tag_of
from gateway.cache.store import OVERHEAD_BYTES, Entry, Store
from gateway.dialects import anthropic, gemini, ollama, openai, responses
from gateway.errors import BadRequestError
from providers.canonical import Call

TEAM = b"team:1"
CHAT: dict[str, Any] = {
    "model": "gpt-x",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    "temperature": 0.5,
    "stop": ["a", "b"],
}


# --- keys -------------------------------------------------------------------------------------------------------------


def chat(**fields: Any) -> Call:
    return openai.parse_chat(json.dumps({**CHAT, **fields}).encode())


def key(call: Call, tenant: bytes = TEAM, scope: bytes = b"") -> bytes:
    found = key_of(call, tenant, scope)
    assert found is not None
    return found


def shuffled(told: Any, seed: random.Random) -> Any:
    """The same JSON with the keys of every object in another order."""
    if isinstance(told, list):
        return [shuffled(item, seed) for item in told]
    if not isinstance(told, dict):
        return told
    names = list(told)
    seed.shuffle(names)
    return {name: shuffled(told[name], seed) for name in names}


@given(st.randoms(use_true_random=False), st.sampled_from([None, 1, 4]))
@settings(max_examples=30, deadline=None)
def test_neither_the_order_of_keys_nor_white_space_makes_another_request(seed: random.Random, indent: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    told = {**CHAT, "tools": tools}
    body = json.dumps(shuffled(told, seed), indent=indent).encode()
    assert key(openai.parse_chat(body)) == key(chat(tools=tools))


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_fields_that_say_nothing_about_the_answer_make_no_other_request(name: str) -> None:
    values: dict[str, Any] = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "store": False,
        "metadata": {"a": "b"},
    }
    assert key(chat(**{name: values.get(name, "x")})) == key(chat())


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "gpt-y"},
        {"messages": [*CHAT["messages"][:1], {"role": "user", "content": "Hello "}]},
        {"messages": CHAT["messages"][1:]},
        {"temperature": 0.6},
        {"temperature": None},
        {"stop": ["b", "a"]},
        {"seed": 1},
        {"max_tokens": 10},
        {"max_completion_tokens": 10},
        {"reasoning_effort": "low"},
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "none"},
        {"n": 2},
        {"logprobs": True},
        {"service_tier": "flex"},
        {"some_field_of_a_server": {"a": 1}},
    ],
)
def test_every_other_field_makes_another_request(fields: dict[str, Any]) -> None:
    assert key(chat(**fields)) != key(chat())


def test_numbers_are_told_apart_as_they_are_written_and_strings_by_every_character() -> None:
    keys = {key(chat(seed=1)), key(chat(seed=1.0)), key(chat(seed="1")), key(chat(seed=True)), key(chat(seed=10**30))}
    assert len(keys) == 5
    assert key(chat(seed="e\u0301")) != key(chat(seed="\u00e9"))  # equal to the eye alone
    same = json.dumps({**CHAT, "seed": "\u00e9"}, ensure_ascii=False).encode()
    assert key(openai.parse_chat(same)) == key(chat(seed="\u00e9"))  # two spellings of one character in JSON


def test_tenants_and_scopes_share_nothing() -> None:
    keys = {key(chat(), tenant, scope) for tenant, scope in ((b"a", b""), (b"b", b""), (b"a", b"b"), (b"ab", b""))}
    keys |= {key(chat(), b"", b"ab"), key(chat(), b"", b"")}
    assert len({told[TAG_BYTES:] for told in keys}) == 6
    assert {len(told) for told in keys} == {KEY_BYTES}
    assert key(chat(), b"a").startswith(tag_of(b"a"))
    assert tag_of(b"a") != tag_of(b"b")


def test_endpoints_share_nothing() -> None:
    body = b'{"model":"m","input":"x","prompt":"x","messages":[{"role":"user","content":"x"}]}'
    calls = [openai.parse_chat(body), openai.parse_completions(body), openai.parse_embeddings(body)]
    assert len({key(call) for call in calls}) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 9},
        {"best_of": 9},
        {"store": True},
        {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}},
        {"audio": {"voice": "alloy"}},
        {"modalities": ["image"]},
        {"web_search_options": {}},
        {"search_parameters": {"mode": "auto"}},
        {"plugins": [{"id": "web"}]},
        {"enable_search": True},
        {"previous_response_id": "r"},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "mcp", "server_url": "https://x"}]},
        {"model": "openai/gpt-4o:online"},
        {"messages": [{"role": "user", "content": "x" * BODY_MAX}]},
    ],
)
def test_what_depends_on_more_than_the_request_has_no_key(fields: dict[str, Any]) -> None:
    assert key_of(chat(**fields), TEAM) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 8},
        {"store": False},
        {"modalities": ["text"]},
        {"web_search_options": None},
        {"enable_search": False},
        {"service_tier": "priority"},  # dearer, and the same answer
        {"tools": [{"type": "custom", "custom": {"name": "f"}}], "tool_choice": "required"},
        {"tools": []},
        {"temperature": 2},
    ],
)
def test_what_depends_on_the_request_alone_has_one(fields: dict[str, Any]) -> None:
    assert key_of(chat(**fields), TEAM) is not None


def test_a_list_of_prompts_is_not_taken_for_many_answers() -> None:
    told = {"model": "m", "prompt": ["x"] * 20}
    assert key_of(openai.parse_completions(json.dumps(told).encode()), TEAM) is not None
    assert key_of(openai.parse_completions(json.dumps({**told, "n": 9}).encode()), TEAM) is None


# --- keys of other dialects -------------------------------------------------------------------------------------------


def claude(*headers: tuple[bytes, bytes], **fields: Any) -> Call:
    body = {"model": "gpt-x", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}], **fields}
    exchange: Any = SimpleNamespace(headers=list(headers), path="/v1/messages", query=b"")
    return anthropic.parse_messages(json.dumps(body).encode(), exchange)


def google(action: str = "generateContent", model: str = "m", query: bytes = b"alt=sse", **fields: Any) -> Call:
    body = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}], **fields}
    exchange: Any = SimpleNamespace(headers=[], path=f"/v1beta/models/{model}:{action}", query=query)
    return gemini.parse_generate(json.dumps(body).encode(), exchange)


def llama(**fields: Any) -> Call:
    body = {"model": "gpt-x", "messages": [{"role": "user", "content": "Hello"}], **fields}
    return ollama.parse_chat(json.dumps(body).encode())


def response(**fields: Any) -> Call:
    return responses.parse_responses(json.dumps({"model": "gpt-x", "input": "Hello", **fields}).encode())


def test_dialects_share_nothing_though_their_requests_translate_into_the_same() -> None:
    plain = openai.parse_chat(claude().body)
    assert json.loads(plain.body) == json.loads(claude().body)
    assert key(plain) != key(claude())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (claude(), claude(stream=True)),
        (claude(), claude(metadata={"user_id": "u"})),
        (claude(), claude(pool="p")),
        (google(), google("streamGenerateContent")),
        (google(), google(labels={"a": "b"})),
        (llama(), llama(stream=False)),
        (llama(), llama(keep_alive="5m")),
        (llama(), llama(pool="p")),
        (response(), response(stream=True)),
        (response(), response(pool="p")),
    ],
)
def test_a_dialects_stream_and_its_labels_make_no_other_request(one: Call, other: Call) -> None:
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (claude(), claude(temperature=1)),
        # What no translation carries reaches a provider of the same API all the same.
        (claude(some_new_field=1), claude(some_new_field=2)),
        (claude(), claude((b"anthropic-beta", b"long-thoughts"))),
        (claude((b"anthropic-beta", b"a")), claude((b"anthropic-beta", b"b"))),
        (google(), google(model="n")),
        (google(), google(generationConfig={"thinkingConfig": {"includeThoughts": True}})),
        (google("streamGenerateContent"), google("streamGenerateContent", query=b"")),
        (llama(), llama(options={"mirostat": 1})),
        (llama(options={"mirostat": 1}), llama(options={"mirostat": 2})),
        (response(), response(metadata={"a": "b"})),  # it is repeated in the answer
        (response(), response(truncation="auto")),
    ],
)
def test_whatever_else_a_dialect_says_makes_another_request(one: Call, other: Call) -> None:
    assert key(one) != key(other)


@pytest.mark.parametrize(
    "call",
    [
        claude(tools=[{"type": "web_search_20250305", "name": "web_search"}]),
        claude(tools=[{"type": "bash_20250124", "name": "bash"}]),
        claude(mcp_servers=[{"type": "url", "url": "https://x", "name": "x"}]),
        google(tools=[{"googleSearch": {}}]),
        response(tools=[{"type": "web_search"}]),
        response(tools=[{"type": "namespace", "name": "n", "tools": [{"type": "mcp", "server_label": "x"}]}]),
        response(store=True),
        llama(messages=[{"role": "user", "content": "x" * BODY_MAX}]),
    ],
)
def test_what_only_a_provider_of_the_dialect_can_do_has_no_key(call: Call) -> None:
    assert key_of(call, TEAM) is None


def test_a_body_that_cannot_be_read_has_no_key() -> None:
    assert key_of(Call("chat", "m", b"{"), TEAM) is None
    assert key_of(Call("chat", "m", b"[]"), TEAM) is None


# --- Cache-Control ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, PLAIN),
        (b"", PLAIN),
        (b"no-cache", Control(read=False)),
        (b"no-store", Control(read=False, write=False)),
        (b"No-Store, no-cache", Control(read=False, write=False)),
        (b"max-age=60", Control(max_age_s=60)),
        (b"max-age=0", Control(max_age_s=0)),
        (b'max-age="60"', Control(max_age_s=60)),
        (b"max-age=60, MAX-AGE=5", Control(max_age_s=5)),
        (b"max-age=5, max-age=60", Control(max_age_s=5)),
        (b"max-age=" + b"9" * 400, Control(max_age_s=10**10)),
        (b" only-if-cached ,max-age=9", Control(max_age_s=9, only_cached=True)),
        (b"no-transform, max-stale=5, x-of-somebody=1,,", PLAIN),
    ],
)
def test_the_header_says_what_its_caller_wants(header: bytes | None, expected: Control) -> None:
    assert control_of(header) == expected


@pytest.mark.parametrize(
    "header",
    [
        *(b"max-age", b"max-age=", b"max-age=-1", b"max-age=1.5", b"max-age=abc", b'max-age="', b'max-age=""'),
        *(b"max-age=\xb2", b"no-cache=1", b"no-store=", b"only-if-cached=yes"),
    ],
)
def test_a_header_that_might_be_misread_is_refused(header: bytes) -> None:
    with pytest.raises(BadRequestError) as caught:
        control_of(header)
    assert caught.value.param == "cache-control"


def test_who_wants_nothing_but_a_cached_answer_is_told_that_there_is_none() -> None:
    error = not_cached()
    assert (error.status, error.code, error.should_retry) == (504, "not_cached", False)


# --- the store --------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def entry(body: bytes = b"{}", **fields: Any) -> Entry:
    return Entry(body, **fields)


def test_an_answer_is_told_until_its_time_is_over() -> None:
    clock = Clock()
    store = Store(clock=clock)
    assert store.put(b"k", entry(b"1"), 10)
    clock.now += 9.9
    found = store.get(b"k")
    assert found is not None
    assert found.body == b"1"
    clock.now += 0.1  # telling it does not make it live longer
    assert b"k" not in store
    assert store.get(b"k") is None
    assert (store.hits, store.expired, len(store), store.bytes) == (1, 1, 0, 0)


@pytest.mark.parametrize("ttl_s", [0, -1])
def test_no_time_at_all_keeps_nothing(ttl_s: float) -> None:
    store = Store()
    assert not store.put(b"k", entry(), ttl_s)
    assert (len(store), store.bytes, store.stored) == (0, 0, 0)


def test_a_caller_may_want_a_young_answer() -> None:
    clock = Clock()
    store = Store(clock=clock)
    store.put(b"k", entry(), 100)
    clock.now += 20
    assert store.get(b"k", max_age_s=19) is None
    assert store.get(b"k", max_age_s=20) is not None
    assert store.hits == 1


def test_a_providers_own_answer_is_not_told_as_a_stream() -> None:
    store = Store()
    store.put(b"k", entry(native="anthropic"), 100)
    assert store.get(b"k", stream=True) is None
    assert store.get(b"k") is not None


def test_the_answer_unused_for_longest_makes_room() -> None:
    gone: list[bytes] = []
    store = Store(3 * (OVERHEAD_BYTES + 100), on_drop=gone.append)
    for name in (b"a", b"b", b"c"):
        store.put(name, entry(b"x" * 100), 100)
    store.get(b"a")
    store.put(b"d", entry(b"x" * 100), 100)
    assert gone == [b"b"]
    store.put(b"e", entry(b"x" * (201 + OVERHEAD_BYTES)), 100)  # takes the room of three
    assert gone == [b"b", b"c", b"a", b"d"]
    assert (store.evicted, len(store)) == (4, 1)


def test_a_new_answer_takes_the_place_of_the_old_one() -> None:
    gone: list[bytes] = []
    store = Store(on_drop=gone.append)
    store.put(b"k", entry(b"x" * 1000), 100)
    store.put(b"k", entry(b"y"), 100)
    found = store.get(b"k")
    assert found is not None
    assert found.body == b"y"
    assert (store.bytes, len(store), gone) == (OVERHEAD_BYTES + 1, 1, [])


def test_an_answer_that_is_too_large_is_refused_and_drives_nothing_out() -> None:
    store = Store(10_000, entry_max_bytes=2_000)
    store.put(b"k", entry(), 100)
    assert not store.put(b"large", entry(b"x" * 2_001), 100)
    assert store.put(b"just", entry(b"x" * 2_000), 100)
    store.resize(10_000, entry_max_bytes=20_000)
    assert not store.put(b"larger than all", entry(b"x" * 10_000), 100)
    assert (store.refused, len(store)) == (2, 2)


def test_the_store_can_be_made_smaller() -> None:
    store = Store()
    for number in range(10):
        store.put(b"%d" % number, entry(b"x"), 100)
    store.resize(3 * (OVERHEAD_BYTES + 1))
    assert (len(store), store.evicted) == (3, 7)
    assert b"9" in store


def test_what_has_expired_can_be_swept_from_the_far_end() -> None:
    clock = Clock()
    gone: list[bytes] = []
    store = Store(clock=clock, on_drop=gone.append)
    for number in range(10):
        store.put(b"%d" % number, entry(), 5 if number % 2 else 50)
    clock.now += 10
    assert store.sweep(4) == 2
    assert gone == [b"1", b"3"]
    assert store.sweep() == 3
    assert (len(store), store.expired) == (5, 5)


def test_answers_can_be_purged_all_by_tenant_or_by_what_they_are() -> None:
    store = Store()
    keys = [key(chat(seed=seed), tenant) for tenant in (b"a", b"b", b"c") for seed in range(3)]
    for number, told in enumerate(keys):
        store.put(told, entry(route_id=number % 3), 100)
    assert store.purge(tenant=b"b") == 3
    assert store.purge(matching=lambda held: held.route_id == 1) == 2
    assert store.purge(prefix=keys[0]) == 1
    assert store.purge() == 3
    assert (len(store), store.bytes, store.purged) == (0, 0, 9)


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "get", "wait", "purge", "sweep"]), st.integers(0, 5), st.integers(0, 900)),
        max_size=60,
    )
)
@settings(max_examples=60, deadline=None)
def test_whatever_happens_the_bytes_are_those_of_the_entries_and_within_bounds(steps: Any) -> None:
    clock = Clock()
    held: dict[bytes, bytes] = {}
    store = Store(4_000, entry_max_bytes=800, clock=clock, on_drop=lambda told: held.pop(told) and None)
    for step, number, size in steps:
        name = b"%d" % number
        if step == "put" and store.put(name, entry(b"x" * size), 1 + number):
            held[name] = b"x" * size
        elif step == "get":
            found = store.get(name)
            assert found is None or found.body == held[name]
        elif step == "wait":
            clock.now += size / 300
        elif step == "purge" and size > 800:
            store.purge(prefix=name)
        elif step == "sweep":
            store.sweep(number)
        assert store.bytes == sum(len(body) + OVERHEAD_BYTES for body in held.values()) <= 4_000
        assert len(store) == len(held)


# --- what may be kept -------------------------------------------------------------------------------------------------


def answer(finish: Any = "stop", **message: Any) -> bytes:
    told = {"role": "assistant", "content": "Hi", **message}
    return json.dumps({"choices": [{"index": 0, "message": told, "finish_reason": finish}]}).encode()


@pytest.mark.parametrize(
    ("body", "native", "kept"),
    [
        (answer(), "", True),
        (answer("tool_calls", content=None, tool_calls=[{"id": "c"}]), "", True),
        (answer("length"), "", True),
        (answer("content_filter"), "", False),
        (answer("error"), "", False),
        (answer(None), "", False),
        (answer(refusal="No."), "", False),
        (answer(refusal=""), "", True),
        (answer(audio={"id": "a"}), "", False),
        (b'{"choices":[]}', "", False),
        (b'{"choices":[{"text":"x","index":0,"finish_reason":"stop"}]}', "", True),
        (b'{"choices":[{"finish_reason":"stop"}],"error":{"message":"x"}}', "", False),
        (b'{"choices":[{"finish_reason":"stop"},{"finish_reason":"content_filter"}]}', "", False),
        (b"<html>", "", False),
        (b'{"type":"message","stop_reason":"end_turn"}', "anthropic", True),
        (b'{"type":"message","stop_reason":"tool_use"}', "anthropic", True),
        (b'{"type":"message","stop_reason":"refusal"}', "anthropic", False),
        (b'{"type":"message","stop_reason":"pause_turn"}', "anthropic", False),
        (b'{"type":"error","error":{}}', "anthropic", False),
        (b'{"candidates":[{"finishReason":"STOP"}]}', "gemini", True),
        (b'{"candidates":[{"finishReason":"MAX_TOKENS"}]}', "gemini", True),
        (b'{"candidates":[{"finishReason":"SAFETY"}]}', "gemini", False),
        (b'{"candidates":[],"promptFeedback":{"blockReason":"SAFETY"}}', "gemini", False),
        (b'{"done":true,"done_reason":"stop"}', "ollama", True),
        (b'{"done":false}', "ollama", False),
        (b'{"done":true,"done_reason":"load"}', "ollama", False),
        (b'{"status":"completed","output":[{"content":[{"type":"output_text"}]},{}]}', "responses", True),
        (b'{"status":"completed","output":[{"content":[{"type":"refusal"}]}]}', "responses", False),
        (b'{"status":"incomplete","output":[],"incomplete_details":{"reason":"content_filter"}}', "responses", False),
        (b'{"status":"incomplete","output":[],"incomplete_details":{"reason":"max_output_tokens"}}', "responses", True),
        (b'{"status":"failed","output":[],"error":{"code":"x"}}', "responses", False),
        (answer(), "of nobody", False),
    ],
)
def test_whole_answers_are_kept_and_refusals_are_not(body: bytes, native: str, kept: bool) -> None:
    assert is_keepable(body, "chat", native=native) is kept


@pytest.mark.parametrize(
    ("body", "native"),
    [
        (answer("length"), ""),
        (b'{"type":"message","stop_reason":"max_tokens"}', "anthropic"),
        (b'{"candidates":[{"finishReason":"MAX_TOKENS"}]}', "gemini"),
        (b'{"done":true,"done_reason":"length"}', "ollama"),
        (b'{"status":"incomplete","output":[],"incomplete_details":{"reason":"max_output_tokens"}}', "responses"),
    ],
)
def test_an_answer_that_ended_at_a_limit_lower_than_asked_for_is_not_kept(body: bytes, native: str) -> None:
    assert not is_keepable(body, "chat", native=native, shortened=True)
    assert is_keepable(body, "chat", native=native)


def test_embeddings_are_kept_and_whole_answers_under_a_lower_limit_too() -> None:
    assert is_keepable(b'{"data":[]}', "embeddings")
    assert is_keepable(answer(), "chat", shortened=True)
