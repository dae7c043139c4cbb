"""Paths and methods of the APIs that nobody serves here: told in the shape of the API they belong to, by the worker."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest

from gateway.api import urls
from gateway.app import PATTERN
from tests.gateway.harness import KEY, GatewayServer, provider, route
from tests.gateway.matrix_clients import CLIENTS
from tests.upstream import FaultUpstream

ANTHROPIC = {"anthropic-version": "2023-06-01"}
GOOGLE = {"x-goog-api-key": KEY}

UNSERVED: dict[str, list[tuple[str, str, dict[str, str]]]] = {
    "ollama_chat": [
        *(("POST", f"/api/{name}", {}) for name in ("pull", "push", "create", "copy", "web_search", "chat/x", "me")),
        ("DELETE", "/api/delete", {}),
        ("HEAD", "/api/blobs/sha256:29fdb92e57cf0827ded04ae6461b5931d01fa595843f55d36f5b275a52087dd2", {}),
        ("POST", "/api/blobs/sha256:29fdb92e57cf0827ded04ae6461b5931d01fa595843f55d36f5b275a52087dd2", {}),
        ("GET", "/api/schemata", {}),
        ("GET", "/api/", ANTHROPIC),
    ],
    "gemini": [
        *(("GET", path, {}) for path in ("/v1beta/files", "/v1beta/files/x", "/v1beta/cachedContents", "/v1beta/")),
        ("POST", "/v1beta/cachedContents", {}),
        ("PATCH", "/v1beta/cachedContents/x", {}),
        ("POST", "/v1alpha/auth_tokens", {}),
        ("POST", "/upload/v1beta/files", {}),
        ("GET", "/download/v1beta/files/x:download", {}),
        ("POST", "/v1/models/m:unknownAction", {}),
        ("POST", "/v1/models/m:unknownAction", GOOGLE),
        ("POST", "/models/m:unknownAction", {}),
        ("POST", "/tunedModels/m:unknownAction", {}),
        ("GET", "/tunedModels", {}),
        ("POST", "/v1beta/models/m:batchGenerateContent", {}),
        ("POST", "/v1beta/models/m:asyncBatchEmbedContent", {}),
        ("GET", "/v1/operations/x", GOOGLE),
    ],
    "anthropic": [
        ("POST", "/v1/messages/batches", {}),
        ("GET", "/v1/messages/batches/b_1/results", {}),
        ("POST", "/v1/messages/count", {}),
        ("POST", "/v1/complete", {}),
        ("POST", "/v1/files", ANTHROPIC),
        ("GET", "/v1/skills", ANTHROPIC),
        ("GET", "/v1/organizations/me", {**ANTHROPIC, **GOOGLE}),
    ],
    "openai": [
        *(("POST", f"/v1/{name}", {}) for name in ("files", "batches", "moderations", "nothing", "chat/completion")),
        ("GET", "/v1/responses/resp_1", {}),
        ("POST", "/v1/responses/resp_1/cancel", {}),
        ("GET", "/v1/", {}),
        ("POST", "/openai/v1/files", {}),
        ("GET", "/openai/v1/nothing/at/all", {}),
        ("POST", "/v1beta/openai/chat/completions", {}),
    ],
}
CASES = [(name, *case) for name, cases in UNSERVED.items() for case in cases]


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with FaultUpstream() as up:
        directory = tmp_path_factory.mktemp("unserved")
        made = GatewayServer(directory, providers=[provider(1, up.url)], routes=[route(1)])
        made.binding = "worker"
        with made, httpx.Client(base_url=made.url, timeout=10) as client:
            yield client


@pytest.mark.parametrize(("name", "method", "path", "headers"), CASES, ids=[f"{one[1]} {one[2]}" for one in CASES])
def test_a_path_that_nobody_serves_is_not_found_in_the_shape_of_its_api(
    http: httpx.Client, name: str, method: str, path: str, headers: dict[str, str]
) -> None:
    reply = http.request(method, path, headers=headers)
    assert (reply.status_code, reply.headers["content-type"]) == (404, "application/json")
    assert reply.headers["x-request-id"]
    if method == "HEAD":
        assert reply.content == b""
        return
    message = CLIENTS[name].error(reply.content, 404)
    assert message.startswith(f"There is nothing at '{path}'. Of ")
    told = reply.json()
    if name == "anthropic":
        assert told["error"]["type"] == "not_found_error"
        assert reply.headers["request-id"] == told["request_id"] == reply.headers["x-request-id"]
    elif name == "openai":
        assert told["error"]["code"] == "not_found"


def test_what_is_named_instead_is_served(http: httpx.Client) -> None:
    for name, path in (
        ("ollama_chat", "/api/pull"),
        ("gemini", "/v1beta/files"),
        ("anthropic", "/v1/complete"),
        ("openai", "/v1/files"),
    ):
        message = CLIENTS[name].error(http.request("POST", path).content, 404)
        named = re.findall(r"(/[\w/:]+?)(?=[,. ]|$)", message.partition(" Of ")[2])
        assert len(named) >= 3
        for one in named:
            statuses = {http.request(method, one.replace("MODEL", "m")).status_code for method in ("GET", "POST")}
            assert statuses <= {401, 405}
            assert 401 in statuses, one


def test_the_caller_is_not_asked_for_a_key_where_there_is_nothing(http: httpx.Client) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {KEY}"}):
        assert http.request("POST", "/api/pull", headers=headers).status_code == 404
        assert http.request("POST", "/api/tags", headers=headers).status_code == 405


WRONG = [
    ("ollama_chat", "GET", "/api/chat", {}, "POST"),
    ("ollama_chat", "DELETE", "/api/embed", {}, "POST"),
    ("ollama_chat", "POST", "/api/version", {}, "GET, HEAD"),
    ("ollama_chat", "GET", "/api/show", {}, "POST"),
    ("anthropic", "GET", "/v1/messages", {}, "POST"),
    ("anthropic", "GET", "/v1/messages/count_tokens", {}, "POST"),
    ("anthropic", "POST", "/v1/models", ANTHROPIC, "GET, HEAD"),
    ("anthropic", "DELETE", "/v1/models/m", ANTHROPIC, "GET, HEAD"),
    ("gemini", "GET", "/v1beta/models/m:generateContent", {}, "POST"),
    ("gemini", "DELETE", "/v1/models/m:countTokens", {}, "POST"),
    ("gemini", "POST", "/v1beta/models", {}, "GET, HEAD"),
    ("gemini", "DELETE", "/v1beta/models/m", {}, "GET, HEAD"),
    ("openai", "GET", "/v1/chat/completions", {}, "POST"),
    ("openai", "GET", "/v1/responses", {}, "POST"),
    ("openai", "DELETE", "/v1/models/ft:gpt-4o:org", {}, "GET, HEAD"),
]


@pytest.mark.parametrize(
    ("name", "method", "path", "headers", "allowed"), WRONG, ids=[f"{one[1]} {one[2]}" for one in WRONG]
)
def test_a_wrong_method_is_told_in_the_shape_of_the_api_with_the_right_ones(
    http: httpx.Client, name: str, method: str, path: str, headers: dict[str, str], allowed: str
) -> None:
    reply = http.request(method, path, headers=headers)
    assert (reply.status_code, reply.headers["allow"]) == (405, allowed)
    assert method in CLIENTS[name].error(reply.content, 405)


def test_a_model_whose_name_has_a_colon_is_still_a_model(http: httpx.Client) -> None:
    reply = http.request("GET", "/v1/models/llama3:8b", headers={"x-api-key": KEY})
    assert (reply.status_code, reply.json()["id"]) == (200, "llama3:8b")


@pytest.mark.parametrize("path", ["/api/blobs/sha256:00", "/upload/v1beta/files"])
def test_a_large_body_for_nobody_is_answered_all_the_same(http: httpx.Client, path: str) -> None:
    reply = http.request("POST", path, content=b"x" * 3_000_000)
    assert (reply.status_code, reply.headers["content-type"]) == (404, "application/json")


@pytest.mark.parametrize("path", ["/api/pull", "/v1/messages/batches", "/v1beta/files", "/upload/v1beta/files"])
def test_a_browser_may_ask_before_and_read_the_answer(http: httpx.Client, path: str) -> None:
    headers = {"origin": "https://page.example", "access-control-request-method": "POST"}
    assert http.request("OPTIONS", path, headers=headers).status_code == 204
    assert http.request("POST", path, headers=headers).headers["access-control-allow-origin"] == "*"


def _controls() -> list[str]:
    """Every path of control that a worker might take for one of an API."""
    routes = [str(pattern.pattern) for pattern in urls.urlpatterns if not str(pattern.pattern).startswith("^")]
    return [f"/{re.sub('<[^>]*>', 'x', route)}" for route in routes]


@pytest.mark.parametrize("headers", [{}, ANTHROPIC, GOOGLE], ids=["", "anthropic", "google"])
def test_what_is_controls_reaches_control_whoever_asks(http: httpx.Client, headers: dict[str, str]) -> None:
    paths = _controls()
    assert {"/v1/costs", "/v1/models/pull", "/api/schema/", "/metrics"} <= set(paths)
    for path in (*paths, "/admin/", "/admin/login/", "/api/schema", "/v1/tokens/nothing"):
        for method in ("GET", "POST"):
            reply = http.request(method, path, headers=headers)
            assert reply.text == f"control: {path}", path


def test_the_router_sends_the_paths_of_all_apis_to_the_worker_and_others_straight_to_control() -> None:
    for _, _, path, _ in CASES:
        assert re.match(PATTERN, path.removeprefix("/")), path
    for path in (*_controls(), "/admin/", "/api/schema", "/api", "/static/x.js", "/upload/x", "/v1betamax/x"):
        assert bool(re.match(PATTERN, path.removeprefix("/"))) == path.startswith("/v1/"), path


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/v1/health"])
def test_what_is_answered_from_memory_is_still_answered(http: httpx.Client, path: str) -> None:
    assert http.request("GET", path).status_code == 200
    told = json.loads(http.request("POST", path).content)
    assert told["error"]["code"] == "method_not_allowed"
