"""Anthropic's Messages API, Google's Gemini API and Ollama's own, faked: requests are read as strictly as there.

Formats: the APIs' public documentation. Turns must take turns, results must follow their calls, and what was signed
comes back as it was, or the request is refused.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.provider_fakes_base import (
    CACHED,
    INPUT,
    OUTPUT,
    SIGNATURES,
    THOUGHT,
    TOOL,
    Error,
    Json,
    Talk,
    a_count,
    a_list,
    an_object,
    data,
    invalid,
    known,
    names,
    sampled,
    sequence,
    text,
)

# --- Anthropic --------------------------------------------------------------------------------------------------------

_MESSAGES = names(
    """model messages max_tokens system stream temperature top_k top_p stop_sequences metadata service_tier tools
    tool_choice thinking output_config cache_control context_management container mcp_servers"""
)
_COUNTED = names("model messages system tools tool_choice thinking output_config cache_control mcp_servers")
_BLOCKS = {
    "text": frozenset({"type", "text", "cache_control", "citations"}),
    "image": frozenset({"type", "source", "cache_control"}),
    "document": frozenset({"type", "source", "title", "context", "citations", "cache_control"}),
    "thinking": frozenset({"type", "thinking", "signature"}),
    "redacted_thinking": frozenset({"type", "data"}),
    "tool_use": frozenset({"type", "id", "name", "input", "cache_control"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"}),
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "api_error",
}
_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool": "tool_use", "filter": "refusal"}


class Messages:
    """/v1/messages and /v1/messages/count_tokens."""

    stream_type = "text/event-stream; charset=utf-8"

    def read(self, path: str, query: str, headers: dict[str, str], doc: Json) -> Talk:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", headers.get("anthropic-version", "")):
            invalid("anthropic-version: header is required")
        counts = path.endswith("/count_tokens")
        known(doc, _COUNTED if counts else _MESSAGES, "")
        talk = Talk(text(doc.get("model"), "model"), stream=doc.get("stream") is True)
        if not counts:
            talk.limit = a_count(doc.get("max_tokens"), "max_tokens")
        for name in ("temperature", "top_p"):
            if not 0 <= doc.get(name, 0) <= 1:
                invalid(f"{name}: must be from 0 to 1", name)
        thinking = doc.get("thinking") or {"type": "disabled"}
        if thinking["type"] == "enabled":
            budget = a_count(thinking.get("budget_tokens"), "thinking.enabled.budget_tokens", 1024)
            if not counts and budget >= talk.limit:
                invalid("`max_tokens` must be greater than `thinking.budget_tokens`.", "max_tokens")
            if doc.get("temperature", 1) != 1:
                invalid("`temperature` may only be set to 1 when thinking is enabled.", "temperature")
        talk.reasons = thinking["type"] != "disabled"
        for place, tool in enumerate(doc.get("tools") or ()):
            if an_object(tool.get("input_schema"), f"tools.{place}.input_schema").get("type") != "object":
                invalid(f"tools.{place}.custom.input_schema.type: Field required")
            text(tool.get("name"), f"tools.{place}.name")
        talk.tools = bool(doc.get("tools")) and (doc.get("tool_choice") or {}).get("type") != "none"
        if doc.get("tool_choice") and not doc.get("tools"):
            invalid("tool_choice may only be specified while providing tools.", "tool_choice")
        talk.forced = (doc.get("tool_choice") or {}).get("type") == "any"
        talk.sampling = sampled(doc, "temperature", "top_p", "stop_sequences")
        system = doc.get("system") or ""
        talk.system = system if isinstance(system, str) else "".join(block["text"] for block in system)
        output = doc.get("output_config") or {}
        known(output, {"effort", "format"}, "output_config.")
        if (shape := output.get("format")) is not None:
            known(shape, {"type", "schema"}, "output_config.format.")
            talk.schema = an_object(shape.get("schema"), "output_config.format.schema")
        self._turns(a_list(doc.get("messages"), "messages"), talk, loops=thinking["type"] == "enabled")
        return talk

    def _turns(self, turns: list[Json], talk: Talk, *, loops: bool) -> None:
        sequence([turn.get("role", "") for turn in turns], "user")
        waiting: list[str] = []
        for place, turn in enumerate(turns):
            known(turn, {"role", "content"}, f"messages.{place}.")
            content = turn["content"]
            blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
            answered = [block["tool_use_id"] for block in blocks if block.get("type") == "tool_result"]
            if sorted(answered) != sorted(waiting):
                invalid(
                    f"messages.{place}: `tool_use` ids {waiting} were found without `tool_result` blocks immediately "
                    f"after, or `tool_result` ids {answered} without `tool_use`"
                )
            if any(block["type"] == "tool_result" for block in blocks[len(answered) :]):
                invalid(f"messages.{place}: tool results must come first")
            waiting = [block["id"] for block in blocks if block.get("type") == "tool_use"]
            if loops and waiting and blocks[0]["type"] not in ("thinking", "redacted_thinking"):
                invalid("Expected `thinking` or `redacted_thinking`, but found `tool_use`.", f"messages.{place}")
            for at, block in enumerate(a_list(blocks, f"messages.{place}.content")):
                self._block(block, turn["role"], talk, f"messages.{place}.content.{at}")
            talk.result = bool(answered)
        if waiting:
            invalid("`tool_use` blocks at the end without results", "messages")

    def _block(self, block: Json, role: str, talk: Talk, where: str) -> None:
        kind = block.get("type")
        if kind not in _BLOCKS:
            invalid(f"{where}.type: Input tag '{kind}' found", where)
        known(block, _BLOCKS[kind], f"{where}.")
        if (kind == "tool_result") > (role == "user") or (kind in ("tool_use", "thinking")) > (role == "assistant"):
            invalid(f"{where}: '{kind}' blocks are not allowed in {role} turns", where)
        if kind == "text":
            if not text(block.get("text"), f"{where}.text").strip():
                invalid("text content blocks must contain non-whitespace text", where)
            talk.prompt += block["text"] if role == "user" else ""
        elif kind == "image":
            known(block["source"], {"type", "media_type", "data", "url"}, f"{where}.source.")
            talk.images += 1
        elif kind == "tool_use":
            an_object(block.get("input"), f"{where}.input")
            if not re.fullmatch("[A-Za-z0-9_-]+", text(block.get("id"), f"{where}.id")):
                invalid(f"{where}.id: String should match pattern '^[a-zA-Z0-9_-]+$'", where)
        elif kind == "thinking":
            if block.get("signature") != SIGNATURES["anthropic"]:
                invalid(f"{where}: Invalid `signature` in `thinking` block", where)
            if block.get("thinking") != "".join(THOUGHT):
                invalid(f"{where}: `thinking` blocks cannot be modified", where)
            talk.signed = True
        elif kind == "redacted_thinking":
            invalid(f"{where}: Invalid `data` in `redacted_thinking` block", where)

    def count(self, talk: Talk, tokens: int) -> Json:
        return {"input_tokens": tokens}

    def _usage(self, talk: Talk) -> Json:
        told: Json = {
            "input_tokens": INPUT - CACHED,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": CACHED,
            "output_tokens": OUTPUT,
        }
        if talk.thinks:
            told["output_tokens_details"] = {"thinking_tokens": talk.reasoning_tokens}
        return told

    def _content(self, talk: Talk) -> list[Json]:
        blocks: list[Json] = []
        if talk.thinks and talk.reasons:
            blocks.append(
                {"type": "thinking", "thinking": "".join(THOUGHT), "signature": SIGNATURES["anthropic"]},
            )
        blocks.append({"type": "text", "text": talk.text})
        for number, one in enumerate(talk.arguments, 1):
            blocks.append({"type": "tool_use", "id": f"toolu_a{number}", "name": TOOL, "input": one})
        return blocks

    def whole(self, talk: Talk) -> Json:
        return {
            "id": "msg_a1",
            "type": "message",
            "role": "assistant",
            "model": talk.served,
            "content": self._content(talk),
            "stop_reason": _STOPS[talk.finish],
            "stop_sequence": None,
            "usage": self._usage(talk),
        }

    def events(self, talk: Talk) -> list[bytes]:
        whole = self.whole(talk)
        start = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 1}}
        told: list[Json] = [{"type": "message_start", "message": start}]
        for index, block in enumerate(whole["content"]):
            told += self._block_events(index, block, talk)
            if not index:
                told.insert(2, {"type": "ping"})
        delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
        told += [{"type": "message_delta", "delta": delta, "usage": whole["usage"]}, {"type": "message_stop"}]
        return [data(event, event["type"]) for event in told]

    def _block_events(self, index: int, block: Json, talk: Talk) -> list[Json]:
        empty: dict[str, Json] = {
            "text": {"text": ""},
            "thinking": {"thinking": "", "signature": ""},
            "tool_use": {"input": {}},
        }
        deltas: list[Json] = []
        if block["type"] == "thinking":
            deltas += [{"type": "thinking_delta", "thinking": piece} for piece in THOUGHT]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        elif block["type"] == "text":
            deltas += [{"type": "text_delta", "text": piece} for piece in talk.pieces]
        else:
            written = json.dumps(block["input"])
            pieces = ("", written[:7], written[7:])
            deltas += [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        begun = {**block, **empty[block["type"]]}
        return [
            {"type": "content_block_start", "index": index, "content_block": begun},
            *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
            {"type": "content_block_stop", "index": index},
        ]

    def broken(self, talk: Talk) -> list[bytes]:
        error = {"type": "overloaded_error", "message": "Overloaded"}
        return [data({"type": "error", "error": error, "request_id": "req_a1"}, "error")]

    def error(self, status: int, message: str, param: str = "") -> Error:
        told = {"type": "error", "error": {"type": _TYPES[status], "message": message}, "request_id": "req_a1"}
        return Error(status, told, {"retry-after": "7"} if status == 429 else {})


# --- Gemini -----------------------------------------------------------------------------------------------------------

_GENERATE = names("contents systemInstruction tools toolConfig generationConfig safetySettings cachedContent labels")
_CONFIG = names(
    """maxOutputTokens temperature topP topK stopSequences seed presencePenalty frequencyPenalty candidateCount
    responseMimeType responseJsonSchema responseSchema thinkingConfig responseLogprobs logprobs"""
)
_PART = names("text thought thoughtSignature inlineData fileData functionCall functionResponse")
_FINISHES = {"stop": "STOP", "tool": "STOP", "length": "MAX_TOKENS", "filter": "SAFETY"}
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
}
_SIGNS = "gemini-3"  # models that sign calls, and want them back signed
_STAND_IN = "skip_thought_signature_validator"  # documented: for calls that another model made


class Gemini:
    """models/M:generateContent, :streamGenerateContent and :countTokens. Calls have no ids, as with the real one."""

    stream_type = "text/event-stream"

    def read(self, path: str, query: str, headers: dict[str, str], doc: Json) -> Talk:
        model, _, action = path.rpartition("/models/")[2].rpartition(":")
        if action == "countTokens":
            known(doc, {"contents", "generateContentRequest"}, "")
            if "generateContentRequest" in doc:
                doc = dict(an_object(doc["generateContentRequest"], "generateContentRequest"))
                if doc.pop("model", None) != f"models/{model}":
                    invalid("generateContentRequest.model must be that of the path", "generateContentRequest.model")
        known(doc, _GENERATE, "")
        talk = Talk(text(model, "model"), stream=action == "streamGenerateContent")
        if talk.stream and query != "alt=sse":
            invalid("a stream is asked for with alt=sse here", "alt")
        config = doc.get("generationConfig") or {}
        known(config, _CONFIG, "generation_config.")
        if action != "countTokens":
            talk.limit = a_count(config.get("maxOutputTokens"), "generation_config.max_output_tokens")
        talk.reasons = (config.get("thinkingConfig") or {}).get("includeThoughts") is True
        declared = [one for tool in doc.get("tools") or () for one in tool.get("functionDeclarations") or ()]
        for one in declared:
            text(one.get("name"), "tools.function_declarations.name")
        mode = ((doc.get("toolConfig") or {}).get("functionCallingConfig") or {}).get("mode")
        talk.tools = bool(declared) and mode != "NONE"
        if (system := doc.get("systemInstruction")) is not None:
            talk.system = "".join(part["text"] for part in a_list(system.get("parts"), "system_instruction.parts"))
        talk.forced = mode == "ANY"
        talk.sampling = sampled(config, "temperature", "topP", "stopSequences")
        talk.schema = config.get("responseJsonSchema")
        if talk.schema is not None and config.get("responseMimeType") != "application/json":
            invalid("a schema needs the MIME type application/json", "generation_config.response_mime_type")
        self._contents(a_list(doc.get("contents"), "contents"), talk)
        return talk

    def _contents(self, contents: list[Json], talk: Talk) -> None:
        sequence([content.get("role", "user") for content in contents], "user")
        waiting: list[Json] = []
        for place, content in enumerate(contents):
            known(content, {"role", "parts"}, f"contents[{place}].")
            parts = a_list(content.get("parts"), f"contents[{place}].parts")
            results = [part["functionResponse"] for part in parts if "functionResponse" in part]
            if len(results) != len(waiting):
                invalid("the number of function response parts must equal that of the function call parts", "contents")
            for call, result in zip(waiting, results, strict=True):
                if result.get("name") != call["name"] or result.get("id") != call.get("id"):
                    invalid(f"function response {result.get('name')} is not that of {call['name']}", "contents")
                an_object(result.get("response"), "function_response.response")
            waiting = [part["functionCall"] for part in parts if "functionCall" in part]
            for at, part in enumerate(parts):
                self._part(part, content.get("role", "user"), talk, f"contents[{place}].parts[{at}]")
            first = next((part for part in parts if "functionCall" in part), None)
            if first is not None and _SIGNS in talk.model and not first.get("thoughtSignature"):
                invalid(
                    f"Function call `{first['functionCall']['name']}` is missing a `thought_signature`.", "contents"
                )
            talk.result = bool(results)
        if waiting:
            invalid("function calls at the end without responses", "contents")

    def _part(self, part: Json, role: str, talk: Talk, where: str) -> None:
        known(part, _PART, f"{where}.")
        if len(set(part) - {"thought", "thoughtSignature"}) != 1:
            invalid(f"{where}: must have exactly one initialized field", where)
        signature = part.get("thoughtSignature")
        if signature is not None and signature not in (SIGNATURES["google"], _STAND_IN):
            invalid("Thought signature is not valid.", where)
        talk.signed = talk.signed or signature == SIGNATURES["google"]
        if "text" in part:
            talk.prompt += text(part["text"], where, empty=True) if role == "user" else ""
        if "inlineData" in part:
            known(part["inlineData"], {"mimeType", "data"}, f"{where}.inline_data.")
            talk.images += 1
        if "functionCall" in part:
            if role != "model":
                invalid("function calls are the model's", where)
            an_object(part["functionCall"].get("args", {}), f"{where}.function_call.args")

    def count(self, talk: Talk, tokens: int) -> Json:
        return {"totalTokens": tokens, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens}]}

    def _usage(self, talk: Talk, made: int) -> Json:
        told: Json = {
            "promptTokenCount": INPUT,
            "candidatesTokenCount": made,
            "totalTokenCount": INPUT + made + talk.reasoning_tokens,
            "cachedContentTokenCount": CACHED,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": INPUT}],
        }
        if talk.thinks:
            told["thoughtsTokenCount"] = talk.reasoning_tokens
        return told

    def _response(self, talk: Talk, parts: list[Json], *, made: int, finish: str = "") -> Json:
        candidate: Json = {"content": {"parts": parts, "role": "model"}, "index": 0}
        if finish:
            candidate["finishReason"] = finish
        usage = self._usage(talk, made)
        return {
            "candidates": [candidate],
            "usageMetadata": usage,
            "modelVersion": talk.served,
            "responseId": "resp-g1",
        }

    def _call(self, talk: Talk) -> list[Json]:
        parts: list[Json] = [{"functionCall": {"name": TOOL, "args": one}} for one in talk.arguments]
        if parts and _SIGNS in talk.model:  # the first of several calls is signed
            parts[0]["thoughtSignature"] = SIGNATURES["google"]
        return parts

    def whole(self, talk: Talk) -> Json:
        parts: list[Json] = []
        if talk.thinks and talk.reasons:
            parts.append({"text": "".join(THOUGHT), "thought": True})
        parts += [{"text": talk.text}, *self._call(talk)]
        return self._response(talk, parts, made=OUTPUT - talk.reasoning_tokens, finish=_FINISHES[talk.finish])

    def events(self, talk: Talk) -> list[bytes]:
        told: list[Json] = []
        if talk.thinks and talk.reasons:
            told += [self._response(talk, [{"text": piece, "thought": True}], made=0) for piece in THOUGHT]
        for number, piece in enumerate(talk.pieces, 1):
            told.append(self._response(talk, [{"text": piece}], made=number))
        last = self._call(talk) or [{"text": ""}]
        made = OUTPUT - talk.reasoning_tokens
        told.append(self._response(talk, last, made=made, finish=_FINISHES[talk.finish]))
        return [data(one, end=b"\r\n") for one in told]

    def broken(self, talk: Talk) -> list[bytes]:
        return [data(self.error(500, "An internal error has occurred.").body, end=b"\r\n")]

    def error(self, status: int, message: str, param: str = "") -> Error:
        details: list[Json] = []
        if status == 429:
            details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}]
        elif status == 401:  # a wrong key is told as a bad request
            status = 400
            details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
        error = {"code": status, "message": message, "status": _STATUSES[status], "details": details}
        return Error(status, {"error": error})


# --- Ollama -----------------------------------------------------------------------------------------------------------

_OLLAMA = names("model messages stream tools format options think keep_alive truncate shift logprobs top_logprobs")
_OLLAMA_GENERATE = (_OLLAMA - {"messages", "tools"}) | {"prompt", "system", "images", "suffix", "raw", "template"}
_OPTIONS = names(
    """num_predict temperature top_p top_k min_p seed stop presence_penalty frequency_penalty repeat_penalty
    num_ctx num_gpu"""
)
_MESSAGE = names("role content images tool_calls tool_name tool_call_id thinking")
_DONE = {"stop": "stop", "tool": "stop", "length": "length", "filter": "stop"}


class Ollama:
    """/api/chat and /api/generate. The real one ignores what it does not know; here nothing unknown may arrive."""

    stream_type = "application/x-ndjson"

    def __init__(self, *, generate: bool = False) -> None:
        self._generate = generate

    def read(self, path: str, query: str, headers: dict[str, str], doc: Json) -> Talk:
        known(doc, _OLLAMA_GENERATE if self._generate else _OLLAMA, "")
        talk = Talk(text(doc.get("model"), "model"), stream=doc.get("stream") is not False)
        options = an_object(doc.get("options"), "options")
        known(options, _OPTIONS, "options.")
        talk.limit = a_count(options.get("num_predict"), "options.num_predict")
        if doc.get("think") not in (None, True, False, "low", "medium", "high", "max"):
            invalid(f"invalid think value: {doc['think']!r}", "think")
        talk.reasons = bool(doc.get("think"))
        talk.sampling = sampled(options, "temperature", "top_p", "stop")
        talk.schema = doc.get("format")
        if self._generate:
            talk.prompt, talk.system = text(doc.get("prompt"), "prompt"), doc.get("system", "")
            talk.images = len(doc.get("images") or ())
            return talk
        for place, tool in enumerate(doc.get("tools") or ()):
            parameters = an_object(an_object(tool.get("function"), "function").get("parameters"), "parameters")
            if tool.get("type") != "function" or parameters.get("type") != "object":
                invalid(f"tools[{place}] is not a function", "tools")
        talk.tools = bool(doc.get("tools"))
        waiting: list[Json] = []
        for place, message in enumerate(a_list(doc.get("messages"), "messages")):
            waiting = self._message(message, waiting, talk, f"messages[{place}]")
        if waiting:
            invalid("tool calls without results", "messages")
        return talk

    def _message(self, message: Json, waiting: list[Json], talk: Talk, where: str) -> list[Json]:
        known(message, _MESSAGE, f"{where}.")
        role, content = message.get("role"), message.get("content", "")
        if role not in ("system", "user", "assistant", "tool") or not isinstance(content, str):
            invalid(f"{where}: a message has a role and its content as text", where)
        if role == "user":
            talk.prompt += content
            talk.images += len(message.get("images") or ())
        elif role == "system":
            talk.system += content
        talk.result = role == "tool"
        if role == "tool":
            name, id = message.get("tool_name"), message.get("tool_call_id")
            found = next((call for call in waiting if call["function"]["name"] == name), None)
            if found is None or (id and found.get("id") not in (None, id)):
                invalid(f"{where}: the result of no call", where)
            return [call for call in waiting if call is not found]
        if waiting:
            invalid(f"{where}: a call has no result", where)
        talk.signed = talk.signed or message.get("thinking") == "".join(THOUGHT)
        calls: list[Json] = message.get("tool_calls") or []
        for call in calls:
            an_object(call["function"].get("arguments"), f"{where}.tool_calls.arguments")
        return calls

    def _line(self, talk: Talk, **piece: Any) -> Json:
        head = {"model": talk.served, "created_at": "2026-01-02T03:04:05.678901Z"}
        if not self._generate:
            return {**head, "message": {"role": "assistant", "content": "", **piece}, "done": False}
        content = piece.pop("content", "")
        return {**head, "response": content, **piece, "done": False}

    def _end(self, talk: Talk) -> Json:
        return {
            "done": True,
            "done_reason": _DONE[talk.finish],
            "total_duration": 5_000_000,
            "load_duration": 1_000_000,
            "prompt_eval_count": INPUT,
            "prompt_eval_duration": 1_000_000,
            "eval_count": OUTPUT,
            "eval_duration": 3_000_000,
        }

    def _calls(self, talk: Talk) -> Json:
        made = [{"index": index, "name": TOOL, "arguments": one} for index, one in enumerate(talk.arguments)]
        return {"tool_calls": [{"function": function} for function in made]} if made else {}

    def whole(self, talk: Talk) -> Json:
        thinking = {"thinking": "".join(THOUGHT)} if talk.thinks and talk.reasons else {}
        return {**self._line(talk, content=talk.text, **thinking, **self._calls(talk)), **self._end(talk)}

    def events(self, talk: Talk) -> list[bytes]:
        told: list[Json] = []
        if talk.thinks and talk.reasons:
            told += [self._line(talk, thinking=piece) for piece in THOUGHT]
        told += [self._line(talk, content=piece) for piece in talk.pieces]
        if calls := self._calls(talk):
            told.append(self._line(talk, **calls))
        told.append({**self._line(talk), **self._end(talk)})
        return [json.dumps(line).encode() + b"\n" for line in told]

    def broken(self, talk: Talk) -> list[bytes]:
        return [b'{"error":"an error was encountered while running the model"}\n']

    def error(self, status: int, message: str, param: str = "") -> Error:
        return Error(status, {"error": message}, {"retry-after": "7"} if status == 429 else {})
