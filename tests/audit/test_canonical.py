from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import canonical

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
keys = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="\\"), max_size=8)
values = st.recursive(
    texts, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
objects = st.dictionaries(keys, values, max_size=6)


@given(objects)
@settings(max_examples=300, deadline=None)
def test_the_form_is_that_of_rfc_8785_and_reads_back(value):
    data = canonical.encode(value)
    assert data == rfc8785.dumps(value)
    assert json.loads(data) == value
    assert canonical.is_canonical(data)


def test_every_character_is_escaped_as_rfc_8785_has_it():
    value = {"a": "".join(map(chr, [*range(0x800), 0x2028, 0x2029, 0xFEFF, 0xFFFD, 0x1F600])), "b": ["\x7f\x00"]}
    assert canonical.encode(value) == rfc8785.dumps(value)
    assert canonical.encode_strings(value) == rfc8785.dumps(value)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (2**63, "9223372036854775808"),
        (-5, "-5"),
        (True, "true"),
        (False, "false"),
        (0.1, "0.1"),
        (1e400, "inf"),
        (Decimal("1E+3"), "1000"),
        (Decimal("0.000000000001"), "0.000000000001"),
        (datetime(2026, 11, 5, 10, 30, tzinfo=timezone(timedelta(hours=1))), "2026-11-05T09:30:00.000000Z"),
        (datetime(2026, 11, 5, 9, 30, 1, 42, tzinfo=UTC), "2026-11-05T09:30:01.000042Z"),
        (date(2026, 11, 5), "2026-11-05"),
    ],
)
def test_values_become_strings(value, written):
    expected = {"in": {"a": [written]}, "value": written}
    assert json.loads(canonical.encode({"value": value, "in": {"a": (value,)}})) == expected


def test_none_is_left_out_of_objects_and_keeps_its_place_in_arrays():
    assert canonical.encode({"a": None, "b": [None, {"c": None}]}) == b'{"b":["null",{}]}'


def test_lone_surrogates_are_replaced():
    assert (
        canonical.encode({"a": "x\ud800y", "b": [{"c": "\udfff"}]}) == '{"a":"x\ufffdy","b":[{"c":"\ufffd"}]}'.encode()
    )
    assert canonical.encode_strings({"a": "\ud83d"}) == '{"a":"\ufffd"}'.encode()


def test_keys_are_ascii_and_two_different_keys_stay_different():
    data = canonical.encode({"é": "1", "\\xe9": "2", "in": {"\U0001f600": "3", "\ud800": "4", 5: "5"}})
    assert data.isascii()
    read = json.loads(data)
    assert sorted(read) == ["\\\\xe9", "\\xe9", "in"]
    assert sorted(read["in"].values()) == ["3", "4", "5"]


def test_what_has_no_form_is_refused():
    with pytest.raises(TypeError):
        canonical.encode({"a": object()})
    with pytest.raises(TypeError):
        canonical.encode({"a": [b"bytes"]})


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":"1" }',
        b'{"b":"1","a":"2"}',
        b'{"a":"1","a":"1"}',
        b'{"a":1}',
        b'{"a":true}',
        b'{"a":null}',
        b'{"a":"\\u0041"}',
        b'{"a":"\\/"}',
        b'{"a":"\\u000A"}',
        '{"é":"1"}'.encode(),
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'["a"]',
        b'"a"',
        b"",
        b'{"a":' + b"[" * 100_000,
        b'\xef\xbb\xbf{"a":"1"}',
    ],
)
def test_other_forms_are_not_canonical(data):
    assert not canonical.is_canonical(data)
