"""Request bodies and replies of any content: a clear refusal or an exact reading, never another exception."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors, strict
from gateway.dialects import openai
from providers import adapters
from providers.canonical import Call, Target, parse_usage
from providers.catalog import CATALOG
from tests.fuzz.cases import cases

GUARDED = st.sampled_from(sorted(strict.GUARDED))
KEYS = (
    GUARDED
    | st.sampled_from(["a", "b", ":", '"', '":', "é", "\u2028", "", "role", "content", "type"])
    | st.text(max_size=3)
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**70), max_value=2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(["base64", '":', ":", "\\", "\\u0022:", "data:x"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=6)
STYLES = st.sampled_from(
    [
        {"separators": (",", ":"), "ensure_ascii": False},
        {"separators": (",", ":")},
        {},
        {"ensure_ascii": False},
        {"indent": 2},
        {"separators": (" , ", " : "), "ensure_ascii": False},
    ]
)
EDGES = st.sampled_from([0, 1, -1, 2**31, 2**63, 128, 129, 1.0, 0.5, True, "1", None, [], {}])
PARTS = st.sampled_from(
    [
        {"type": "text", "text": '"model":"x"'},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_id": "f"}},
        {"type": "odd", "model": "x"},
    ]
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "oracle"])},
        optional={"content": st.none() | st.text(max_size=9) | st.lists(PARTS, max_size=3), "model": VALUES},
    ),
    min_size=1,
    max_size=3,
)
NAMES = st.sampled_from(["m", "a/b:c", 'quo"te', "back\\slash", "größe"])
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "messages": MESSAGES,
    "prompt": st.sampled_from(["text", ["a", "b"], [1, 2], [[1], [2, 3]]]),
    "input": st.sampled_from(["text", ["a", "b"], [1, 2], [[1], [2, 3]]]),
    "stream": st.booleans(),
    "stream_options": st.none() | st.fixed_dictionaries({}, optional={"include_usage": st.booleans(), "x": VALUES}),
    "max_tokens": st.none() | st.integers(1, 9),
    "max_completion_tokens": st.none() | st.integers(1, 9),
    "n": st.integers(1, 3),
    "pool": st.none() | st.just("team"),
    "temperature": st.floats(0, 2),
    "encoding_format": st.sampled_from(["float", "base64", None]),
    "user": VALUES,
    "tools": st.lists(VALUES, max_size=2),
}


@st.composite
def bodies(draw: Any) -> dict[str, Any]:
    """A request with its fields in any order; some have one field spoiled."""
    names = draw(
        st.permutations(["model", "messages", "prompt", "input", *draw(st.sets(st.sampled_from(sorted(FIELDS))))])
    )
    doc = {name: draw(NAMES if name == "model" else FIELDS[name]) for name in dict.fromkeys(names)}
    if draw(st.integers(0, 3)) == 0:
        doc[draw(st.sampled_from(sorted(doc)))] = draw(EDGES | VALUES)
    return doc


class _TwiceError(Exception):
    pass


def exactly(body: bytes) -> Any:
    """The one value of a JSON text, by Python's own parser. Raises on everything that has none."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise _TwiceError
        return dict(pairs)

    def refuse(name: str) -> Any:
        raise ValueError(name)

    def finite(text: str) -> float:
        if math.isinf(number := float(text)):
            raise ValueError(text)
        return number

    value = json.loads(body.decode(), object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    json.dumps(value, ensure_ascii=False).encode()  # raises on lone surrogates
    return value


def lookalike(doc: Any) -> bool:
    """Whether a top-level key differs from a guarded one in case only."""
    return any(key not in strict.GUARDED and key.casefold() in strict.GUARDED for key in doc)


@cases(1200)
@given(DOCUMENTS, STYLES)
def test_a_body_with_one_meaning_passes_unchanged(doc: dict[str, Any], style: dict[str, Any]) -> None:
    body = json.dumps(doc, **style).encode()
    if lookalike(doc):
        with pytest.raises(errors.BadRequestError):
            strict.load(body)
    else:
        assert strict.load(body) == (doc, body)


@cases(2000)
@given(DOCUMENTS, STYLES, st.data())
def test_a_damaged_body_is_refused_or_has_one_meaning(doc: dict[str, Any], style: dict[str, Any], data: Any) -> None:
    body = bytearray(json.dumps(doc, **style).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        piece = st.sampled_from(
            [
                b'"',
                b"\\",
                b"\\u0061",
                b"\\u0022",
                b"\\ud800",
                b"1e999",
                b"NaN",
                b"\xff",
                b"\x00",
                b",",
                b"}",
                b'"a":1,',
                b'"":1,',
            ]
        )
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(piece)
    raw = bytes(body)
    try:
        expected = exactly(raw)
    except (ValueError, _TwiceError):
        expected = None
    if not isinstance(expected, dict) or lookalike(expected):
        with pytest.raises(errors.BadRequestError):
            strict.load(raw)
    else:
        loaded, sent = strict.load(raw)
        assert loaded == expected
        assert exactly(sent) == expected


@cases(1000)
@given(DOCUMENTS, STYLES, st.data())
def test_a_key_given_twice_is_refused_at_any_depth(doc: dict[str, Any], style: dict[str, Any], data: Any) -> None:
    key = data.draw(KEYS)
    name = data.draw(st.sampled_from([json.dumps(key), "".join(f"\\u{ord(char):04x}" for char in key).join('""')]))
    twice = f"{{{json.dumps(key)}:{json.dumps(data.draw(VALUES))},{name}:{json.dumps(data.draw(VALUES))}}}"
    body = json.dumps({**doc, "inner": [0, "MARK"]}, **style).replace('"MARK"', twice)
    if all(ord(char) < 0x10000 for char in key):
        with pytest.raises(errors.BadRequestError):
            strict.load(body.encode())


@cases(2000)
@given(
    bodies(),
    STYLES,
    st.sampled_from([openai.parse_chat, openai.parse_completions, openai.parse_embeddings]),
    st.sampled_from(["custom", "openai", "mistral"]),
    st.none() | st.integers(1, 50),
)
def test_what_is_sent_upstream_is_what_was_read(
    doc: dict[str, Any], style: dict[str, Any], parse: Callable[[bytes], Call], kind: str, limit: int | None
) -> None:
    try:
        call = parse(json.dumps(doc, **style).encode())
    except errors.BadRequestError:
        return
    # What a kind is declared not to honour has tests of its own.
    plain = dataclasses.replace(CATALOG[kind], params={}, only=frozenset(), renamed={}, tool_choices={})
    target = Target(plain, "up/stream")
    sent = exactly(adapters.get("openai_compatible").build(call, target, limit).body)
    wanted = call.limit if limit is None else limit
    field = target.kind.limit_field if call.endpoint == "chat" else "max_tokens"
    expected = {name: value for name, value in doc.items() if name != "pool"} | {"model": "up/stream"}
    if call.endpoint != "embeddings" and wanted is not None:
        expected = {
            name: value for name, value in expected.items() if name not in ("max_tokens", "max_completion_tokens")
        }
        expected[field] = wanted
    if not target.kind.stream_usage:
        expected.pop("stream_options", None)
    elif call.stream:
        expected["stream_options"] = {**(doc.get("stream_options") or {}), "include_usage": True}
    assert sent == expected
    assert call.media_bytes <= len(call.body)


@cases(1000)
@given(st.binary(max_size=40) | st.builds(lambda value: json.dumps(value).encode(), VALUES))
def test_nothing_a_provider_answers_raises(body: bytes) -> None:
    parse_usage(body)
    adapter = adapters.get("openai_compatible")
    for endpoint in ("chat", "embeddings"):
        answer = adapter.read_unary(Call(endpoint, "m", b"{}", encoding="base64"), 200, [], body)
        assert answer.problem is not None or json.loads(answer.body)
    for status in (400, 500):
        exc = errors.from_problem(adapter.read_error(status, [(b"retry-after", body)], body))
        json.loads(errors.to_openai(exc))
        assert exc.headers


@cases(500)
@given(st.binary(max_size=60))
@pytest.mark.parametrize("parse", [openai.parse_chat, openai.parse_completions, openai.parse_embeddings])
def test_bytes_that_are_no_request_are_refused(parse: Callable[[bytes], Call], body: bytes) -> None:
    with pytest.raises(errors.BadRequestError):
        parse(body)
