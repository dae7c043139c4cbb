"""What providers of the OpenAI API do differently in requests, applied from what the catalogue declares of them.

Only requests that carry such a field come here, and those that were translated from another API; every other one keeps
its bytes.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

from providers.adapters import params
from providers.canonical import Call, Target
from providers.catalog import Kind

_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_any = msgspec.json.Decoder().decode


def is_odd(call: Call, kind: Kind) -> bool:
    """Whether a chat has fields of which nothing is known, for a provider that refuses such."""
    return bool(kind.only) and call.endpoint == "chat" and not call.fields <= kind.known


def applied(call: Call, target: Target) -> tuple[Call, tuple[str, ...]]:
    """The call as the provider understands it, and the fields that were left out for it, if they said anything.

    Raises `UnsupportedParamError`.
    """
    kind = target.kind
    values = _decode_fields(call.body)
    dropped = []
    changed = False
    others = call.fields - kind.known if is_odd(call, kind) else frozenset()
    for name in sorted(kind.quirks & call.fields | others):
        value = _decode_any(values[name])
        if name in kind.renamed:
            values[kind.renamed[name]] = values.pop(name)
            changed = True
        elif name == "tool_choice" and kind.tool_choices:
            word = kind.tool_choices.get(value) if isinstance(value, str) else None
            if word is not None:
                values[name] = msgspec.Raw(_encode(word))
                changed = True
        rule = kind.params.get(name, params.DROP if name in others else "")
        says_something = value is not None and not params.is_default(name, value)
        if not rule or (rule == params.PASS and says_something):
            continue
        if says_something:
            if target.strict and rule == params.REFUSE:
                raise params.unsupported(name, target)
            dropped.append(name)
        values.pop(name, None)
        changed = True
    if not changed:
        return call, ()
    body = _encode(values)
    return msgspec.structs.replace(call, body=body, fields=frozenset(values)), tuple(dropped)


def with_fitting_ids(call: Call, pattern: str) -> Call:
    """The call with tool call ids that the provider takes. Those of other providers may not be: they become others, the
    same for the same id."""
    fits = re.compile(pattern)
    doc = _decode_any(call.body)
    changed = False
    for message in doc["messages"]:
        calls = message.get("tool_calls")
        holders = [(each, "id") for each in calls if isinstance(each, dict)] if isinstance(calls, list) else []
        for holder, name in (*holders, (message, "tool_call_id")):
            id = holder.get(name)
            if isinstance(id, str) and not fits.fullmatch(id):
                holder[name] = _short(id)
                changed = True
    return msgspec.structs.replace(call, body=_encode(doc)) if changed else call


def _short(id: str) -> str:
    """Nine letters and digits."""
    return hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:9]


# What the canonical form carries for other providers, and servers that know only the API's own fields may refuse.
_OF_OTHERS = frozenset({"reasoning_content", "reasoning_details", "extra_content", "is_error", "cache_control"})


def is_foreign(body: bytes) -> bool:
    """Whether a body of the OpenAI API may hold what an earlier answer, by another provider, told its client."""
    return b'"reasoning_content"' in body or b'"reasoning_details"' in body or b'"extra_content"' in body


def plain(call: Call) -> Call:
    """The call with nothing in its messages and tools but what the OpenAI API itself documents.

    Images in the result of a tool, which that API does not take there, follow in a user message behind the results.
    """
    doc = _decode_any(call.body)
    messages: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for message in doc["messages"]:
        told = _stripped(message)
        if told["role"] == "tool":
            told["content"] = _text_of_result(told.get("content"), images)
        elif images:
            messages.append({"role": "user", "content": images})
            images = []
        messages.append(told)
    if images:
        messages.append({"role": "user", "content": images})
    doc["messages"] = messages
    if isinstance(doc.get("tools"), list):
        doc["tools"] = [_without(tool) for tool in doc["tools"]]
    return msgspec.structs.replace(call, body=_encode(doc))


def _stripped(message: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = _without(message)
    if isinstance(content := told.get("content"), list):
        told["content"] = [_without(part) for part in content]
    if isinstance(calls := told.get("tool_calls"), list):
        told["tool_calls"] = [_without(call) for call in calls]
    return told


def _without(value: Any) -> Any:
    return {name: item for name, item in value.items() if name not in _OF_OTHERS} if isinstance(value, dict) else value


def _text_of_result(content: Any, images: list[dict[str, Any]]) -> Any:
    if not isinstance(content, list):
        return content
    texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    others = [part for part in content if isinstance(part, dict) and part.get("type") != "text"]
    images += others
    return "\n".join(texts) or ("See the attachment below." if others else "")
