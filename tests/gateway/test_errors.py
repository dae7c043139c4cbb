"""What a caller is told when a request fails, and which failures become which."""

from __future__ import annotations

import json

import pytest

from gateway import errors
from providers.adapters import problems
from providers.canonical import UpstreamProblem

SIMPLE = [
    (errors.BadRequestError, 400, "invalid_request_error"),
    (errors.UnauthorizedError, 401, "authentication_error"),
    (errors.ForbiddenError, 403, "permission_error"),
    (errors.NotFoundError, 404, "not_found_error"),
    (errors.RequestTimeoutError, 408, "invalid_request_error"),
    (errors.UnsupportedMediaError, 415, "invalid_request_error"),
    (errors.BudgetExceededError, 429, "insufficient_quota"),
    (errors.RateLimitedError, 429, "rate_limit_error"),
    (errors.UpstreamCredentialError, 502, "upstream_error"),
    (errors.UpstreamBadReplyError, 502, "upstream_error"),
    (errors.UpstreamTimeoutError, 504, "upstream_error"),
    (errors.GatewayUnavailableError, 503, "server_error"),
]


@pytest.mark.parametrize(("kind", "status", "type_"), SIMPLE, ids=[item[0].__name__ for item in SIMPLE])
def test_each_error_has_a_status_a_type_a_code_and_words(
    kind: type[errors.GatewayError], status: int, type_: str
) -> None:
    exc = kind()
    told = json.loads(errors.to_openai(exc))
    assert list(told) == ["error"]
    assert list(told["error"]) == ["message", "type", "param", "code"]
    assert (exc.status, told["error"]["type"]) == (status, type_)
    assert told["error"]["code"]
    assert told["error"]["message"] == exc.message == str(exc)
    assert exc.message.endswith(".")


def test_what_is_given_replaces_what_the_class_says() -> None:
    exc = errors.BadRequestError("No.", param="n", code="c", type="t", status=418, extra_headers=((b"x-a", b"1"),))
    assert json.loads(errors.to_openai(exc)) == {"error": {"message": "No.", "type": "t", "param": "n", "code": "c"}}
    assert exc.status == 418
    assert exc.headers == [(b"content-type", b"application/json"), (b"x-a", b"1")]
    assert errors.BadRequestError().status == 400


@pytest.mark.parametrize(("seconds", "header"), [(0.0, b"1"), (0.2, b"1"), (1.0, b"1"), (1.01, b"2"), (30, b"30")])
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, header: bytes) -> None:
    assert dict(errors.RateLimitedError(retry_after_s=seconds).headers)[b"retry-after"] == header


def test_a_spent_budget_tells_clients_not_to_retry() -> None:
    assert dict(errors.BudgetExceededError().headers)[b"x-should-retry"] == b"false"
    assert b"x-should-retry" not in dict(errors.RateLimitedError().headers)
    assert dict(errors.RateLimitedError(should_retry=True).headers)[b"x-should-retry"] == b"true"


def test_http_gets_the_headers_it_asks_for() -> None:
    assert (b"www-authenticate", b"Bearer") in errors.UnauthorizedError().headers
    refused = errors.MethodNotAllowedError("GET", ("POST", "OPTIONS"))
    assert (b"allow", b"POST, OPTIONS") in refused.headers
    assert refused.status == 405
    assert errors.PayloadTooLargeError(1024).status == 413
    assert "1024 bytes" in errors.PayloadTooLargeError(1024).message


def test_an_unknown_model_is_named_and_cut() -> None:
    exc = errors.ModelNotFoundError("x" * 5000)
    assert (exc.status, exc.param, exc.code) == (404, "model", "model_not_found")
    assert len(exc.message) < 500


def test_the_frame_in_a_stream_is_one_event_with_the_same_object() -> None:
    exc = errors.UpstreamBadReplyError("It broke\n\ndata: [DONE]\n\n\u2028.")
    frame = errors.in_band(exc)
    assert frame.startswith(b"data: {")
    assert frame.count(b"\n") == 2
    assert frame.endswith(b"}\n\n")
    assert frame[6:-2] == errors.to_openai(exc)


@pytest.mark.parametrize(
    ("reason", "status", "kind", "told"),
    [
        ("client", 400, errors.UpstreamRefusedError, 400),
        ("client", 404, errors.UpstreamRefusedError, 404),
        ("client", 422, errors.UpstreamRefusedError, 422),
        ("rate_limit", 429, errors.UpstreamRefusedError, 429),
        ("credential", 401, errors.UpstreamCredentialError, 502),
        ("credential", 403, errors.UpstreamCredentialError, 502),
        ("credential", 429, errors.UpstreamCredentialError, 502),
        ("overloaded", 503, errors.UpstreamBadReplyError, 502),
        ("server", 500, errors.UpstreamBadReplyError, 502),
        ("server", 504, errors.UpstreamTimeoutError, 504),
        ("server", 408, errors.UpstreamTimeoutError, 504),
        ("protocol", 200, errors.UpstreamBadReplyError, 502),
        ("cut", 200, errors.UpstreamBadReplyError, 502),
    ],
)
def test_problems_of_providers_become_errors(
    reason: str, status: int, kind: type[errors.GatewayError], told: int
) -> None:
    exc = errors.from_problem(problems.problem(reason, status=status, retry_after_s=7))
    assert type(exc) is kind
    assert exc.status == told
    assert exc.code
    if reason in ("rate_limit", "overloaded"):
        assert dict(exc.headers)[b"retry-after"] == b"7"


def test_a_refused_request_keeps_the_providers_words() -> None:
    problem = UpstreamProblem(422, "bad_value", "seed is odd", reason="client", type="some_error", param="seed")
    exc = errors.from_problem(problem)
    assert (exc.status, exc.message, exc.type, exc.code, exc.param) == (
        422,
        "seed is odd",
        "some_error",
        "bad_value",
        "seed",
    )


@pytest.mark.parametrize("kind", ["connect", "tls", "egress", "write", "reset", "protocol", "too_large", "unheard-of"])
def test_failed_connections_are_502(kind: str) -> None:
    exc = errors.from_transport(kind)
    assert (exc.status, type(exc)) == (502, errors.UpstreamBadReplyError)
    assert exc.code


@pytest.mark.parametrize("kind", ["first_byte_timeout", "gap_timeout", "total_timeout"])
def test_passed_deadlines_are_504(kind: str) -> None:
    assert errors.from_transport(kind).status == 504


def test_a_wrong_key_is_not_to_be_tried_again() -> None:
    assert (b"x-should-retry", b"false") in errors.UnauthorizedError().headers
