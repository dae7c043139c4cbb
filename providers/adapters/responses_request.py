"""Canonical chat requests into requests of the OpenAI Responses API. Pure.

Nothing is stored at the provider; encrypted reasoning is asked for instead, so that it can come back with the next
request. `RULES` says what becomes of parameters that have no twin. Formats: the API's public documentation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from providers import responses_items as items
from providers.adapters import params
from providers.adapters.params import DROP, REFUSE
from providers.canonical import Call, Target, UnsupportedParamError

REASONING = frozenset({"reasoning", "thinking"})  # labels of a model's card that say it reasons

TRANSLATED = frozenset(
    {
        "messages",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "verbosity",
        "reasoning_effort",
        "logprobs",
        "top_logprobs",
        "temperature",
        "top_p",
        "metadata",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "service_tier",
        "moderation",
    }
)
RULES: Mapping[str, str] = {
    # They shape the answer or what comes with it.
    **dict.fromkeys(("n", "best_of", "stop", "logit_bias", "frequency_penalty", "presence_penalty"), REFUSE),
    **dict.fromkeys(("top_k", "min_p", "repetition_penalty"), REFUSE),
    **dict.fromkeys(("modalities", "audio", "functions", "function_call", "web_search_options"), REFUSE),
    **dict.fromkeys(("structured_outputs", "grammar", "json_schema", "format"), REFUSE),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), REFUSE),
    # Hints, and what is decided here.
    **dict.fromkeys(("seed", "prediction", "store"), DROP),
}

_SAME = (
    "temperature",
    "top_p",
    "top_logprobs",
    "metadata",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "service_tier",
    "moderation",
)
ENCRYPTED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
# Models that answer 400 when encrypted reasoning is asked for, because they do not reason.
_PLAIN = re.compile(r"(?:ft:)?(?:gpt-3\.5|gpt-4|chatgpt-4o|gpt-5[0-9.]*-chat|davinci|babbage)")

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def translate(call: Call, target: Target, limit: int | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The request of a canonical chat call and the parameters left out. Raises `UnsupportedParamError`."""
    doc = _decode(call.body)
    dropped = params.dropped(doc, target, RULES, TRANSLATED)
    fields: dict[str, Any] = {
        "model": target.upstream_model or call.model,
        "input": conversation(doc["messages"], target),
        "store": False,
    }
    include = [ENCRYPTED] if reasons(doc, call, target) else []
    if doc.get("logprobs") is True:
        include.append(LOGPROBS)
    if include:
        fields["include"] = include
    wanted = call.limit if limit is None else limit
    if wanted is not None:
        fields["max_output_tokens"] = wanted
    fields |= {name: doc[name] for name in _SAME if doc.get(name) is not None}
    if doc.get("reasoning_effort") is not None:
        fields["reasoning"] = {"effort": doc["reasoning_effort"]}
    if text := _text(doc, target):
        fields["text"] = text
    fields |= _tools(doc, target)
    if call.stream:
        fields["stream"] = True
    return fields, dropped


def reasons(doc: Mapping[str, Any], call: Call, target: Target) -> bool:
    """Whether encrypted reasoning may be asked for: of every model but those known not to reason."""
    if REASONING & target.labels or doc.get("reasoning_effort") not in (None, "none"):
        return True
    return _PLAIN.match(target.upstream_model or call.model) is None


def _text(doc: Mapping[str, Any], target: Target) -> dict[str, Any]:
    text: dict[str, Any] = {}
    given = doc.get("response_format")
    if given is not None:
        shape = items.flat_format(given)
        if shape is None:
            raise refused("response_format.type", target, "must be 'text', 'json_object' or 'json_schema'")
        text["format"] = shape
    if doc.get("verbosity") is not None:
        text["verbosity"] = doc["verbosity"]
    return text


def _tools(doc: Mapping[str, Any], target: Target) -> dict[str, Any]:
    told = []
    for index, tool in enumerate(doc.get("tools") or ()):
        flat = items.flat_tool(tool) if isinstance(tool, dict) else None
        if flat is None:
            # The API's own server tools cost extra; only clients of that API itself may ask for them.
            raise refused(f"tools[{index}]", target, "must be a tool of the type 'function' or 'custom'")
        told.append(flat)
    if not told:
        return {}
    fields: dict[str, Any] = {"tools": told}
    if doc.get("parallel_tool_calls") is not None:
        fields["parallel_tool_calls"] = doc["parallel_tool_calls"]
    choice = doc.get("tool_choice")
    if choice is not None:
        fields["tool_choice"] = _choice(choice, target)
    return fields


def _choice(choice: Any, target: Target) -> Any:
    if choice in ("auto", "none", "required"):
        return choice
    if isinstance(choice, dict):
        allowed = choice.get("allowed_tools")
        if choice.get("type") == "allowed_tools" and isinstance(allowed, dict):
            named = [_named(tool) for tool in allowed.get("tools") or ()]
            if all(named):
                return {"type": "allowed_tools", "mode": allowed.get("mode") or "auto", "tools": named}
        elif named_one := _named(choice):
            return named_one
    raise refused("tool_choice", target, "must be 'auto', 'none', 'required' or name a tool")


def _named(tool: Any) -> dict[str, Any] | None:
    kind = tool.get("type", "function") if isinstance(tool, dict) else None
    inner = tool.get(kind) if kind in ("function", "custom") else None
    name = inner.get("name") if isinstance(inner, dict) else None
    return {"type": kind, "name": name} if isinstance(name, str) and name else None


def refused(where: str, target: Target, what: str) -> UnsupportedParamError:
    """The refusal of a value that this API cannot take."""
    return params.unsupported(where, target, f"'{where}' {what} to be sent over the Responses API of this provider")


# --- messages ---------------------------------------------------------------------------------------------------------


def conversation(messages: list[Any], target: Target) -> list[dict[str, Any]]:
    """The input items of a canonical conversation. Raises `UnsupportedParamError`."""
    told: list[dict[str, Any]] = []
    custom: set[str] = set()  # ids of calls to tools that take free text; their results are items of another type
    for index, message in enumerate(messages):
        where, role = f"messages[{index}]", message.get("role")
        if role in ("user", "system", "developer"):
            content = _parts(message.get("content"), f"{where}.content", target, items.input_part, "input_text")
            told.append({"type": "message", "role": role, "content": content})
        elif role == "assistant":
            told += _assistant(message, where, target, custom)
        elif role == "tool":
            told.append(_result(message, where, target, custom))
        else:
            raise refused(f"{where}.role", target, "must be system, developer, user, assistant or tool")
    return told


def _parts(
    content: Any, where: str, target: Target, twin: Callable[[Mapping[str, Any]], dict[str, Any] | None], text: str
) -> list[dict[str, Any]]:
    """The content of a message as parts; `text` is the type of a content that is one string."""
    if content is None:
        return []
    if isinstance(content, str):
        part = {"type": text, "text": content}
        return [part | {"annotations": []}] if text == "output_text" else [part]
    told = []
    for place, part in enumerate(content):
        kind = part.get("type")
        if kind in ("thinking", "reasoning") and text == "output_text":
            continue  # another provider's reasoning means nothing here
        flat = twin(part)
        if flat is None:
            shown = kind if isinstance(kind, str) and kind.isprintable() else ""
            raise refused(f"{where}[{place}].type", target, f"must not be '{shown[:40]}'")
        told.append(flat)
    return told


def _assistant(message: Mapping[str, Any], where: str, target: Target, custom: set[str]) -> list[dict[str, Any]]:
    for name in ("audio", "function_call"):
        if message.get(name) is not None:
            raise refused(f"{where}.{name}", target, "must be left out")
    details = message.get("reasoning_details")
    told = [items.reasoning_item(detail) for detail in details or () if items.is_encrypted(detail)]
    content = _parts(message.get("content"), f"{where}.content", target, items.output_part, "output_text")
    if message.get("refusal"):
        content.append({"type": "refusal", "refusal": message["refusal"]})
    calls = message.get("tool_calls") or ()
    content = [part for part in content if part.get("text") != ""] if calls else content
    if content:
        told.append({"type": "message", "role": "assistant", "content": content})
    for place, call in enumerate(calls):
        told.append(_call(call, f"{where}.tool_calls[{place}]", target, custom))
    return told


def _call(call: Any, where: str, target: Target, custom: set[str]) -> dict[str, Any]:
    kind = call.get("type") or "function" if isinstance(call, dict) else ""
    inner = call.get(kind) if kind in ("function", "custom") else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise refused(where, target, "must be a call of a named function")
    id = str(call.get("id") or "")
    if kind == "custom":
        custom.add(id)
        return {"type": "custom_tool_call", "call_id": id, "name": inner["name"], "input": inner.get("input") or ""}
    arguments = inner.get("arguments")
    if not isinstance(arguments, str):  # some clients send the object itself
        arguments = "" if arguments is None else _encode(arguments).decode()
    return {"type": "function_call", "call_id": id, "name": inner["name"], "arguments": arguments or "{}"}


def _result(message: Mapping[str, Any], where: str, target: Target, custom: set[str]) -> dict[str, Any]:
    content = message.get("content")
    output: Any = content or ""
    if isinstance(content, list):
        output = _parts(content, f"{where}.content", target, items.input_part, "input_text")
    id = str(message.get("tool_call_id") or "")
    kind = "custom_tool_call_output" if id in custom else "function_call_output"
    return {"type": kind, "call_id": id, "output": output}
