"""Conversations of Anthropic's Messages API into canonical messages, block by block. Pure.

What the canonical form cannot carry (files of the provider, blocks of its own tools, citations) is noted in the
findings: only a provider of this API can then be asked. Format: the API's public documentation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import msgspec

from gateway.dialects import reading
from gateway.errors import BadRequestError

FORMAT = "anthropic-claude-v1"  # of `reasoning_details` that this API made and takes back

# Blocks of the provider's own tools and features. All of their text is in the body; they stand for nothing further.
_OWN = frozenset(
    {
        "advisor_tool_result",
        "bash_code_execution_tool_result",
        "browser_state",
        "code_execution_tool_result",
        "compaction",
        "container_upload",
        "mcp_tool_listing",
        "mcp_tool_result",
        "mcp_tool_use",
        "server_tool_use",
        "text_editor_code_execution_tool_result",
        "tool_addition",
        "tool_removal",
        "tool_search_tool_result",
        "web_fetch_tool_result",
        "web_search_tool_result",
    }
)
_ROLES = ("user", "assistant", "system")

_encode = msgspec.json.Encoder().encode

Block = dict[str, Any]
Part = dict[str, Any]


class Conversation:
    """Reads `system` and `messages` into canonical `messages`.

    `foreign` are blocks of the request that no provider of this API made: reasoning without a signature, and what
    other providers' signatures were wrapped in. Such a provider would refuse them (`without`).
    """

    def __init__(self, findings: reading.Findings) -> None:
        self.messages: list[dict[str, Any]] = []
        self.foreign: list[Block] = []
        self._findings = findings

    def system(self, value: Any) -> None:
        """The top-level `system`: text or text blocks."""
        if value is not None and value != "" and value != []:
            self._system(value, "system")

    def read(self, messages: Any) -> None:
        """All of `messages`. Raises `BadRequestError`."""
        if type(messages) is not list or not messages:
            refuse("messages", "must be a non-empty array")
        for index, message in enumerate(messages):
            where = f"messages[{index}]"
            if type(message) is not dict:
                refuse(where, "must be an object")
            role, content = message.get("role"), message.get("content")
            if role not in _ROLES:
                refuse(f"{where}.role", "must be 'user', 'assistant' or 'system'")
            if role == "system":
                self._system(content, f"{where}.content")
            elif type(content) is str:
                self.messages.append({"role": role, "content": content})
            elif role == "assistant":
                self._assistant(content, f"{where}.content")
            else:
                self._user(content, f"{where}.content")

    # --- one message ------------------------------------------------------------------------------------------------

    def _system(self, value: Any, where: str) -> None:
        if type(value) is str:
            self.messages.append({"role": "system", "content": value})
            return
        parts = []
        for _, block, at in blocks_of(value, where):
            if block["type"] == "text":
                parts.append(self._text(block, at))
            elif block["type"] in _OWN:
                self._findings.only(at)
            else:
                refuse(at, "must be a text block")
        self.messages.append({"role": "system", "content": content_of(parts)})

    def _user(self, value: Any, where: str) -> None:
        results, parts = [], []
        for kind, block, at in blocks_of(value, where):
            if kind == "tool_result":
                results.append(self._result(block, at))
            else:
                parts.extend(self._parts(block, at))
        # Results belong right behind the calls they answer; the API wants them first as well.
        self.messages.extend(results)
        if parts or not results:
            self.messages.append({"role": "user", "content": content_of(parts)})

    def _assistant(self, value: Any, where: str) -> None:
        parts: list[Part] = []
        calls: list[dict[str, Any]] = []
        thought: list[str] = []
        details: list[dict[str, Any]] = []
        wraps: list[dict[str, Any]] = []
        for kind, block, at in blocks_of(value, where):
            if kind == "thinking":
                thought.append(self._thinking(block, at, details))
            elif kind == "redacted_thinking":
                self._redacted(block, at, details, wraps)
            elif kind == "tool_use":
                calls.append(self._use(block, at))
            elif kind == "fallback":
                continue  # says which model took over
            else:
                parts.extend(self._parts(block, at))
        message: dict[str, Any] = {"role": "assistant", "content": content_of(parts) if parts or not calls else None}
        if any(thought):
            message["reasoning_content"] = "".join(thought)
        if details:
            message["reasoning_details"] = details
        if calls:
            message["tool_calls"] = calls
        for wrap in wraps:
            extra = reading.extra_of(wrap.get("extra_content"))
            holder = (
                next((call for call in calls if call["id"] == wrap.get("call")), None) if "call" in wrap else message
            )
            if extra is not None and holder is not None:
                holder["extra_content"] = extra
        self.messages.append(message)

    # --- one block --------------------------------------------------------------------------------------------------

    def _parts(self, block: Block, where: str) -> list[Part]:
        """The content parts of a block of any message or tool result."""
        kind = block["type"]
        if kind == "text":
            return [self._text(block, where)]
        if kind == "image":
            return [self._marked(self._media(block, where, "image"), block)]
        if kind == "document":
            return [self._marked(part, block) for part in self._document(block, where)]
        if kind == "search_result":
            return [self._marked(self._search_result(block, where), block)]
        if kind == "tool_reference":  # found by a search among tools; all of them are offered anyway
            return [text_part(f"Tool found: {reading.text_of(block, 'tool_name')}")]
        self._findings.only(f"{where}.type")
        # What an unknown block stands for is not known either: it counts as one file.
        return [] if kind in _OWN else [{"type": "unknown"}]

    def _text(self, block: Block, where: str) -> Part:
        if type(block.get("text")) is not str:
            refuse(f"{where}.text", "must be a string")
        return self._marked(text_part(block["text"]), block)

    def _marked(self, part: Part, block: Block) -> Part:
        mark = self.cache_mark(block)
        return part if mark is None else {**part, "cache_control": mark}

    def cache_mark(self, block: Mapping[str, Any]) -> dict[str, Any] | None:
        """The block's cache mark. One that is kept for longer than the prices here are made for is a surcharge."""
        mark = block.get("cache_control")
        if type(mark) is not dict:
            return None
        if mark.get("ttl") not in (None, "5m"):
            self._findings.surcharge = self._findings.surcharge or "cache_control.ttl"
        return mark

    def _media(self, block: Block, where: str, kind: str) -> Part:
        source = block.get("source")
        at = f"{where}.source"
        if type(source) is not dict:
            refuse(at, "must be an object")
        how = source.get("type")
        if how == "base64":
            media_type, data = source.get("media_type"), source.get("data")
            if type(media_type) is not str or type(data) is not str:
                refuse(at, "must have the strings 'media_type' and 'data'")
            url = f"data:{media_type};base64,{data}"
            if kind == "image":
                return {"type": "image_url", "image_url": {"url": url}}
            return file_part({"filename": reading.text_of(block, "title") or "document.pdf", "file_data": url})
        if how == "url":
            if type(source.get("url")) is not str:
                refuse(f"{at}.url", "must be a string")
            if kind == "image":
                return {"type": "image_url", "image_url": {"url": source["url"]}}
            self._findings.only(f"{at}.url")
            return file_part({"file_id": source["url"]})
        if how == "file":
            self._findings.only(f"{at}.file_id")
            return file_part({"file_id": reading.text_of(source, "file_id")})
        refuse(f"{at}.type", "must be 'base64', 'url' or 'file'")

    def _document(self, block: Block, where: str) -> list[Part]:
        self._citations(block, where)
        source = block.get("source")
        how = source.get("type") if type(source) is dict else None
        if type(source) is not dict or how not in ("text", "content"):
            return [self._media(block, where, "document")]
        heading = "\n".join(filter(None, (reading.text_of(block, "title"), reading.text_of(block, "context"))))
        parts = [text_part(heading)] if heading else []
        at = f"{where}.source"
        if how == "text":
            if type(source.get("data")) is not str:
                refuse(f"{at}.data", "must be a string")
            return [*parts, text_part(source["data"])]
        content = source.get("content")
        if type(content) is str:
            return [*parts, text_part(content)]
        for _, inner, place in blocks_of(content, f"{at}.content"):
            parts.extend(self._parts(inner, place))
        return parts

    def _search_result(self, block: Block, where: str) -> Part:
        self._citations(block, where)
        lines = [reading.text_of(block, "title"), reading.text_of(block, "source")]
        for _, inner, at in blocks_of(block.get("content"), f"{where}.content"):
            if type(inner.get("text")) is not str:
                refuse(f"{at}.text", "must be a string")
            lines.append(inner["text"])
        return text_part("\n".join(filter(None, lines)))

    def _citations(self, block: Block, where: str) -> None:
        wanted = block.get("citations")
        if type(wanted) is dict and wanted.get("enabled") is True:
            self._findings.only(f"{where}.citations")

    def _result(self, block: Block, where: str) -> dict[str, Any]:
        id, content = block.get("tool_use_id"), block.get("content")
        if type(id) is not str or not id:
            refuse(f"{where}.tool_use_id", "must be the id of a tool_use block")
        parts: list[Part] = []
        if type(content) is str:
            parts.append(text_part(content))
        elif content is not None:
            for _, inner, at in blocks_of(content, f"{where}.content"):
                parts.extend(self._parts(inner, at))
        if block.get("toolset_name") is not None:
            self._findings.only(f"{where}.toolset_name")
        mark = self.cache_mark(block)
        if mark is not None:
            parts = [*parts[:-1], {**(parts[-1] if parts else text_part("")), "cache_control": mark}]
        message: dict[str, Any] = {"role": "tool", "tool_call_id": id, "content": content_of(parts)}
        if block.get("is_error") is True:
            message["is_error"] = True
        return message

    def _use(self, block: Block, where: str) -> dict[str, Any]:
        id, name, given = block.get("id"), block.get("name"), block.get("input")
        for field, value in (("id", id), ("name", name)):
            if type(value) is not str or not value:
                refuse(f"{where}.{field}", "must be a non-empty string")
        if type(given) is not dict:
            refuse(f"{where}.input", "must be an object")
        if block.get("toolset_name") is not None:
            self._findings.only(f"{where}.toolset_name")
        call = {"id": id, "type": "function", "function": {"name": name, "arguments": _encode(given).decode()}}
        mark = self.cache_mark(block)
        return call if mark is None else {**call, "cache_control": mark}

    def _thinking(self, block: Block, where: str, details: list[dict[str, Any]]) -> str:
        text, signature = block.get("thinking"), block.get("signature")
        if type(text) is not str:
            refuse(f"{where}.thinking", "must be a string")
        if type(signature) is not str or not signature:
            self.foreign.append(block)
            return text
        wrap = reading.unwrapped(signature)
        if wrap is None:
            details.append({"type": "reasoning.text", "text": text, "signature": signature, "format": FORMAT})
            return text
        self.foreign.append(block)
        if (detail := _detail(wrap)) is not None:
            details.append({**detail, "text": text})
        return text

    def _redacted(self, block: Block, where: str, details: list[dict[str, Any]], wraps: list[dict[str, Any]]) -> None:
        data = block.get("data")
        if type(data) is not str:
            refuse(f"{where}.data", "must be a string")
        wrap = reading.unwrapped(data)
        if wrap is None:
            details.append({"type": "reasoning.encrypted", "data": data, "format": FORMAT})
            return
        self.foreign.append(block)
        if (detail := _detail(wrap)) is not None:
            details.append(detail)
        else:
            wraps.append(wrap)


def without(messages: list[dict[str, Any]], foreign: Collection[int]) -> list[dict[str, Any]]:
    """The messages less the blocks with these identities, and less messages of which nothing is left."""
    kept = []
    for message in messages:
        content = message["content"]
        if type(content) is list and any(id(block) in foreign for block in content):
            content = [block for block in content if id(block) not in foreign]
            if not content:
                continue
            message = {**message, "content": content}
        kept.append(message)
    return kept


def blocks_of(value: Any, where: str) -> list[tuple[str, Block, str]]:
    """Type, block and place of each content block. Raises `BadRequestError`."""
    if type(value) is not list:
        refuse(where, "must be a string or an array of content blocks")
    found = []
    for place, block in enumerate(value):
        at = f"{where}[{place}]"
        if type(block) is not dict or type(kind := block.get("type")) is not str:
            refuse(at, "must be an object with a 'type'")
        found.append((kind, block, at))
    return found


def text_part(text: str) -> Part:
    """A canonical content part of text."""
    return {"type": "text", "text": text}


def file_part(file: dict[str, Any]) -> Part:
    """A canonical content part of a file."""
    return {"type": "file", "file": file}


def content_of(parts: list[Part]) -> str | list[Part]:
    """Parts as a message's content: a lone unmarked text is a string, which every server understands."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        text: str = parts[0]["text"]
        return text
    return parts


def _detail(wrap: dict[str, Any]) -> dict[str, Any] | None:
    detail = wrap.get("detail")
    return detail if isinstance(detail, dict) and isinstance(detail.get("type"), str) else None


def refuse(param: str, what: str) -> NoReturn:
    """Raise the refusal of one field."""
    raise BadRequestError(f"'{param}' {what}.", param=param)
