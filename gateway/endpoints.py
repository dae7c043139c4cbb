"""The path table of inference: which path is which endpoint, how its body is parsed and how its cost is bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gateway.dialects import openai
from providers.canonical import Call


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One inference endpoint. `generates` says whether it has an output limit (embeddings have none)."""

    name: str
    path: str
    parse: Callable[[bytes], Call]
    generates: bool = True


INFERENCE: Mapping[str, Endpoint] = MappingProxyType(
    {
        endpoint.path: endpoint
        for endpoint in (
            Endpoint("chat", "/v1/chat/completions", openai.parse_chat),
            Endpoint("completions", "/v1/completions", openai.parse_completions),
            Endpoint("embeddings", "/v1/embeddings", openai.parse_embeddings, generates=False),
        )
    }
)
