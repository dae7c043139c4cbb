"""Scanning requests: where things are found, what is decided, and that what is taken out can be put back."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.privacy.inspection import inspect
from gateway.privacy.redaction import Redactor, label
from gateway.privacy.texts import Text, collect
from providers.canonical import Call
from providers.privacy.patterns import BUILT_IN, custom
from providers.privacy.scanner import (
    LARGE_BYTES,
    NOTHING,
    OVERLAP_BYTES,
    SLICE_BYTES,
    Findings,
    Match,
    Scanner,
)
from providers.privacy.verdict import ACTIONS, Policy, Verdict, decide

SCANNER = Scanner(BUILT_IN)
MAIL, CARD, SSN = "alice@example.com", "4111 1111 1111 1111", "078-05-1120"
KEY = "sk-proj-" + "a7Bx9QzK2mW4pT6vY8cD" * 2
LEAKS = (MAIL, CARD, SSN, KEY)


def names(texts: list[str], scanner: Scanner = SCANNER) -> list[tuple[str, int]]:
    return [(match.pattern, match.text) for match in scanner.scan(texts).matches]


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), **more}


def said(doc: Any, **options: Any) -> list[str]:
    return [text.data().decode() for text in collect(doc, **options)]


# --- the scanner ----------------------------------------------------------------------------------------------------


def test_matches_are_told_by_text_and_byte_with_the_highest_level() -> None:
    findings = SCANNER.scan(["ü " + MAIL, "nothing", b"card " + CARD.encode() + b", mail " + MAIL.encode()])
    assert findings.matches == (
        Match("email", "internal", 0, 3, 20),
        Match("credit_card", "restricted", 2, 5, 24),
        Match("email", "internal", 2, 31, 48),
    )
    assert findings.level == "restricted"
    assert findings.counts() == (("credit_card", 1), ("email", 2))
    assert SCANNER.scan([]) is NOTHING
    assert SCANNER.scan([""]) is NOTHING


def test_nothing_matches_across_two_texts() -> None:
    assert names(["4111 1111", " 1111 1111", "alice@", "example.com", "078-05", "-1120"]) == []
    own = Scanner([custom("own", r"left[\s\S]*right")])
    assert names(["left", "right"], own) == []
    assert names(["left right", "right"], own) == [("own", 0)]


def test_an_operators_anchors_mean_the_ends_of_a_text() -> None:
    own = Scanner([custom("own", "^secret$"), *BUILT_IN])
    assert names(["a", "secret", "no secret", MAIL], own) == [("own", 1), ("email", 3)]


def test_an_operators_pattern_works_on_letters_of_any_alphabet() -> None:
    own = Scanner([custom("own", r"проект\s+\pL+", ignore_case=True)])
    findings = own.scan(["наш ПРОЕКТ синица"])
    assert [(match.start, match.end) for match in findings.matches] == [(7, 32)]


def test_the_first_of_very_many_matches_are_reported_and_the_rest_is_owned_up_to() -> None:
    few = Scanner(BUILT_IN, matches_max=10)
    findings = few.scan([(MAIL + " ") * 11 + SSN])
    assert findings.counts() == (("email", 10), ("ssn", 1))
    assert findings.overflow
    assert not few.scan([(MAIL + " ") * 10]).overflow
    refused = few.scan(["4111 1111 1111 1112 " * 500])  # checks that fail are bounded as well
    assert not refused.overflow
    assert refused.matches == ()
    given_up = few.scan(["4111 1111 1111 1112 " * 800])
    assert given_up.overflow
    assert given_up.counts() == (("credit_card", 1),), "nobody knows what stands behind it"


@pytest.mark.parametrize("numbers", [17_000, 24_000])
def test_a_secret_behind_very_many_places_that_look_like_one_is_not_passed_over(numbers: int) -> None:
    text = "2222 " * numbers + "; " + CARD
    for found in (SCANNER.scan([text]), asyncio.run(SCANNER.scan_in_turns([text]))):
        assert found.counts() == (("credit_card", 1),)
        assert decide(Policy(), found).action == "refuse"
        assert decide(Policy(restricted="redact"), found).redact == ("credit_card",)
    few = Scanner(BUILT_IN, matches_max=100)  # gives up on the way
    for found in (few.scan([text]), asyncio.run(few.scan_in_turns([text]))):
        assert found.overflow
        assert decide(Policy(), found).action == "refuse"
        assert decide(Policy(restricted="redact"), found).action == "refuse"
        assert decide(Policy(restricted="local"), found).local


def test_a_large_text_is_scanned_as_a_small_one_wherever_slices_end() -> None:
    filler = "plain words and nothing else "
    for shift in (-30, -19, -10, -1, 0, 1):
        text = (filler * (SLICE_BYTES // len(filler) + 1))[: SLICE_BYTES + shift] + " " + CARD + " "
        text += (filler * (SLICE_BYTES // len(filler) + 1)) + MAIL
        assert len(text) > LARGE_BYTES
        own = Scanner([*BUILT_IN, custom("own", "4111 1111")])
        assert asyncio.run(own.scan_in_turns(["x", text, SSN])) == own.scan(["x", text, SSN])
        assert own.scan([text]).counts() == (("credit_card", 1), ("email", 1), ("own", 1))


def test_a_match_longer_than_a_slice_is_one_match() -> None:
    block = (
        "-----BEGIN RSA PRIVATE KEY-----\n"
        + "MIIEpAIBAAKC\n" * (3 * SLICE_BYTES // 13)
        + "-----END RSA PRIVATE KEY-----"
    )
    text = "x" * (SLICE_BYTES - OVERLAP_BYTES - 10) + " " + block + " and more, " + "words. " * 40_000
    findings = asyncio.run(SCANNER.scan_in_turns([text]))
    assert findings == SCANNER.scan([text])
    assert [match.end - match.start for match in findings.matches] == [len(block)]


def test_others_get_their_turn_while_a_large_text_is_scanned() -> None:
    async def turns() -> int:
        task = asyncio.ensure_future(SCANNER.scan_in_turns(["plain words " * 400_000, (MAIL + " ") * 5000]))
        count = 0
        while not task.done():
            count += 1
            await asyncio.sleep(0)
        assert task.result().overflow
        return count

    assert asyncio.run(turns()) > 4_800_000 // SLICE_BYTES


@pytest.mark.parametrize("unit", ["2222 ", "4111 1111 1111 1112 ", "AB12 3456 "])
def test_others_get_their_turn_while_a_small_text_has_many_places_that_look_like_a_match(unit: str) -> None:
    body = json.dumps(chat({"role": "user", "content": unit * (100_000 // len(unit))})).encode()
    assert len(body) < LARGE_BYTES

    async def turns() -> int:
        task = asyncio.ensure_future(inspect(Call("chat", "m", body), SCANNER, Policy()))
        count = 0
        while not task.done():
            count += 1
            await asyncio.sleep(0)
        return count

    assert asyncio.run(turns()) > 10


def test_beginnings_of_keys_without_ends_cost_no_more_than_their_length() -> None:
    began = time.process_time()
    found = SCANNER.scan(["-----BEGIN PRIVATE KEY-----\n" * 4000])
    assert time.process_time() - began < 0.25  # a tenth of it on a quiet machine; 0.6 s where each looks for its end
    assert found.counts() == (("private_key", 4000),)


def test_ordinary_text_costs_little_and_time_is_linear() -> None:
    text = "The quick brown fox jumps over the lazy dog; it costs 12.50 on 2024-01-31, doesn't it? " * 900

    def best(data: str) -> float:
        runs = []
        for _ in range(20):
            began = time.process_time()
            assert SCANNER.scan([data]) is NOTHING
            runs.append(time.process_time() - began)
        return min(runs)

    best(text)
    assert best(text[:4096]) < 200e-6  # an eighth of it on a quiet machine
    assert best(text[:76_000]) < 2500e-6
    hostile = "a" * 60_000 + "@" + "a." * 30_000 + "-" * 5000 + "1 " * 30_000 + "AKIA" * 10_000
    began = time.process_time()
    SCANNER.scan([hostile])
    assert time.process_time() - began < 2


def test_nothing_that_holds_a_text_shows_it() -> None:
    doc = chat({"role": "user", "content": " ".join(LEAKS)})
    texts = collect(doc)
    findings = SCANNER.scan([text.scanned for text in texts])
    redactor = Redactor(())
    redactor.redact(texts, findings.matches)
    inspection = asyncio.run(inspect(Call("chat", "m", json.dumps(doc).encode()), SCANNER, Policy()))
    shown = [texts, findings, findings.counts(), redactor, inspection, inspection.verdict, SCANNER]
    told = "".join(f"{one!r}{one!s}{one:}" if not isinstance(one, (list, tuple)) else f"{one!r}" for one in shown)
    own = custom("own", "alice@example.com")
    told += repr(Scanner([own]).scan([MAIL])) + repr(Scanner([own]))
    assert not any(leak in told or leak[:6] in told for leak in LEAKS)


# --- the texts of a request -----------------------------------------------------------------------------------------


def test_the_texts_of_a_chat_are_what_people_models_and_tools_said() -> None:
    doc = chat(
        {"role": "system", "content": "one"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "three"}],
            "name": "four",
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "five",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "six", "arguments": '{"seven": "7"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "eight"},
        tools=[{"type": "function", "function": {"name": "six", "description": "nine", "parameters": {"a": "b"}}}],
        response_format={"type": "json_schema", "json_schema": {"name": "ten", "schema": {"type": "object"}}},
        user="eleven",
        metadata={"key": "twelve"},
        temperature=0.5,
    )
    assert said(doc) == [
        "one", "two", "three", "four", "five", "six", '{"seven": "7"}', "eight",
        "six", "nine", "ten", "eleven", "twelve",
    ]  # fmt: skip
    assert [text.data() for text in collect(doc) if text.result] == [b"eight"]
    assert "eight" not in said(doc, results=False)
    assert len(said(doc, results=False)) == 12


@pytest.mark.parametrize("name", ["data", "result", "bytes", "image", "url", "file_data", "encrypted_content"])
@pytest.mark.parametrize("between", ["\n", " ", "\n\n"])
def test_a_list_of_numbers_is_no_base64_wherever_it_stands(name: str, between: str) -> None:
    listed = between.join(f"{100 + number}-22-{1000 + number}" for number in range(200))
    texts = collect(chat({"role": "user", "content": "hello"}, x_tool={name: listed}))
    assert SCANNER.scan([text.scanned for text in texts]).counts() == (("ssn", 200),)


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
def test_base64_is_passed_over_in_lines_and_without(encode: Callable[[bytes], bytes]) -> None:
    media = encode(bytes(range(256)) * 40).decode()
    assert said(chat({"role": "user", "content": [{"type": "x", "data": media}]})) == []
    assert said(chat({"role": "user", "content": [{"type": "x", "data": media.replace("\n", "\r\n")}]})) == []


def test_prompts_and_inputs_are_texts() -> None:
    assert said({"model": "m", "prompt": ["a", "b"], "suffix": "c"}) == ["a", "b", "c"]
    assert said({"model": "m", "input": "a"}) == ["a"]
    assert said({"model": "m", "input": [1, 2, 3]}) == []


def test_media_are_passed_over_and_what_only_stands_in_their_place_is_not() -> None:
    media = "QUtJQQ" * 500
    doc = chat(
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64," + media}},
                {"type": "input_audio", "input_audio": {"data": media, "format": "wav"}},
                {"type": "file", "file": {"file_data": media, "filename": "mine.pdf"}},
                {"type": "image_url", "image_url": {"url": "https://example.com/?mail=" + MAIL}},
                {"type": "text", "text": "data:text/plain;base64," + media},
                {"type": "document", "source": {"type": "text", "data": "words of a document. " * 100}},
            ],
        }
    )
    assert [text[:12] for text in said(doc)] == ["wav", "mine.pdf", "https://exam", "data:text/pl", "words of a d"]


@pytest.mark.parametrize(
    "hidden",
    [
        '{"a": "078\\u002d05-1120"}',
        '{"a": "\\u0030\\u0037\\u0038-05-1120"}',
        '{"a": "line\\n078-05-1120"}',
        '{"a": "say \\"078-05-1120\\""}',
        '{"078-05-1120": 1, "b": "\\t"}',
        '{"a": {"b": ["\\\\n078-05-1120"]}}',
        '{"a": "078-05-1120"}',
        "078-05-1120, and no JSON",
        '{"cut": "078-05-1120',
    ],
)
def test_escapes_in_tool_arguments_hide_nothing(hidden: str) -> None:
    doc = chat({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": hidden}}]})
    texts = collect(doc)
    findings = SCANNER.scan([text.scanned for text in texts])
    assert findings.counts() == (("ssn", 1),)
    Redactor(()).redact(texts, findings.matches)
    arguments = doc["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert "[SSN_1]" in arguments
    assert "1120" not in arguments
    if hidden.endswith("}"):
        assert "[SSN_1]" in str(json.loads(arguments))


@pytest.mark.parametrize("before", ["", " ", "\n\t"])
@pytest.mark.parametrize("value", [{"a": SSN}, [SSN], SSN])
def test_escapes_in_a_tools_result_that_is_json_hide_nothing(before: str, value: Any) -> None:
    result = before + json.dumps(value).replace("0", "\\u0030")
    assert SSN not in result
    doc = chat({"role": "tool", "tool_call_id": "c", "content": result})
    texts = collect(doc)
    Redactor(()).redact(texts, SCANNER.scan([text.scanned for text in texts]).matches)
    assert "[SSN_1]" in str(json.loads(doc["messages"][0]["content"]))


def test_numbers_in_arguments_become_strings_and_the_json_stays_json() -> None:
    doc = chat({"role": "assistant", "tool_calls": [{"function": {"arguments": '{"card":4111111111111111,"n":[1]}'}}]})
    texts = collect(doc)
    redactor = Redactor(())
    redactor.redact(texts, SCANNER.scan([text.scanned for text in texts]).matches)
    arguments = doc["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"card": "[CREDIT_CARD_1]", "n": [1]}
    assert json.loads(redactor.restore_json(arguments)) == {"card": "4111111111111111", "n": [1]}


def test_a_match_over_several_tokens_of_json_leaves_json() -> None:
    doc = {"messages": [{"tool_calls": [{"function": {"arguments": '{"a":"x\\nleft","b":17,"c":"right \\"y"}'}}]}]}
    texts = collect(doc)
    own = Scanner([custom("own", r"left[\s\S]*right")])
    redactor = Redactor(())
    redactor.redact(texts, own.scan([text.scanned for text in texts]).matches)
    arguments = doc["messages"][0]["tool_calls"][0]["function"]["arguments"]  # type: ignore[index]
    told = json.loads(arguments)
    assert "left" not in arguments
    assert "right" not in arguments
    assert next(iter(told.values())).startswith("x\n[OWN_")
    assert list(told.values())[-1].endswith(' "y')


def test_the_texts_of_other_apis_are_found_too() -> None:
    anthropic = {
        "system": [{"type": "text", "text": "a"}],
        "messages": [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "i", "name": "n", "input": {"k": "b\n"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "i", "content": [{"text": "c"}]}]},
            {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "QUtJQQ" * 500}}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "d", "signature": "QUtJQQ" * 50}]},
        ],
        "tools": [{"name": "n", "description": "e", "input_schema": {"description": "no"}}],
    }
    assert said(anthropic) == ["a", "n", '{"k":"b\\n"}', "c", "d", "n", "e"]
    assert "c" not in said(anthropic, results=False)
    gemini = {
        "contents": [
            {"parts": [{"functionCall": {"name": "n", "args": {"k": 1}}}]},
            {"parts": [{"functionResponse": {"name": "n", "response": {"r": "x"}}}, {"text": "t"}]},
            {"parts": [{"inlineData": {"mimeType": "image/png", "data": "QUtJQQ" * 500}}]},
        ]
    }
    assert said(gemini) == ["n", '{"k":1}', "n", '{"r":"x"}', "t", "image/png"]
    assert '{"r":"x"}' not in said(gemini, results=False)
    responses = {
        "instructions": "a",
        "input": [
            {"type": "message", "content": [{"type": "input_text", "text": "b"}]},
            {"type": "function_call_output", "call_id": "c", "output": "c"},
        ],
    }
    assert said(responses) == ["a", "b", "c"]
    assert said(responses, results=False) == ["a", "b"]
    assert said(responses, known={"a", "b"}) == ["c"]


# --- redaction ------------------------------------------------------------------------------------------------------


def redacted(doc: Any, scanner: Scanner = SCANNER, bodies: tuple[bytes, ...] = ()) -> Redactor:
    texts = collect(doc)
    redactor = Redactor(bodies)
    redactor.redact(texts, scanner.scan([text.scanned for text in texts]).matches)
    return redactor


def test_the_same_value_has_the_same_placeholder_everywhere() -> None:
    doc = chat({"role": "system", "content": f"{MAIL} and bob@example.com"}, {"role": "user", "content": f"to {MAIL}."})
    redactor = redacted(doc)
    assert [message["content"] for message in doc["messages"]] == ["[EMAIL_1] and [EMAIL_2]", "to [EMAIL_1]."]
    assert redactor.restore("[EMAIL_2] wrote to [EMAIL_1], not to [EMAIL_3]") == (
        f"bob@example.com wrote to {MAIL}, not to [EMAIL_3]"
    )
    assert redactor
    assert not Redactor(())


def test_a_placeholder_that_stands_in_the_request_already_is_not_used() -> None:
    doc = chat({"role": "user", "content": f"[EMAIL_1] [EMAIL_3] {MAIL} bob@example.com"})
    redactor = redacted(doc, bodies=(json.dumps(doc).encode(),))
    assert doc["messages"][0]["content"] == "[EMAIL_1] [EMAIL_3] [EMAIL_2] [EMAIL_4]"
    assert redactor.restore("[EMAIL_1] [EMAIL_2]") == f"[EMAIL_1] {MAIL}"


def test_only_the_patterns_that_were_named_are_taken_out() -> None:
    doc = chat({"role": "user", "content": f"{MAIL} {SSN}"})
    texts = collect(doc)
    Redactor(()).redact(texts, SCANNER.scan([text.scanned for text in texts]).matches, {"ssn"})
    assert doc["messages"][0]["content"] == f"{MAIL} [SSN_1]"


def test_matches_that_overlap_become_one_named_for_the_gravest() -> None:
    own = Scanner([*BUILT_IN, custom("mine", "mail alice", "internal"), custom("more", "com or", "internal")])
    doc = chat({"role": "user", "content": f"mail {MAIL} or {SSN}"})
    redactor = redacted(doc, own)
    assert doc["messages"][0]["content"] == "[EMAIL_1] [SSN_1]"
    assert redactor.restore("[EMAIL_1]") == f"mail {MAIL} or"


def test_labels_are_capital_letters_digits_and_underscores() -> None:
    assert label("aws_key") == "AWS_KEY"
    assert label("Projekt Göteborg - 7") == "PROJEKT_G_TEBORG_7"
    assert label("7th") == "X7TH"
    assert label("é") == "X"
    assert len(label("x" * 200)) == 40


SECRETS = st.sampled_from([*LEAKS, "bob@example.org", "AKIA" + "Q7ZK2MW4PT6VY3CD", "DE89370400440532013000"])
WORDS = st.text(alphabet=st.sampled_from('ab [_1]EMAIL\\"\n{}ü😀.,'), max_size=12)
TEXTS = st.lists(st.one_of(WORDS, SECRETS.map(lambda secret: f" {secret} ")), max_size=12).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_what_is_taken_out_of_any_texts_comes_back_as_it_was(contents: list[str]) -> None:
    doc = chat(*({"role": "user", "content": text} for text in contents))
    before = json.dumps(doc)
    redactor = redacted(doc, bodies=(before.encode(),))
    after = [message["content"] for message in doc["messages"]]
    assert not any(leak in text for leak in LEAKS for text in after)
    assert [redactor.restore(text) for text in after] == contents


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6
    )
)
def test_what_is_taken_out_of_any_arguments_comes_back_as_it_was(value: Any) -> None:
    arguments = json.dumps({"value": value}, ensure_ascii=len(str(value)) % 2 == 0)
    doc = {"messages": [{"tool_calls": [{"function": {"arguments": arguments}}]}]}
    redactor = redacted(doc, bodies=(arguments.encode(),))
    after = doc["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert not any(leak in after for leak in LEAKS)
    json.loads(after)
    assert json.loads(redactor.restore_json(after)) == {"value": value}


# --- the verdict ----------------------------------------------------------------------------------------------------


def findings(*levels: str, overflow: bool = False) -> Findings:
    matches = tuple(Match(f"p_{level}", level, 0, i, i + 1) for i, level in enumerate(levels))  # type: ignore[arg-type]
    return Findings(matches, "public", overflow)


@pytest.mark.parametrize("internal", ACTIONS)
@pytest.mark.parametrize("restricted", ACTIONS)
def test_the_strictest_action_of_all_levels_found_wins(internal: Any, restricted: Any) -> None:
    policy = Policy(internal=internal, restricted=restricted)
    assert decide(policy, findings("internal")).action == internal
    assert decide(policy, findings("internal", "restricted")).action == max(internal, restricted, key=ACTIONS.index)
    assert decide(policy, findings()) == Verdict()


def test_redaction_and_local_routing_may_both_be_wanted() -> None:
    policy = Policy(internal="redact", confidential="local")
    both = decide(policy, findings("internal", "confidential"))
    assert (both.action, both.local, both.redact) == ("local", True, ("p_internal",))
    assert decide(Policy(confidential="local", redact_local=True), findings("confidential")).redact == (
        "p_confidential",
    )
    refused = decide(policy, findings("internal", "restricted"))
    assert (refused.action, refused.local, refused.redact) == ("refuse", False, ())


def test_a_verdict_tells_names_and_counts_and_the_highest_level() -> None:
    verdict = decide(Policy(confidential="redact"), findings("internal", "confidential", "internal"))
    assert verdict.patterns == (("p_confidential", 1), ("p_internal", 2))
    assert verdict.level == "confidential"


def test_the_default_level_counts_where_nothing_graver_is_found() -> None:
    policy = Policy(default_level="confidential")
    assert decide(policy, findings()) == Verdict("local", "confidential", local=True)
    assert decide(policy, findings("internal")).level == "confidential"
    assert decide(policy, findings("restricted")).action == "refuse"


def test_patterns_that_are_switched_off_or_given_another_level_count_so() -> None:
    found = findings("internal", "restricted")
    assert decide(Policy(disabled=("p_restricted",)), found) == Verdict("allow", "internal", (("p_internal", 1),))
    assert decide(Policy(enabled=("p_restricted",)), found).patterns == (("p_restricted", 1),)
    assert decide(Policy(levels={"p_restricted": "internal"}), found).action == "allow"
    assert Policy(levels={"email": "restricted"}, scan_answers=True, enabled=("email", "ipv4")).answer_patterns(
        BUILT_IN
    ) == {"email"}
    assert Policy().answer_patterns(BUILT_IN) == frozenset()


def test_what_cannot_be_redacted_whole_is_refused() -> None:
    assert decide(Policy(internal="redact"), findings("internal", overflow=True)).action == "refuse"
    assert decide(Policy(internal="allow"), findings("internal", overflow=True)).action == "allow"


# --- a whole request ------------------------------------------------------------------------------------------------


def test_all_that_a_client_said_is_looked_at_and_the_canonical_body_is_redacted() -> None:
    native = {
        "model": "m",
        "messages": [{"role": "user", "content": f"I am {MAIL}"}],
        "container": {"note": f"only here: {SSN}"},
    }
    canonical = chat({"role": "user", "content": f"I am {MAIL}"})
    call = Call("chat", "m", json.dumps(canonical).encode(), native=json.dumps(native).encode(), dialect="anthropic")
    policy = Policy(internal="redact", restricted="redact")

    async def run() -> None:
        inspection = await inspect(call, SCANNER, policy)
        assert inspection.verdict.patterns == (("email", 1), ("ssn", 1))
        body, redactor = inspection.redacted()
        assert json.loads(body) == chat({"role": "user", "content": "I am [EMAIL_1]"})
        assert redactor.restore("[EMAIL_1]") == MAIL

    asyncio.run(run())


def test_a_placeholder_that_the_client_spelled_with_escapes_is_not_used() -> None:
    body = json.dumps(chat({"role": "user", "content": f"[EMAIL_1] {MAIL}"})).replace("[EMAIL_1]", "\\u005bEMAIL_1]")

    async def run() -> None:
        inspection = await inspect(Call("chat", "m", body.encode()), SCANNER, Policy(internal="redact"))
        redacted_body, _ = inspection.redacted()
        assert json.loads(redacted_body)["messages"][0]["content"] == "[EMAIL_1] [EMAIL_2]"

    asyncio.run(run())


def test_a_large_request_is_inspected_and_redacted_too() -> None:
    body = json.dumps(chat({"role": "user", "content": "plain words " * 20_000 + MAIL})).encode()

    async def run() -> None:
        inspection = await inspect(Call("chat", "m", body), SCANNER, Policy(internal="redact"))
        redacted_body, _ = inspection.redacted()
        assert json.loads(redacted_body)["messages"][0]["content"].endswith("words [EMAIL_1]")

    asyncio.run(run())


def test_tool_results_are_looked_at_where_the_policy_says_so() -> None:
    body = json.dumps(chat({"role": "tool", "tool_call_id": "c", "content": SSN})).encode()
    for wanted, action in ((True, "refuse"), (False, "allow")):
        inspection = asyncio.run(inspect(Call("chat", "m", body), SCANNER, Policy(scan_tool_results=wanted)))
        assert inspection.verdict.action == action


def test_texts_are_written_back_where_they_were() -> None:
    doc = {"a": ["x", {"b": "y"}]}
    text = Text(doc["a"], 0, "x")
    text.write(b"z")
    assert doc == {"a": ["z", {"b": "y"}]}
