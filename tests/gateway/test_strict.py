"""Strict JSON: what is refused, what passes, and that what passes is not changed."""

from __future__ import annotations

import json

import pytest

from gateway import strict
from gateway.errors import BadRequestError

PLAIN = {"model": "m", "messages": [{"role": "user", "content": 'hé \u2028 😀 "quoted": yes\n'}], "temperature": 0.7}
TOOLS = {
    "model": "m",
    "tools": [
        {"type": "function", "function": {"name": "f", "parameters": {"properties": {"model": {}, "stream": {}}}}},
        {"type": "function", "function": {"name": "g", "parameters": {"properties": {"model": {"n": 1}}}}},
    ],
    "messages": [{"role": "user", "content": 'the "model": and "stream":true, {"max_tokens":5}'}],
}

REFUSED = {
    "empty": b"",
    "blank": b" \n",
    "array": b"[1]",
    "text": b'"x"',
    "number": b"1",
    "null": b"null",
    "truncated": b'{"a":1',
    "two documents": b'{"a":1}{"a":1}',
    "trailing comma": b'{"a":1,}',
    "single quotes": b"{'a':1}",
    "comment": b'{"a":1}//x',
    "nan": b'{"a":NaN}',
    "infinity": b'{"a":[-Infinity]}',
    "1e400": b'{"a":{"b":1e400}}',
    "-1e400": b'{"a":-1e400}',
    "5000 digits": b'{"a":' + b"9" * 5000 + b"}",
    "5000 digits in a float": b'{"a":' + b"9" * 5000 + b".5}",
    "leading zero": b'{"a":01}',
    "plus sign": b'{"a":+1}',
    "deep arrays": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "high surrogate alone": rb'{"a":"\ud800"}',
    "low surrogate alone": rb'{"a":"\udc00 x"}',
    "surrogates in the wrong order": rb'{"a":"\ude00\ud83d"}',
    "surrogate in a key": rb'{"\ud800":1}',
    "surrogate as UTF-8": b'{"a":"\xed\xa0\x80"}',
    "overlong": b'{"a":"\xc0\xaf"}',
    "latin-1": b'{"a":"caf\xe9"}',
    "latin-1 in a key": b'{"caf\xe9":1}',
    "NUL": b'{"a":"\x00"}',
    "NUL behind": b'{"a":1}\x00',
    "control character": b'{"a":"\x01"}',
    "BOM": b'\xef\xbb\xbf{"a":1}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "UTF-16 without a mark": '{"a":1}'.encode("utf-16-le"),
    "UTF-32": '{"a":1}'.encode("utf-32"),
    "model twice": b'{"model":"a","model":"b"}',
    "model twice, alike": b'{"model":"a","model":"a"}',
    "twice with spaces": b'{"model" : "a", "x":1, "model" : "b"}',
    "max_tokens twice": b'{"max_tokens":1,"a":{"b":[1,2]},"max_tokens":100000}',
    "escaped twin": rb'{"model":"a","m\u006fdel":"b"}',
    "both escaped": rb'{"m\u006fdel":"a","mod\u0065l":"b"}',
    "escaped stream": b'{"str\\u0065am":false,"stream":true}',
    "unknown key twice": b'{"foo":1,"foo":2}',
    "nested twice": b'{"messages":[{"role":"user","content":"a","content":"b"}]}',
    "deeply nested twice": b'{"a":[{"b":{"c":1,"d":2,"c":3}}]}',
    "twin hidden behind an escaped quote": rb'{"a":1,"a":2,"b":"x\u0022: y"}',
    "twin hidden behind an escaped colon": rb'{"a":1,"a":2,"b":"\u003a y"}',
    "empty key twice": b'{"":1,"":2}',
    "capital": b'{"Model":"b"}',
    "capitals beside": b'{"max_tokens":5,"MAX_TOKENS":5000}',
    "kelvin sign": '{"max_to\u212aens":5000}'.encode(),
    "long s": '{"\u017ftream":true}'.encode(),
}

ACCEPTED = {
    "compact": json.dumps(PLAIN, separators=(",", ":"), ensure_ascii=False).encode(),
    "default of Python": json.dumps(PLAIN).encode(),
    "default of Python, not ASCII": json.dumps(PLAIN, ensure_ascii=False).encode(),
    "indented": json.dumps(PLAIN, indent=2).encode(),
    "white space around": b' \r\n{"a" :\t1 } \n',
    "guarded names nested": json.dumps(TOOLS).encode(),
    "guarded names nested, compact": json.dumps(TOOLS, separators=(",", ":")).encode(),
    "same key in siblings": b'{"a":[{"x":1},{"x":1}],"b":{"x":1}}',
    "case differs, not guarded": b'{"foo":1,"Foo":2}',
    "case differs, nested": b'{"a":{"model":1,"Model":2}}',
    "odd floats": b'{"a":0.70,"b":1E5,"c":-0.0,"d":1.0000000000000000000001,"e":1e-400}',
    "big integer": b'{"seed":' + b"9" * 400 + b"}",
    "escaped slash": rb'{"a":"http:\/\/x"}',
    "escaped pair": rb'{"a":"\ud83d\ude00"}',
    "escaped NUL": rb'{"a":"\u0000"}',
    "escaped backslash before u": rb'{"a":"\\ud800 \\u0022:"}',
    "escaped quote before a colon": rb'{"a":"x\u0022: y", "b":"\u003a"}',
    "colons in strings": b'{"a":":","b":"\\":","c":[":x"]}',
    "HTML-safe escapes": rb'{"a":"\u003cb\u003e \u0026"}',
    "escaped accents": rb'{"a":"\u00e9\u00E8"}',
    "not nested too deeply": b'{"a":' + b"[" * 100 + b"]" * 100 + b"}",
    "empty object": b"{}",
    "no-break space in a key": '{"a\u00a0b":1}'.encode(),
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequestError) as caught:
        strict.check(body)
    assert caught.value.status == 400
    assert caught.value.message.endswith(".")
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("body", ACCEPTED.values(), ids=ACCEPTED)
def test_what_can_be_read_in_one_way_passes_byte_for_byte(body: bytes) -> None:
    doc, sent = strict.load(body)
    assert sent is body
    assert doc == json.loads(body)


def test_keys_spelled_with_escapes_are_sent_literally() -> None:
    sent = strict.check(rb'{"m\u006fdel": "a", "x": "\u00e9"}')
    assert sent == '{"model":"a","x":"é"}'.encode()


def test_a_key_given_twice_is_named() -> None:
    with pytest.raises(BadRequestError, match="'stream' is given twice") as caught:
        strict.check(b'{"stream":true,"a":{},"stream":false}')
    assert caught.value.param == "stream"


def test_a_large_body_of_empty_arrays_is_refused_before_it_is_decoded() -> None:
    body = b'{"a":[' + b"[]," * 1_000_001 + b"1]}"
    with pytest.raises(BadRequestError, match="too many arrays"):
        strict.check(body)
    assert strict.check(b'{"a":"' + b"[" * 900_000 + b'"}')
