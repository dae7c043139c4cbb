"""The conversation of a request: canonical chat messages into turns of Anthropic's Messages API. Pure.

What has no twin there and would change the conversation (audio, a function message, arguments that are no object) is
refused with the place named; what was only a hint is left out and listed. Formats: the API's public documentation.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from typing import Any

import msgspec

from providers.canonical import UnsupportedParamError

FORMAT = "anthropic-claude-v1"  # marks reasoning details that this API made and takes back
THINKING = frozenset({"thinking", "redacted_thinking"})

_ID = re.compile(r"[A-Za-z0-9_-]+")
_NOT_ID = re.compile(r"[^A-Za-z0-9_-]")
_MEDIA_TYPES = {"image/jpg": "image/jpeg"}

_decode = msgspec.json.Decoder().decode

Block = dict[str, Any]


class Conversation(msgspec.Struct):
    """Turns as the API wants them: user and assistant in turn, instructions apart in `system`.

    `left` are message fields that could not be kept; `files`: the Files API is referred to.
    """

    system: list[Block] = msgspec.field(default_factory=list)
    turns: list[dict[str, Any]] = msgspec.field(default_factory=list)
    left: list[str] = msgspec.field(default_factory=list)
    files: bool = False


def conversation(messages: list[dict[str, Any]]) -> Conversation:
    """Translate the messages. Raises `UnsupportedParamError`.

    System and developer messages are hoisted into `system` in their order, those in the middle as well: not every
    version of the API takes them in place. Neighbours of one role become one turn, and in a user turn the results of
    tools come first, as the API demands. Blank texts, which it refuses, are left out. Where there are only
    instructions, they are the user's turn: the API answers nobody else.
    """
    told = Conversation()
    for index, message in enumerate(messages):
        where, role = f"messages[{index}]", message.get("role")
        if role in ("system", "developer"):
            told.system += _instructions(message, where)
            continue
        if role == "assistant":
            blocks = _assistant(told, message, where)
        elif role == "user":
            blocks = _blocks(told, message.get("content"), f"{where}.content")
        elif role == "tool":
            blocks = [_result(told, message, where)]
        else:
            raise refused(f"{where}.role", "is not one that this provider knows")
        if message.get("name") is not None and role != "tool":
            told.left.append("name")
        _mark(blocks, message)
        _append(told, "assistant" if role == "assistant" else "user", blocks)
    if not told.turns and told.system:
        _append(told, "user", told.system)
        told.system = []
    for turn in told.turns:
        turn["content"].sort(key=lambda block: block["type"] != "tool_result")
    return told


def refused(where: str, what: str) -> UnsupportedParamError:
    """The refusal of one place in the request."""
    return UnsupportedParamError(where, f"'{where}' {what}.")


def _append(told: Conversation, role: str, blocks: list[Block]) -> None:
    if not blocks:
        return
    if told.turns and told.turns[-1]["role"] == role:
        told.turns[-1]["content"] += blocks
    else:
        told.turns.append({"role": role, "content": blocks})


def _mark(blocks: list[Block], message: dict[str, Any]) -> None:
    """A cache mark on the message itself stands for one on its last block."""
    mark = message.get("cache_control")
    if isinstance(mark, dict) and blocks and blocks[-1]["type"] not in THINKING:
        blocks[-1]["cache_control"] = mark


def _marked(block: Block, part: dict[str, Any]) -> Block:
    mark = part.get("cache_control")
    if isinstance(mark, dict):
        block["cache_control"] = mark
    return block


def _instructions(message: dict[str, Any], where: str) -> list[Block]:
    content = message.get("content")
    if isinstance(content, list):
        blocks = []
        for place, part in enumerate(content):
            if part.get("type") != "text":
                raise refused(f"{where}.content[{place}]", "must be text: instructions hold nothing else here")
            if part["text"].strip():
                blocks.append(_marked({"type": "text", "text": part["text"]}, part))
    else:
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) and content.strip() else []
    _mark(blocks, message)
    return blocks


def _blocks(told: Conversation, content: Any, where: str) -> list[Block]:
    """Content of any message as blocks, blank texts left out."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    blocks = []
    for place, part in enumerate(content or ()):
        block = _block(told, part, f"{where}[{place}]")
        if block is not None:
            blocks.append(block if block["type"] in THINKING else _marked(block, part))
    return blocks


def _block(told: Conversation, part: dict[str, Any], where: str) -> Block | None:
    kind = part.get("type")
    if kind in ("text", "refusal"):
        text = part.get(kind)
        return {"type": "text", "text": text} if isinstance(text, str) and text.strip() else None
    if kind == "image_url":
        return _image(part, where)
    if kind == "file":
        return _document(told, part, where)
    if kind in ("thinking", "reasoning"):
        if isinstance(part.get("signature"), str) and isinstance(part.get("thinking"), str):
            return {"type": "thinking", "thinking": part["thinking"], "signature": part["signature"]}
        told.left.append("reasoning_content")
        return None
    raise refused(where, f"is of the type '{str(kind)[:64]}', which this provider cannot take")


def _image(part: dict[str, Any], where: str) -> Block:
    holder = part.get("image_url")
    url = holder.get("url") if isinstance(holder, dict) else holder
    if not isinstance(url, str):
        raise refused(where, "must hold an image's URL")
    if not url.startswith("data:"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    media_type, data = _data_url(url, where)
    if not media_type.startswith("image/"):
        raise refused(where, "must be an image")
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def _document(told: Conversation, part: dict[str, Any], where: str) -> Block:
    holder = part.get("file")
    if not isinstance(holder, dict):
        raise refused(f"{where}.file", "must be an object")
    name, content, identifier = holder.get("filename"), holder.get("file_data"), holder.get("file_id")
    if isinstance(content, str):
        media_type, data = _data_url(content, f"{where}.file.file_data")
        if media_type.startswith("image/"):
            return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}
        source = _source(media_type, data, f"{where}.file.file_data")
    elif isinstance(identifier, str):
        told.files = True
        source = {"type": "file", "file_id": identifier}
    else:
        raise refused(f"{where}.file", "must have 'file_data' or 'file_id'")
    block: Block = {"type": "document", "source": source}
    if isinstance(name, str) and name:
        block["title"] = name
    return block


def _source(media_type: str, data: str, where: str) -> dict[str, str]:
    if media_type == "application/pdf":
        return {"type": "base64", "media_type": media_type, "data": data}
    if media_type.startswith("text/") or media_type == "application/json":
        try:
            text = base64.b64decode(data).decode()
        except (binascii.Error, ValueError) as exc:
            raise refused(where, "must be UTF-8 text in base64") from exc
        return {"type": "text", "media_type": "text/plain", "data": text}
    raise refused(where, f"is of the type '{media_type[:64]}'; this provider takes PDF, text and images")


def _data_url(url: str, where: str) -> tuple[str, str]:
    """Media type and payload. Only base64 ones, which is what clients send."""
    head, comma, _ = url[:256].partition(",")
    media_type, *options = head.removeprefix("data:").lower().split(";")
    if not comma or not url.startswith("data:") or "base64" not in options:
        raise refused(where, "must be a data: URL with base64 content")
    return _MEDIA_TYPES.get(media_type, media_type), url[len(head) + 1 :]


def _result(told: Conversation, message: dict[str, Any], where: str) -> Block:
    identifier = message.get("tool_call_id")
    if not isinstance(identifier, str) or not identifier:
        raise refused(f"{where}.tool_call_id", "must name the tool call that this is the result of")
    block: Block = {"type": "tool_result", "tool_use_id": _identifier(identifier)}
    content = message.get("content")
    if isinstance(content, list):
        content = _blocks(told, content, f"{where}.content")
    if content:
        block["content"] = content
    if message.get("is_error") is True:
        block["is_error"] = True
    return block


def _assistant(told: Conversation, message: dict[str, Any], where: str) -> list[Block]:
    if message.get("function_call") is not None:
        raise refused(f"{where}.function_call", "is not known to this provider; use 'tool_calls'")
    if message.get("audio") is not None:
        raise refused(f"{where}.audio", "cannot be sent to this provider")
    blocks = _thinking(told, message)
    blocks += _blocks(told, message.get("content"), f"{where}.content")
    if isinstance(refusal := message.get("refusal"), str) and refusal.strip():
        blocks.append({"type": "text", "text": refusal})
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, list | tuple):
        raise refused(f"{where}.tool_calls", "must be an array")
    blocks += [_use(call, f"{where}.tool_calls[{place}]") for place, call in enumerate(calls)]
    blocks.sort(key=lambda block: block["type"] not in THINKING)
    return blocks


def _thinking(told: Conversation, message: dict[str, Any]) -> list[Block]:
    """The signed thinking of an earlier answer. Reasoning nobody signed would be refused: it is left out."""
    blocks = []
    details = message.get("reasoning_details")
    for detail in details if isinstance(details, list) else ():
        ours = isinstance(detail, dict) and detail.get("format") == FORMAT
        if ours and detail.get("type") == "reasoning.text" and isinstance(detail.get("signature"), str):
            text = detail.get("text")
            thinking = text if isinstance(text, str) else ""
            blocks.append({"type": "thinking", "thinking": thinking, "signature": detail["signature"]})
        elif ours and detail.get("type") == "reasoning.encrypted" and isinstance(detail.get("data"), str):
            blocks.append({"type": "redacted_thinking", "data": detail["data"]})
        else:
            told.left.append("reasoning_details")
    if not blocks and (message.get("reasoning_content") or message.get("reasoning")):
        told.left.append("reasoning_content")
    return blocks


def _use(call: Any, where: str) -> Block:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise refused(where, "must be a call of a function")
    identifier, name, text = call.get("id"), function.get("name"), function.get("arguments")
    if not isinstance(identifier, str) or not identifier:
        raise refused(f"{where}.id", "must be a string that is not empty")
    if not isinstance(name, str) or not name:
        raise refused(f"{where}.function.name", "must be a string that is not empty")
    block: Block = {
        "type": "tool_use",
        "id": _identifier(identifier),
        "name": name,
        "input": _input(text, f"{where}.function.arguments"),
    }
    return _marked(block, call)


def _input(text: Any, where: str) -> Any:
    """The arguments with their own bytes: numbers must come out as they went in."""
    if text is None or (isinstance(text, str) and not text.strip()):
        return {}
    if not isinstance(text, str):
        raise refused(where, "must be a string of JSON")
    raw = text.encode("utf-8", "replace")
    try:
        told = _decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise refused(where, "must be a JSON object: this provider takes no other arguments")
    return msgspec.Raw(raw)


def _identifier(identifier: str) -> str:
    """A call's id as the API allows it; other providers' may hold more characters. Equal ids stay equal."""
    if _ID.fullmatch(identifier):
        return identifier
    return f"{_NOT_ID.sub('_', identifier)}_{zlib.crc32(identifier.encode('utf-8', 'replace')):08x}"
