"""Canonical chat requests into requests of Anthropic's Messages API. Pure.

`RULES` says what becomes of parameters that have no twin there. Values out of the API's range are brought into it
where the meaning stays (`temperature` at most 1). Formats: the API's public documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from providers.adapters import anthropic_messages as messages
from providers.adapters import params
from providers.adapters.params import DROP, REFUSE
from providers.canonical import Call, Target

DEFAULT_MAX_TOKENS = 4096  # the API demands a limit; this one is sent where neither gateway nor client has one
THINKING_MIN = 1024  # the smallest budget the API takes
THINKING_MAX = 32_000
BUDGET_LABEL = "thinking-budget"  # of models that take a thinking budget instead of an effort

TRANSLATED = frozenset(
    {
        "messages",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "reasoning_effort",
        "thinking",
        "temperature",
        "top_p",
        "top_k",
        "stop",
        "user",
        "safety_identifier",
        "service_tier",
        "cache_control",
    }
)
RULES: Mapping[str, str] = {
    # They shape the answer or what comes with it.
    **dict.fromkeys(("n", "best_of", "logprobs", "top_logprobs", "logit_bias"), REFUSE),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "repetition_penalty", "min_p"), REFUSE),
    **dict.fromkeys(("modalities", "audio", "functions", "function_call", "web_search_options", "moderation"), REFUSE),
    **dict.fromkeys(("structured_outputs", "grammar", "json_schema", "format"), REFUSE),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), REFUSE),
    # Hints and labels.
    **dict.fromkeys(("seed", "prediction", "verbosity", "store", "metadata"), DROP),
    **dict.fromkeys(("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"), DROP),
}

_EFFORTS = {
    "minimal": ("low", 10),
    "low": ("low", 20),
    "medium": ("medium", 50),
    "high": ("high", 80),
    "xhigh": ("xhigh", 90),
    "max": ("max", 95),
}  # the API's own level, and for models with a budget the share of the output limit in percent
_TIERS = {"auto": "", "default": "standard_only", "standard_only": "standard_only", "priority": "auto"}
_CHOICES = {"auto": "auto", "none": "none", "required": "any"}
_TOOL_FIELDS = ("cache_control", "defer_loading", "eager_input_streaming", "input_examples")
_NO_ARGUMENTS = {"type": "object", "properties": {}}

_decode = msgspec.json.Decoder().decode


class Translated(msgspec.Struct):
    """The request's fields, what was left out, and whether it refers to the Files API."""

    fields: dict[str, Any]
    dropped: tuple[str, ...]
    files: bool


def translate(call: Call, target: Target, limit: int | None) -> Translated:
    """The request for a canonical chat call. Raises `UnsupportedParamError`."""
    doc = _decode(call.body)
    left = list(params.dropped(doc, target, RULES, TRANSLATED))
    told = messages.conversation(doc["messages"])
    wanted = call.limit or DEFAULT_MAX_TOKENS if limit is None else limit
    fields: dict[str, Any] = {"model": target.upstream_model or call.model, "max_tokens": wanted}
    if told.system:
        fields["system"] = told.system
    fields["messages"] = told.turns
    tools = [_tool(tool, index) for index, tool in enumerate(doc.get("tools") or ())]
    if tools:
        fields["tools"] = tools
    choice = _choice(doc, target, has_tools=bool(tools))
    if choice:
        fields["tool_choice"] = choice
    thinking = _thinking(doc, target, fields, left)
    if thinking:
        fields["thinking"] = thinking
    output = _output_config(doc, target, left)
    if output:
        fields["output_config"] = output
    _sampling(doc, target, fields, left)
    _labels(doc, target, fields, left)
    if call.stream:
        fields["stream"] = True
    return Translated(fields, tuple(dict.fromkeys(left + told.left)), told.files)


def _tool(tool: Any, index: int) -> dict[str, Any]:
    where = f"tools[{index}]"
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type", "function") != "function":
        # The API's own server tools cost extra; only clients of that API itself may ask for them.
        raise messages.refused(where, "must be a tool of the type 'function'")
    name, schema = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise messages.refused(f"{where}.function.name", "must be a string that is not empty")
    if schema is not None and not isinstance(schema, dict):
        raise messages.refused(f"{where}.function.parameters", "must be a JSON schema")
    told: dict[str, Any] = {"name": name}
    if isinstance(function.get("description"), str):
        told["description"] = function["description"]
    told["input_schema"] = schema if schema and "type" in schema else {**_NO_ARGUMENTS, **(schema or {})}
    if function.get("strict") is True:
        told["strict"] = True
    for field in _TOOL_FIELDS:
        value = tool.get(field, function.get(field))
        if value is not None:
            told[field] = value
    return told


def _choice(doc: dict[str, Any], target: Target, *, has_tools: bool) -> dict[str, Any] | None:
    asked, single = doc.get("tool_choice"), doc.get("parallel_tool_calls") is False and has_tools
    if asked is None:
        return {"type": "auto", "disable_parallel_tool_use": True} if single else None
    choice: dict[str, Any]
    if isinstance(asked, str) and asked in _CHOICES:
        choice = {"type": _CHOICES[asked]}
    else:
        function = asked.get("function") if isinstance(asked, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or asked.get("type", "function") != "function":
            raise params.unsupported("tool_choice", target, _not_known("tool_choice", target))
        choice = {"type": "tool", "name": name}
    if not has_tools and choice["type"] in ("auto", "none"):
        return None  # without tools it says nothing, and the API refuses it
    if single and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True
    return choice


def _not_known(field: str, target: Target) -> str:
    return f"The provider ({target.kind.label}) does not know this value of '{field}'"


def _output_config(doc: dict[str, Any], target: Target, left: list[str]) -> dict[str, Any]:
    output: dict[str, Any] = {}
    effort = doc.get("reasoning_effort")
    if effort is not None and effort != "none" and BUDGET_LABEL not in target.labels:
        output["effort"] = _EFFORTS[effort][0]
    asked = doc.get("response_format")
    kind = "text" if asked is None else asked.get("type")
    if asked is not None and kind == "json_schema":
        holder = asked.get("json_schema")
        schema = holder.get("schema") if isinstance(holder, dict) else None
        if not isinstance(schema, dict):
            raise messages.refused("response_format.json_schema.schema", "must be a JSON schema")
        output["format"] = {"type": "json_schema", "schema": schema}
    elif kind == "json_object":
        if target.strict:
            what = f"The provider ({target.kind.label}) has no JSON mode without a schema ('response_format')"
            raise params.unsupported("response_format", target, what)
        left.append("response_format")
    elif kind != "text":
        raise params.unsupported("response_format", target, _not_known("response_format", target))
    return output


def _thinking(doc: dict[str, Any], target: Target, fields: dict[str, Any], left: list[str]) -> dict[str, Any] | None:
    """The thinking to ask for. What the API would refuse in this request is not asked for, and told as left out."""
    asked, effort = doc.get("thinking"), doc.get("reasoning_effort")
    if effort is not None and (not isinstance(effort, str) or (effort != "none" and effort not in _EFFORTS)):
        raise params.unsupported("reasoning_effort", target, _not_known("reasoning_effort", target))
    if asked is not None and not isinstance(asked, dict):
        raise messages.refused("thinking", "must be an object")
    if asked is None and effort is None:
        return None
    budgeted, source = BUDGET_LABEL in target.labels, "reasoning_effort" if asked is None else "thinking"
    if asked is not None and effort is not None and (budgeted or effort == "none"):
        left.append("reasoning_effort")
    thinking: dict[str, Any]
    if asked is not None and (asked.get("type") != "enabled" or asked.get("budget_tokens") is not None):
        thinking = dict(asked)
    elif asked is None and effort == "none":
        thinking = {"type": "disabled"}
    elif budgeted:
        share = _EFFORTS.get(str(effort), _EFFORTS["medium"])[1]
        budget = min(max(fields["max_tokens"] * share // 100, THINKING_MIN), THINKING_MAX)
        thinking = {"type": "enabled", "budget_tokens": budget}
    else:
        thinking = {"type": "adaptive"}
    if thinking.get("type") == "disabled" or _bounded(thinking, fields):
        return thinking
    # An effort is honoured without thinking, too, by the models that know it.
    if source == "thinking" or budgeted:
        left.append(source)
    return None


def _bounded(thinking: dict[str, Any], fields: dict[str, Any]) -> bool:
    """Bring the budget below the output limit; False when thinking is not possible in this request at all."""
    if fields.get("tool_choice", {}).get("type") in ("any", "tool"):
        return False
    if thinking.get("type") != "enabled":
        return True
    budget = thinking.get("budget_tokens")
    if type(budget) is not int:
        raise messages.refused("thinking.budget_tokens", "must be an integer")
    if budget >= fields["max_tokens"]:
        budget = thinking["budget_tokens"] = fields["max_tokens"] - 1
    return budget >= THINKING_MIN and not _unthought(fields["messages"])


def _unthought(turns: list[dict[str, Any]]) -> bool:
    """Whether the answer goes on with a turn begun without thinking; a budget of it is then refused."""
    if turns and turns[-1]["role"] == "user" and turns[-1]["content"][0]["type"] == "tool_result":
        turns = turns[:-1]
    if not turns or turns[-1]["role"] != "assistant":
        return False
    return turns[-1]["content"][0]["type"] not in messages.THINKING


def _sampling(doc: dict[str, Any], target: Target, fields: dict[str, Any], left: list[str]) -> None:
    """Sampling, each value only where it is not the API's default: newer models refuse some of them outright."""
    thinks = fields.get("thinking", {"type": "disabled"}).get("type") != "disabled"
    temperature, top_p, top_k = doc.get("temperature"), doc.get("top_p"), doc.get("top_k")
    if temperature is not None and temperature < 1:
        if thinks:
            left.append("temperature")
        else:
            fields["temperature"] = max(temperature, 0)
    if top_p is not None and top_p != 1:
        if thinks and top_p < 0.95:
            left.append("top_p")
        else:
            fields["top_p"] = top_p
    if top_k is not None:
        if type(top_k) is not int:
            raise messages.refused("top_k", "must be an integer")
        if thinks:
            left.append("top_k")
        else:
            fields["top_k"] = top_k
    stop = doc.get("stop")
    given = [stop] if isinstance(stop, str) else stop or []
    kept = [text for text in given if text.strip()]
    if len(kept) != len(given):  # a line end, most often; the API refuses it
        if target.strict:
            what = f"The provider ({target.kind.label}) cannot stop at white space alone ('stop')"
            raise params.unsupported("stop", target, what)
        left.append("stop")
    if kept:
        fields["stop_sequences"] = kept


def _labels(doc: dict[str, Any], target: Target, fields: dict[str, Any], left: list[str]) -> None:
    user, identifier = doc.get("user"), doc.get("safety_identifier")
    for name, value in (("user", user), ("safety_identifier", identifier)):
        if value is not None and not isinstance(value, str):
            raise messages.refused(name, "must be a string")
    if user is not None and identifier is not None and user != identifier:
        left.append("user")
    if (identifier or user) is not None:
        fields["metadata"] = {"user_id": identifier or user}
    tier = doc.get("service_tier")
    known = _TIERS.get(tier) if isinstance(tier, str) else None
    if known:
        fields["service_tier"] = known
    elif tier is not None and known is None:
        if target.strict:
            raise params.unsupported("service_tier", target, _not_known("service_tier", target))
        left.append("service_tier")
    if isinstance(doc.get("cache_control"), dict):
        fields["cache_control"] = doc["cache_control"]
