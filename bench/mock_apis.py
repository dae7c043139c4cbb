"""An upstream that answers in three APIs: OpenAI chat, Anthropic Messages and Gemini, by the path that is asked.

Run as `python -m bench.mock_apis PORT`. Each answer says the same text, in `PIECES` pieces where it is streamed. A
stream is `PIECES` writes, `GAP_S` apart, one piece of text in each: what an API tells before and after the text travels
with the first and the last of them, so that no API costs its reader more reads than another. Formats: the APIs' public
documentation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import uvloop

from bench.mock import STREAM_END, STREAM_HEAD, Mock, chunk, event, main, whole

PIECES = 30
GAP_S = 0.005
WORDS = tuple(f" word{number:02d}" for number in range(PIECES))
TEXT = "".join(WORDS)

_INPUT_TOKENS, _CREATED = 1024, 1_760_000_000
_Answer = tuple[bytes, tuple[bytes, ...], float]  # as `Mock.reply` returns it


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _streamed(before: bytes, pieces: Sequence[bytes], after: bytes) -> _Answer:
    first, *middle, last = pieces
    writes = (chunk(before + first), *map(chunk, middle), chunk(last + after) + STREAM_END)
    return STREAM_HEAD, writes, GAP_S


# --- OpenAI ---------------------------------------------------------------------------------------------------------

_OPENAI_USAGE = {
    "prompt_tokens": _INPUT_TOKENS,
    "completion_tokens": PIECES,
    "total_tokens": _INPUT_TOKENS + PIECES,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}


def _openai(kind: str, choices: list[dict[str, Any]], usage: Any) -> bytes:
    return _json(
        {
            "id": "chatcmpl-9f3a1c77d2b94e0a8c51",
            "object": kind,
            "created": _CREATED,
            "model": "bench-openai",
            "service_tier": "default",
            "system_fingerprint": "fp_0aa8d3e20b",
            "choices": choices,
            "usage": usage,
        }
    )


def _openai_whole() -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": TEXT, "refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return _openai("chat.completion", [choice], _OPENAI_USAGE)


def _openai_stream() -> _Answer:
    def told(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(_openai("chat.completion.chunk", [choice], None))

    usage = event(_openai("chat.completion.chunk", [], _OPENAI_USAGE))
    before = told({"role": "assistant", "content": "", "refusal": None})
    return _streamed(before, [told({"content": word}) for word in WORDS], told({}, "stop") + usage + event(b"[DONE]"))


# --- Anthropic ------------------------------------------------------------------------------------------------------


def _message(content: list[dict[str, Any]], stop_reason: str | None, output_tokens: int) -> dict[str, Any]:
    return {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": "bench-anthropic",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": _INPUT_TOKENS,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": output_tokens,
            "service_tier": "standard",
        },
    }


def _anthropic_whole() -> bytes:
    return _json(_message([{"type": "text", "text": TEXT}], "end_turn", PIECES))


def _anthropic_stream() -> _Answer:
    def told(kind: str, **more: Any) -> bytes:
        return event(_json({"type": kind, **more}), kind.encode())

    def word(text: str) -> bytes:
        return told("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    begin = told("message_start", message=_message([], None, 1))
    begin += told("content_block_start", index=0, content_block={"type": "text", "text": ""}) + told("ping")
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    end = told("content_block_stop", index=0)
    end += told("message_delta", delta=delta, usage={"output_tokens": PIECES}) + told("message_stop")
    return _streamed(begin, [word(text) for text in WORDS], end)


# --- Gemini ---------------------------------------------------------------------------------------------------------


def _gemini(text: str, finish: str | None, output_tokens: int) -> bytes:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return _json(
        {
            "candidates": [candidate],
            "usageMetadata": {
                "promptTokenCount": _INPUT_TOKENS,
                "candidatesTokenCount": output_tokens,
                "totalTokenCount": _INPUT_TOKENS + output_tokens,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": _INPUT_TOKENS}],
            },
            "modelVersion": "bench-google",
            "responseId": "Zk3maPDLN5-wz7IPrKCq4A0",
        }
    )


def _gemini_stream() -> _Answer:
    def told(number: int, word: str) -> bytes:
        return event(_gemini(word, "STOP" if number == PIECES else None, number))

    return _streamed(b"", [told(number, word) for number, word in enumerate(WORDS, 1)], b"")


# --- the server -----------------------------------------------------------------------------------------------------

_ANSWERS: dict[bytes, _Answer] = {
    b"/v1/chat/completions": (whole(_openai_whole()), (), 0.0),
    b"/v1/messages": (whole(_anthropic_whole()), (), 0.0),
    b":generateContent": (whole(_gemini(TEXT, "STOP", PIECES)), (), 0.0),
}
_STREAMS: dict[bytes, _Answer] = {
    b"/v1/chat/completions": _openai_stream(),
    b"/v1/messages": _anthropic_stream(),
    b":streamGenerateContent?alt=sse": _gemini_stream(),
}
_NO_MODELS: _Answer = (whole(b'{"object":"list","data":[],"models":[]}'), (), 0.0)


class MockApis(Mock):
    """One connection, as `Mock`."""

    def reply(self, request: bytes, end: int) -> _Answer:
        """The answer of the API whose path is asked; of Gemini's, what is behind the model's name counts."""
        path = request.split(b" ", 2)[1]
        if path.startswith(b"/v1beta/"):
            path = path[path.find(b":") :]
            return _STREAMS.get(path) or _ANSWERS.get(path, _NO_MODELS)
        answers = _STREAMS if b'"stream":true' in request else _ANSWERS
        return answers.get(path, _NO_MODELS)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), MockApis))
