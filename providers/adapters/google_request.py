"""Requests in the canonical form into those of Google's Gemini API: conversations, tools and generation settings.

Formats: the API reference of `models.generateContent` (contents, parts, tools, generationConfig) and the guides on
function calling, thinking and thought signatures. Pure; `google` decides what is sent where.
"""

from __future__ import annotations

import base64
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

import msgspec

from providers.adapters import params
from providers.adapters.google_reply import DETAIL_FORMAT
from providers.adapters.params import DROP, REFUSE
from providers.canonical import Call, Target, UnsupportedParamError

# What the API has nothing for, and what becomes of it (`providers.adapters.params`).
RULES: Mapping[str, str] = {
    "audio": REFUSE,
    "function_call": REFUSE,
    "functions": REFUSE,
    "logit_bias": REFUSE,
    "modalities": REFUSE,
    "web_search_options": REFUSE,
    "metadata": DROP,
    "moderation": DROP,
    "prediction": DROP,
    "prompt_cache_key": DROP,
    "prompt_cache_options": DROP,
    "prompt_cache_retention": DROP,
    "safety_identifier": DROP,
    "service_tier": DROP,
    "store": DROP,
    "user": DROP,
    "verbosity": DROP,
}
_SAME: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
TRANSLATED = frozenset(
    {
        "messages",
        "tools",
        "tool_choice",
        "parallel_tool_calls",  # honoured where the answer is read
        "n",
        "stop",
        "logprobs",
        "top_logprobs",
        "response_format",
        "reasoning_effort",
        *_SAME,
    }
)
EMBEDDINGS = frozenset({"input", "dimensions", "encoding_format"})

# The guides' own table of what the efforts of the OpenAI API stand for.
_LEVELS = {"minimal": "LOW", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "xhigh": "XHIGH", "max": "XHIGH"}
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576}
_LEVELLED = re.compile(r"(?:.*/)?gemini-(?:[3-9]|\d\d|[a-z-]+-latest$)", re.IGNORECASE)
# Models from Gemini 3 on refuse a tool call of the conversation without a signature. This is the documented stand-in
# for calls that another model made.
STAND_IN = "skip_thought_signature_validator"
_SEED_MAX = 2**31 - 1

_AUDIO_TYPES = {"mp3": "audio/mp3", "wav": "audio/wav", "pcm16": "audio/pcm", "m4a": "audio/m4a"}
_FILE_TYPES = {
    "pdf": "application/pdf",
    "txt": "text/plain",
    "md": "text/markdown",
    "csv": "text/csv",
    "html": "text/html",
    "htm": "text/html",
    "xml": "text/xml",
    "json": "application/json",
    "rtf": "text/rtf",
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "heic": "image/heic",
    "heif": "image/heif",
    "mp3": "audio/mp3",
    "wav": "audio/wav",
    "ogg": "audio/ogg",
    "flac": "audio/flac",
    "aac": "audio/aac",
    "mp4": "video/mp4",
    "webm": "video/webm",
    "mov": "video/quicktime",
}

_decode = msgspec.json.Decoder().decode
_DECODE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)

Json = dict[str, Any]


def translated(doc: Mapping[str, Any], call: Call, target: Target, limit: int | None) -> tuple[Json, tuple[str, ...]]:
    """The `generateContent` body for a canonical chat body, and the parameters left out of it.

    `limit` is the output limit to write, None for none. Raises `UnsupportedParamError`.
    """
    left = list(params.dropped(doc, target, RULES, TRANSLATED))
    body = conversation(doc, call, target)
    _add_tools(body, doc, target, left)
    config = _generation(doc, target, left)
    if limit is not None:
        config["maxOutputTokens"] = limit
    if config:
        body["generationConfig"] = config
    return body, tuple(left)


def conversation(doc: Mapping[str, Any], call: Call, target: Target) -> Json:
    """`contents` and `systemInstruction` of a canonical chat body."""
    told = _Conversation(target, signs=levelled(call, target))
    for index, message in enumerate(doc["messages"]):
        told.add(message, f"messages[{index}]")
    if not told.contents:  # at least one turn is required
        return {"contents": [{"role": "user", "parts": told.system or [{"text": ""}]}]}
    body: Json = {"contents": told.contents}
    if told.system:
        body["systemInstruction"] = {"parts": told.system}
    return body


def levelled(call: Call, target: Target) -> bool:
    """Whether the model is one of Gemini 3 or later: thinking by level, signatures required."""
    return _LEVELLED.match(target.upstream_model or call.model) is not None


class _Conversation:
    """The turns of a conversation as they are translated, neighbours of one role merged."""

    def __init__(self, target: Target, *, signs: bool) -> None:
        self.contents: list[Json] = []
        self.system: list[Json] = []
        self._names: dict[str, str] = {}  # of the tools by call id: a result must name its tool
        self._target = target
        self._signs = signs

    def add(self, message: Mapping[str, Any], where: str) -> None:
        """Translate one message. Raises `UnsupportedParamError`."""
        role = message["role"]
        if role in ("system", "developer"):
            self.system.extend(self._parts(message, where))
        elif role == "user":
            self._turn("user", self._parts(message, where) or [{"text": ""}])
        elif role == "assistant":
            self._turn("model", self._answer(message, where))
        elif role == "tool":
            self._turn("user", self._result(message, where))
        else:
            raise self._refusal(f"{where}.role", f"has no role '{str(role)[:64]}'")

    def _turn(self, role: str, parts: list[Json]) -> None:
        if not parts:  # an empty turn is refused
            return
        if self.contents and self.contents[-1]["role"] == role:
            self.contents[-1]["parts"].extend(parts)
        else:
            self.contents.append({"role": role, "parts": parts})

    def _parts(self, message: Mapping[str, Any], where: str) -> list[Json]:
        content = message.get("content")
        if isinstance(content, str):
            return [{"text": content}] if content else []
        listed = content if isinstance(content, list) else []
        return [
            translated
            for place, part in enumerate(listed)
            if (translated := self._part(part, f"{where}.content[{place}]"))
        ]

    def _part(self, part: Mapping[str, Any], where: str) -> Json | None:
        kind = part["type"]
        held = part.get(kind)
        if kind in ("text", "refusal"):
            return {"text": held} if isinstance(held, str) and held else None
        if kind in ("thinking", "reasoning"):
            text = _plain(held if held is not None else part.get("text"))
            return {"text": text, "thought": True} if text else None
        if kind in ("image_url", "audio_url", "video_url"):
            url = held.get("url") if isinstance(held, dict) else held
            return self._media(url, f"{where}.{kind}")
        if kind == "input_audio":
            audio = held if isinstance(held, dict) else {"data": held}
            name = str(audio.get("format") or "wav").lower()
            return _inline(_AUDIO_TYPES.get(name, f"audio/{name}"), str(audio.get("data") or ""))
        if kind == "file":
            return self._file(held if isinstance(held, dict) else {"file_data": held}, f"{where}.file")
        raise self._refusal(where, f"cannot take content of the type '{str(kind)[:64]}'")

    def _media(self, url: Any, where: str) -> Json:
        """An image, sound or film: its bytes from a data URL, else its address, which the provider reads itself."""
        if not isinstance(url, str):
            raise self._refusal(where, "needs an address")
        if url[:5].lower() == "data:":
            head, comma, data = url[5:].partition(",")
            kind = head.partition(";")[0].strip().lower()
            if not comma or "/" not in kind:
                raise self._refusal(where, "needs a data URL that names its media type")
            if not head.lower().endswith(";base64"):
                data = base64.b64encode(urllib.parse.unquote_to_bytes(data)).decode("ascii")
            return _inline(kind, data)
        if "://" not in url:
            raise self._refusal(where, "needs a data URL or an address")
        known = _FILE_TYPES.get(url.partition("?")[0].partition("#")[0].rpartition(".")[2].lower())
        return {"fileData": {"fileUri": url, **({"mimeType": known} if known else {})}}

    def _file(self, file: Mapping[str, Any], where: str) -> Json:
        data, id = file.get("file_data"), file.get("file_id")
        if isinstance(data, str) and data:
            if data[:5].lower() == "data:" or "://" in data[:16]:
                return self._media(data, f"{where}.file_data")
            suffix = str(file.get("filename") or "").rpartition(".")[2].lower()
            return _inline(_FILE_TYPES.get(suffix, "application/pdf"), data)
        if isinstance(id, str) and "://" in id:
            return self._media(id, f"{where}.file_id")
        raise self._refusal(f"{where}.file_id", "does not know files by this id")

    def _answer(self, message: Mapping[str, Any], where: str) -> list[Json]:
        """An earlier answer of the model: its thoughts, text and tool calls, each with the signature it came with."""
        if message.get("audio") is not None:
            raise self._refusal(f"{where}.audio", "does not know earlier spoken answers")
        if message.get("function_call") is not None:
            raise self._refusal(f"{where}.function_call", "takes 'tool_calls' only")
        parts = _thoughts(message)
        parts.extend(self._parts(message, where))
        refusal = message.get("refusal")
        if isinstance(refusal, str) and refusal:
            parts.append({"text": refusal})
        if signature := _signature(message):
            if not parts or "text" not in parts[-1] or parts[-1].get("thought"):
                parts.append({"text": ""})
            parts[-1]["thoughtSignature"] = signature
        calls = message.get("tool_calls")
        listed = calls if isinstance(calls, list) else []
        made = [self._call(item, f"{where}.tool_calls[{place}]") for place, item in enumerate(listed)]
        if self._signs and made and not any("thoughtSignature" in part for part in made):
            made[0]["thoughtSignature"] = STAND_IN
        return parts + made

    def _call(self, call: Any, where: str) -> Json:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(name := function.get("name"), str) or not name:
            raise self._refusal(where, "takes calls of functions with a name only")
        args = _object(function.get("arguments"))
        if args is None:
            raise self._refusal(f"{where}.function.arguments", "takes arguments that are a JSON object only")
        told: Json = {"name": name, "args": args}
        id = call.get("id")
        if isinstance(id, str) and id:
            self._names[id] = name
            told["id"] = id
        part: Json = {"functionCall": told}
        if signature := _signature(call):
            part["thoughtSignature"] = signature
        return part

    def _result(self, message: Mapping[str, Any], where: str) -> list[Json]:
        """A tool's result: its text under the key the API reserves for it, its pictures as parts behind it."""
        id = message.get("tool_call_id")
        name = self._names.get(id) if isinstance(id, str) else None
        if name is None:
            given = message.get("name")
            if not isinstance(given, str) or not given:
                raise self._refusal(f"{where}.tool_call_id", "needs the id of an earlier tool call")
            name = given
        parts = self._parts(message, where)
        text = "".join(part["text"] for part in parts if "text" in part)
        key = "error" if message.get("is_error") is True else "output"
        told: Json = {"name": name, "response": {key: text}}
        if isinstance(id, str) and id:
            told["id"] = id
        return [{"functionResponse": told}, *(part for part in parts if "text" not in part)]

    def _refusal(self, where: str, what: str) -> UnsupportedParamError:
        return params.unsupported(where, self._target, f"The provider ({self._target.kind.label}) {what}")


def _inline(kind: str, data: str) -> Json:
    return {"inlineData": {"mimeType": kind, "data": data}}


def _plain(value: Any) -> str:
    """The text of a thinking part: a string, or a list of text parts."""
    if isinstance(value, list):
        return "".join(_plain(item.get("text")) for item in value if isinstance(item, dict))
    return value if isinstance(value, str) else ""


def _thoughts(message: Mapping[str, Any]) -> list[Json]:
    """The reasoning of an earlier answer; signed blocks of this API come back as they were."""
    details = message.get("reasoning_details")
    own = [
        {"text": detail["text"], "thought": True, "thoughtSignature": detail["signature"]}
        for detail in (details if isinstance(details, list) else ())
        if isinstance(detail, dict)
        and detail.get("format") == DETAIL_FORMAT
        and isinstance(detail.get("text"), str)
        and isinstance(detail.get("signature"), str)
    ]
    text = message.get("reasoning_content") or message.get("reasoning")
    if own or not isinstance(text, str) or not text:
        return own
    return [{"text": text, "thought": True}]


def _signature(holder: Mapping[str, Any]) -> str:
    extra = holder.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return signature if isinstance(signature, str) else ""


def _object(arguments: Any) -> msgspec.Raw | None:
    """A call's arguments with their bytes as they are, None when they are no JSON object."""
    if arguments is None or arguments == "":
        return msgspec.Raw(b"{}")
    if not isinstance(arguments, str):
        return None
    raw = arguments.encode("utf-8", "replace")
    try:
        return msgspec.Raw(raw) if isinstance(_decode(raw), dict) else None
    except _DECODE_ERRORS:
        return None


# --- tools and settings ---------------------------------------------------------------------------------------------


def _add_tools(body: Json, doc: Mapping[str, Any], target: Target, left: list[str]) -> None:
    tools = doc.get("tools")
    if not tools:
        return
    declared = [_declaration(tool, f"tools[{place}]", target, left) for place, tool in enumerate(tools)]
    choice = doc.get("tool_choice")
    config: Json | None = None
    if isinstance(choice, str) and choice in _MODES:
        config = {"mode": _MODES[choice]} if choice != "auto" else None
    elif isinstance(choice, dict) and choice.get("type") == "function":
        config = {"mode": "ANY", "allowedFunctionNames": [_name_of(choice, target)]}
    elif isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        names, required = _allowed(choice, target)
        if required:
            config = {"mode": "ANY", "allowedFunctionNames": names}
        else:  # names are taken with ANY only
            declared = [one for one in declared if one["name"] in names]
    elif choice is not None:
        raise params.unsupported("tool_choice", target)
    if declared:
        body["tools"] = [{"functionDeclarations": declared}]
        if config is not None:
            body["toolConfig"] = {"functionCallingConfig": config}


_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}


def _declaration(tool: Any, where: str, target: Target, left: list[str]) -> Json:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(name := function.get("name"), str):
        raise params.unsupported(where, target, f"The provider ({target.kind.label}) takes functions as tools only")
    declared: Json = {"name": name}
    if isinstance(description := function.get("description"), str):
        declared["description"] = description
    schema = function.get("parameters")
    if isinstance(schema, dict) and schema:
        # The plain `parameters` are a part of OpenAPI's schemas only: no $ref, no empty object, one type per value.
        declared["parametersJsonSchema"] = schema
    if function.get("strict") is True and "tools.function.strict" not in left:
        left.append("tools.function.strict")
    return declared


def _name_of(choice: Mapping[str, Any], target: Target) -> str:
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise params.unsupported("tool_choice", target)
    return name


def _allowed(choice: Mapping[str, Any], target: Target) -> tuple[list[str], bool]:
    told = choice.get("allowed_tools")
    tools = told.get("tools") if isinstance(told, dict) else None
    if not isinstance(told, dict) or not isinstance(tools, list):
        raise params.unsupported("tool_choice", target)
    names = [_name_of(tool if isinstance(tool, dict) else {}, target) for tool in tools]
    return names, told.get("mode") == "required"


def _generation(doc: Mapping[str, Any], target: Target, left: list[str]) -> Json:
    """`generationConfig`, all but the output limit."""
    config: Json = {}
    for name, theirs in _SAME.items():
        value = doc.get(name)
        if value is not None and not params.is_default(name, value):
            config[theirs] = value
    if isinstance(seed := config.get("seed"), int) and abs(seed) > _SEED_MAX:
        config["seed"] = seed % (_SEED_MAX + 1)  # theirs has 32 bits; the same number still gives the same seed
    if isinstance(n := doc.get("n"), int) and n > 1:
        config["candidateCount"] = n
    stop = doc.get("stop")
    if stop:
        config["stopSequences"] = [stop] if isinstance(stop, str) else stop
    if doc.get("logprobs") is True:
        config["responseLogprobs"] = True
        if doc.get("top_logprobs"):
            config["logprobs"] = doc["top_logprobs"]
    _add_format(config, doc.get("response_format"), target)
    _add_thinking(config, doc, target, left)
    return config


def _add_format(config: Json, wanted: Any, target: Target) -> None:
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if wanted is None or kind == "text":
        return
    if kind not in ("json_object", "json_schema"):
        raise params.unsupported("response_format", target)
    config["responseMimeType"] = "application/json"
    told = wanted.get("json_schema")
    schema = told.get("schema") if isinstance(told, dict) else None
    if kind == "json_schema" and isinstance(schema, dict):
        config["responseJsonSchema"] = schema


def _add_thinking(config: Json, doc: Mapping[str, Any], target: Target, left: list[str]) -> None:
    effort = doc.get("reasoning_effort")
    if effort is None:
        return
    if not isinstance(effort, str) or effort not in _BUDGETS:
        raise params.unsupported("reasoning_effort", target)
    model = target.upstream_model or str(doc.get("model") or "")
    if _LEVELLED.match(model) is None:
        config["thinkingConfig"] = {"includeThoughts": effort != "none", "thinkingBudget": _BUDGETS[effort]}
        return
    if effort == "none":
        if target.strict:
            what = f"The provider ({target.kind.label}) cannot turn reasoning off"
            raise params.unsupported("reasoning_effort", target, what)
        left.append("reasoning_effort")
        return
    config["thinkingConfig"] = {"includeThoughts": True, "thinkingLevel": _LEVELS[effort]}
