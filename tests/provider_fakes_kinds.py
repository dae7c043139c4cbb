"""The servers of the OpenAI API that the catalogue knows, faked: what each does unlike the others, as data.

`IMITATED` has them by name; a kind of provider that is found in two versions has two names, of which the first part is
the kind's. Sources: the providers' public documentation and recorded answers. Where neither says anything, a server
does as OpenAI's does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.provider_fakes_base import (
    CACHED,
    INPUT,
    OUTPUT,
    Api,
    Error,
    Json,
    Talk,
    data,
    invalid,
    names,
)
from tests.provider_fakes_openai import CALL_IDS, Chat, Completions, Responses, openai_error, usage_of

# --- errors -----------------------------------------------------------------------------------------------------------

Errors = Callable[[int, str, str], Error]
DONE = b"data: [DONE]\n\n"
_WAIT = {"retry-after": "7"}


def _wait(status: int) -> dict[str, str]:
    return dict(_WAIT) if status == 429 else {}


def _numeric(status: int, message: str, param: str) -> Error:
    """The code is the status, as a number."""
    kind = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}
    told = {"code": status, "message": message, "type": kind.get(status, "server_error")}
    return Error(status, {"error": told}, _wait(status))


def _vllm(status: int, message: str, param: str) -> Error:
    kind = {400: "BadRequestError", 401: "Unauthorized", 429: "TooManyRequests"}.get(status, "InternalServerError")
    told = {"message": message, "type": kind, "param": param or None, "code": status}
    return Error(status, {"error": told}, _wait(status))


def _flat(status: int, message: str, param: str) -> Error:
    """The same without an object around it, as older versions tell it."""
    return Error(status, {"object": "error", **_vllm(status, message, param).body["error"]}, _wait(status))


def _text(status: int, message: str, param: str) -> Error:
    """The Open Inference Protocol's: a text."""
    return Error(status, {"error": message}, _wait(status))


def _xai(status: int, message: str, param: str) -> Error:
    code = {400: "Client specified an invalid argument", 401: "Unauthenticated", 429: "Resource exhausted"}
    return Error(status, {"code": code.get(status, "Internal error"), "error": message}, _wait(status))


def _azure(status: int, message: str, param: str) -> Error:
    if status == 400:
        return openai_error(status, message, param)
    return Error(status, {"error": {"code": str(status), "message": message}}, _wait(status))


def _octets(status: int, message: str, param: str) -> Error:
    """OpenAI's errors, called a file."""
    error = openai_error(status, message, param)
    return Error(status, error.body, {**error.headers, "content-type": "application/octet-stream"})


def _openrouter(status: int, message: str, param: str) -> Error:
    told = {"message": message, "code": status, "metadata": {"raw": "{}", "provider_name": "Somebody"}}
    return Error(status, {"error": told, "user_id": "user_1"}, _wait(status))


def _mistral(status: int, message: str, param: str) -> Error:
    """A field it does not know is 422, with a list of what is wrong in place of the message."""
    if status == 401:
        return Error(status, {"detail": "Unauthorized"})
    if param:
        wrong = {"type": "extra_forbidden", "loc": ["body", param], "msg": message, "input": None}
        told: Json = {"object": "error", "message": {"detail": [wrong]}, "type": "invalid_request_error"}
        return Error(422, {**told, "param": None, "code": None})
    kind, code = {400: ("invalid_request_error", "3051"), 429: ("rate_limited", "1300")}.get(status, ("error", "3000"))
    return Error(
        status, {"object": "error", "message": message, "type": kind, "param": None, "code": code}, _wait(status)
    )


# --- errors in band ---------------------------------------------------------------------------------------------------


def _event_error(talk: Talk) -> list[bytes]:
    """Groq's: an event with a name of its own, and no end."""
    told = {"message": "Failed to call a function.", "type": "invalid_request_error", "code": "tool_use_failed"}
    return [data({"error": {**told, "failed_generation": "<function"}}, "error")]


def _ended_error(talk: Talk) -> list[bytes]:
    """vLLM's: the stream still ends as a good one does."""
    return [data(_vllm(500, "The engine died.", "").body), DONE]


def _ended_flat_error(talk: Talk) -> list[bytes]:
    return [data(_flat(500, "The engine died.", "").body), DONE]


def _openrouter_error(talk: Talk) -> list[bytes]:
    """A finish reason, then the error beside usage, then the end of a good stream."""
    head = {"id": "chatcmpl-o1", "object": "chat.completion.chunk", "created": 1760000000, "model": talk.served}
    delta = {"role": "assistant", "content": ""}
    finish = {"index": 0, "delta": delta, "finish_reason": "length", "native_finish_reason": "error"}
    failed = {"error": {"code": 400, "message": "The provider failed."}, "usage": usage_of(talk)}
    chunks: list[Json] = [{**head, "choices": [finish]}, {**head, "choices": [], **failed}]
    return [*map(data, chunks), DONE]


# --- what they do unlike the others -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quirks:
    """How one server of the OpenAI API differs.

    `root` is what its documented base URL has before `/v1`. `allowed` are the only fields it takes (empty: it ignores
    what it does not know), `ignores` some it silently does without. `usage` says where a stream tells it: "asked" (a
    last chunk, when asked for), "finish" (on the finish chunk, unasked), "x_groq", or "choices" (a last chunk that has
    choices). `nulls`: every other chunk says `usage: null`. `cached` tells cached
    tokens, `excluded` leaves reasoning out of the output tokens. `reasoning` is its name for the text of it, "parts"
    for a list of contents, "" where it is not told. `lacks` are fields its answers do without, `more` those they have
    beyond OpenAI's. `ids` are those of its tool calls, `ids_match` what it wants those of a request to look like.
    """

    root: str = ""
    strict: bool = False
    limit_field: str = "max_tokens"
    strict_messages: bool = False
    allowed: frozenset[str] = frozenset()
    ignores: frozenset[str] = frozenset()
    single: bool = False  # gives one answer only
    seed: str = "seed"
    forced: str = "required"  # the word that makes it call a tool, "" where it cannot be made to
    usage: str = "asked"
    nulls: bool = False
    cached: bool = True
    reasons: bool = True  # tells how many tokens reasoning took
    excluded: bool = False
    reasoning: str = "reasoning_content"
    comments: bool = False
    roles: bool = False  # every delta has its role
    prelude: Json = field(default_factory=dict)  # a chunk before the first
    lacks: frozenset[str] = frozenset()
    more: Json = field(default_factory=dict)
    ids: tuple[str, ...] = CALL_IDS
    ids_match: str = ""
    embeds: bool = True
    completes: bool = True  # has legacy completions
    error: Errors = openai_error
    broken: Callable[[Talk], list[bytes]] | None = None

    @property
    def path(self) -> str:
        """Where it answers chats."""
        return f"{self.root}/v1/chat/completions"


_OF_OLLAMA = names("max_completion_tokens tool_choice n logit_bias user parallel_tool_calls")
_OF_MISTRAL = names(
    """model messages temperature top_p max_tokens stream stop random_seed metadata response_format tools tool_choice
    presence_penalty frequency_penalty min_tokens repetition_penalty top_k logprobs top_logprobs prompt_logprobs
    top_prompt_logprobs n prediction parallel_tool_calls prompt_mode reasoning_effort guardrails prompt_cache_key
    safe_prompt"""
)  # less `service_tier`, of which it knows other values
_OF_GROQ = names(
    """model messages citation_options compound_custom disable_tool_validation documents exclude_domains
    frequency_penalty function_call functions include_domains include_reasoning max_completion_tokens max_tokens
    metadata n parallel_tool_calls presence_penalty reasoning_effort reasoning_format response_format search_settings
    seed stop stream stream_options temperature tool_choice tools top_p user"""
)  # less `service_tier` and `store`
_FILTERS = {"hate": {"filtered": False, "severity": "safe"}, "violence": {"filtered": False, "severity": "safe"}}
_PROMPT_FILTERS = [{"prompt_index": 0, "content_filter_results": _FILTERS}]
_TIMINGS = {"prompt_n": 7, "prompt_ms": 1.5, "predicted_n": 7, "predicted_ms": 2.5, "cache_n": 4}
_NO_REFUSAL = frozenset({"refusal"})
_SHORT = frozenset({"logprobs", "refusal"})  # what many servers leave out of answers

IMITATED: dict[str, Quirks] = {
    "azure": Quirks(
        root="/openai",
        strict=True,
        limit_field="max_completion_tokens",
        strict_messages=True,
        reasoning="",
        prelude={"id": "", "object": "", "created": 0, "model": "", "prompt_filter_results": _PROMPT_FILTERS},
        more={"prompt_filter_results": _PROMPT_FILTERS},
        error=_azure,
    ),
    "ollama-v1": Quirks(ignores=_OF_OLLAMA, forced="", cached=False, reasons=False, reasoning="reasoning"),
    "llamacpp": Quirks(lacks=_SHORT, more={"timings": _TIMINGS}, error=_numeric),
    "lmstudio": Quirks(reasoning="reasoning", more={"stats": {}, "system_fingerprint": "m"}, lacks=_SHORT),
    "localai": Quirks(cached=False, reasons=False, reasoning="", lacks=_SHORT),
    "vllm": Quirks(reasoning="reasoning", error=_vllm, broken=_ended_error),
    "vllm-old": Quirks(error=_flat, broken=_ended_flat_error),
    "tensorrt": Quirks(cached=False, reasons=False, reasoning="", lacks=_NO_REFUSAL, error=_flat),
    "onnx": Quirks(root="/openai", cached=False, reasons=False, reasoning="", error=_text),
    "synapse": Quirks(cached=False, reasons=False, reasoning=""),
    "deepseek": Quirks(usage="finish", nulls=True, error=_octets, embeds=False, completes=False, lacks=_NO_REFUSAL),
    "mistral": Quirks(
        strict_messages=True,
        allowed=_OF_MISTRAL,
        seed="random_seed",
        forced="any",
        usage="finish",
        cached=False,
        reasons=False,
        reasoning="parts",
        lacks=_SHORT,
        ids=("D681PevKs", "aB3dE6gH9"),
        ids_match="[a-zA-Z0-9]{9}",
        completes=False,
        error=_mistral,
    ),
    "groq": Quirks(
        root="/openai",
        limit_field="max_completion_tokens",
        strict_messages=True,
        allowed=_OF_GROQ,
        single=True,
        usage="x_groq",
        cached=False,
        reasoning="reasoning",
        more={"system_fingerprint": "fp_1", "service_tier": "on_demand"},
        embeds=False,
        completes=False,
        broken=_event_error,
    ),
    "grok": Quirks(
        limit_field="max_completion_tokens",
        excluded=True,
        more={"system_fingerprint": "fp_1"},
        embeds=False,
        error=_xai,
    ),
    "openrouter": Quirks(
        root="/api",
        usage="choices",
        reasoning="reasoning",
        comments=True,
        roles=True,
        more={"provider": "Somebody"},
        ids=("0", "1"),
        error=_openrouter,
        broken=_openrouter_error,
    ),
}


def told_usage(quirks: Quirks, talk: Talk) -> Json:
    """The usage such a server tells."""
    told: Json = {"prompt_tokens": INPUT, "completion_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
    if quirks.excluded:
        told["completion_tokens"] -= talk.reasoning_tokens
    if quirks.cached:
        told["prompt_tokens_details"] = {"cached_tokens": CACHED}
    if quirks.cached and quirks.nulls:  # DeepSeek's own names beside them
        told |= {"prompt_cache_hit_tokens": CACHED, "prompt_cache_miss_tokens": INPUT - CACHED}
    if quirks.reasons:
        told["completion_tokens_details"] = {"reasoning_tokens": talk.reasoning_tokens}
    return told


class KindChat(Chat):
    """/v1/chat/completions of such a server."""

    def __init__(self, quirks: Quirks) -> None:
        super().__init__(strict=quirks.strict, limit_field=quirks.limit_field, strict_messages=quirks.strict_messages)
        self._quirks = quirks

    def read(self, path: str, query: str, headers: dict[str, str], doc: Json) -> Talk:
        quirks = self._quirks
        for name in doc:
            if quirks.allowed and name not in quirks.allowed:
                invalid("Extra inputs are not permitted", name)
        if quirks.single and doc.get("n", 1) != 1:
            invalid("'n' must be 1", "n")
        if doc.get("tool_choice") == "required" != quirks.forced:
            invalid("Input should be 'auto', 'none' or 'any'", "tool_choice")
        if quirks.ids_match:
            self._check_messages(doc)
        talk = super().read(path, query, headers, {name: doc[name] for name in doc if name not in quirks.ignores})
        talk.forced = bool(quirks.forced) and doc.get("tool_choice") == quirks.forced
        talk.more["seed"] = doc.get(quirks.seed)
        return talk

    def _check_messages(self, doc: Json) -> None:
        for message in doc["messages"]:
            if message["role"] == "user" and "name" in message:
                invalid("Extra inputs are not permitted", "messages")
            for id in [call["id"] for call in message.get("tool_calls") or ()] or [message.get("tool_call_id")]:
                if id is not None and not re.fullmatch(self._quirks.ids_match, id):
                    invalid(f"Tool call id was {id} but must be a-z, A-Z, 0-9, with a length of 9.")

    def usage(self, talk: Talk) -> Json:
        """The usage it tells."""
        return told_usage(self._quirks, talk)

    def _without(self, told: Json) -> Json:
        return {name: value for name, value in told.items() if name not in self._quirks.lacks}

    def whole(self, talk: Talk) -> Json:
        told = super().whole(talk)
        (choice,) = told["choices"]
        message = self._renamed(choice["message"])
        for call, id in zip(message.get("tool_calls", ()), self._quirks.ids, strict=False):
            call["id"] = id
        if self._quirks.roles:
            choice["native_finish_reason"] = choice["finish_reason"]
        choice = {**self._without(choice), "message": self._without(message)}
        return {**told, **self._quirks.more, "choices": [choice], "usage": self.usage(talk)}

    def _renamed(self, message: Json) -> Json:
        """A message or delta with its reasoning where this server has it."""
        quirks = self._quirks
        if quirks.nulls and "refusal" not in message:  # DeepSeek's deltas have both names, one of them null
            message = {"content": None, "reasoning_content": None, **message} if message else message
        if message.get("reasoning_content") is None or quirks.reasoning == "reasoning_content":
            return message
        told = {name: value for name, value in message.items() if name != "reasoning_content"}
        if quirks.reasoning == "parts":
            words: Any = [{"type": "text", "text": message["reasoning_content"]}]
            parts: list[Json] = [{"type": "thinking", "thinking": words}]
            if text := told.get("content"):
                parts = [{**parts[0], "closed": True}, {"type": "text", "text": text}]
            told["content"] = parts
        elif quirks.reasoning:
            told["reasoning"] = message["reasoning_content"]
        if quirks.roles:
            detail = {"type": "reasoning.text", "text": message["reasoning_content"], "format": "unknown", "index": 0}
            told["reasoning_details"] = [detail]
        return told

    def events(self, talk: Talk) -> list[bytes]:
        told = [data(chunk) for chunk in self._all(talk)]
        if self._quirks.comments:
            told = [b": OPENROUTER PROCESSING\n\n", *told[:1], b": OPENROUTER PROCESSING\n\n", *told[1:]]
        return [*told, DONE]

    def _all(self, talk: Talk) -> Iterator[Json]:
        quirks, usage = self._quirks, self.usage(talk)
        if quirks.prelude:
            yield {**quirks.prelude, "choices": []}
        more = {name: value for name, value in quirks.more.items() if name not in ("timings", *quirks.prelude)}
        ids = dict(zip(CALL_IDS, quirks.ids, strict=True))
        for chunk in self._chunks(talk):
            told = {**chunk, **more, **({"usage": None} if quirks.nulls else {})}
            if not chunk["choices"]:
                if quirks.usage == "choices":
                    again = {"role": "assistant", "content": ""}
                    told["choices"] = [
                        {"index": 0, "delta": again, "finish_reason": None, "native_finish_reason": None}
                    ]
                if quirks.usage in ("asked", "choices"):
                    timings = {"timings": quirks.more["timings"]} if "timings" in quirks.more else {}
                    yield {**told, **timings, "usage": usage}
                continue
            (choice,) = chunk["choices"]
            delta = self._renamed(choice["delta"])
            for call in delta.get("tool_calls", ()):
                call |= {"id": ids[call["id"]]} if "id" in call else {}
            if quirks.roles:
                delta = {"content": "", **delta, "role": "assistant"}
            told["choices"] = [self._without({**choice, "delta": self._without(delta)})]
            if choice["finish_reason"] and quirks.usage == "finish":
                told["usage"] = usage
            elif choice["finish_reason"] and quirks.usage == "x_groq":
                times = {"queue_time": 0.01, "prompt_time": 0.02, "completion_time": 0.03, "total_time": 0.05}
                told["x_groq"] = {"id": "req_1", "usage": {**times, **usage}}
            yield told

    def broken(self, talk: Talk) -> list[bytes]:
        if self._quirks.broken is not None:
            return self._quirks.broken(talk)
        return [data(self.error(500, "The server failed.").body)]

    def error(self, status: int, message: str, param: str = "") -> Error:
        return self._quirks.error(status, message, param)


class KindCompletions(Completions):
    """/v1/completions of such a server."""

    def __init__(self, quirks: Quirks) -> None:
        super().__init__(strict=quirks.strict)
        self._quirks = quirks

    def usage(self, talk: Talk) -> Json:
        """The usage it tells."""
        return told_usage(self._quirks, talk)

    def broken(self, talk: Talk) -> list[bytes]:
        told = self._quirks.broken(talk) if self._quirks.broken is not None else [data(self.error(500, "Failed.").body)]
        return [event for event in told if b'"delta"' not in event]  # chats have these

    def error(self, status: int, message: str, param: str = "") -> Error:
        return self._quirks.error(status, message, param)


def apis() -> dict[str, dict[str, Api]]:
    """The APIs of these servers by name and path."""
    found: dict[str, dict[str, Api]] = {name: {quirks.path: KindChat(quirks)} for name, quirks in IMITATED.items()}
    found["azure"]["/openai/v1/responses"] = Responses()
    for name, quirks in IMITATED.items():
        if quirks.completes:
            found[name][f"{quirks.root}/v1/completions"] = KindCompletions(quirks)
    return found


def embeds(name: str, path: str) -> bool:
    """Whether this is where such a server embeds texts."""
    quirks = IMITATED.get(name)
    return quirks is not None and quirks.embeds and path == f"{quirks.root}/v1/embeddings"
