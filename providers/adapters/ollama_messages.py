"""Canonical messages as Ollama's /api/chat takes them: text, images and tool calls each in a field of their own.

Source of the format: Ollama's API documentation and the types of its public Go client.
"""

from __future__ import annotations

from typing import Any, NoReturn

from providers.adapters import ollama_replies, params
from providers.canonical import Target

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def untranslatable(where: str, target: Target, what: str) -> NoReturn:
    """Refuse a part of the request by its place. Raises `UnsupportedParamError`."""
    raise params.unsupported(where, target, f"'{where}': the provider ({target.kind.label}) {what}")


def translated(messages: list[dict[str, Any]], target: Target) -> list[dict[str, Any]]:
    """The messages as Ollama takes them. Raises `UnsupportedParamError`.

    A tool's result names the tool here, which the canonical form does only by the call's id.
    """
    names: dict[str, str] = {}
    made = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = _ROLES.get(message["role"])
        if role is None:
            untranslatable(f"{where}.role", target, "does not know this role")
        content, images, thinking = _content(message.get("content"), where, target)
        told: dict[str, Any] = {"role": role, "content": content}
        if images:
            told["images"] = images
        if role == "assistant":
            _assistant(told, message, thinking, where, target)
            for call in told.get("tool_calls", ()):
                names[call.get("id", "")] = call["function"]["name"]
        elif role == "tool":
            id = message.get("tool_call_id")
            name = message.get("name") or names.get(id if isinstance(id, str) else "")
            if name:
                told["tool_name"] = name
            if id:
                told["tool_call_id"] = id
        made.append(told)
    return made


def _assistant(told: dict[str, Any], message: dict[str, Any], thinking: str, where: str, target: Target) -> None:
    """What only the model's own messages have: thoughts, refusals and tool calls."""
    if message.get("audio") is not None:
        untranslatable(f"{where}.audio", target, "has no spoken answers")
    if not told["content"] and isinstance(message.get("refusal"), str):
        told["content"] = message["refusal"]
    for name in ("reasoning_content", "reasoning"):
        if isinstance(message.get(name), str) and message[name]:
            thinking = message[name]
            break
    else:
        details = message.get("reasoning_details")
        parts = [part for part in details if isinstance(part, dict)] if isinstance(details, list) else []
        thinking = thinking or "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    if thinking:
        told["thinking"] = thinking
    calls = message.get("tool_calls") or ()
    if message.get("function_call") is not None:
        calls = [*calls, {"function": message["function_call"]}]
    if calls:
        told["tool_calls"] = [
            _tool_call(call, index, f"{where}.tool_calls[{index}]", target) for index, call in enumerate(calls)
        ]


def _tool_call(call: Any, index: int, where: str, target: Target) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        untranslatable(where, target, "takes only calls of functions")
    written = function.get("arguments")
    arguments = {} if written is None else written
    if isinstance(written, str):
        arguments = ollama_replies.load(written) if written.strip() not in ("", "null") else {}
    if not isinstance(arguments, dict):
        untranslatable(f"{where}.function.arguments", target, "takes only the JSON of an object as arguments")
    id = {"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {}
    return {**id, "function": {"index": index, "name": function["name"], "arguments": arguments}}


def _content(content: Any, where: str, target: Target) -> tuple[str, list[str], str]:
    """Text, images and thoughts of a message's content. Images belong to the message, not to a place in its text."""
    if not isinstance(content, list):
        return content or "", [], ""
    texts, images, thoughts = [], [], []
    for index, part in enumerate(content):
        kind, place = part["type"], f"{where}.content[{index}]"
        if kind == "text":
            texts.append(part["text"])
        elif kind == "refusal" and isinstance(part.get("refusal"), str):
            texts.append(part["refusal"])
        elif kind == "image_url":
            images.append(_image(part["image_url"], place, target))
        elif kind in ("thinking", "reasoning"):
            thoughts.append(_strings(part.get(kind) or part.get("text")))
        else:
            untranslatable(place, target, f"takes no content of the type '{kind[:40]}'")
    return "\n".join(texts), images, "".join(thoughts)


def _image(image: Any, where: str, target: Target) -> str:
    url = image["url"] if isinstance(image, dict) else image
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        untranslatable(f"{where}.image_url", target, "fetches no images; send a data URL in base64")
    return str(data)


def _strings(value: Any) -> str:
    """The text of a thinking part: a string, or parts with text as some providers write them."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else ()
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
