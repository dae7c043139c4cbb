"""Clients of every API the gateway speaks, for the matrix of dialects and providers: what each sends, and how strictly
each reads what it gets back. A `Client` knows one API; what it read is a `Reply`, the same for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.provider_fakes_base import ARGUMENTS, TOOL, WEATHER, Json

LIMIT = 4096  # what every client asks for at most
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ABOUT = "The weather in a city."
FUNCTION: Json = {"name": TOOL, "description": ABOUT, "parameters": SCHEMA}


@dataclass
class Reply:
    """What a client understood. `usage` is input, cached, output and reasoning, None where the API does not tell it.

    `turn` is what the client sends back of the answer in the next request. `ended`: the API's own end came. `error`
    is what was told in band.
    """

    text: str = ""
    thinking: str = ""
    calls: list[tuple[str, str, Json]] = field(default_factory=list)
    finish: str = ""
    usage: tuple[int, int | None, int, int | None] | None = None
    model: str = ""
    id: str = ""
    turn: Any = None
    ended: bool = False
    error: Any = None


class Client:
    """One API. `finishes` are its words for "stop", "length", "tool" and "filter"."""

    name = ""
    stream_type = "text/event-stream; charset=utf-8"
    tools = thinks = True
    finishes: dict[str, str] = {}
    streaming: Json = {"stream": True}
    unary: Json = {}
    tooling: Json = {}
    thinking: Json = {}

    def path(self, model: str, *, stream: bool) -> str:
        """Where it asks."""
        raise NotImplementedError

    def body(
        self, model: str, prompt: str, *, stream: bool = False, tools: bool = False, think: bool = False, **more: Any
    ) -> Json:
        """What it asks."""
        body = {**self.plain(model, prompt), **(self.streaming if stream else self.unary)}
        return {**body, **(self.tooling if tools else {}), **(self.thinking if think else {}), **more}

    def plain(self, model: str, prompt: str) -> Json:
        """A plain question."""
        raise NotImplementedError

    def answered(self, body: Json, reply: Reply) -> Json:
        """The next request of a conversation: with the answer, and the result of the tool call in it."""
        raise NotImplementedError

    def whole(self, data: bytes) -> Reply:
        """Read a whole answer."""
        raise NotImplementedError

    def streamed(self, data: bytes) -> Reply:
        """Read a stream, complete or not."""
        raise NotImplementedError

    def error(self, data: bytes, status: int) -> str:
        """The message of an error answer, whose shape is checked."""
        raise NotImplementedError

    def in_band(self, reply: Reply) -> str:
        """The message of an error told inside a stream, whose shape is checked."""
        raise NotImplementedError


def events(data: bytes) -> Iterator[tuple[str, str]]:
    """Name and data of each server-sent event; nothing else may be between them, and each must be whole."""
    data = data.replace(b"\r\n", b"\n")
    assert not data or data.endswith(b"\n\n"), data[-200:]
    for event in data.split(b"\n\n"):
        name, told = "", []
        for line in event.decode().split("\n"):
            kind, colon, value = line.partition(": ")
            if not line or line.startswith(":"):
                continue
            assert colon, line
            assert kind in ("event", "data"), line
            if kind == "event":
                name = value
            else:
                told.append(value)
        if told:
            yield name, "\n".join(told)


class OpenAIChat(Client):
    """Chat completions."""

    name = "openai"
    finishes = {"stop": "stop", "length": "length", "tool": "tool_calls", "filter": "content_filter"}
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    tooling = {"tools": [{"type": "function", "function": FUNCTION}]}
    thinking = {"reasoning_effort": "low"}

    def path(self, model: str, *, stream: bool) -> str:
        return "/v1/chat/completions"

    def plain(self, model: str, prompt: str) -> Json:
        return {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": LIMIT}

    def answered(self, body: Json, reply: Reply) -> Json:
        results = [{"role": "tool", "tool_call_id": id, "content": WEATHER} for id, _, _ in reply.calls]
        return {**body, "messages": [*body["messages"], reply.turn, *results]}

    def whole(self, data: bytes) -> Reply:
        told = json.loads(data)
        assert told["object"] == "chat.completion"
        (choice,) = told["choices"]
        message = choice["message"]
        assert message["role"] == "assistant"
        assert choice["index"] == 0
        reply = Reply(ended=True, finish=choice["finish_reason"], model=told["model"], id=told["id"])
        self._message(reply, message)
        reply.usage = openai_usage(told["usage"])
        return reply

    def _message(self, reply: Reply, message: Json) -> None:
        reply.text, reply.thinking = message.get("content") or "", message.get("reasoning_content") or ""
        for call in message.get("tool_calls") or ():
            assert call["type"] == "function"
            reply.calls.append((call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])))
        reply.turn = {name: value for name, value in message.items() if value is not None}

    def streamed(self, data: bytes) -> Reply:
        reply, message, calls = Reply(), dict[str, Any](role="assistant"), dict[int, Json]()
        for name, event in events(data):
            assert not name
            assert not reply.ended, "something follows the end"
            if event == "[DONE]":
                reply.ended = True
                continue
            told = json.loads(event)
            if "error" in told:
                reply.error = told
                continue
            assert told["object"] == "chat.completion.chunk"
            assert not reply.usage, "something follows the usage"
            reply.id, reply.model = reply.id or told["id"], reply.model or told["model"]
            assert (reply.id, reply.model) == (told["id"], told["model"])
            if told.get("usage"):
                assert told["choices"] == []
                reply.usage = openai_usage(told["usage"])
                continue
            (choice,) = told["choices"]
            reply.finish = choice["finish_reason"] or reply.finish
            merge(message, calls, choice["delta"])
        if calls:
            message["tool_calls"] = [calls[index] for index in sorted(calls)]
        if reply.error is None:
            self._message(reply, message)
        else:
            reply.text = message.get("content", "")
        return reply

    def error(self, data: bytes, status: int) -> str:
        told = json.loads(data)
        return openai_error(told)

    def in_band(self, reply: Reply) -> str:
        return openai_error(reply.error)


def merge(message: Json, calls: dict[int, Json], delta: Json) -> None:
    """Add a delta of a chat to what came before, as clients do."""
    for name, value in delta.items():
        if name == "tool_calls":
            for piece in value:
                function = piece.get("function") or {}
                call = calls.setdefault(piece["index"], {"function": {"arguments": ""}})
                call |= {key: item for key, item in piece.items() if key not in ("index", "function")}
                call["function"] |= {key: item for key, item in function.items() if key != "arguments"}
                call["function"]["arguments"] += function.get("arguments") or ""
        elif isinstance(value, str) and name != "role":
            message[name] = message.get(name, "") + value
        elif isinstance(value, list):
            message[name] = message.get(name, []) + value
        elif value is not None:
            message[name] = value


def openai_usage(usage: Json) -> tuple[int, int | None, int, int | None]:
    """The usage of the OpenAI API."""
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    return usage["prompt_tokens"], cached, usage["completion_tokens"], reasoning


def openai_error(told: Json) -> str:
    """The message of an error of the OpenAI API."""
    assert set(told) == {"error"}
    assert set(told["error"]) == {"message", "type", "param", "code"}
    assert told["error"]["type"]
    return str(told["error"]["message"])


class Completions(OpenAIChat):
    """Legacy completions."""

    name = "completions"
    tools = thinks = False

    def path(self, model: str, *, stream: bool) -> str:
        return "/v1/completions"

    def plain(self, model: str, prompt: str) -> Json:
        return {"model": model, "prompt": prompt, "max_tokens": LIMIT}

    def whole(self, data: bytes) -> Reply:
        told = json.loads(data)
        assert told["object"] == "text_completion"
        (choice,) = told["choices"]
        reply = Reply(choice["text"], ended=True, finish=choice["finish_reason"], model=told["model"], id=told["id"])
        reply.usage = openai_usage(told["usage"])
        return reply

    def streamed(self, data: bytes) -> Reply:
        reply = Reply()
        for _, event in events(data):
            assert not reply.ended
            if event == "[DONE]":
                reply.ended = True
                continue
            told = json.loads(event)
            if "error" in told:
                reply.error = told
                continue
            reply.id, reply.model = told["id"], told["model"]
            reply.usage = openai_usage(told["usage"]) if told.get("usage") else None
            for choice in told["choices"]:
                reply.text += choice["text"]
                reply.finish = choice["finish_reason"] or reply.finish
        return reply


class Responses(Client):
    """The Responses API, without state."""

    name = "responses"
    finishes = {
        "stop": "completed",
        "length": "incomplete:max_output_tokens",
        "tool": "completed",
        "filter": "incomplete:content_filter",
    }
    tooling = {"tools": [{"type": "function", **FUNCTION, "strict": False}]}
    thinking = {"reasoning": {"effort": "low", "summary": "auto"}, "include": ["reasoning.encrypted_content"]}

    def path(self, model: str, *, stream: bool) -> str:
        return "/v1/responses"

    def plain(self, model: str, prompt: str) -> Json:
        said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": prompt}]}
        return {"model": model, "input": [said], "max_output_tokens": LIMIT, "store": False}

    def answered(self, body: Json, reply: Reply) -> Json:
        results = [{"type": "function_call_output", "call_id": id, "output": WEATHER} for id, _, _ in reply.calls]
        return {**body, "input": [*body["input"], *reply.turn, *results]}

    def whole(self, data: bytes) -> Reply:
        return self._response(json.loads(data))

    def _response(self, told: Json) -> Reply:
        assert told["object"] == "response"
        assert told["error"] is None
        reason = (told["incomplete_details"] or {}).get("reason")
        finish = f"{told['status']}:{reason}" if reason else told["status"]
        reply = Reply(ended=True, finish=finish, model=told["model"], id=told["id"], turn=told["output"])
        assert reply.id.startswith("resp_")
        for item in told["output"]:
            if item["type"] == "message":
                assert item["role"] == "assistant"
                reply.text += "".join(part["text"] for part in item["content"])
            elif item["type"] == "function_call":
                reply.calls.append((item["call_id"], item["name"], json.loads(item["arguments"])))
            else:
                assert item["type"] == "reasoning"
                reply.thinking += "".join(part["text"] for part in item["summary"])
        usage = told["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        cached = usage["input_tokens_details"]["cached_tokens"]
        reasoning = usage["output_tokens_details"]["reasoning_tokens"]
        reply.usage = (usage["input_tokens"], cached, usage["output_tokens"], reasoning)
        return reply

    def streamed(self, data: bytes) -> Reply:
        told = [(name, json.loads(event)) for name, event in events(data)]
        reply, items, texts = Reply(), list[Json](), dict[tuple[int, str], str]()
        for number, (name, event) in enumerate(told):
            kind = event["type"]
            assert kind == name
            assert not reply.ended, f"{kind} follows the end"
            if kind not in ("error", "response.failed"):  # behind a provider's own events nobody has counted
                assert event["sequence_number"] == number
            if number < 2:
                assert kind == ("response.created", "response.in_progress")[number]
            elif kind == "response.output_item.added":
                assert event["output_index"] == len(items)
            elif kind == "response.output_item.done":
                assert event["output_index"] == len(items)
                items.append(event["item"])
            elif kind.endswith(".delta"):
                assert event["output_index"] == len(items)
                key = (event["output_index"], kind)
                texts[key] = texts.get(key, "") + event["delta"]
            elif kind in ("response.completed", "response.incomplete"):
                reply = self._response(event["response"])
                assert event["response"]["output"] == items
                assert kind == f"response.{event['response']['status']}"
            elif kind in ("error", "response.failed"):
                reply.error = (reply.error or []) + [event]
        said = "".join(text for (_, kind), text in texts.items() if kind == "response.output_text.delta")
        thought = "".join(text for (_, kind), text in texts.items() if kind == "response.reasoning_summary_text.delta")
        if reply.ended:
            assert (said, thought) == (reply.text, reply.thinking)
            arguments = [text for (_, kind), text in texts.items() if kind == "response.function_call_arguments.delta"]
            assert [json.loads(text) for text in arguments] == [call[2] for call in reply.calls]
        reply.text, reply.thinking = said, thought
        return reply

    def error(self, data: bytes, status: int) -> str:
        return openai_error(json.loads(data))

    def in_band(self, reply: Reply) -> str:
        first, last = reply.error
        assert (first["type"], last["type"]) == ("error", "response.failed")
        assert last["response"]["status"] == "failed"
        assert last["response"]["error"]["message"] == first["message"]
        return str(first["message"])


class Anthropic(Client):
    """The Messages API."""

    name = "anthropic"
    finishes = {"stop": "end_turn", "length": "max_tokens", "tool": "tool_use", "filter": "refusal"}
    tooling = {"tools": [{"name": TOOL, "description": ABOUT, "input_schema": SCHEMA}]}
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}}

    def path(self, model: str, *, stream: bool) -> str:
        return "/v1/messages"

    def plain(self, model: str, prompt: str) -> Json:
        return {"model": model, "max_tokens": LIMIT, "messages": [{"role": "user", "content": prompt}]}

    def answered(self, body: Json, reply: Reply) -> Json:
        results = [{"type": "tool_result", "tool_use_id": id, "content": WEATHER} for id, _, _ in reply.calls]
        turns = [{"role": "assistant", "content": reply.turn}, {"role": "user", "content": results}]
        return {**body, "messages": [*body["messages"], *turns]}

    def whole(self, data: bytes) -> Reply:
        return self._message(json.loads(data))

    def _message(self, told: Json) -> Reply:
        assert (told["type"], told["role"], told["stop_sequence"]) == ("message", "assistant", None)
        reply = Reply(ended=True, finish=told["stop_reason"], model=told["model"], id=told["id"], turn=told["content"])
        for block in told["content"]:
            if block["type"] == "text":
                reply.text += block["text"]
            elif block["type"] == "thinking":
                reply.thinking += block["thinking"]
            elif block["type"] == "tool_use":
                reply.calls.append((block["id"], block["name"], block["input"]))
            else:
                assert block["type"] == "redacted_thinking"
        usage = told["usage"]
        cached, written = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
        reasoning = usage.get("output_tokens_details", {}).get("thinking_tokens", 0)
        reply.usage = (usage["input_tokens"] + cached + written, cached, usage["output_tokens"], reasoning)
        return reply

    def streamed(self, data: bytes) -> Reply:
        reply, message, blocks = Reply(), Json(), list[Json]()
        opened: Json | None = None
        for name, event in events(data):
            told = json.loads(event)
            kind = told["type"]
            assert kind == name
            assert not reply.ended
            assert message or kind in ("message_start", "error")
            if kind == "message_start":
                message = told["message"]
                assert message["content"] == []
                assert message["stop_reason"] is None
            elif kind == "content_block_start":
                assert opened is None
                assert told["index"] == len(blocks)
                opened = {**told["content_block"], "pieces": ""}
            elif kind == "content_block_delta":
                assert opened is not None
                assert told["index"] == len(blocks)
                self._delta(opened, told["delta"])
            elif kind == "content_block_stop":
                assert opened is not None
                assert told["index"] == len(blocks)
                blocks.append(closed(opened))
                opened = None
            elif kind == "message_delta":
                assert opened is None
                message |= {**told["delta"], "usage": {**message["usage"], **told["usage"]}}
            elif kind == "message_stop":
                reply = self._message({**message, "content": blocks})
            elif kind == "error":
                reply.error = told
            else:
                assert kind == "ping"
        if not reply.ended:
            said = [*blocks, *([closed(opened, whole=False)] if opened else ())]
            reply.text = "".join(block.get("text", "") for block in said)
        return reply

    def _delta(self, block: Json, delta: Json) -> None:
        field = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
        if delta["type"] == "input_json_delta":
            block["pieces"] += delta["partial_json"]
        else:
            block[field[delta["type"]]] += delta[field[delta["type"]]]

    def error(self, data: bytes, status: int) -> str:
        return self._error(json.loads(data), status)

    def in_band(self, reply: Reply) -> str:
        return self._error(reply.error, 0)

    def _error(self, told: Json, status: int) -> str:
        assert told["type"] == "error"
        assert set(told) <= {"type", "error", "request_id"}
        assert set(told["error"]) == {"type", "message"}
        kinds = {
            400: "invalid_request_error",
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            405: "invalid_request_error",
            429: "rate_limit_error",
            502: "api_error",
        }
        assert told["error"]["type"] == kinds.get(status, told["error"]["type"])
        return str(told["error"]["message"])


def closed(block: Json, *, whole: bool = True) -> Json:
    """A content block with what came for it in pieces."""
    pieces = block["pieces"]
    told = {name: value for name, value in block.items() if name != "pieces"}
    if told["type"] == "tool_use" and whole:
        told["input"] = json.loads(pieces or "{}")
    return told


class Gemini(Client):
    """The Gemini API, streamed as events."""

    name = "gemini"
    finishes = {"stop": "STOP", "length": "MAX_TOKENS", "tool": "STOP", "filter": "SAFETY"}
    streaming = {}
    tooling = {
        "tools": [{"functionDeclarations": [{"name": TOOL, "description": ABOUT, "parametersJsonSchema": SCHEMA}]}]
    }
    thinking = {
        "generationConfig": {
            "maxOutputTokens": LIMIT,
            "thinkingConfig": {"includeThoughts": True, "thinkingLevel": "LOW"},
        }
    }

    def path(self, model: str, *, stream: bool) -> str:
        return f"/v1beta/models/{model}:" + ("streamGenerateContent?alt=sse" if stream else "generateContent")

    def plain(self, model: str, prompt: str) -> Json:
        contents = [{"role": "user", "parts": [{"text": prompt}]}]
        return {"contents": contents, "generationConfig": {"maxOutputTokens": LIMIT}}

    def answered(self, body: Json, reply: Reply) -> Json:
        results = []
        for id, name, _ in reply.calls:
            given = {"name": name, "response": {"output": WEATHER}, **({"id": id} if id else {})}
            results.append({"functionResponse": given})
        turns = [{"role": "model", "parts": reply.turn}, {"role": "user", "parts": results}]
        return {**body, "contents": [*body["contents"], *turns]}

    def whole(self, data: bytes) -> Reply:
        return self._read([json.loads(data)])

    def streamed(self, data: bytes) -> Reply:
        return self._read([json.loads(event) for _, event in events(data)])

    def _read(self, responses: list[Json]) -> Reply:
        reply = Reply(turn=[])
        for told in responses:
            assert reply.error is None, "something follows the error"
            if "error" in told:
                reply.error = told
                continue
            assert not reply.ended, "something follows the end"
            reply.model, reply.id = told["modelVersion"], told["responseId"]
            (candidate,) = told["candidates"]
            assert candidate["content"]["role"] == "model"
            reply.finish = candidate.get("finishReason", "")
            reply.ended = bool(reply.finish)
            for part in candidate["content"]["parts"]:
                self._part(reply, part)
            if reply.ended:
                reply.usage = gemini_usage(told["usageMetadata"])
        return reply

    def _part(self, reply: Reply, part: Json) -> None:
        if call := part.get("functionCall"):
            reply.calls.append((call.get("id", ""), call["name"], call["args"]))
        elif part.get("thought"):
            reply.thinking += part["text"]
        else:
            reply.text += part["text"]
        if part != {"text": ""}:
            reply.turn.append(part)

    def error(self, data: bytes, status: int) -> str:
        return self._error(json.loads(data), status)

    def in_band(self, reply: Reply) -> str:
        return self._error(reply.error, reply.error["error"]["code"])

    def _error(self, told: Json, status: int) -> str:
        assert set(told) == {"error"}
        assert set(told["error"]) == {"code", "message", "status"}
        assert told["error"]["code"] == status
        names = {
            400: "INVALID_ARGUMENT",
            401: "UNAUTHENTICATED",
            403: "PERMISSION_DENIED",
            404: "NOT_FOUND",
            405: "UNIMPLEMENTED",
            429: "RESOURCE_EXHAUSTED",
            502: "UNAVAILABLE",
        }
        assert told["error"]["status"] == names[status]
        return str(told["error"]["message"])


def gemini_usage(usage: Json) -> tuple[int, int | None, int, int | None]:
    """The usage of the Gemini API."""
    thoughts = usage.get("thoughtsTokenCount", 0)
    made = usage["candidatesTokenCount"] + thoughts
    assert usage["totalTokenCount"] == usage["promptTokenCount"] + made
    return usage["promptTokenCount"], usage.get("cachedContentTokenCount", 0), made, thoughts


class GeminiArray(Gemini):
    """The Gemini API, streamed as one JSON array."""

    name = "gemini_array"
    stream_type = "application/json; charset=utf-8"

    def path(self, model: str, *, stream: bool) -> str:
        return super().path(model, stream=stream).replace("?alt=sse", "")

    def streamed(self, data: bytes) -> Reply:
        return self._read(json.loads(data))

    def error(self, data: bytes, status: int) -> str:
        told = json.loads(data)
        if isinstance(told, list):
            (told,) = told
        return self._error(told, status)


class OllamaChat(Client):
    """Ollama's /api/chat. It tells neither cached tokens nor reasoning ones."""

    name = "ollama_chat"
    stream_type = "application/x-ndjson"
    finishes = {"stop": "stop", "length": "length", "tool": "stop", "filter": "content_filter"}
    streaming = {}
    unary = {"stream": False}
    tooling = {"tools": [{"type": "function", "function": FUNCTION}]}
    thinking = {"think": "low"}

    def path(self, model: str, *, stream: bool) -> str:
        return "/api/chat"

    def plain(self, model: str, prompt: str) -> Json:
        said = [{"role": "user", "content": prompt}]
        return {"model": model, "messages": said, "options": {"num_predict": LIMIT}}

    def answered(self, body: Json, reply: Reply) -> Json:
        results = []
        for id, name, _ in reply.calls:
            named = {"tool_call_id": id} if id else {}
            results.append({"role": "tool", "tool_name": name, "content": WEATHER, **named})
        return {**body, "messages": [*body["messages"], reply.turn, *results]}

    def whole(self, data: bytes) -> Reply:
        return self._read([json.loads(data)])

    def streamed(self, data: bytes) -> Reply:
        assert data.endswith(b"\n")
        return self._read([json.loads(line) for line in data.splitlines()])

    def _read(self, lines: list[Json]) -> Reply:
        reply, calls = Reply(), list[Json]()
        for line in lines:
            assert not reply.ended
            if "error" in line:
                reply.error = line
                continue
            assert line["created_at"].endswith("Z")
            reply.model, reply.ended = line["model"], line["done"]
            message = self._said(line)
            reply.text += message.get("content", "")
            reply.thinking += message.get("thinking", "")
            calls += message.get("tool_calls", ())
            if reply.ended:
                reply.finish = line["done_reason"]
                reply.usage = (line["prompt_eval_count"], None, line["eval_count"], None)
                assert line["total_duration"] > 0
                assert line["eval_duration"] > 0
        reply.calls = [(call.get("id", ""), call["function"]["name"], call["function"]["arguments"]) for call in calls]
        thinking = {"thinking": reply.thinking} if reply.thinking else {}
        reply.turn = {"role": "assistant", "content": reply.text, **thinking}
        if calls:
            reply.turn["tool_calls"] = calls
        return reply

    def _said(self, line: Json) -> Json:
        message: Json = line["message"]
        assert message["role"] == "assistant"
        return message

    def error(self, data: bytes, status: int) -> str:
        told = json.loads(data)
        assert set(told) == {"error"}
        return str(told["error"])

    def in_band(self, reply: Reply) -> str:
        assert set(reply.error) == {"error"}
        return str(reply.error["error"])


class OllamaGenerate(OllamaChat):
    """Ollama's /api/generate."""

    name = "ollama_generate"
    tools = False

    def path(self, model: str, *, stream: bool) -> str:
        return "/api/generate"

    def plain(self, model: str, prompt: str) -> Json:
        return {"model": model, "prompt": prompt, "options": {"num_predict": LIMIT}}

    def _said(self, line: Json) -> Json:
        return {"content": line["response"], "thinking": line.get("thinking", "")}


CLIENTS: dict[str, Client] = {
    client.name: client
    for client in (
        OpenAIChat(),
        Completions(),
        Responses(),
        Anthropic(),
        Gemini(),
        GeminiArray(),
        OllamaChat(),
        OllamaGenerate(),
    )
}
CALLED = (TOOL, ARGUMENTS)
