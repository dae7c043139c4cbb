"""Answers: values that are put back into them, and values that are kept out of them, whole and in streams."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.privacy.answers import CONTEXT_BYTES, HELD_MAX, HOLD_BYTES, AnswerGuard, mask
from gateway.privacy.redaction import Redactor, StreamRestorer
from providers.privacy.patterns import BUILT_IN, custom
from providers.privacy.scanner import Scanner
from providers.privacy.verdict import AnswerAction

SCANNER = Scanner([*BUILT_IN, custom("bluebird", r"(?i)project\s+bluebird", "restricted")])
NAMES = frozenset(pattern.name for pattern in SCANNER.patterns)
MAIL, CARD, SSN = "alice@example.com", "4111 1111 1111 1111", "078-05-1120"
KEY = "sk-proj-" + "a7Bx9QzK2mW4pT6vY8cD" * 3
PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\n"
    + "MIIEpAIBAAKCAQEA7bx9QzK2mW4pT6vY8cD1fG\n" * 20
    + "-----END RSA PRIVATE KEY-----"
)
JWT = "eyJhbGciOiJIUzI1NiJ9" + "aB3" * 200 + ".eyJzdWIiOiIxMjM0In0" + "cD4" * 200 + "." + "eF5" * 20
QUOTED = 'a "quoted"\nvalue\\'


def event(told: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(told).encode() + b"\n\n"


def chunk(delta: dict[str, Any], *, index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish, **more}
    return event({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


def chunks(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: ")]


def heard(data: bytes) -> dict[tuple[Any, ...], str]:
    """The texts a client puts together from a stream."""
    texts: dict[tuple[Any, ...], str] = {}
    for told in chunks(data):
        for choice in told["choices"]:
            index = choice["index"]
            pieces: dict[tuple[Any, ...], Any] = {("text",): choice.get("text")}
            for name, value in choice.get("delta", {}).items():
                if name == "tool_calls":
                    pieces |= {("tool", call["index"]): call["function"].get("arguments") for call in value}
                else:
                    pieces[(name,)] = value
            for name, value in pieces.items():
                if isinstance(value, str):
                    texts[index, *name] = texts.get((index, *name), "") + value
    return texts


def answer(**message: Any) -> bytes:
    told = {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "logprobs": {"content": []}}]}
    return json.dumps(told).encode()


def message_of(body: bytes) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(body)["choices"][0]["message"]
    return message


@pytest.fixture
def redactor() -> Redactor:
    made = Redactor(())
    assert made.placeholder("email", MAIL) == "[EMAIL_1]"
    assert made.placeholder("own", QUOTED) == "[OWN_1]"
    for number in range(2, 12):
        made.placeholder("email", f"{number}@example.com")
    return made


def cut(text: str, places: list[int]) -> list[str]:
    at = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(at)]


# --- putting back ---------------------------------------------------------------------------------------------------


def test_values_come_back_in_every_text_of_a_whole_answer(redactor: Redactor) -> None:
    body = answer(
        content="To [EMAIL_1]: [OWN_1]",
        reasoning_content="[EMAIL_2]?",
        tool_calls=[{"id": "x", "function": {"name": "f", "arguments": '{"to": "[EMAIL_1]", "v": "[OWN_1]"}'}}],
    )
    message = message_of(redactor.restore_answer(body))
    assert message["content"] == f"To {MAIL}: {QUOTED}"
    assert message["reasoning_content"] == "2@example.com?"
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"to": MAIL, "v": QUOTED}


def test_values_in_content_that_is_json_are_escaped(redactor: Redactor) -> None:
    body = redactor.restore_answer(answer(content='{"v": "[OWN_1]"}'), json_content=True)
    assert json.loads(message_of(body)["content"]) == {"v": QUOTED}
    stream = StreamRestorer(redactor, json_content=True)
    data = stream.feed(chunk({"content": '{"v": "[OWN'})) + stream.feed(chunk({"content": '_1]"}'})) + stream.finish()
    assert json.loads(heard(data)[0, "content"]) == {"v": QUOTED}


def test_an_answer_without_placeholders_keeps_its_bytes(redactor: Redactor) -> None:
    body = answer(content="nothing [here] [EMAIL_99]")
    assert redactor.restore_answer(body) is body
    stream = StreamRestorer(redactor)
    data = [chunk({"role": "assistant", "content": ""}), chunk({"content": "a [b] "}), chunk({}, finish="stop")]
    assert b"".join(map(stream.feed, data)) + stream.finish() == b"".join(data)


def test_legacy_completions_are_restored_too(redactor: Redactor) -> None:
    body = json.dumps({"choices": [{"index": 0, "text": "to [EMAIL_1]"}]}).encode()
    assert json.loads(redactor.restore_answer(body))["choices"][0]["text"] == f"to {MAIL}"
    stream = StreamRestorer(redactor)
    data = b"".join(
        stream.feed(event({"id": "c", "choices": [{"index": 0, "text": text, "finish_reason": None}]}))
        for text in ("to [EMA", "IL_1] and [EM")
    )
    assert heard(data + stream.finish()) == {(0, "text"): f"to {MAIL} and [EM"}


TEXT = "To [EMAIL_1], [EMAIL_1][EMAIL_11] [[EMAIL_2]] [EMAIL_1 [OWN_1] [EM [EMAIL_99] ü😀 [EMAIL_3"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 200), max_size=40), st.booleans())
@example(list(range(200)), False)
def test_a_stream_is_restored_as_the_whole_however_it_is_cut(places: list[int], finishes: bool) -> None:
    redactor = Redactor(())
    for number in range(1, 12):
        redactor.placeholder("email", f"{number}@example.com")
    redactor.placeholder("own", QUOTED)
    stream = StreamRestorer(redactor)
    data = b""
    for piece in cut(TEXT, places):
        data += stream.feed(chunk({"content": piece}))
    for piece in cut(TEXT, places[::2]):
        data += stream.feed(chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}))
    if finishes:
        data += stream.feed(chunk({}, finish="stop"))
        assert stream.finish() == b""
    data += stream.finish()
    assert heard(data) == {(0, "content"): redactor.restore(TEXT), (0, "tool", 0): redactor.restore_json(TEXT)}


def test_what_is_held_comes_before_the_next_text_and_before_the_end(redactor: Redactor) -> None:
    stream = StreamRestorer(redactor)
    data = stream.feed(
        chunk({"reasoning_content": "think [EM"})
        + chunk({"content": "", "reasoning_content": "A"})
        + chunk({"content": "say [EMAIL_1] [EMAIL"})
        + chunk({"tool_calls": [{"index": 0, "id": "t", "function": {"name": "f", "arguments": ""}}]})
        + chunk({"tool_calls": [{"index": 0, "function": {"arguments": '"[EMAIL_1]" ['}}]})
        + chunk({}, finish="tool_calls")
        + event({"id": "c", "choices": [], "usage": {"prompt_tokens": 1}})
    )
    texts = [
        (name, value)
        for told in chunks(data)
        for choice in told["choices"]
        for name, value in [*choice["delta"].items(), ("finish", choice["finish_reason"])]
        if value
    ]
    assert texts[0] == ("reasoning_content", "think ")
    assert ("reasoning_content", "[EM") not in texts
    order = [name for name, _ in texts]
    assert order == [*["reasoning_content"] * 2, *["content"] * 2, *["tool_calls"] * 3, "finish"]
    assert heard(data)[0, "reasoning_content"] == "think [EMA"
    assert heard(data)[0, "content"] == f"say {MAIL} [EMAIL"
    assert heard(data)[0, "tool", 0] == f'"{MAIL}" ['
    assert chunks(data)[-1]["usage"] == {"prompt_tokens": 1}
    assert stream.finish() == b""


def test_choices_do_not_get_into_each_other(redactor: Redactor) -> None:
    stream = StreamRestorer(redactor)
    data = b"".join(
        stream.feed(chunk({"content": text}, index=index))
        for index, text in ((0, "[EMAIL"), (1, "[EMA"), (0, "_1]"), (1, "IL_2]"))
    )
    assert heard(data + stream.finish()) == {(0, "content"): MAIL, (1, "content"): "2@example.com"}


def test_no_more_than_a_placeholder_is_held(redactor: Redactor) -> None:
    stream = StreamRestorer(redactor)
    for text in ("[" * 1000, "[EMAIL_" + "1" * 1000, "x" * 1000 + "[EMAIL_"):
        shown = heard(stream.feed(chunk({"content": text})))
        assert len(text) - sum(map(len, shown.values())) < len("[EMAIL_11]")


# --- keeping back ---------------------------------------------------------------------------------------------------


def guard(action: AnswerAction = "redact", names: frozenset[str] = NAMES) -> AnswerGuard:
    return AnswerGuard(SCANNER, names, action)


def test_whole_answers_are_masked_and_keep_their_bytes_where_nothing_is_found() -> None:
    body = answer(
        content=f"It is {CARD}.",
        tool_calls=[{"function": {"name": "f", "arguments": '{"n": 4111111111111111, "s": "\\u0030' + SSN[1:] + '"}'}}],
    )
    guarded = guard().whole(body)
    message = message_of(guarded.body)
    assert message["content"] == "It is [REDACTED:CREDIT_CARD]."
    arguments = json.loads(message["tool_calls"][0]["function"]["arguments"])
    assert arguments == {"n": mask("credit_card"), "s": mask("ssn")}
    assert json.loads(guarded.body)["choices"][0]["logprobs"] is None
    assert guarded.patterns == (("credit_card", 2), ("ssn", 1))
    assert not guarded.refused
    harmless = answer(content="nothing")
    assert guard().whole(harmless).body is harmless


def test_a_whole_answer_is_refused_where_the_policy_says_so() -> None:
    guarded = guard("refuse").whole(answer(content=CARD))
    assert guarded.refused
    assert guarded.body == b""
    assert CARD not in repr(guarded)


def test_only_the_patterns_that_matter_are_kept_back() -> None:
    only = guard(names=frozenset({"ssn"}))
    assert message_of(only.whole(answer(content=f"{MAIL} {SSN}")).body)["content"] == f"{MAIL} [REDACTED:SSN]"
    stream = only.stream()
    data = stream.feed(chunk({"content": f"{MAIL} {SSN}"})) + stream.finish()
    assert heard(data)[0, "content"] == f"{MAIL} [REDACTED:SSN]"


SECRETS = {
    "credit_card": CARD,
    "ssn": SSN,
    "openai_key": KEY,
    "private_key": PEM,
    "jwt": JWT,
    "iban": "DE89 3704 0044 0532 0130 00",
    "bluebird": "Project  Bluebird",
    "email": MAIL,
}
PROSE = "Some plain words before, and then some more of them; nothing in here is secret at all. "


def streamed(pieces: list[str], action: AnswerAction = "redact", field: str = "content") -> tuple[str, Any]:
    stream = guard(action).stream()
    data = b"".join(stream.feed(chunk({field: piece})) for piece in pieces) + stream.finish()
    return heard(data).get((0, field), ""), stream


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("before", [0, 1, 3, 8])
def test_a_secret_cut_at_any_byte_never_gets_out(name: str, before: int) -> None:
    secret = SECRETS[name]
    text = PROSE * before + secret + " " + PROSE * 5
    wanted = text.replace(secret, mask(name))
    step = max(1, len(secret) // 60)
    for place in range(0, len(secret) + 1, step):
        at = len(PROSE) * before + place
        told, stream = streamed([text[:at], text[at:]])
        assert told == wanted
        assert stream.patterns() == ((name, 1),)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([*SECRETS.values(), PROSE, PROSE * 4, "ü😀 ", "日本語" * 50, "\n"]), max_size=8),
    st.lists(st.integers(0, 6000), max_size=60),
)
def test_a_stream_cut_anywhere_tells_what_the_whole_answer_tells(parts: list[str], places: list[int]) -> None:
    text = " ".join(parts)
    whole = message_of(guard().whole(answer(content=text)).body)["content"]
    told, _ = streamed(cut(text, places))
    assert told == whole
    assert not any(secret in told for secret in SECRETS.values())


@pytest.mark.parametrize("name", SECRETS)
def test_a_stream_that_is_cut_off_has_told_nothing_of_the_secret(name: str) -> None:
    secret = SECRETS[name]
    text = PROSE * 4 + secret + " " + PROSE * 5
    told = ""
    stream = guard("refuse").stream()
    for character in text:
        told += heard(stream.feed(chunk({"content": character}))).get((0, "content"), "")
        if stream.refused:
            break
    assert stream.refused
    assert (PROSE * 4).startswith(told)
    assert stream.patterns() == ((name, 1),)
    assert stream.feed(chunk({"content": "more"})) == b""
    assert stream.finish() == b""


def test_a_refused_stream_does_not_end_well() -> None:
    stream = guard("refuse").stream()
    data = stream.feed(chunk({"content": CARD}) + chunk({}, finish="stop") + event({"choices": [], "usage": {}}))
    assert stream.refused
    assert all(choice["finish_reason"] is None for told in chunks(data) for choice in told["choices"])
    assert b"usage" not in data


def test_a_value_is_known_by_words_that_were_handed_out_long_before() -> None:
    told, _ = streamed(
        [PROSE * 10 + 'aws_secret_access_key = "', "a7Bx9QzK2mW4pT6vY8cD1fG3hJ5kL0nR7sU9wE2i", '" ' + PROSE]
    )
    assert told == PROSE * 10 + f'aws_secret_access_key = "{mask("aws_secret_key")}" ' + PROSE


def test_ordinary_text_is_held_back_by_no_more_than_the_bound() -> None:
    stream = guard().stream()
    fed = heard_so_far = 0
    for word in (PROSE * 40).split(" "):
        fed += len(word) + 1
        heard_so_far += sum(map(len, heard(stream.feed(chunk({"content": word + " "}))).values()))
        assert fed - heard_so_far <= HOLD_BYTES + 20
    assert CONTEXT_BYTES <= HOLD_BYTES


def test_a_secret_without_end_cuts_the_stream_instead_of_filling_the_memory() -> None:
    stream = guard().stream()
    told = heard(stream.feed(chunk({"content": PROSE + "-----BEGIN RSA PRIVATE KEY-----\n"})))
    for _ in range(HELD_MAX // 1000 + 2):
        told |= heard(stream.feed(chunk({"content": "MIIEpAIBA\n" * 100})))
    assert stream.refused
    assert "MII" not in str(told)


def test_numbers_in_streamed_arguments_are_masked_as_strings() -> None:
    arguments = '{"said": "a \\"quote\\" ' + CARD + '", "n": 4111111111111111, "path": "c:\\\\", "s": "' + SSN + '"}'
    for places in ([], list(range(200)), list(range(0, 200, 7))):
        stream = guard().stream()
        data = b"".join(
            stream.feed(chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}))
            for piece in cut(arguments, places)
        )
        told = json.loads(heard(data + stream.finish())[0, "tool", 0])
        assert told["n"] == mask("credit_card")
        assert told["said"] == 'a "quote" ' + mask("credit_card")
        assert told["s"] == mask("ssn")


def test_tokens_are_not_told_beside_the_text() -> None:
    stream = guard().stream()
    data = stream.feed(chunk({"content": "a"}, logprobs={"content": [{"token": CARD}]})) + stream.finish()
    assert CARD.encode() not in data
    assert heard(data)[0, "content"] == "a"


def test_what_is_no_chunk_passes() -> None:
    assert guard().stream().feed(b": ping\n\n") == b": ping\n\n"
    redactor = Redactor(())
    redactor.placeholder("email", MAIL)
    assert StreamRestorer(redactor).feed(b'data: {"error": 1}\n\n') == b'data: {"error": 1}\n\n'


def spelled(value: Any, places: list[int]) -> str:
    """JSON text in which some of the characters of strings are written as escapes nobody needs."""
    numbers, count = set(places), itertools.count()

    def escaped(found: re.Match[str]) -> str:
        character = found[0]
        if len(character) > 1 or not (character.isascii() and character.isprintable()) or next(count) not in numbers:
            return character
        return r"\/" if character == "/" else f"\\u{ord(character):04X}"

    def string(found: re.Match[str]) -> str:
        return '"' + re.sub(r"\\.|.", escaped, found[0][1:-1], flags=re.DOTALL) + '"'

    return re.sub(r'"(?:\\.|[^"\\])*"', string, json.dumps(value, ensure_ascii=False))


def called(pieces: list[str], *, json_content: bool = False) -> tuple[str, str]:
    """Arguments of a tool, then content, both in these pieces, as a guarded stream tells them."""
    stream = guard().stream(json_content=json_content)
    data = b"".join(
        stream.feed(chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})) for piece in pieces
    )
    data += b"".join(stream.feed(chunk({"content": piece})) for piece in pieces) + stream.finish()
    told = heard(data)
    return told.get((0, "tool", 0), ""), told.get((0, "content"), "")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(["AKIAIOSFODNN7EXAMPLX", CARD, SSN, MAIL, PEM, PROSE * 4, 'ü😀 "\\', "\\\\u0041", "\n\t"]),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.integers(0, 3000), max_size=20),
    st.lists(st.integers(0, 6000), max_size=40),
)
@example([CARD, "AKIAIOSFODNN7EXAMPLX", MAIL], list(range(40)), list(range(200)))
def test_escapes_hide_nothing_in_the_arguments_a_stream_tells(
    parts: list[str], escapes: list[int], places: list[int]
) -> None:
    text = spelled({"q": " ".join(parts), "n": [1, {"deep": parts[0]}]}, escapes)
    whole = guard().whole(
        answer(content=text, tool_calls=[{"function": {"name": "f", "arguments": text}}]), json_content=True
    )
    message = message_of(whole.body)
    wanted = json.loads(message["tool_calls"][0]["function"]["arguments"])
    assert wanted == json.loads(message["content"])
    arguments, content = called(cut(text, places), json_content=True)
    assert json.loads(arguments) == json.loads(content) == wanted
    for secret in (CARD, SSN, MAIL, PEM, "AKIAIOSFODNN7EXAMPLX"):
        assert secret not in json.dumps(json.loads(arguments))
        assert secret not in str(json.loads(arguments))


def test_masked_content_that_is_json_stays_json() -> None:
    text = '{"card": 4111111111111111, "mail": "alice\\u0040example.com"}'
    wanted = {"card": mask("credit_card"), "mail": mask("email")}
    whole = guard().whole(answer(content=text), json_content=True)
    assert json.loads(message_of(whole.body)["content"]) == wanted
    assert json.loads(called(list(text), json_content=True)[1]) == wanted


def test_arguments_that_are_no_json_are_looked_at_as_they_are() -> None:
    text = rf"run C:\users\u0041 for {CARD}"
    assert called(list(text))[0].replace('"', "") == text.replace(CARD, mask("credit_card"))
