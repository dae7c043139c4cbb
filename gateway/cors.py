"""Cross-origin rules of the `/v1` paths: which browser pages may call, which headers they may send and read.

Pure functions over header bytes. `origins` is `SettingsDoc.cors_origins`: exact origins, or "*" for every page. No
answer ever allows cookies, so a page can only use a key it already holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

MAX_AGE_S = 600
METHODS = b"GET, POST, PUT, DELETE, HEAD, OPTIONS"
REQUEST_HEADERS = (
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"x-goog-api-key",
    b"content-type",
    b"accept",
    b"idempotency-key",
    b"x-request-id",
    b"traceparent",
    b"user-agent",
)
# The SDKs invent names under these prefixes, so each asked-for name is allowed by its prefix.
REQUEST_HEADER_PREFIXES = (b"x-stainless-", b"x-hoosh-", b"anthropic-", b"openai-")
EXPOSED_HEADERS = (
    b"x-request-id, x-hoosh-request, x-hoosh-config, x-hoosh-route, x-hoosh-tokens-available, "
    b"x-hoosh-tokens-needed, x-hoosh-usd-available, x-hoosh-usd-needed, x-hoosh-output-limit, x-hoosh-audit, "
    b"x-hoosh-dropped-params, x-hoosh-decision, x-hoosh-cache, x-hoosh-similarity, x-hoosh-context, x-hoosh-queue-ms, "
    b"x-hoosh-idempotent-replay, age, retry-after, x-should-retry, x-ratelimit-limit-requests, "
    b"x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, "
    b"x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
_MAX_ASKED = 64  # names in one Access-Control-Request-Headers that are looked at
_TOKEN = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]{1,64}\Z")
_ANY = (b"access-control-allow-origin", b"*")
_EXPOSE = (b"access-control-expose-headers", EXPOSED_HEADERS)
_VARY = (b"vary", b"Origin")


def allowed_origin(origins: Iterable[str], origin: bytes) -> bytes | None:
    """The value for Access-Control-Allow-Origin that lets a page from `origin` read the answer, or None."""
    if not origin:
        return None
    wanted = origin.decode("latin-1").lower().rstrip("/")
    for entry in origins:
        if entry == "*":
            return b"*"
        if wanted != "null" and entry.lower().rstrip("/") == wanted:
            return origin
    return None


def reply_headers(origins: Iterable[str], origin: bytes) -> Headers:
    """Headers to add to any answer on a `/v1` path; empty when the request names no origin (not a browser page)."""
    if not origin:
        return []
    allowed = allowed_origin(origins, origin)
    if allowed == b"*":
        return [_ANY, _EXPOSE]
    if allowed is None:
        return [_VARY]
    return [(b"access-control-allow-origin", allowed), _VARY, _EXPOSE]


def is_preflight(method: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether this is a browser's question before the real request (names in lower case, as ASGI gives them)."""
    if method != "OPTIONS":
        return False
    names = {name for name, _ in headers}
    return b"origin" in names and b"access-control-request-method" in names


def preflight(origins: Iterable[str], headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, Headers, bytes]:
    """The whole answer to OPTIONS on a `/v1` path: 204 always; without allow headers when the origin may not call."""
    origin, asked = b"", b""
    for name, value in headers:
        if name == b"origin":
            origin = value
        elif name == b"access-control-request-headers":
            asked = value
    allowed = allowed_origin(origins, origin)
    if allowed is None:
        return 204, [_VARY, (b"allow", METHODS)], b""
    reply: Headers = [
        (b"access-control-allow-origin", allowed),
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", _allowed_names(asked)),
        (b"access-control-max-age", b"%d" % MAX_AGE_S),
        (b"vary", b"Origin, Access-Control-Request-Headers"),
    ]
    return 204, reply, b""


def _allowed_names(asked: bytes) -> bytes:
    names = dict.fromkeys(REQUEST_HEADERS)
    for raw in asked.split(b",", _MAX_ASKED)[:_MAX_ASKED]:
        name = raw.strip().lower()
        if name.startswith(REQUEST_HEADER_PREFIXES) and _TOKEN.match(name):
            names[name] = None
    return b", ".join(names)
