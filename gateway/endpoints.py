"""The path table of inference: which path is which endpoint, how its body is parsed, answered and bounded in cost.

`find` is the table. A path under `/openai` means the same as without; Gemini's paths name the model and what is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from budgets.bound import input_bound
from gateway import strict
from gateway.dialects import anthropic, gemini, ollama, openai, responses
from gateway.dialects.base import Dialect
from gateway.exchange import Exchange
from providers.canonical import Call
from providers.config import CardDoc


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One inference endpoint.

    `bound` is the most tokens the input of a call can be, by the call and the card of the model that is to answer it:
    nothing that costs anything can be registered without. `generates` says whether there is an output, which is then
    bounded by the limit enforced upstream times `Call.n` (embeddings have none). `bounded` takes out of a call what no
    bound can cover; it is used where a pool has a limit.
    """

    name: str
    path: str
    parse: Callable[[bytes, Exchange | None], Call]
    bound: Callable[[Call, CardDoc], int]
    dialect: Dialect = openai.DIALECT
    generates: bool = True
    bounded: Callable[[Call], Call] | None = None


def text_bound(call: Call, card: CardDoc) -> int:
    """The bound of a JSON body: its text by its bytes, or its token numbers by their count, and media by the table."""
    return input_bound(
        body_bytes=call.size,
        media_bytes=call.media_bytes,
        messages=call.messages,
        prompt_tokens=call.prompt_tokens,
        images=call.images,
        audios=call.audios,
        files=call.files + call.others,
        min_bytes_per_token=card.min_bytes_per_token,
    )


def parse_chat(body: bytes, exchange: Exchange | None = None) -> Call:
    """A chat-completions body, or one of the Responses API, which some clients send to the same path."""
    doc, body = strict.load(body)
    if doc.get("tool_choice") == "any":  # Mistral's word, in its SDK; the adapters know who wants which
        doc["tool_choice"] = "required"
        body = msgspec.json.encode(doc)
    if "messages" not in doc and responses.looks_like_responses(doc):
        return responses.chat_from_responses(doc)
    return openai.chat_call(doc, body)


INFERENCE: Mapping[str, Endpoint] = MappingProxyType(
    {
        endpoint.path: endpoint
        for endpoint in (
            Endpoint("chat", "/v1/chat/completions", parse_chat, text_bound),
            Endpoint("completions", "/v1/completions", openai.parse_completions, text_bound),
            Endpoint("embeddings", "/v1/embeddings", openai.parse_embeddings, text_bound, generates=False),
            Endpoint(
                *("responses", "/v1/responses", responses.parse_responses, text_bound, responses.RESPONSES),
                bounded=responses.without_hosted_tools,
            ),
            Endpoint("messages", "/v1/messages", anthropic.parse_messages, text_bound, anthropic.ANTHROPIC),
            Endpoint("ollama_chat", "/api/chat", ollama.parse_chat, text_bound, ollama.CHAT),
            Endpoint("ollama_generate", "/api/generate", ollama.parse_generate, text_bound, ollama.GENERATE),
            Endpoint("ollama_embed", "/api/embed", ollama.parse_embed, text_bound, ollama.EMBED, generates=False),
            Endpoint(
                *("ollama_embeddings", "/api/embeddings", ollama.parse_embeddings, text_bound, ollama.EMBEDDINGS),
                generates=False,
            ),
        )
    }
)

_ARRAY = "streamGenerateContent as an array"  # what that action means unless `alt=sse` is asked for
_GEMINI: Mapping[str, Endpoint] = MappingProxyType(
    {
        endpoint.path: endpoint
        for endpoint in (
            Endpoint("generate", gemini.GENERATE, gemini.parse_generate, text_bound, gemini.GEMINI_SSE),
            Endpoint("generate", gemini.STREAM, gemini.parse_generate, text_bound, gemini.GEMINI_SSE),
            Endpoint("generate", _ARRAY, gemini.parse_generate, text_bound, gemini.GEMINI_ARRAY),
            Endpoint("embed", gemini.EMBED, gemini.parse_embed, text_bound, gemini.GEMINI_SSE, generates=False),
            Endpoint("embed", gemini.EMBED_BATCH, gemini.parse_embed, text_bound, gemini.GEMINI_SSE, generates=False),
        )
    }
)


def find(path: str, query: bytes) -> Endpoint | None:
    """The inference endpoint at a path, in every spelling that clients use."""
    endpoint = INFERENCE.get(path)
    if endpoint is None and ":" in path and (found := gemini.route(path)) is not None:
        action = found[1]
        endpoint = _GEMINI.get(_ARRAY if action == gemini.STREAM and not gemini.is_sse(query) else action)
    return endpoint
