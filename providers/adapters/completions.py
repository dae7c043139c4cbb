"""Legacy completions for providers and models that have only chats: one prompt becomes one user message.

`OverChat` stands before the adapter that speaks to the provider. Formats: the OpenAI API's reference of completions and
chat completions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from providers import answers
from providers.adapters import Adapter, StreamReader, params
from providers.adapters.chunks import usage_object
from providers.canonical import Answer, Call, Request, Target, UnsupportedParamError, UpstreamProblem, Usage

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

# What a chat has no place for, or another meaning of: its `logprobs` is no number.
RULES = {"suffix": params.REFUSE, "echo": params.REFUSE, "best_of": params.REFUSE, "logprobs": params.REFUSE}


class OverChat:
    """Answers completions by the chats of another adapter."""

    local = False

    def __init__(self, chats: Adapter) -> None:
        self._chats = chats
        self.stream_types = chats.stream_types

    def build(self, call: Call, target: Target, limit: int | None) -> Request:
        """The chat with the prompt as its only message. Raises `UnsupportedParamError` for what no chat can do."""
        doc = _decode(call.body)
        dropped = []
        for name, rule in RULES.items():
            value = doc.pop(name, None)
            if value is None or value == "" or params.is_default(name, value):
                continue
            if target.strict and rule == params.REFUSE:
                raise params.unsupported(name, target)
            dropped.append(name)
        doc["messages"] = [{"role": "user", "content": _prompt(doc.pop("prompt"), target)}]
        chat = msgspec.structs.replace(_chat(call), body=_encode(doc), fields=frozenset(doc))
        request = self._chats.build(chat, target, limit)
        request.dropped = (*dropped, *request.dropped)
        return request

    def read_unary(
        self,
        call: Call,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        target: Target | None = None,
    ) -> Answer:
        """The completion in a chat's answer."""
        answer = self._chats.read_unary(_chat(call), status, headers, body, target)
        if answer.problem is None:
            answer.body = _completion(answers.loaded(answer.body), answer.usage)
        return answer

    def open_stream(self, call: Call, target: Target | None = None) -> Reader:
        """A reader that turns the chunks of a chat into those of a completion."""
        return Reader(self._chats.open_stream(_chat(call), target), wants_usage=call.wants_usage)

    def read_error(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> UpstreamProblem:
        """As the adapter behind reads it."""
        return self._chats.read_error(status, headers, body)


class Reader:
    """The stream of a completion, made of that of a chat; the promises are those of `StreamReader`.

    Usage, which chats may tell on any chunk, is told on a last one without choices, and only where it `wants_usage`.
    """

    native = False

    def __init__(self, chat: StreamReader, *, wants_usage: bool) -> None:
        self.done = False
        self.error: UpstreamProblem | None = None
        self.usage: Usage | None = None
        self.events = 0
        self.delivered_bytes = 0
        self._chat = chat
        self._wants_usage = wants_usage
        self._last: dict[str, Any] = {}
        self._chunks = answers.Chunks()

    def feed(self, chunk: bytes) -> bytes:
        """Take what one upstream read brought; return chunks of a completion."""
        return self._told(self._chat.feed(chunk))

    def finish(self) -> bytes:
        """The upstream closed."""
        return self._told(self._chat.finish())

    def _told(self, data: bytes) -> bytes:
        chat = self._chat
        self.done, self.error, self.usage = chat.done, chat.error, chat.usage
        self.events, self.delivered_bytes = chat.events, chat.delivered_bytes
        pieces = [self._chunk(chunk) for chunk in self._chunks.feed(data)] if data else []
        if self.done and self._wants_usage and self.usage is not None:
            pieces.append(_event({**_envelope(self._last, []), "usage": usage_object(self.usage)}))
            self._wants_usage = False
        return b"".join(pieces)

    def _chunk(self, told: dict[str, Any]) -> bytes:
        """One chunk; b"" for one that tells nothing a completion has (reasoning, the role)."""
        self._last = told
        choices = [
            made
            for index, choice, delta in answers.choices_of(told, "delta")
            if (made := _choice(delta, index, choice))["text"] or made["finish_reason"]
        ]
        return _event(_envelope(told, choices)) if choices else b""


def _chat(call: Call) -> Call:
    return msgspec.structs.replace(call, endpoint="chat")


def _prompt(prompt: Any, target: Target) -> str:
    """The one prompt there may be: a chat is one conversation, and takes no token numbers."""
    if isinstance(prompt, str):
        return prompt
    several = len(prompt) > 1 and not isinstance(prompt[0], int)
    if not several and isinstance(prompt[0], str):
        return prompt[0]
    what = "holds more than one prompt" if several else "is token numbers"
    label = target.kind.label
    raise UnsupportedParamError("prompt", f"'prompt' {what}; the provider ({label}) has only chats. Send one text.")


def _choice(told: dict[str, Any], index: int, choice: dict[str, Any]) -> dict[str, Any]:
    """One choice of a completion; `told` is the message or delta of the chat's."""
    text = answers.spoken(told)[0] or answers.text_of(told, "refusal")
    end = choice.get("finish_reason") and answers.reason_of(choice["finish_reason"])
    return {"index": index, "text": text, "logprobs": None, "finish_reason": "stop" if end == "tool_calls" else end}


def _envelope(told: dict[str, Any], choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": told.get("id") or "cmpl",
        "object": "text_completion",
        "created": told.get("created") or 0,
        "model": told.get("model") or "",
        "choices": choices,
    }


def _completion(told: dict[str, Any], usage: Usage | None) -> bytes:
    choices = [_choice(message, index, choice) for index, choice, message in answers.choices_of(told, "message")]
    for choice in choices:
        choice["finish_reason"] = choice["finish_reason"] or "stop"
    return _encode(_envelope(told, choices) | ({} if usage is None else {"usage": usage_object(usage)}))


def _event(told: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % _encode(told)
