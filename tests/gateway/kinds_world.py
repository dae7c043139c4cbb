"""A worker in front of one provider of every kind of the catalogue, what is right for each, and a client that takes
whatever servers of the OpenAI API tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgets.records import Basis
from providers.config import RouteDoc, SettingsDoc
from tests.compatibility import KINDS
from tests.gateway.harness import held
from tests.gateway.matrix_clients import OpenAIChat, Reply, events, merge
from tests.gateway.matrix_world import Got, World
from tests.provider_fakes import ProviderFakes
from tests.provider_fakes_base import CACHED, INPUT, OUTPUT, REASONING, THOUGHT, Json
from tests.provider_fakes_kinds import IMITATED

THINKING = "".join(THOUGHT)


@dataclass(frozen=True)
class Wanted:
    """What is right for one provider: where and with which header it is asked, and what it tells.

    `thinking` is the reasoning seen over the Responses API, `reasoning` how many tokens of it are told, `excluded`
    whether the provider leaves them out of the output tokens. `forced`: it can be made to call a tool.
    """

    path: str = "/v1/chat/completions"
    header: str = "authorization"
    cached: int = CACHED
    thinking: str = THINKING
    reasoning: int = REASONING
    excluded: bool = False
    forced: bool = True
    embeddings: str = "/v1/embeddings"
    completions: str = ""  # where it is asked for legacy completions; "" = by a chat


def _imitated(name: str) -> Wanted:
    quirks = IMITATED[name]
    return Wanted(
        path=quirks.path,
        header="api-key" if name == "azure" else "authorization",
        cached=CACHED if quirks.cached else 0,
        thinking=THINKING if quirks.reasoning or name == "azure" else "",
        reasoning=REASONING if quirks.reasons else 0,
        excluded=quirks.excluded,
        forced=bool(quirks.forced),
        embeddings=f"{quirks.root}/v1/embeddings" if quirks.embeds else "",
        completions=f"{quirks.root}/v1/completions" if quirks.completes else "",
    )


_GEMINI = "/v1beta/models/google-up:"
WANTED = {
    "openai": Wanted(completions="/v1/completions"),
    "anthropic": Wanted("/v1/messages", "x-api-key", embeddings=""),
    "google": Wanted(f"{_GEMINI}generateContent", "x-goog-api-key", embeddings=f"{_GEMINI}batchEmbedContents"),
    "ollama": Wanted(
        "/api/chat", cached=0, reasoning=0, forced=False, embeddings="/api/embed", completions="/v1/completions"
    ),
    "custom": Wanted(completions="/v1/completions"),
    **{name: _imitated(name) for name in IMITATED},
}
NETWORKED = [kind for kind in KINDS if kind in WANTED]  # all but the demo
EMBEDDING = [kind for kind in NETWORKED if WANTED[kind].embeddings]

# What a provider refuses, and matters: the request is refused before it is asked.
REFUSED: dict[str, Json] = {
    "ollama-v1": {"n": 2, "logit_bias": {"1": 1}},
    "mistral": {"logit_bias": {"1": 1}, "modalities": ["text", "audio"], "functions": [{"name": "f"}]},
    "groq": {"n": 2, "logprobs": True, "logit_bias": {"1": 1}, "modalities": ["text", "audio"]},
    **{kind: {"logit_bias": {"1": 1}} for kind in ("anthropic", "google", "ollama")},
}
# What it refuses or ignores, and changes nothing: it is left out, and the caller is told.
DROPPED: dict[str, Json] = {
    "ollama-v1": {"user": "u"},
    "mistral": {"user": "u", "min_p": 0.1, "safety_identifier": "s", "verbosity": "low", "store": True, "unheard": 1},
    "groq": {"top_k": 5, "verbosity": "low", "prompt_cache_key": "k", "store": True, "metadata": {"a": "b"}},
    **{kind: {"top_k": 5} for kind in ("openai", "azure")},
    **{kind: {"seed": 7} for kind in ("anthropic",)},
}
# What says no more than its absence does, and some refuse all the same.
NOTHING: Json = {
    **dict.fromkeys(("top_logprobs", "functions", "stream_options", "prediction", "top_k", "tools"), None),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), 0),
    **{"service_tier": "auto", "logprobs": False, "store": False, "logit_bias": {}, "n": 1, "modalities": ["text"]},
    **{"response_format": {"type": "text"}, "metadata": {}},
}


class AnyServer(OpenAIChat):
    """A client of chat completions that takes from servers what the SDKs take: usage on any chunk, chunks without
    choices, names that change."""

    def streamed(self, data: bytes) -> Reply:
        reply, message, calls = Reply(), dict[str, Any](role="assistant"), dict[int, Json]()
        for _, event in events(data):
            assert not reply.ended, "something follows the end"
            if event == "[DONE]":
                reply.ended = True
                continue
            told = json.loads(event)
            if "error" in told:
                reply.error = told
                continue
            reply.id, reply.model = told["id"] or reply.id, told["model"] or reply.model
            if told.get("usage"):
                assert reply.usage is None, "usage is told twice"
                reply.usage = usage_of(told["usage"])
            for choice in told["choices"]:
                reply.finish = choice["finish_reason"] or reply.finish
                merge(message, calls, in_words(choice["delta"]))
        if calls:
            message["tool_calls"] = [calls[index] for index in sorted(calls)]
        if reply.error is None:
            self._message(reply, message)
        else:
            reply.text = message.get("content", "")
        return reply

    def whole(self, data: bytes) -> Reply:
        told = json.loads(data)
        (choice,) = told["choices"]
        reply = Reply(ended=True, finish=choice["finish_reason"], model=told["model"], id=told["id"])
        self._message(reply, in_words(choice["message"]))
        reply.usage = usage_of(told["usage"])
        return reply


def in_words(message: Json) -> Json:
    """A message or delta whose content is text: Mistral's may be a list with reasoning in it."""
    if not isinstance(content := message.get("content"), list):
        return message
    return {**message, "content": "".join(part["text"] for part in content if part["type"] == "text")}


def usage_of(told: Json) -> tuple[int, int | None, int, int | None]:
    """The usage of a chat in whichever way a server tells it."""
    cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    reasoning = (told.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    return told["prompt_tokens"], cached, told["completion_tokens"], reasoning


def names_of(kind: str) -> list[str]:
    """The providers of a kind: more than one where it is found in several versions."""
    return [name for name in WANTED if name in (kind, f"{kind}-old")]


def _routes(numbers: dict[str, int]) -> list[RouteDoc]:
    told = enumerate(numbers.items(), 1)
    return [
        RouteDoc(id=at, name=f"r{at}", pattern=f"m-{name}", provider_id=number, upstream_model=f"{name}-up")
        for at, (name, number) in told
    ]


def kinds_world(directory: Path) -> Iterator[World]:
    """A world with every kind, for a fixture: the model `m-NAME` is that of the provider NAME."""
    with ProviderFakes() as fakes:
        roots = {name: quirks.root for name, quirks in IMITATED.items() if name not in ("azure", "onnx")}
        found = {name: (name.removesuffix("-old"), fakes.url(name) + roots.get(name, "")) for name in WANTED}
        found["demo"] = ("demo", "demo://local")
        settings = SettingsDoc(breaker_failures=10**6)
        with World(directory, fakes, settings, providers=found, routes=_routes) as world:
            yield world


def check_books(world: World, got: Got, wanted: Wanted, *, reasoning: int = 0) -> None:
    """The books have exactly what the provider said, and nothing is held any more."""
    booked = world.row(got)
    assert (booked.input_tokens, booked.cached_tokens) == (INPUT, wanted.cached)
    assert (booked.output_tokens, booked.reasoning_tokens) == (OUTPUT, reasoning)
    assert (booked.basis, booked.status) == (Basis.REPORTED, 200)
    assert held(world.server) == 0
