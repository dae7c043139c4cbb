"""OpenAI's Responses API as clients speak it, without state: requests into `Call`s, answers into responses.

A request is carried over to a chat (`responses_input`, `responses_tools`) and kept as it came for providers that speak
this API themselves. Refused is what needs an earlier answer or a later visit: nothing is stored here. Answers:
`responses_answer`, `responses_stream`. Formats: the API's public documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from gateway import strict
from gateway.dialects import openai, reading, responses_answer, responses_input, responses_reasoning, responses_tools
from gateway.dialects.base import Dialect
from gateway.dialects.names import renamed
from gateway.dialects.responses_stream import Writer
from gateway.dialects.responses_tools import refuse
from gateway.errors import BadRequestError, GatewayError, to_openai
from gateway.exchange import Exchange
from providers import responses_items as items
from providers.canonical import Call

Json = dict[str, Any]

NAME = "responses"

# What needs state, and what to do instead.
_STATE = {
    "previous_response_id": "Send the whole conversation in 'input'.",
    "conversation": "Send the whole conversation in 'input'.",
    "prompt": "Send the text of the prompt in 'instructions' or 'input'.",
}
# Names from other APIs that some servers read beside the ones that are priced here.
_REFUSED = {
    "max_tokens": "Use 'max_output_tokens' instead of 'max_tokens'.",
    "max_completion_tokens": "Use 'max_output_tokens' instead of 'max_completion_tokens'.",
    "n_predict": "Use 'max_output_tokens' instead of 'n_predict'.",
    "messages": "Use 'input' instead of 'messages'.",
    "n": "'n' is not possible: a response is one answer. Leave it out.",
    "best_of": "'best_of' is not possible: a response is one answer. Leave it out.",
    "n_cmpl": "'n_cmpl' is not possible: a response is one answer. Leave it out.",
    "models": "Name one 'model'; fallback models are set up in the gateway's routes.",
}
# Servers that match keys without regard to case must not read another value than the one read here.
_GUARDED = frozenset({"max_output_tokens", "previous_response_id", "conversation", "background", "store", "text"})
_KNOWN = strict.GUARDED | _GUARDED
_SAME = (
    "model",
    "stream",
    "temperature",
    "top_p",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "service_tier",
    "moderation",
    "pool",
)
# Read here, or said again in the answer, or without meaning for an answer that is whole.
_READ = frozenset(
    {
        "input",
        "instructions",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "max_output_tokens",
        "text",
        "reasoning",
        "include",
        "top_logprobs",
        "metadata",
        "stream_options",
        "background",
        *_STATE,
    }
)
_INCLUDED = frozenset({"reasoning.encrypted_content", "message.output_text.logprobs"})
_PARTS = {"text": frozenset({"format", "verbosity"}), "reasoning": frozenset({"effort", "summary", "generate_summary"})}
# What became of which field (`gateway.dialects.names`).
_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "logprobs": "include",
        "max_completion_tokens": "max_output_tokens",
        "messages": "input",
        "reasoning_content": "input.reasoning",
        "reasoning_details": "input.reasoning",
        "reasoning_effort": "reasoning.effort",
        "response_format": "text.format",
        "tools": "tools",  # others than functions are not among them, and those of a namespace are
        "tools.function.strict": "tools.strict",
        "verbosity": "text.verbosity",
    }
)
# Fields of the chat API that a body of this API may hold beside its own when it comes for a chat.
_CHAT_FIELDS = frozenset(
    {
        "max_tokens",
        "max_completion_tokens",
        "n",
        "best_of",
        "stop",
        "seed",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "logprobs",
        "reasoning_effort",
        "response_format",
        "verbosity",
        "n_predict",
        "n_cmpl",
        "models",
        "web_search_options",
    }
)
_BETA_BYTES = 256

_encode = msgspec.json.Encoder().encode


class _Translated(msgspec.Struct):
    """The canonical body, what it lacks, what only a provider of this API can be asked, and the files it lacks.

    `names`: what became of which field.
    """

    body: Json
    names: Mapping[str, str]
    dropped: list[str]
    native_only: str
    hidden: int
    forced: bool


def parse_responses(body: bytes, exchange: Exchange | None = None) -> Call:
    """Validate a request. Raises `BadRequestError` with `param` set to the field at fault."""
    doc, body = strict.load(body)
    _refuse_impossible(doc)
    told = _translated(doc)
    call = _call(told.body, told.names)
    call.dialect, call.native, call.wants_usage = NAME, _own(doc, body), True
    call.native_headers = _beta(exchange)
    call.native_only, call.dropped = told.native_only, tuple(dict.fromkeys(told.dropped))
    call.others += told.hidden  # a provider of this API reads them
    if told.forced:  # a tool that the provider runs itself, at a price of its own
        call.surcharge = reading.dearest(call.surcharge, "tools")
    return call


def looks_like_responses(doc: Mapping[str, Any]) -> bool:
    """Whether a body that came for a chat is one of this API: some clients (Cursor) send it there."""
    return "input" in doc and "messages" not in doc


def chat_from_responses(doc: Mapping[str, Any]) -> Call:
    """The call of a body of this API that came for a chat and is answered as one. Raises `BadRequestError`.

    Fields of the chat API in the same body are kept; tools that take free text are functions in the answer too.
    """
    for name, advice in _STATE.items():
        if doc.get(name) is not None:
            _refuse_state(name, advice)
    told = _translated(doc)
    own = _READ | frozenset(_SAME)
    chat = {name: value for name, value in doc.items() if name in _CHAT_FIELDS and name not in own}
    if doc.get("max_output_tokens") is not None:  # the one that is the most precise counts
        chat.pop("max_tokens", None)
        chat.pop("max_completion_tokens", None)
    if doc.get("stream_options") is not None:
        chat["stream_options"] = doc["stream_options"]
    else:
        told.body.pop("stream_options", None)
    # A field of the chat API has the caller's own name already.
    call = _call({**told.body, **chat}, {name: own for name, own in told.names.items() if name not in chat})
    call.dropped = tuple(dict.fromkeys(name for name in told.dropped if name not in chat))
    return call


def without_hosted_tools(call: Call) -> Call:
    """The same call without the tools that the provider would run itself, whose price and input nobody here knows.

    For budgets: what these tools read is input that no bound covers. `call.dropped` names the tools already, as
    `tools.TYPE`. A call that forces such a tool cannot do without (`native_only`).
    """
    if not call.native or call.dialect != NAME or not any(name.startswith("tools.") for name in call.dropped):
        return call
    doc = msgspec.json.decode(call.native)
    native = _own_tools_only(doc)
    for name in ("input", "instructions"):
        if isinstance(doc.get(name), list):
            native[name] = [_own_tools_only(item) if isinstance(item, dict) else item for item in doc[name]]
    choice = native.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        native["tool_choice"] = choice = _own_tools_only(choice)
        if isinstance(choice.get("allowed_tools"), dict):
            choice["allowed_tools"] = _own_tools_only(choice["allowed_tools"])
    if not native.get("tools"):
        native.pop("tools", None)
        native.pop("tool_choice", None)
    return msgspec.structs.replace(call, native=_encode(native))


def _own_tools_only(holder: Json) -> Json:
    """An object whose `tools`, if it has them, are such as the client runs itself."""
    tools = holder.get("tools")
    if not isinstance(tools, list):
        return dict(holder)
    own = ("function", "custom", "namespace")
    kept = [tool for tool in tools if isinstance(tool, dict) and tool.get("type") in own]
    return {**holder, "tools": [_own_tools_only(tool) if tool["type"] == "namespace" else tool for tool in kept]}


# --- refusals ---------------------------------------------------------------------------------------------------------


def _refuse_impossible(doc: strict.Document) -> None:
    for name, advice in _STATE.items():
        if doc.get(name) is not None:
            _refuse_state(name, advice)
    background = doc.get("background")
    if background not in (None, False):
        refuse("background", "must be false: answers are not stored here, so they cannot be fetched later")
    for name, message in _REFUSED.items():
        if doc.get(name) is not None:
            raise BadRequestError(message, param=name)
    for name in doc:
        if name not in _KNOWN and (folded := name.casefold()) in _GUARDED:
            raise BadRequestError(f"The field '{name[:64]}' is not known. Write '{folded}'.", param=name[:64])


def _refuse_state(name: str, advice: str) -> None:
    raise BadRequestError(f"'{name}' is not possible: nothing is stored here. {advice}", param=name)


def _call(body: Json, names: Mapping[str, str]) -> Call:
    """The call of a canonical body; refusals name the client's fields."""
    try:
        call = openai.chat_call(body, _encode(body))
    except BadRequestError as error:
        if not error.param:
            raise
        message, param = renamed(names, error.message, error.param)
        raise BadRequestError(message, param=param, code=error.code) from None
    call.names = names
    return call


# --- translation ------------------------------------------------------------------------------------------------------


def _translated(doc: Mapping[str, Any]) -> _Translated:
    """The canonical body of a request. Raises `BadRequestError`."""
    for name in ("input", "instructions"):
        reading.check_size(doc.get(name), name)
    tools = responses_tools.read(doc)
    told = responses_input.read(doc, tools)
    chosen = responses_tools.choose(doc, tools)
    body: Json = {name: doc[name] for name in _SAME if doc.get(name) is not None}
    body["messages"] = told.messages()
    dropped = [*told.dropped, *(f"tools.{kind}" for kind in tools.hosted)]
    native_only = told.native_only or chosen.native_only
    if doc.get("max_output_tokens") is not None:
        body["max_completion_tokens"] = _limit(doc["max_output_tokens"])
    if chosen.functions:
        body["tools"] = chosen.functions
        if chosen.choice is not None:
            body["tool_choice"] = chosen.choice
        if doc.get("parallel_tool_calls") is not None:
            body["parallel_tool_calls"] = doc["parallel_tool_calls"]
    native_only = native_only or _text(doc, body)
    effort = _part(doc, "reasoning").get("effort")
    if effort is not None:
        body["reasoning_effort"] = effort
    _logprobs(doc, body)
    names = {**_NAMES, "logprobs": "top_logprobs"} if "top_logprobs" in body else _NAMES
    if doc.get("stream") is True:
        body["stream_options"] = {"include_usage": True}
    return _Translated(body, names, dropped + _left(doc), native_only, told.hidden, chosen.native_only != "")


def _limit(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= openai.LIMIT_MAX:
        refuse("max_output_tokens", f"must be an integer from 1 to {openai.LIMIT_MAX}")
    return value


def _part(doc: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = doc.get(name)
    if value is not None and type(value) is not dict:
        refuse(name, "must be an object")
    return value or {}


def _text(doc: Mapping[str, Any], body: Json) -> str:
    """Carry `text`; returns what of it cannot be carried."""
    text = _part(doc, "text")
    if text.get("verbosity") is not None:
        body["verbosity"] = text["verbosity"]
    shape = text.get("format")
    if shape is None:
        return ""
    if type(shape) is not dict or type(shape.get("type")) is not str:
        refuse("text.format", "must be an object with a 'type'")
    nested = items.nested_format(shape)
    if nested is None:
        return "text.format"
    if nested["type"] == "json_schema" and type(nested["json_schema"].get("schema")) is not dict:
        refuse("text.format.schema", "must be an object")
    if nested["type"] != "text":
        body["response_format"] = nested
    return ""


def _logprobs(doc: Mapping[str, Any], body: Json) -> None:
    top, include = doc.get("top_logprobs"), doc.get("include")
    if top is not None and (type(top) is not int or not 0 <= top <= 20):
        refuse("top_logprobs", "must be an integer from 0 to 20")
    if include is not None and (type(include) is not list or not all(type(item) is str for item in include)):
        refuse("include", "must be an array of strings")
    if top or "message.output_text.logprobs" in (include or ()):
        body["logprobs"] = True
        if top:
            body["top_logprobs"] = top


def _left(doc: Mapping[str, Any]) -> list[str]:
    """The fields that are left out: those not known here, and those of this API that a chat does not have."""
    left = []
    for name, value in doc.items():
        if value is None or name in _SAME or (name in _READ and name not in (*_PARTS, "include")):
            continue
        if name in _PARTS:
            left += [f"{name}.{key}" for key, item in value.items() if item is not None and key not in _PARTS[name]]
        elif name == "include":
            left += ["include"] if not _INCLUDED.issuperset(value) else []
        elif not (name == "store" and value is False) and not (name == "truncation" and value == "disabled"):
            left.append(name)
    return left


def _own(doc: strict.Document, body: bytes) -> bytes:
    """The client's body for providers that speak this API: without reasoning that none of them could read."""
    given = doc.get("input")
    items_given = given if type(given) is list else []
    kept = [item for item in items_given if type(item) is not dict or not responses_reasoning.is_foreign(item)]
    return body if len(kept) == len(items_given) else _encode({**doc, "input": kept})


def _beta(exchange: Exchange | None) -> bytes:
    """The client's `OpenAI-Beta` header, for providers that speak this API."""
    for name, value in exchange.headers if exchange is not None else ():
        plain = value.isascii() and value.decode("latin-1").isprintable()
        if name.lower() == b"openai-beta" and plain and len(value) <= _BETA_BYTES:
            return b"openai-beta: %b\r\n" % value
    return b""


class _Responses:
    """The Responses API as a `gateway.dialects.base.Dialect`."""

    name = NAME
    stream_type = b"text/event-stream; charset=utf-8"
    ping = b": ping\n\n"
    id_header = b""

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """The body of an error answer: as everywhere in the OpenAI API."""
        return to_openai(error)

    def in_band(self, error: GatewayError) -> bytes:
        """The events that tell an error inside a stream whose own events nobody counted."""
        return Writer(Call("chat", "", b"{}")).fail_alone(error)

    def answer(self, call: Call, body: bytes) -> bytes:
        """The response of a canonical answer. Never raises."""
        return responses_answer.whole(call, body)

    def writer(self, call: Call, request_id: str) -> Writer:
        """A writer for one streamed response."""
        return Writer(call)


RESPONSES: Dialect = _Responses()
