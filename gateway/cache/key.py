"""Which requests have one answer: the exact key of a call. Pure.

Two calls have the same key when they ask for the same thing, whatever the order of keys and the white space in their
JSON: same tenant, endpoint, model, dialect and body, less the fields that say nothing about the answer (`IGNORED`).
Numbers are told apart as they are decoded (1 and 1.0 are two requests), strings by every character, arrays by order.
A call in another dialect is known by what its client sent, not by its translation: nothing the translation leaves out
can make two calls one. So calls of different dialects never share an answer; a stream and a whole answer do.

The temperature plays no part: an operator who turns the cache on for a route accepts that a repeated request gets the
answer of the first one, however freely it was sampled. A caller who does not sends `Cache-Control: no-cache`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import msgspec

from gateway.dialects.reading import PRICE_ONLY
from providers.canonical import Call

TAG_BYTES = 8  # of a tenant, at the beginning of its keys
KEY_BYTES = TAG_BYTES + 32
BODY_MAX = 256 * 1024  # larger requests are not looked up: hashing them would hold up the loop
OUTPUTS_MAX = 8  # who asks for more answers at once wants variety

# Fields without meaning for the answer, and why.
IGNORED = frozenset(
    {
        "stream",  # how the answer is delivered; either form is made from the other
        "stream_options",  # whether the stream ends with a usage chunk; that is made as well
        "pool",  # who pays
        "user",  # for whom the caller asks: told to the provider for its abuse checks
        "safety_identifier",  # the same under its new name
        "metadata",  # labels for the provider's lists
        "store",  # whether the provider lists the answer (a call that wants that is not cached at all)
        "prompt_cache_key",  # which of the provider's machines may know the prompt
        "prompt_cache_retention",  # how long these remember it
    }
)
# The same in what clients sent in other dialects. Answers of the Responses API repeat their request: it has few.
_IGNORED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "anthropic": frozenset({"stream", "metadata"}),
        "gemini": frozenset({"labels"}),  # of the bill
        "ollama": frozenset({"stream", "pool", "keep_alive"}),  # the last: how long the model stays loaded
        "responses": frozenset({"stream", "stream_options", "pool"}),
    }
)
_PLAIN_FIELDS = frozenset({"stream", "pool"})  # of a dialect not listed

# Fields with which an answer depends on more than the request: searches, and what the provider keeps.
_OUTSIDE = frozenset(
    {
        "web_search_options",
        "web_search",
        "enable_search",
        "search_parameters",
        "plugins",
        "mcp_servers",
        "background",
        "conversation",
        "previous_response_id",
    }
)
_LOOKED_AT = _OUTSIDE | {"store", "modalities", "audio", "tools"}
_ONLINE = ":online"  # OpenRouter's ending of a model's name that is to search first
_CLIENT_TOOLS = (None, "function", "custom", "namespace")  # every other type of tool is run by the provider

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="deterministic").encode
_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


def key_of(call: Call, tenant: bytes, scope: bytes = b"") -> bytes | None:
    """The key of a call, `KEY_BYTES` long; None when its answer must not be kept, nor looked for.

    `tenant` is whom answers may be shared within (by default the caller's team); `scope` anything else that keeps
    answers apart, such as a route's own name for its part of the cache. Keys of one tenant begin with `tag_of(tenant)`.
    """
    if is_bound(call):
        return None
    material = call.native or call.body
    if len(material) > BODY_MAX:
        return None
    try:
        doc = _decode(material)
    except _ERRORS:
        return None
    if type(doc) is not dict or is_open(doc):
        return None
    for name in _IGNORED.get(call.dialect, _PLAIN_FIELDS) if call.native else IGNORED:
        doc.pop(name, None)
    head = b"%b\0%b\0%b\0%d %d %d\0" % (
        call.endpoint.encode(),
        call.dialect.encode(),
        call.model.encode(),
        len(tenant),
        len(scope),
        len(call.native_headers),
    )
    digest = hashlib.sha256(head + tenant + scope + call.native_headers)
    digest.update(_encode(doc))
    return tag_of(tenant) + digest.digest()


@lru_cache(maxsize=4096)
def tag_of(tenant: bytes) -> bytes:
    """What the keys of a tenant begin with, for purging them. It tells tenants apart for that only, not for reading."""
    return hashlib.sha256(b"tenant\0" + tenant).digest()[:TAG_BYTES]


def is_bound(call: Call) -> bool:
    """Whether the call's answer is bound to this one request, by what its parser noticed.

    It asks for many answers at once, for what only one provider's API has, or for tools that the provider runs.
    """
    return (
        call.n > OUTPUTS_MAX * max(1, call.messages if call.endpoint == "completions" else 1)
        or bool(call.native_only)
        or call.model.endswith(_ONLINE)
        or (bool(call.surcharge) and call.surcharge not in PRICE_ONLY)
        or (bool(call.dropped) and call.dialect == "responses" and any(map(_is_tool, call.dropped)))
    )


def is_open(doc: Mapping[str, Any]) -> bool:
    """Whether the answer to a body depends on more than the body, must be listed by the provider, or is no text."""
    if _LOOKED_AT.isdisjoint(doc):
        return False
    if doc.get("store") is True or doc.get("audio") is not None:
        return True
    if doc.get("modalities") not in (None, [], ["text"]):
        return True
    for name in _OUTSIDE:
        if doc.get(name) not in (None, False, [], {}):
            return True
    tools = doc.get("tools")
    return isinstance(tools, list) and any(
        isinstance(tool, dict) and tool.get("type") not in _CLIENT_TOOLS for tool in tools
    )


def _is_tool(name: str) -> bool:
    return name.startswith("tools.")
