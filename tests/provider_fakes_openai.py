"""The OpenAI API and its Responses API, faked: requests read as strictly as api.openai.com reads them.

`Chat(strict=True)` is OpenAI itself, which has no reasoning text in chats and refuses what it does not know;
`strict=False` a compatible server such as vLLM, which tells reasoning and ignores what it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    text,
)

_CHAT = names(
    """messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens
    max_tokens metadata modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key
    prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier
    stop store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity
    web_search_options"""
)
_MESSAGES = {
    "system": frozenset({"role", "content", "name"}),
    "developer": frozenset({"role", "content", "name"}),
    "user": frozenset({"role", "content", "name"}),
    "assistant": frozenset({"role", "content", "name", "refusal", "audio", "tool_calls", "function_call"}),
    "tool": frozenset({"role", "content", "tool_call_id"}),
}
_PARTS = {
    "text": frozenset({"type", "text"}),
    "refusal": frozenset({"type", "refusal"}),
    "image_url": frozenset({"type", "image_url"}),
    "input_audio": frozenset({"type", "input_audio"}),
    "file": frozenset({"type", "file"}),
}
_COMPLETIONS = names(
    """model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream
    stream_options suffix temperature top_p user"""
)
_FINISHES = {"stop": "stop", "length": "length", "tool": "tool_calls", "filter": "content_filter"}
_TYPES = {401: "invalid_request_error", 429: "requests", 500: "server_error"}
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
CALL_IDS = ("call_o1", "call_o2")


def openai_error(status: int, message: str, param: str = "") -> Error:
    """An error in this API's shape."""
    error = {
        "message": message,
        "type": _TYPES.get(status, "invalid_request_error"),
        "param": param or None,
        "code": _CODES.get(status),
    }
    return Error(status, {"error": error}, {"retry-after": "7"} if status == 429 else {})


class _OpenAI:
    stream_type = "text/event-stream; charset=utf-8"

    def error(self, status: int, message: str, param: str = "") -> Error:
        return openai_error(status, message, param)

    def broken(self, talk: Talk) -> list[bytes]:
        error = {"message": "The server had an error.", "type": "server_error", "param": None, "code": None}
        return [data({"error": error})]


def usage_of(talk: Talk) -> Json:
    """The usage of a chat."""
    return {
        "prompt_tokens": INPUT,
        "completion_tokens": OUTPUT,
        "total_tokens": INPUT + OUTPUT,
        "prompt_tokens_details": {"cached_tokens": CACHED, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": talk.reasoning_tokens, "audio_tokens": 0},
    }


class Chat(_OpenAI):
    """/v1/chat/completions. `limit_field` is the name it knows the output limit by, `strict_messages` whether messages
    may hold only what the API documents: both as OpenAI itself does where it is `strict`, unless they are given.
    """

    def __init__(self, *, strict: bool, limit_field: str = "", strict_messages: bool | None = None) -> None:
        self._strict = strict
        self._strict_messages = strict if strict_messages is None else strict_messages
        limit_field = limit_field or ("max_completion_tokens" if strict else "max_tokens")
        self._limits = sorted(("max_tokens", "max_completion_tokens"), key=lambda name: name != limit_field)

    def read(self, path: str, query: str, headers: dict[str, str], doc: Json) -> Talk:
        if "pool" in doc:
            invalid("Unrecognized request argument supplied: pool", "pool")
        limits = self._limits
        if limits[1] in doc:
            invalid(f"Unsupported parameter: '{limits[1]}'. Use '{limits[0]}' instead.", limits[1])
        if self._strict:
            known(doc, _CHAT, "")
        talk = Talk(text(doc.get("model"), "model"), stream=doc.get("stream") is True)
        if self._strict and "codex" in talk.model:
            invalid("This model is only supported in v1/responses and not in v1/chat/completions.", "model")
        talk.limit = a_count(doc.get(limits[0]), limits[0])
        options = doc.get("stream_options")
        if options is not None and not talk.stream:
            invalid("The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")
        talk.usage_wanted = bool(options and an_object(options, "stream_options").get("include_usage"))
        tools = doc.get("tools")
        if tools is not None:
            for place, tool in enumerate(a_list(tools, "tools")):
                function = an_object(tool.get("function"), f"tools[{place}].function")
                if tool.get("type") != "function" or not function.get("name"):
                    invalid(f"Missing required parameter: 'tools[{place}].type'.", f"tools[{place}].type")
                if function.get("parameters", {}).get("type") != "object":
                    invalid("Invalid schema for function: schema must have type 'object'.", "tools")
        elif "tool_choice" in doc or "parallel_tool_calls" in doc:
            invalid("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
        talk.tools = tools is not None and doc.get("tool_choice") != "none"
        talk.forced = doc.get("tool_choice") == "required"
        talk.sampling = sampled(doc, "temperature", "top_p", "stop")
        shape = doc.get("response_format") or {}
        if shape.get("type") == "json_schema":
            text(shape["json_schema"].get("name"), "response_format.json_schema.name")
            talk.schema = an_object(shape["json_schema"].get("schema"), "response_format.json_schema.schema")
        self._messages(doc, talk)
        talk.reasons = not self._strict
        return talk

    def _messages(self, doc: Json, talk: Talk) -> None:
        waiting: list[str] = []
        for place, message in enumerate(a_list(doc.get("messages"), "messages")):
            where = f"messages[{place}]"
            role = message.get("role")
            if role not in _MESSAGES:
                invalid(f"Invalid value: '{role}'.", f"{where}.role")
            if self._strict_messages:
                known(message, _MESSAGES[role], f"{where}.")
            if role == "tool":
                if message.get("tool_call_id") not in waiting:
                    invalid("'tool_calls' must be followed by tool messages that name them.", f"{where}.tool_call_id")
                waiting.remove(message["tool_call_id"])
            elif waiting:
                invalid(f"These tool calls did not have response messages: {', '.join(waiting)}", where)
            words = self._content(message.get("content"), role, message, where)
            if role == "user":
                talk.prompt += words
                parts = message["content"] if isinstance(message["content"], list) else ()
                talk.images += sum(part["type"] == "image_url" for part in parts)
            elif role in ("system", "developer"):
                talk.system += words
            talk.result = role == "tool"
            calls = message.get("tool_calls")
            if calls is not None:
                for call in a_list(calls, f"{where}.tool_calls"):
                    an_object(json.loads(text(call["function"].get("arguments"), where)), where)
                    waiting.append(text(call.get("id"), f"{where}.tool_calls.id"))
                    if call.get("type") != "function" or not call["function"].get("name"):
                        invalid("A tool call needs its type and name.", f"{where}.tool_calls")
                    if self._strict_messages:
                        known(call, frozenset({"id", "type", "function"}), f"{where}.tool_calls[].")
            talk.signed = talk.signed or message.get("reasoning_content") == "".join(THOUGHT)
        if waiting:
            invalid(f"These tool calls did not have response messages: {', '.join(waiting)}", "messages")

    def _content(self, content: Any, role: str, message: Json, where: str) -> str:
        if content is None:
            if role != "assistant" or not message.get("tool_calls"):
                invalid("Invalid value for 'content': expected a string, got null.", f"{where}.content")
            return ""
        if isinstance(content, str):
            return content
        words = ""
        for place, part in enumerate(a_list(content, f"{where}.content")):
            if part.get("type") not in _PARTS:
                invalid(f"Invalid value: '{part.get('type')}'.", f"{where}.content[{place}].type")
            if self._strict_messages:
                known(part, _PARTS[part["type"]], f"{where}.content[{place}].")
            words += part.get("text", "")
        return words

    def whole(self, talk: Talk) -> Json:
        message: Json = {"role": "assistant", "content": talk.text, "refusal": None}
        if talk.thinks and talk.reasons:
            message["reasoning_content"] = "".join(THOUGHT)
        if talk.calls:
            written = [{"name": TOOL, "arguments": json.dumps(one)} for one in talk.arguments]
            calls = zip(CALL_IDS, written, strict=False)
            message["tool_calls"] = [{"id": id, "type": "function", "function": one} for id, one in calls]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISHES[talk.finish]}
        head = {"id": "chatcmpl-o1", "object": "chat.completion", "created": 1760000000, "model": talk.served}
        return {**head, "choices": [choice], "usage": usage_of(talk)}

    def events(self, talk: Talk) -> list[bytes]:
        return [*(data(chunk) for chunk in self._chunks(talk)), b"data: [DONE]\n\n"]

    def _chunks(self, talk: Talk) -> Iterator[Json]:
        deltas: list[Json] = [{"role": "assistant", "content": "", "refusal": None}]
        if talk.thinks and talk.reasons:
            deltas += [{"reasoning_content": piece} for piece in THOUGHT]
        deltas += [{"content": piece} for piece in talk.pieces]
        started = {"name": TOOL, "arguments": ""}
        for index, id in enumerate(CALL_IDS[: len(talk.arguments)]):
            call = {"index": index, "id": id, "type": "function", "function": started}
            deltas.append({"tool_calls": [call]})
        for part in (slice(0, 7), slice(7, None)):  # calls come mixed
            for index, one in enumerate(talk.arguments):
                piece = {"arguments": json.dumps(one)[part]}
                deltas.append({"tool_calls": [{"index": index, "function": piece}]})
        head = {"id": "chatcmpl-o1", "object": "chat.completion.chunk", "created": 1760000000, "model": talk.served}
        for delta in deltas:
            yield {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]}
        finish = _FINISHES[talk.finish]
        yield {**head, "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish}]}
        if talk.usage_wanted:
            yield {**head, "choices": [], "usage": usage_of(talk)}


class Completions(_OpenAI):
    """/v1/completions."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict

    def read(self, path: str, query: str, headers: dict[str, str], doc: Json) -> Talk:
        if self._strict:
            known(doc, _COMPLETIONS, "")
        talk = Talk(text(doc.get("model"), "model"), text(doc.get("prompt"), "prompt"), doc.get("stream") is True)
        if self._strict and "codex" in talk.model:
            invalid("This is not a chat model and thus not supported in the v1/completions endpoint.", "model")
        talk.limit = a_count(doc.get("max_tokens"), "max_tokens")
        talk.usage_wanted = bool((doc.get("stream_options") or {}).get("include_usage"))
        talk.sampling = sampled(doc, "temperature", "top_p", "stop")
        return talk

    def whole(self, talk: Talk) -> Json:
        choice = {"index": 0, "text": talk.text, "logprobs": None, "finish_reason": _FINISHES[talk.finish]}
        head = {"id": "cmpl-o1", "object": "text_completion", "created": 1760000000, "model": talk.served}
        return {**head, "choices": [choice], "usage": self.usage(talk)}

    def events(self, talk: Talk) -> list[bytes]:
        head = {"id": "cmpl-o1", "object": "text_completion", "created": 1760000000, "model": talk.served}
        choices = [{"index": 0, "text": piece, "logprobs": None, "finish_reason": None} for piece in talk.pieces]
        choices.append({"index": 0, "text": "", "logprobs": None, "finish_reason": _FINISHES[talk.finish]})
        chunks: list[Json] = [{**head, "choices": [choice]} for choice in choices]
        if talk.usage_wanted:
            chunks.append({**head, "choices": [], "usage": self.usage(talk)})
        return [*map(data, chunks), b"data: [DONE]\n\n"]

    def usage(self, talk: Talk) -> Json:
        """The usage it tells."""
        return usage_of(talk)


# --- Responses --------------------------------------------------------------------------------------------------------

_RESPONSES = names(
    """access_programs background context_management conversation image include input instructions max_output_tokens
    max_tool_calls metadata model moderation parallel_tool_calls previous_response_id prompt prompt_cache_key
    prompt_cache_options prompt_cache_retention reasoning safety_identifier service_tier store stream stream_options
    temperature text tool_choice tools top_logprobs top_p truncation user"""
)
_COUNTED = names(
    """conversation input instructions model parallel_tool_calls previous_response_id reasoning text tool_choice tools
    truncation"""
)
_ITEMS = {
    "message": frozenset({"type", "role", "content", "id", "status"}),
    "function_call": frozenset({"type", "id", "call_id", "name", "arguments", "status"}),
    "function_call_output": frozenset({"type", "id", "call_id", "output", "status"}),
    "reasoning": frozenset({"type", "id", "summary", "content", "encrypted_content", "status"}),
    "local_shell_call": frozenset({"type", "id", "call_id", "action", "status"}),
    "local_shell_call_output": frozenset({"type", "id", "output", "status"}),
}
_SAID = {"user": ("input_text", "input_image", "input_file", "input_audio"), "assistant": ("output_text", "refusal")}
ENCRYPTED = SIGNATURES["openai"]


class Responses(_OpenAI):
    """/v1/responses, without state, and /v1/responses/input_tokens."""

    def read(self, path: str, query: str, headers: dict[str, str], doc: Json) -> Talk:
        counts = path.endswith("/input_tokens")
        known(doc, _COUNTED if counts else _RESPONSES, "")
        talk = Talk(text(doc.get("model"), "model"), stream=doc.get("stream") is True)
        if not counts:
            talk.limit = a_count(doc.get("max_output_tokens"), "max_output_tokens", 16)
        for place, tool in enumerate(doc.get("tools") or ()):
            if tool.get("type") == "function":
                text(tool.get("name"), f"tools[{place}].name")
                an_object(tool.get("parameters"), f"tools[{place}].parameters")
        talk.tools = bool(doc.get("tools")) and doc.get("tool_choice") != "none"
        talk.forced = doc.get("tool_choice") == "required"
        talk.system = doc.get("instructions") or ""
        talk.sampling = sampled(doc, "temperature", "top_p", "stop")
        shape = (doc.get("text") or {}).get("format") or {}
        if shape.get("type") == "json_schema":
            known(shape, {"type", "name", "description", "schema", "strict"}, "text.format.")
            text(shape.get("name"), "text.format.name")
            talk.schema = an_object(shape.get("schema"), "text.format.schema")
        if "tool_choice" in doc and not doc.get("tools"):
            invalid("Tool choices other than 'none' must be specified with 'tools'.", "tool_choice")
        given = doc.get("input")
        items = [{"role": "user", "content": given}] if isinstance(given, str) else a_list(given, "input")
        self._items(items, talk)
        reasoning = doc.get("reasoning") or {}
        known(reasoning, {"effort", "summary", "generate_summary", "context"}, "reasoning.")
        talk.reasons = reasoning.get("summary") is not None
        talk.more["encrypted"] = "reasoning.encrypted_content" in (doc.get("include") or ())
        talk.more["instructions"] = doc.get("instructions")
        return talk

    def _items(self, items: list[Json], talk: Talk) -> None:
        calls: dict[str, bool] = {}
        for place, item in enumerate(items):
            where, kind = f"input[{place}]", item.get("type", "message")
            if kind not in _ITEMS:
                invalid(f"Invalid value: '{kind}'.", where)
            known(item, _ITEMS[kind], f"{where}.")
            talk.result = kind == "function_call_output"
            if kind == "message":
                self._message(item, talk, where)
            elif kind == "function_call":
                an_object(json.loads(text(item.get("arguments"), f"{where}.arguments")), where)
                text(item.get("name"), f"{where}.name")
                calls[text(item.get("call_id"), f"{where}.call_id")] = False
            elif kind == "function_call_output":
                if item.get("call_id") not in calls:
                    invalid(f"No tool call found for function call output with call_id {item.get('call_id')}.", where)
                calls[item["call_id"]] = True
            elif kind == "reasoning":
                self._reasoning(item, items[place + 1 :], where)
                talk.signed = True
        if missing := [id for id, answered in calls.items() if not answered]:
            invalid(f"No tool output found for function call {missing[0]}.", "input")

    def _message(self, item: Json, talk: Talk, where: str) -> None:
        role, content = item.get("role"), item.get("content")
        if role not in ("user", "assistant", "system", "developer"):
            invalid(f"Invalid value: '{role}'.", f"{where}.role")
        if not isinstance(content, str):
            parts = a_list(content, f"{where}.content")
            for at, part in enumerate(parts):
                if part.get("type") not in _SAID["assistant" if role == "assistant" else "user"]:
                    invalid(f"Invalid value: '{part.get('type')}'.", f"{where}.content[{at}].type")
            talk.images += sum(part["type"] == "input_image" for part in parts)
            content = "".join(part.get("text", "") for part in parts)
        if role == "user":
            talk.prompt += content
        elif role != "assistant":
            talk.system += content

    def _reasoning(self, item: Json, behind: list[Json], where: str) -> None:
        if not isinstance(item.get("summary"), list):
            invalid(f"Missing required parameter: '{where}.summary'.", f"{where}.summary")
        if item.get("encrypted_content") != ENCRYPTED:
            invalid("The encrypted content could not be verified.", f"{where}.encrypted_content")
        if not behind or behind[0].get("type", "message") not in ("message", "function_call", "reasoning"):
            invalid(f"Item '{item.get('id')}' of type 'reasoning' was provided without its required following item.")

    def count(self, talk: Talk, tokens: int) -> Json:
        return {"object": "response.input_tokens", "input_tokens": tokens}

    def _output(self, talk: Talk) -> list[Json]:
        output: list[Json] = []
        if talk.thinks:
            shown = [{"type": "summary_text", "text": "".join(THOUGHT)}] if talk.reasons else []
            item: Json = {"type": "reasoning", "id": "rs_o1", "summary": shown}
            if talk.more["encrypted"]:
                item["encrypted_content"] = ENCRYPTED
            output.append(item)
        status = "incomplete" if talk.finish in ("length", "filter") else "completed"
        part = {"type": "output_text", "text": talk.text, "annotations": [], "logprobs": []}
        output.append({"type": "message", "id": "msg_o1", "status": status, "role": "assistant", "content": [part]})
        for number, (id, one) in enumerate(zip(CALL_IDS, talk.arguments, strict=False), 1):
            called = {"call_id": id, "name": TOOL, "arguments": json.dumps(one)}
            output.append({"type": "function_call", "id": f"fc_o{number}", "status": "completed", **called})
        return output

    def whole(self, talk: Talk) -> Json:
        status = {"length": "incomplete", "filter": "incomplete"}.get(talk.finish, "completed")
        return self._response(talk, status, self._output(talk))

    def _response(self, talk: Talk, status: str, output: list[Json]) -> Json:
        reason = {"length": "max_output_tokens", "filter": "content_filter"}.get(talk.finish)
        usage = {
            "input_tokens": INPUT,
            "input_tokens_details": {"cached_tokens": CACHED},
            "output_tokens": OUTPUT,
            "output_tokens_details": {"reasoning_tokens": talk.reasoning_tokens},
            "total_tokens": INPUT + OUTPUT,
        }
        return {
            "id": "resp_o1",
            "object": "response",
            "created_at": 1760000000,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": reason} if status == "incomplete" else None,
            "instructions": talk.more["instructions"],
            "model": talk.served,
            "output": output,
            "parallel_tool_calls": True,
            "store": False,
            "tools": [],
            "usage": None if status == "in_progress" else usage,
        }

    def events(self, talk: Talk) -> list[bytes]:
        told: list[Json] = []
        begun = self._response(talk, "in_progress", [])
        told += [{"type": "response.created", "response": begun}, {"type": "response.in_progress", "response": begun}]
        output = self._output(talk)
        for index, item in enumerate(output):
            told += self._item_events(index, item, talk)
        whole = self.whole(talk)
        told.append({"type": f"response.{whole['status']}", "response": whole})
        return [data({**event, "sequence_number": number}, event["type"]) for number, event in enumerate(told)]

    def _item_events(self, index: int, item: Json, talk: Talk) -> Iterator[Json]:
        at: Json = {"item_id": item["id"], "output_index": index}
        empty: dict[str, Json] = {
            "reasoning": {"summary": []},
            "message": {"content": []},
            "function_call": {"arguments": ""},
        }
        begun = {**item, **empty[item["type"]]}
        yield {"type": "response.output_item.added", "output_index": index, "item": begun}
        if item["type"] == "reasoning" and item["summary"]:
            place = {**at, "summary_index": 0}
            part: Json = {"type": "summary_text", "text": ""}
            yield {"type": "response.reasoning_summary_part.added", **place, "part": part}
            for piece in THOUGHT:
                yield {"type": "response.reasoning_summary_text.delta", **place, "delta": piece}
            whole = "".join(THOUGHT)
            yield {"type": "response.reasoning_summary_text.done", **place, "text": whole}
            yield {"type": "response.reasoning_summary_part.done", **place, "part": {**part, "text": whole}}
        elif item["type"] == "message":
            place = {**at, "content_index": 0}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield {"type": "response.content_part.added", **place, "part": part}
            for piece in talk.pieces:
                yield {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
            yield {"type": "response.output_text.done", **place, "text": talk.text, "logprobs": []}
            yield {"type": "response.content_part.done", **place, "part": {**part, "text": talk.text}}
        elif item["type"] == "function_call":
            written = item["arguments"]
            for piece in (written[:7], written[7:]):
                yield {"type": "response.function_call_arguments.delta", **at, "delta": piece}
            yield {"type": "response.function_call_arguments.done", **at, "arguments": written}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}

    def broken(self, talk: Talk) -> list[bytes]:
        error = {"code": "server_error", "message": "The server had an error."}
        response = {**self._response(talk, "in_progress", []), "status": "failed", "error": error}
        return [data({"type": "response.failed", "response": response, "sequence_number": 9}, "response.failed")]
