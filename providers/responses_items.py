"""Pieces of the OpenAI Responses API and their twins in the canonical form, each pair in both directions. Pure.

Shared by the dialect that clients of that API speak (`gateway.dialects.responses`) and the adapter that asks providers
over it (`providers.adapters.responses`). What has no twin gives None; the caller knows what that means for it. Formats:
the API's public documentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from providers.canonical import Usage

Json = dict[str, Any]

FORMAT = "openai-responses-v1"  # of encrypted reasoning, in `reasoning_details`
GAP = "\n\n"  # between the texts of several items or summary parts, where the canonical form has one text

_SCHEMA_FIELDS = ("name", "description", "schema", "strict")


# --- content parts ----------------------------------------------------------------------------------------------------


def canonical_part(part: Mapping[str, Any]) -> Json | None:
    """A content part of an item as a message has it; None when its type is not known.

    Parts that are canonical already pass. What only this API has (an image by `file_id`, a file by `file_url`) keeps
    that key inside the canonical part.
    """
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text", "summary_text", "reasoning_text"):
        return {"type": "text", "text": part.get("text")}
    if kind == "refusal":
        return {"type": "refusal", "refusal": part.get("refusal")}
    if kind == "input_image":
        image = {"url": part.get("image_url") or ""}
        image |= {key: part[key] for key in ("detail", "file_id") if isinstance(part.get(key), str)}
        return {"type": "image_url", "image_url": image}
    if kind == "input_file":
        keys = ("filename", "file_data", "file_id", "file_url")
        return {"type": "file", "file": {key: part[key] for key in keys if part.get(key) is not None}}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    return dict(part) if kind in ("image_url", "file") else None


def input_part(part: Mapping[str, Any]) -> Json | None:
    """A content part of a canonical user, system or tool message as an item has it; None when its type has no twin."""
    kind = part.get("type")
    if kind == "text":
        return {"type": "input_text", "text": part.get("text")}
    if kind == "image_url":
        image = part.get("image_url")
        image = image if isinstance(image, dict) else {"url": image}
        told: Json = {"type": "input_image", "detail": image.get("detail") or "auto"}
        key = "file_id" if image.get("file_id") else "image_url"
        return {**told, key: image.get("file_id") or image.get("url")}
    if kind == "file":
        file = part.get("file")
        file = file if isinstance(file, dict) else {}
        keys = ("filename", "file_data", "file_id", "file_url")
        return {"type": "input_file", **{key: file[key] for key in keys if file.get(key) is not None}}
    return {"type": "input_audio", "input_audio": part.get("input_audio")} if kind == "input_audio" else None


def output_part(part: Mapping[str, Any]) -> Json | None:
    """A content part of a canonical assistant message as an earlier answer has it; None when it has no twin."""
    if part.get("type") == "text":
        return {"type": "output_text", "text": part.get("text") or "", "annotations": []}
    return {"type": "refusal", "refusal": part.get("refusal") or ""} if part.get("type") == "refusal" else None


# --- tools and output formats -----------------------------------------------------------------------------------------


def flat_tool(tool: Mapping[str, Any]) -> Json | None:
    """A canonical tool (`function` or `custom`) as this API has it; None for any other type."""
    kind = tool.get("type", "function")
    inner = tool.get(kind) if kind in ("function", "custom") else None
    if not isinstance(inner, dict):
        return None
    if kind == "function":
        return {
            "type": "function",
            "name": inner.get("name"),
            **({"description": inner["description"]} if isinstance(inner.get("description"), str) else {}),
            "parameters": inner.get("parameters") or {"type": "object", "properties": {}},
            # Absent means false there and "if the schema allows it" here.
            "strict": inner.get("strict") is True,
        }
    told = {"type": "custom", **{key: inner[key] for key in ("name", "description") if inner.get(key) is not None}}
    shape = inner.get("format")
    if isinstance(shape, dict):
        grammar = shape.get("grammar")
        told["format"] = {"type": "grammar", **grammar} if isinstance(grammar, dict) else shape
    return told


def nested_function(name: str, tool: Mapping[str, Any]) -> Json:
    """A function of this API, flat or nested, as a canonical tool of that name."""
    inner = tool.get("function")
    source: Mapping[str, Any] = inner if isinstance(inner, dict) else tool
    function: Json = {"name": name}
    if isinstance(source.get("description"), str):
        function["description"] = source["description"]
    function["parameters"] = source.get("parameters") or {"type": "object", "properties": {}}
    if isinstance(source.get("strict"), bool):
        function["strict"] = source["strict"]
    return {"type": "function", "function": function}


def flat_format(given: Mapping[str, Any]) -> Json | None:
    """A canonical `response_format` as `text.format`; None for a type this API does not have."""
    kind = given.get("type")
    if kind in ("text", "json_object"):
        return {"type": kind}
    schema = given.get("json_schema")
    if kind != "json_schema" or not isinstance(schema, dict):
        return None
    return {"type": kind, **{key: schema[key] for key in _SCHEMA_FIELDS if schema.get(key) is not None}}


def nested_format(given: Mapping[str, Any]) -> Json | None:
    """A `text.format` as the canonical `response_format`; None for a type the canonical form does not have."""
    kind = given.get("type")
    if kind in ("text", "json_object"):
        return {"type": kind}
    if kind != "json_schema":
        return None
    inner = given.get("json_schema")
    source: Mapping[str, Any] = inner if isinstance(inner, dict) else given
    return {"type": kind, "json_schema": {key: source[key] for key in _SCHEMA_FIELDS if source.get(key) is not None}}


# --- reasoning --------------------------------------------------------------------------------------------------------


def reasoning_text(item: Mapping[str, Any]) -> str:
    """What a reasoning item tells in words: its summary or, where it has none, its content."""
    for name in ("summary", "content"):
        parts = item.get(name)
        texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        words = [text for text in texts if isinstance(text, str) and text]
        if words:
            return GAP.join(words)
    return ""


def detail_of(item: Mapping[str, Any]) -> Json | None:
    """The `reasoning_details` entry of a reasoning item; None when it holds nothing encrypted.

    Beside what the canonical form names it keeps the item's words as `summary`, so that the item can be made again.
    """
    data, id = item.get("encrypted_content"), item.get("id")
    if not isinstance(data, str) or not data:
        return None
    detail: Json = {"type": "reasoning.encrypted", "data": data, "format": FORMAT}
    if isinstance(id, str) and id:
        detail["id"] = id
    if words := reasoning_text(item):
        detail["summary"] = words
    return detail


def reasoning_item(detail: Mapping[str, Any], *, id: str = "", text: str = "") -> Json:
    """The reasoning item of an entry made by `detail_of`; `id` and `text` are used where the entry has none."""
    given, words = detail.get("id"), detail.get("summary")
    item: Json = {"type": "reasoning"}
    if name := (given if isinstance(given, str) and given else id):
        item["id"] = name
    item["summary"] = summary_of(words if isinstance(words, str) else text)
    item["encrypted_content"] = detail.get("data")
    return item


def summary_of(text: str) -> list[Json]:
    """A reasoning text as the summary of an item."""
    return [{"type": "summary_text", "text": text}] if text else []


def is_encrypted(detail: Any) -> bool:
    """Whether a `reasoning_details` entry came from this API."""
    return isinstance(detail, dict) and detail.get("format") == FORMAT and isinstance(detail.get("data"), str)


# --- annotations, log probabilities, usage, ends ----------------------------------------------------------------------


def canonical_annotations(given: Any) -> list[Json]:
    """Annotations of an output text as a chat message has them; only citations of addresses have a twin there."""
    found = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
    return [
        {"type": "url_citation", "url_citation": {key: value for key, value in item.items() if key != "type"}}
        for item in found
        if item.get("type") == "url_citation"
    ]


def flat_annotations(given: Any) -> list[Json]:
    """The inverse of `canonical_annotations`."""
    found = [item.get("url_citation") for item in given if isinstance(item, dict)] if isinstance(given, list) else []
    return [{"type": "url_citation", **item} for item in found if isinstance(item, dict)]


def logprobs_of(given: Any) -> list[Json]:
    """Log probabilities with the fields both APIs have: token, logprob, bytes and the most likely tokens."""
    told = []
    for item in given if isinstance(given, list) else ():
        if isinstance(item, dict) and isinstance(item.get("token"), str):
            told.append({**_token(item), "top_logprobs": [_token(top) for top in _dicts(item.get("top_logprobs"))]})
    return told


def _token(item: Mapping[str, Any]) -> Json:
    token = item.get("token")
    raw = item.get("bytes")
    text = token if isinstance(token, str) else ""
    return {
        "token": text,
        "logprob": item.get("logprob"),
        "bytes": raw if isinstance(raw, list) else list(text.encode("utf-8", "replace")),
    }


def _dicts(given: Any) -> Iterable[Json]:
    return (item for item in given if isinstance(item, dict)) if isinstance(given, list) else ()


def usage_object(usage: Usage) -> Json:
    """A usage as this API tells it."""
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.input + usage.output,
    }


def finish_reason(response: Mapping[str, Any], *, calls: bool) -> str:
    """The canonical finish reason of a response that ended well; `calls`: it holds tool calls."""
    details = response.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, dict) else None
    if response.get("status") == "incomplete" or reason:
        if reason == "content_filter":
            return "content_filter"
        if reason in (None, "max_output_tokens"):
            return "length"
    return "tool_calls" if calls else "stop"


def incomplete_reason(finish: str) -> str:
    """Why a response with this canonical finish reason is incomplete; "" when it is complete."""
    return {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish, "")
