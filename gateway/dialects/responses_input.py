"""Input items of the Responses API as the messages of a chat. Pure.

Neighbouring items of one answer (reasoning, text, calls) become one assistant message, results follow the message whose
calls they answer, and developer messages become system messages, which every chat template knows. Formats: the API's
public documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.dialects import responses_reasoning as reasoning
from gateway.dialects.responses_tools import Tools, arguments_of, refuse
from providers import responses_items as items

Json = dict[str, Any]

# Items that stand for state or tools of a provider; without them the conversation is another one.
_NATIVE_ONLY = frozenset(
    {
        "compaction",
        "compaction_summary",
        "compaction_trigger",
        "computer_call",
        "computer_call_output",
        "local_shell_call",
        "local_shell_call_output",
        "shell_call",
        "shell_call_output",
        "apply_patch_call",
        "apply_patch_call_output",
        "mcp_call",
        "mcp_approval_request",
        "mcp_approval_response",
        "program",
        "program_output",
        "configuration_update",
    }
)
_SILENT = frozenset({"additional_tools", "tool_search_call", "tool_search_output"})  # their tools were read already
_ROLES = {"user": "user", "system": "system", "developer": "system"}


class Conversation:
    """Makes the messages. `native_only` names the first part that cannot be carried, `dropped` the ones left out."""

    def __init__(self, tools: Tools) -> None:
        self.dropped: list[str] = []
        self.native_only = ""
        self._tools = tools
        self._messages: list[Json] = []
        self._results: dict[int, list[Json]] = {}  # tool messages by the place of the message with their calls
        self._places: dict[str, int] = {}  # of assistant messages, by the id of a call
        self._turn: Json | None = None  # the assistant message that is being put together, the last one
        self._extras: dict[str, Json] = {}
        self._extra: Json = {}

    def add(self, item: Any, where: str) -> None:
        """Take the next item. Raises `BadRequestError`."""
        if type(item) is not dict:
            refuse(where, "must be an object")
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        if type(kind) is not str:
            refuse(f"{where}.type", "must be a string")
        if kind == "message":
            self._message(item, where)
        elif kind in ("function_call", "custom_tool_call"):
            self._call(item, where)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            self._result(item.get("call_id"), item.get("output"), f"{where}.call_id", f"{where}.output")
        elif kind == "reasoning":
            self._reasoning(item)
        elif kind == "item_reference":
            refuse(
                where,
                "refers to an item of an earlier answer, and none are stored here; send the whole item (clients do "
                "with 'store' set to false)",
            )
        elif kind in _NATIVE_ONLY:
            self._only_native(where)
        elif kind not in _SILENT:
            self.dropped.append(f"input.{kind}")

    def system(self, text: str) -> None:
        """Take instructions."""
        self._system([{"type": "text", "text": text}])

    def messages(self) -> list[Json]:
        """All messages; nothing may be added any more."""
        told: list[Json] = []
        for place, message in enumerate(self._messages):
            if message["role"] == "assistant":
                self._complete(message)
            elif message["role"] == "system":
                message["content"] = _plain(message["content"])
            told.append(message)
            told += self._results.get(place, ())
        return told

    def _complete(self, message: Json) -> None:
        for call in message.get("tool_calls", ()):
            if extra := self._extras.get(call["id"]):
                call["extra_content"] = extra
        if message["content"] is None and not message.get("tool_calls") and "refusal" not in message:
            message["content"] = ""

    def _only_native(self, what: str) -> None:
        self.native_only = self.native_only or what

    # --- messages ---------------------------------------------------------------------------------------------------

    def _message(self, item: Json, where: str) -> None:
        given = item.get("role")
        role = given if type(given) is str else ""
        if role == "tool":  # as in a chat
            self._result(item.get("tool_call_id"), item.get("content"), f"{where}.tool_call_id", f"{where}.content")
            return
        if role != "assistant" and role not in _ROLES:
            refuse(f"{where}.role", "must be 'user', 'assistant', 'system' or 'developer'")
        content = item.get("content")
        parts = self._parts([] if content is None and role == "assistant" else content, f"{where}.content")
        if role == "assistant":
            self._answer(item, parts, where)
        elif role == "user":
            self._turn = None
            self._messages.append({"role": "user", "content": _plain(parts)})
        else:
            self._system(parts)

    def _system(self, parts: list[Json]) -> None:
        self._turn = None
        first = self._messages[0] if len(self._messages) == 1 else None
        if first is not None and first["role"] == "system":
            first["content"] += parts  # some chat templates know one system message only, and only as the first
        else:
            self._messages.append({"role": "system", "content": list(parts)})

    def _parts(self, content: Any, where: str) -> list[Json]:
        if type(content) is str:
            return [{"type": "text", "text": content}]
        if type(content) is not list:
            refuse(where, "must be a string or an array of parts")
        told = []
        for place, part in enumerate(content):
            if type(part) is not dict or type(part.get("type")) is not str:
                refuse(f"{where}[{place}]", "must be an object with a 'type'")
            twin = items.canonical_part(part)
            if twin is None:
                self._only_native(f"{where}[{place}]")
            else:
                self._check(twin, part, f"{where}[{place}]")
                told.append(twin)
        return told

    def _check(self, twin: Json, part: Json, where: str) -> None:
        """What the canonical form demands of a part, in the client's words."""
        kind, inner = twin["type"], twin[twin["type"]]
        if kind in ("text", "refusal"):
            if type(inner) is not str:
                refuse(f"{where}.{kind}", "must be a string")
        elif kind == "image_url":
            if part["type"] == "input_image" and type(part.get("image_url")) is not str and "file_id" not in inner:
                refuse(f"{where}.image_url", "must be a string")
            if type(inner) is dict and inner.get("file_id"):
                self._only_native(f"{where}.file_id")
        elif kind == "file":
            keys = [key for key in ("file_data", "file_id", "file_url") if type(inner) is dict and key in inner]
            if not keys or type(inner[keys[0]]) is not str:
                refuse(where, "must have 'file_data', 'file_id' or 'file_url', a string")
            if keys[0] == "file_url":
                self._only_native(f"{where}.file_url")
        elif type(inner) is not dict or type(inner.get("data")) is not str:
            refuse(f"{where}.input_audio", "must be an object with the string 'data'")

    # --- answers ----------------------------------------------------------------------------------------------------

    def _open(self, *, new: bool = False) -> Json:
        """The assistant message that items of an answer go into."""
        if self._turn is None or new:
            self._turn = {"role": "assistant", "content": None}
            self._messages.append(self._turn)
        return self._turn

    def _is_over(self) -> bool:
        """Whether the assistant message has its text: more text, or reasoning, belongs to the next one.

        Behind calls it does not, because the results of the calls have to follow their message at once.
        """
        turn = self._turn
        return turn is not None and not turn.get("tool_calls") and (turn["content"] is not None or "refusal" in turn)

    def _answer(self, item: Json, parts: list[Json], where: str) -> None:
        turn = self._open(new=self._is_over())
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        refusal = "".join(part["refusal"] for part in parts if part["type"] == "refusal")
        if any(part["type"] not in ("text", "refusal") for part in parts):
            self._only_native(f"{where}.content")
        if refusal:
            turn["refusal"] = refusal
        if text or (parts and not refusal):
            turn["content"] = items.GAP.join(filter(None, (turn["content"], text)))
        if self._extra:
            turn["extra_content"], self._extra = self._extra, {}
        calls = item.get("tool_calls")
        for place, call in enumerate(calls if type(calls) is list else ()):  # as in a chat
            function = call.get("function") if type(call) is dict else None
            if type(function) is not dict:
                refuse(f"{where}.tool_calls[{place}]", "must be an object with a 'function'")
            self._call({"type": "function_call", "call_id": call.get("id"), **function}, f"{where}.tool_calls[{place}]")

    def _call(self, item: Json, where: str) -> None:
        custom = item["type"] == "custom_tool_call"
        field = "input" if custom else "arguments"
        for name in ("call_id", "name", field):
            if type(item.get(name)) is not str:
                refuse(f"{where}.{name}", "must be a string")
        turn = self._open()
        name = self._tools.name_of(item["name"], item.get("namespace"))
        arguments = arguments_of(item["input"]) if custom else item["arguments"]
        call = {"id": item["call_id"], "type": "function", "function": {"name": name, "arguments": arguments}}
        turn.setdefault("tool_calls", []).append(call)
        self._places[item["call_id"]] = len(self._messages) - 1

    def _result(self, id: Any, output: Any, where_id: str, where: str) -> None:
        if type(id) is not str or not id:
            refuse(where_id, "must be a string")
        message: Json = {"role": "tool", "tool_call_id": id}
        if type(output) is dict and type(output.get("content")) is str:  # as older clients send it
            message["content"] = output["content"]
            if output.get("success") is False:
                message["is_error"] = True
        else:
            message["content"] = _plain(self._parts(output, where))
        self._turn = None
        place = self._places.get(id)
        if place is None:
            self._messages.append(message)
        else:
            self._results.setdefault(place, []).append(message)

    def _reasoning(self, item: Json) -> None:
        text = items.reasoning_text(item)
        sealed = reasoning.unseal(item.get("encrypted_content"))
        if sealed is not None:
            self._extras |= sealed.calls
            self._extra = sealed.text
            details = sealed.details
        else:
            detail = items.detail_of(item) if not reasoning.is_foreign(item) else None
            details = [detail] if detail else []
        if not text:
            text = "".join(str(detail.get("text") or "") for detail in details)
        if not text and not details:
            if self._extra and self._turn is not None and self._turn["content"] is not None:
                self._turn["extra_content"], self._extra = self._extra, {}  # of the text before it
            return
        turn = self._open(new=self._is_over())
        if text:
            turn["reasoning_content"] = items.GAP.join(filter(None, (turn.get("reasoning_content"), text)))
        if details:
            turn.setdefault("reasoning_details", []).extend(details)


def _plain(parts: list[Json]) -> Any:
    """Content as one string where it is one text."""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def read(doc: Mapping[str, Any], tools: Tools) -> Conversation:
    """The conversation of a request: its instructions and its input. Raises `BadRequestError`."""
    told = Conversation(tools)
    instructions = doc.get("instructions")
    if type(instructions) is list:
        for index, item in enumerate(instructions):
            told.add(item, f"instructions[{index}]")
    elif instructions is not None:
        if type(instructions) is not str:
            refuse("instructions", "must be a string")
        if instructions:
            told.system(instructions)
    given = doc.get("input")
    if type(given) is str:
        told.add({"role": "user", "content": given}, "input")
    elif type(given) is list and given:
        for index, item in enumerate(given):
            told.add(item, f"input[{index}]")
    else:
        refuse("input", "must be a string or a non-empty array of items")
    return told
