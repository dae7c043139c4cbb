"""The adapter for Anthropic's Messages API, and for servers that speak it too. Formats: its public documentation.

Canonical calls are translated (`anthropic_request`, `anthropic_messages`), replies read back (`anthropic_reply`,
`anthropic_stream`). A caller who speaks this API itself is passed through in both directions: only the model, the
output limit and the gateway's own fields change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from providers.adapters import anthropic_reply as reply
from providers.adapters import params
from providers.adapters.anthropic_messages import THINKING
from providers.adapters.anthropic_request import DEFAULT_MAX_TOKENS, THINKING_MIN, Translated, translate
from providers.adapters.anthropic_stream import MessageReader, NativeReader
from providers.canonical import MAX_TOKENS, Answer, Call, Request, Target, UpstreamProblem

DIALECT = "anthropic"
VERSION = b"anthropic-version: 2023-06-01\r\n"  # the last version known to take the sampling parameters
FILES_BETA = b"anthropic-beta: files-api-2025-04-14\r\n"

Headers = Iterable[tuple[bytes, bytes]]

_NAMES_VERSION = re.compile(rb"(?i)(?:\A|\n)anthropic-version[ \t]*:")
# What counts as input; the token counter refuses the other fields.
_COUNTED = frozenset(
    {
        "model",
        "messages",
        "system",
        "tools",
        "tool_choice",
        "thinking",
        "output_config",
        "cache_control",
        "context_management",
        "mcp_servers",
        "speed",
    }
)

_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_any = msgspec.json.Decoder().decode

TOOL_RESULT, TOOL_USE = frozenset({"tool_result"}), frozenset({"tool_use"})


class Anthropic:
    """Requests to `/v1/messages` and what comes back."""

    local = False
    stream_types: tuple[bytes, ...] = (b"text/event-stream",)

    def build(self, call: Call, target: Target, limit: int | None) -> Request:
        """The request; `limit` as in `providers.adapters.Adapter`. A limit is always sent, as the API demands one.

        Raises `UnsupportedParamError`.
        """
        if _is_native(call):
            body, dropped = _spliced(call, target, limit)
            return Request(body, "messages", dropped, _native_headers(call))
        _only_chat(call, target)
        told = translate(call, target, limit)
        return Request(_encode(told.fields), "messages", told.dropped, _headers(told))

    def build_count(self, call: Call, target: Target) -> Request:
        """The request that asks the provider how many tokens the input of this call has.

        Raises `UnsupportedParamError` for content the provider cannot take; parameters do not matter.
        """
        if _is_native(call):
            values = _decode_fields(call.native)
            kept: dict[str, Any] = {name: value for name, value in values.items() if name in _COUNTED}
            if target.upstream_model:
                kept["model"] = target.upstream_model
            return Request(_encode(kept), "count", headers=_native_headers(call))
        _only_chat(call, target)
        told = translate(call, msgspec.structs.replace(target, strict=False), None)
        kept = {name: value for name, value in told.fields.items() if name in _COUNTED}
        return Request(_encode(kept), "count", headers=_headers(told))

    def read_unary(
        self, call: Call, status: int, headers: Headers, body: bytes, target: Target | None = None
    ) -> Answer:
        """Read a whole reply with status 2xx."""
        return reply.read(body, native=_is_native(call))

    def open_stream(self, call: Call, target: Target | None = None) -> MessageReader | NativeReader:
        """A reader for the reply to a streaming call."""
        return NativeReader() if _is_native(call) else MessageReader(wants_usage=call.wants_usage)

    def read_error(self, status: int, headers: Headers, body: bytes) -> UpstreamProblem:
        """Read a reply whose status is not 2xx."""
        return reply.error(status, headers, body)

    def read_count(self, body: bytes) -> int | None:
        """The number of input tokens a reply to `build_count` tells; None when it tells none."""
        told = reply.loads(body)
        number = told.get("input_tokens") if isinstance(told, dict) else None
        return number if type(number) is int and 0 <= number <= MAX_TOKENS else None


def _is_native(call: Call) -> bool:
    return call.dialect == DIALECT and bool(call.native)


def _only_chat(call: Call, target: Target) -> None:
    if call.endpoint != "chat":
        what = f"The provider ({target.kind.label}) answers chat requests only"
        raise params.unsupported("prompt" if call.endpoint == "completions" else "input", target, what)


def _headers(told: Translated) -> bytes:
    return VERSION + FILES_BETA if told.files else VERSION


def _native_headers(call: Call) -> bytes:
    given = call.native_headers
    return given if _NAMES_VERSION.search(given) else VERSION + given


def _spliced(call: Call, target: Target, limit: int | None) -> tuple[bytes, tuple[str, ...]]:
    """The caller's own body, every top-level value with its bytes but for the ones the gateway decides; what it lacks.

    A thinking budget is left out where the turn that is to go on was begun without thinking, by another provider: the
    API refuses it there.
    """
    values = _decode_fields(call.native)
    renamed = bool(target.upstream_model) and target.upstream_model != call.model
    asked = _whole(values.get("max_tokens"))
    if limit is None and asked is None:
        limit = call.limit or DEFAULT_MAX_TOKENS
    unthought = _has_budget(values) and _is_unthought(_decode_any(values.get("messages", b"[]")))
    if not renamed and not unthought and "pool" not in values and limit in (None, asked):
        return call.native, ()
    values.pop("pool", None)
    if unthought:
        values.pop("thinking")
    if renamed:
        values["model"] = msgspec.Raw(_encode(target.upstream_model))
    if limit is not None and limit != asked:
        values["max_tokens"] = msgspec.Raw(b"%d" % limit)
        _fit_budget(values, asked, limit)
    return _encode(values), ("thinking",) if unthought else ()


def _has_budget(values: dict[str, msgspec.Raw]) -> bool:
    thinking = _decode_any(values.get("thinking", b"null"))
    return isinstance(thinking, dict) and thinking.get("type") == "enabled"


def _is_unthought(turns: Any) -> bool:
    """Whether the results of tools go to an answer that holds no thinking."""
    if not isinstance(turns, list) or len(turns) < 2 or not _holds(turns[-1], "user", TOOL_RESULT):
        return False
    return _holds(turns[-2], "assistant", TOOL_USE) and not _holds(turns[-2], "assistant", THINKING)


def _holds(turn: Any, role: str, types: frozenset[str]) -> bool:
    if not isinstance(turn, dict) or turn.get("role") != role:
        return False
    content = turn.get("content")
    blocks = content if isinstance(content, list) else []
    return any(isinstance(block, dict) and block.get("type") in types for block in blocks)


def _fit_budget(values: dict[str, msgspec.Raw], asked: int | None, limit: int) -> None:
    """Keep a thinking budget that was below the caller's limit below the lower one: the API refuses it otherwise."""
    thinking = _decode_any(values.get("thinking", b"null"))
    if not isinstance(thinking, dict):
        return
    budget = thinking.get("budget_tokens")
    if type(budget) is int and asked is not None and limit <= budget < asked and limit > THINKING_MIN:
        values["thinking"] = msgspec.Raw(_encode({**thinking, "budget_tokens": limit - 1}))


def _whole(raw: msgspec.Raw | None) -> int | None:
    value = None if raw is None else _decode_any(raw)
    return value if type(value) is int else None
