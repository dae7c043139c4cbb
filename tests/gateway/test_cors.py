"""Cross-origin answers on `/v1` paths."""

from __future__ import annotations

import pytest

from gateway import cors

PAGE = b"https://app.example"


def ask(origin: bytes = PAGE, headers: bytes = b"authorization, content-type") -> list[tuple[bytes, bytes]]:
    return [
        (b"host", b"gw.example"),
        (b"origin", origin),
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", headers),
    ]


def test_a_request_without_an_origin_gets_no_cors_headers():
    assert cors.reply_headers(("*",), b"") == []


def test_with_a_star_any_page_may_read_the_answer_but_never_with_cookies():
    headers = dict(cors.reply_headers(("*",), PAGE))
    assert headers[b"access-control-allow-origin"] == b"*"
    assert b"x-request-id" in headers[b"access-control-expose-headers"]
    assert b"access-control-allow-credentials" not in headers


def test_a_listed_origin_is_echoed_and_caches_are_told_that_it_varies():
    headers = dict(cors.reply_headers(("https://other.example", "https://APP.example/"), PAGE))
    assert headers[b"access-control-allow-origin"] == PAGE
    assert headers[b"vary"] == b"Origin"


@pytest.mark.parametrize(
    "origin", [b"https://app.example.evil", b"http://app.example", b"https://app.example:8443", b"null", b"\xff"]
)
def test_an_origin_that_is_not_listed_gets_no_allow_header(origin):
    headers = dict(cors.reply_headers(("https://app.example", "null"), origin))
    assert b"access-control-allow-origin" not in headers
    assert headers[b"vary"] == b"Origin"


def test_without_any_listed_origin_no_page_may_call():
    assert b"access-control-allow-origin" not in dict(cors.preflight((), ask())[1])


def test_a_preflight_is_recognised_and_a_plain_options_request_is_not():
    assert cors.is_preflight("OPTIONS", ask())
    assert not cors.is_preflight("POST", ask())
    assert not cors.is_preflight("OPTIONS", [(b"origin", PAGE)])


def test_a_preflight_is_answered_with_204_and_the_headers_every_client_needs():
    status, headers, body = cors.preflight(("*",), ask())
    told = dict(headers)
    assert (status, body) == (204, b"")
    names = told[b"access-control-allow-headers"].split(b", ")
    assert {b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"content-type"} <= set(names)
    assert b"POST" in told[b"access-control-allow-methods"]
    assert int(told[b"access-control-max-age"]) > 0


def test_sdk_headers_are_allowed_by_prefix_and_others_are_left_out():
    asked = b"X-Stainless-Retry-Count, anthropic-version, x-evil, x-stainless-bad\r\nset-cookie: a=b"
    names = dict(cors.preflight(("*",), ask(headers=asked))[1])[b"access-control-allow-headers"].split(b", ")
    assert b"x-stainless-retry-count" in names
    assert b"anthropic-version" in names
    assert b"x-evil" not in names
    assert not any(b"\r" in name or b"set-cookie" in name for name in names)


def test_a_preflight_with_thousands_of_names_stays_small():
    asked = b",".join(b"x-stainless-%d" % number for number in range(5000))
    told = dict(cors.preflight(("*",), ask(headers=asked))[1])
    assert len(told[b"access-control-allow-headers"].split(b", ")) <= 64 + len(cors.REQUEST_HEADERS)


def test_a_preflight_from_a_foreign_page_gets_204_without_permission():
    status, headers, _ = cors.preflight(("https://other.example",), ask())
    assert status == 204
    assert b"access-control-allow-origin" not in dict(headers)
