"""Anthropic's Messages API as clients speak it: `/v1/messages`, its token counter, its model list and its errors.

`parse_messages` makes a `Call` in the canonical form and keeps what the client sent for a provider of the same API.
Checked is what is translated, priced or enforced; fields that are not known are left out of the canonical form and
reach such a provider as they are. What only such a provider can do (its own tools, its files, MCP servers, containers)
is noted as `native_only`, and as a surcharge where what it brings in or does is not in the body and costs extra.
Format: the API's public documentation and the types of its public Python client, 2.11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from gateway import strict
from gateway.dialects import openai, reading
from gateway.dialects.anthropic_blocks import Conversation, without
from gateway.dialects.anthropic_stream import AnthropicCall, Writer, answer, error_body, error_event
from gateway.dialects.reading import refuse
from gateway.errors import GatewayError
from gateway.exchange import Exchange
from providers.canonical import Call

NAME = "anthropic"
HEADER_BYTES = 4096  # of the headers that are passed on

# Of the fields that decide a price, the ones this API has.
_PRICED = frozenset({"model", "messages", "stream", "max_tokens", "tools", "service_tier"})
_TRANSLATED = _PRICED | {
    "metadata",
    "output_config",
    "output_format",
    "pool",
    "stop_sequences",
    "system",
    "temperature",
    "thinking",
    "tool_choice",
    "top_k",
    "top_p",
}
# What only a provider of this API can do. What they bring in is not in the body, so its price is not known before.
_OWN = ("container", "mcp_servers")
_DEARER: Mapping[str, str] = MappingProxyType({"speed": "standard", "inference_geo": "global"})
# Other models, and whose account pays: for the operator to say.
_REMOVED = ("fallbacks", "billing_policy", "user_profile_id", "workspace_id")
# Tools that the client runs itself; all others of the API's own run at the provider.
_CLIENT_TOOLS = ("bash_", "text_editor_", "computer_", "browser_", "memory_", "tool_search_tool_")
_TOOL_FIELDS = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control"})
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_HEADERS = (b"anthropic-version", b"anthropic-beta")
# What became of which field, where they differ (`gateway.dialects.names`).
_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "messages": "messages",  # they hold others: the system prompt, and each tool's result by itself
        "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        "reasoning_effort": "output_config.effort",
        "response_format": "output_config.format",
        "stop": "stop_sequences",
        "tools.function.strict": "tools.strict",
        "user": "metadata.user_id",
    }
)

_encode = msgspec.json.Encoder().encode


def parse_messages(body: bytes, exchange: Exchange | None = None) -> Call:
    """Validate a body of /v1/messages. Raises `BadRequestError` with `param` set to the field at fault."""
    return _parse(body, exchange, counted=False)


def parse_count(body: bytes, exchange: Exchange | None = None) -> Call:
    """Validate a body of /v1/messages/count_tokens: that of a message, and nothing is generated."""
    return _parse(body, exchange, counted=True)


def count_answer(tokens: int) -> bytes:
    """The answer of the token counter."""
    return _encode({"input_tokens": tokens})


def _parse(body: bytes, exchange: Exchange | None, *, counted: bool) -> Call:
    doc, body = strict.load(body)
    findings = reading.Findings()
    canonical: dict[str, Any] = {"model": doc.get("model")}
    if "max_tokens" in doc or not counted:
        limit = doc.get("max_tokens")
        if type(limit) is not int or not 1 <= limit <= openai.LIMIT_MAX:
            refuse("max_tokens", f"must be an integer from 1 to {openai.LIMIT_MAX}")
        canonical["max_tokens"] = limit
    reading.check_size(doc.get("messages"), "messages")
    reading.check_size([{"content": doc.get("system")}], "system")
    conversation = Conversation(findings)
    conversation.system(doc.get("system"))
    conversation.read(doc.get("messages"))
    canonical["messages"] = conversation.messages
    _tools(doc, canonical, findings, conversation)
    _sampling(doc, canonical)
    names = dict(_NAMES)
    thinking = _effort(doc, canonical, names, findings)
    _format(doc, canonical, names)
    _account(doc, canonical)
    _rest(doc, findings, conversation)
    stream = doc.get("stream")
    if stream is not None and type(stream) is not bool:
        refuse("stream", "must be true or false")
    if stream and not counted:
        canonical |= {"stream": True, "stream_options": {"include_usage": True}}
    call = reading.made(AnthropicCall, openai.chat_call, canonical, names, thinking=thinking)
    call.names = names
    if conversation.foreign:
        doc = {**doc, "messages": without(doc["messages"], {id(block) for block in conversation.foreign})}
        body = _encode(doc)
    findings.apply(call, NAME, reading.native(doc, body, _PRICED, findings, removed=_REMOVED))
    call.native_headers = _native_headers(exchange)
    return call


def _tools(doc: strict.Document, canonical: dict[str, Any], findings: reading.Findings, marks: Conversation) -> None:
    given = doc.get("tools")
    if given is not None and type(given) is not list:
        refuse("tools", "must be an array")
    tools = []
    for index, tool in enumerate(given or ()):
        where = f"tools[{index}]"
        if type(tool) is not dict:
            refuse(where, "must be an object")
        kind = tool.get("type")
        if kind in (None, "custom"):
            tools.append(_tool(tool, where, findings, marks))
            continue
        if type(kind) is not str:
            refuse(f"{where}.type", "must be a string")
        client = kind.startswith(_CLIENT_TOOLS)
        marks.cache_mark(tool)
        findings.only(f"{where}.type", costs="" if client else reading.text_of(tool, "name") or kind)
    if tools:
        canonical["tools"] = tools
    _choice(doc.get("tool_choice"), canonical)


def _tool(tool: dict[str, Any], where: str, findings: reading.Findings, marks: Conversation) -> dict[str, Any]:
    name, schema, description = tool.get("name"), tool.get("input_schema"), tool.get("description")
    if type(name) is not str or not name:
        refuse(f"{where}.name", "must be a non-empty string")
    if type(schema) is not dict:
        refuse(f"{where}.input_schema", "must be a JSON schema")
    function: dict[str, Any] = {"name": name, "parameters": schema}
    if description is not None:
        if type(description) is not str:
            refuse(f"{where}.description", "must be a string")
        function["description"] = description
    if type(tool.get("strict")) is bool:
        function["strict"] = tool["strict"]
    for field, value in tool.items():
        if field not in _TOOL_FIELDS and value is not None:
            findings.drop(f"tools.{field}")
    told = {"type": "function", "function": function}
    mark = marks.cache_mark(tool)
    return told if mark is None else {**told, "cache_control": mark}


def _choice(choice: Any, canonical: dict[str, Any]) -> None:
    if choice is None:
        return
    kind = choice.get("type") if type(choice) is dict else None
    if kind not in ("auto", "any", "tool", "none"):
        refuse("tool_choice.type", "must be 'auto', 'any', 'tool' or 'none'")
    if kind == "tool" and (type(choice.get("name")) is not str or not choice["name"]):
        refuse("tool_choice.name", "must be the name of a tool")
    if "tools" not in canonical:
        return  # it says nothing without tools, and the canonical form forbids it
    if kind == "tool":
        canonical["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    else:
        canonical["tool_choice"] = _CHOICES[kind]
    if choice.get("disable_parallel_tool_use") is True:
        canonical["parallel_tool_calls"] = False


def _sampling(doc: strict.Document, canonical: dict[str, Any]) -> None:
    for name in ("temperature", "top_p"):
        value = doc.get(name)
        if value is not None:
            if type(value) not in (int, float) or not 0 <= value <= 1:
                refuse(name, "must be a number from 0 to 1")
            canonical[name] = value
    top_k = doc.get("top_k")
    if top_k is not None:
        if type(top_k) is not int or top_k < 0:
            refuse("top_k", "must be an integer of at least 0")
        canonical["top_k"] = top_k
    stop = doc.get("stop_sequences")
    if stop is not None:
        if type(stop) is not list or not all(type(text) is str for text in stop):
            refuse("stop_sequences", "must be an array of strings")
        if stop:
            canonical["stop"] = stop


def _object(doc: strict.Document, name: str) -> dict[str, Any]:
    value = doc.get(name)
    if value is not None and type(value) is not dict:
        refuse(name, "must be an object")
    return value or {}


def _effort(doc: strict.Document, canonical: dict[str, Any], names: dict[str, str], findings: reading.Findings) -> str:
    """Set the effort; return how thinking is shown: "shown", "hidden" (signatures only) or "" (not asked for)."""
    thinking, config = _object(doc, "thinking"), _object(doc, "output_config")
    kind, effort = thinking.get("type"), config.get("effort")
    if thinking and type(kind) is not str:
        refuse("thinking.type", "must be a string such as 'enabled'")
    if effort is not None and effort not in _EFFORTS:
        refuse("output_config.effort", "must be 'low', 'medium', 'high', 'xhigh' or 'max'")
    if kind == "enabled":
        budget = thinking.get("budget_tokens")
        if type(budget) is not int or budget < 1:
            refuse("thinking.budget_tokens", "must be a positive integer")
        if effort is None:
            effort, names["reasoning_effort"] = reading.effort_of(budget), "thinking.budget_tokens"
    elif kind == "disabled":
        findings.drop("thinking")  # the default of this API, a value that few models of others take
        if effort is not None:
            findings.drop("output_config.effort")
        return ""
    elif kind is not None and effort is None:
        findings.drop("thinking")  # the model is to decide how much
    if effort is not None:
        canonical["reasoning_effort"] = effort
    if kind is None:
        return ""
    return "hidden" if thinking.get("display") == "omitted" else "shown"


def _format(doc: strict.Document, canonical: dict[str, Any], names: dict[str, str]) -> None:
    """Structured output, in the place where it stands now or in the one of its beta."""
    config, where = _object(doc, "output_config").get("format"), "output_config.format"
    if config is None:
        config, where = doc.get("output_format"), "output_format"
    if config is None:
        return
    if type(config) is not dict or config.get("type") != "json_schema":
        refuse(f"{where}.type", "must be 'json_schema'")
    if type(config.get("schema")) is not dict:
        refuse(f"{where}.schema", "must be a JSON schema")
    canonical["response_format"], names["response_format"] = reading.answer_format(config["schema"]), where


def _account(doc: strict.Document, canonical: dict[str, Any]) -> None:
    user = _object(doc, "metadata").get("user_id")
    if user is not None:
        if type(user) is not str:
            refuse("metadata.user_id", "must be a string")
        canonical["user"] = user
    tier = doc.get("service_tier")
    if tier is not None:
        if type(tier) is not str:
            refuse("service_tier", "must be a string")
        if tier != "auto":  # the default everywhere
            canonical["service_tier"] = "default" if tier == "standard_only" else tier
    if doc.get("pool") is not None:
        canonical["pool"] = doc["pool"]


def _rest(doc: strict.Document, findings: reading.Findings, marks: Conversation) -> None:
    """Fields without a canonical twin."""
    if doc.get("thread") is not None:
        refuse("thread", "is not possible here: the gateway keeps no conversations; send all messages")
    marks.cache_mark(doc)
    if _object(doc, "output_config").get("task_budget") is not None:
        findings.drop("output_config.task_budget")
    for name, value in doc.items():
        if name in _TRANSLATED or value is None:
            continue
        if name in _OWN or name in _DEARER:
            if value == _DEARER.get(name, []):
                continue
            findings.only(name, costs="" if name in _DEARER else name)
            if name in _DEARER:
                findings.dearer(name)
        elif name == "compaction":
            findings.only(name)
        else:
            findings.drop(name)


def _native_headers(exchange: Exchange | None) -> bytes:
    """The client's version and betas as header lines. A value that is not plain text is left out."""
    lines = []
    for wanted in _HEADERS:
        values = [value.strip() for name, value in exchange.headers if name.lower() == wanted] if exchange else []
        told = b",".join(values if wanted == b"anthropic-beta" else values[-1:])
        if 0 < len(told) <= HEADER_BYTES and all(0x20 <= byte < 0x7F for byte in told):
            lines.append(b"%b: %b\r\n" % (wanted, told))
    return b"".join(lines)


# --- answers --------------------------------------------------------------------------------------------------------


class AnthropicDialect:
    """Errors, answers and streams in the shape of this API (see `gateway.dialects.base.Dialect`)."""

    name = NAME
    stream_type = b"text/event-stream; charset=utf-8"
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'
    id_header = b"request-id"

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """The body of an error answer."""
        return error_body(error, request_id)

    def in_band(self, error: GatewayError) -> bytes:
        """The event that tells an error inside a stream."""
        return error_event(error, "")

    def answer(self, call: Call, body: bytes) -> bytes:
        """A whole message, from a chat completion. Never raises."""
        return answer(call, body)

    def writer(self, call: Call, request_id: str) -> Writer:
        """A writer for one streamed message."""
        return Writer(call, request_id, input_estimate=reading.estimate(call))


ANTHROPIC = AnthropicDialect()


def models(names: Sequence[str]) -> bytes:
    """The list of models, on one page. When they were released is not known: the epoch stands for that."""
    listed = list(names)
    ends = {"first_id": listed[0] if listed else None, "last_id": listed[-1] if listed else None}
    return _encode({"data": [_model(name) for name in listed], "has_more": False, **ends})


def model(name: str) -> bytes:
    """One model."""
    return _encode(_model(name))


def _model(name: str) -> dict[str, str]:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
    }
