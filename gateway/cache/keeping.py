"""Whether an answer may be kept: it must be complete, and not a refusal. Pure.

A refusal, a filtered or a failed answer may go better the next time. One that ended at its output limit is complete in
the sense of the request, but not where the gateway had shortened the limit because a pool ran low: with more in the
pool the same request gets more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

ENDED = frozenset({"stop", "tool_calls", "function_call", "eos", "end_turn"})  # finish reasons of whole answers
AT_LIMIT = frozenset({"length", "model_length", "max_tokens"})

_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


class _Message(msgspec.Struct, gc=False):
    refusal: str | None = None
    audio: Any = None


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    message: _Message | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice]
    error: Any = None


class _Anthropic(msgspec.Struct, gc=False):
    type: str
    stop_reason: str | None = None


class _Candidate(msgspec.Struct, gc=False, rename="camel"):
    finish_reason: str | None = None


class _Gemini(msgspec.Struct, gc=False, rename="camel"):
    candidates: list[_Candidate]
    prompt_feedback: dict[str, Any] | None = None


class _Ollama(msgspec.Struct, gc=False):
    done: bool = False
    done_reason: str | None = None


class _Part(msgspec.Struct, gc=False):
    type: str = ""


class _Item(msgspec.Struct, gc=False):
    content: list[_Part] | None = None


class _Reason(msgspec.Struct, gc=False):
    reason: str = ""


class _Response(msgspec.Struct, gc=False):
    status: str
    output: list[_Item]
    error: Any = None
    incomplete_details: _Reason | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_anthropic = msgspec.json.Decoder(_Anthropic).decode
_decode_gemini = msgspec.json.Decoder(_Gemini).decode
_decode_ollama = msgspec.json.Decoder(_Ollama).decode
_decode_response = msgspec.json.Decoder(_Response).decode


def is_keepable(body: bytes, endpoint: str, *, native: str = "", shortened: bool = False) -> bool:
    """Whether a whole answer with status 200 may be kept. Never raises.

    `endpoint` is the call's, `native` names the dialect of an answer that is not canonical. `shortened`: the output
    limit was lower than what the request asked for.
    """
    if endpoint == "embeddings":
        return True  # it was read to its last number already, and there is no half of one
    ended = _NATIVE.get(native, _nothing)
    try:
        return ended(body, shortened)
    except _ERRORS:
        return False


def has_ended(reason: str | None, *, shortened: bool = False) -> bool:
    """Whether a canonical finish reason is one of a complete answer."""
    return reason in ENDED or (reason in AT_LIMIT and not shortened)


def _canonical(body: bytes, shortened: bool) -> bool:
    answer = _decode_answer(body)
    if not answer.choices or answer.error is not None:
        return False
    for choice in answer.choices:
        message = choice.message
        if not has_ended(choice.finish_reason, shortened=shortened):
            return False
        if message is not None and (message.refusal or message.audio is not None):
            return False
    return True


def _anthropic(body: bytes, shortened: bool) -> bool:
    answer = _decode_anthropic(body)
    if answer.type != "message":
        return False
    whole = ("end_turn", "stop_sequence", "tool_use")
    return answer.stop_reason in whole or (answer.stop_reason == "max_tokens" and not shortened)


def _gemini(body: bytes, shortened: bool) -> bool:
    answer = _decode_gemini(body)
    if not answer.candidates or (answer.prompt_feedback or {}).get("blockReason"):
        return False
    reasons = {candidate.finish_reason for candidate in answer.candidates}
    return reasons <= ({"STOP"} if shortened else {"STOP", "MAX_TOKENS"})


def _ollama(body: bytes, shortened: bool) -> bool:
    answer = _decode_ollama(body)
    return answer.done and (answer.done_reason == "stop" or (answer.done_reason == "length" and not shortened))


def _responses(body: bytes, shortened: bool) -> bool:
    answer = _decode_response(body)
    if answer.error is not None or any(part.type == "refusal" for item in answer.output for part in item.content or ()):
        return False
    at_limit = answer.incomplete_details is not None and answer.incomplete_details.reason == "max_output_tokens"
    return answer.status == "completed" or (answer.status == "incomplete" and at_limit and not shortened)


def _nothing(body: bytes, shortened: bool) -> bool:
    return False  # a dialect of which nothing is known


_NATIVE: Mapping[str, Callable[[bytes, bool], bool]] = MappingProxyType(
    {
        "": _canonical,
        "anthropic": _anthropic,
        "gemini": _gemini,
        "ollama": _ollama,
        "responses": _responses,
    }
)
