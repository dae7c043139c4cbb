"""The path table of inference: which path is which endpoint, how its body is parsed and how its cost is bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from budgets.bound import input_bound
from gateway.dialects import openai
from providers.canonical import Call
from providers.config import CardDoc


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One inference endpoint.

    `bound` is the most tokens the input of a call can be, by the call and the card of the model that is to answer it:
    nothing that costs anything can be registered without. `generates` says whether there is an output, which is then
    bounded by the limit enforced upstream times `Call.n` (embeddings have none).
    """

    name: str
    path: str
    parse: Callable[[bytes], Call]
    bound: Callable[[Call, CardDoc], int]
    generates: bool = True


def text_bound(call: Call, card: CardDoc) -> int:
    """The bound of a JSON body: its text by its bytes, or its token numbers by their count, and media by the table."""
    return input_bound(
        body_bytes=len(call.body),
        media_bytes=call.media_bytes,
        messages=call.messages,
        prompt_tokens=call.prompt_tokens,
        images=call.images,
        audios=call.audios,
        files=call.files + call.others,
        min_bytes_per_token=card.min_bytes_per_token,
    )


INFERENCE: Mapping[str, Endpoint] = MappingProxyType(
    {
        endpoint.path: endpoint
        for endpoint in (
            Endpoint("chat", "/v1/chat/completions", openai.parse_chat, text_bound),
            Endpoint("completions", "/v1/completions", openai.parse_completions, text_bound),
            Endpoint("embeddings", "/v1/embeddings", openai.parse_embeddings, text_bound, generates=False),
        )
    }
)
