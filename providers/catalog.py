"""The catalogue of provider kinds: one row each. Pure data; a new OpenAI-compatible kind is a row, not a file.

Default addresses and quirks: the providers' public documentation. Base URLs are stored without `/v1`; `paths` say what
is appended for each endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

OPENAI_PATHS: Mapping[str, str] = MappingProxyType(
    {
        "chat": "/v1/chat/completions",
        "completions": "/v1/completions",
        "embeddings": "/v1/embeddings",
        "models": "/v1/models",
    }
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What is declared of one provider kind.

    `limit_field` is the body field for the output limit on chat ("max_completion_tokens" or "max_tokens"); a request
    that uses the other name is renamed, because a server that ignores the field would answer without a limit.
    `auth` is "bearer" or "none" ("bearer" sends nothing while no credential exists). `stream_usage` says whether
    `stream_options.include_usage` may be sent. `env` names the variable looked at on first start.
    """

    name: str
    label: str
    base_url: str
    adapter: str = "openai_compatible"
    auth: str = "bearer"
    paths: Mapping[str, str] = field(default_factory=lambda: OPENAI_PATHS)
    limit_field: str = "max_tokens"
    stream_usage: bool = True
    reasoning_excluded: bool = False  # completion_tokens do not include reasoning tokens (xAI)
    env: str = ""
    local: bool = False  # only a hint for defaults; "local" for policy is the address class


def _without_v1(chat: str, *, completions: str = "", embeddings: str = "", models: str = "") -> Mapping[str, str]:
    paths = {"chat": chat, "completions": completions, "embeddings": embeddings, "models": models}
    return MappingProxyType({name: path for name, path in paths.items() if path})


CATALOG: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind(
                "openai", "OpenAI", "https://api.openai.com", limit_field="max_completion_tokens", env="OPENAI_API_KEY"
            ),
            Kind("ollama", "Ollama", "http://127.0.0.1:11434", local=True),
            Kind("llamacpp", "llama.cpp server", "http://127.0.0.1:8080", local=True),
            Kind("lmstudio", "LM Studio", "http://127.0.0.1:1234", local=True),
            Kind("localai", "LocalAI", "http://127.0.0.1:8080", local=True),
            Kind("vllm", "vLLM", "http://127.0.0.1:8000", local=True),
            Kind("tensorrt", "TensorRT-LLM", "http://127.0.0.1:8000", local=True),
            Kind(
                "onnx",
                "ONNX (KServe's OpenAI path)",
                "http://127.0.0.1:8000",
                paths=_without_v1(
                    "/openai/v1/chat/completions",
                    completions="/openai/v1/completions",
                    embeddings="/openai/v1/embeddings",
                    models="/openai/v1/models",
                ),
                local=True,
            ),
            Kind("synapse", "Synapse", "http://127.0.0.1:7860", local=True),
            Kind("deepseek", "DeepSeek", "https://api.deepseek.com", env="DEEPSEEK_API_KEY"),
            Kind("mistral", "Mistral", "https://api.mistral.ai", stream_usage=False, env="MISTRAL_API_KEY"),
            Kind(
                "groq",
                "Groq",
                "https://api.groq.com/openai",
                limit_field="max_completion_tokens",
                env="GROQ_API_KEY",
            ),
            Kind(
                "grok",
                "xAI Grok",
                "https://api.x.ai",
                limit_field="max_completion_tokens",
                reasoning_excluded=True,
                env="XAI_API_KEY",
            ),
            Kind("openrouter", "OpenRouter", "https://openrouter.ai/api", env="OPENROUTER_API_KEY"),
            Kind("custom", "Custom (OpenAI-compatible)", ""),
            Kind("demo", "Demo (built in, no network)", "demo://local", adapter="demo", auth="none", local=True),
        )
    }
)

KIND_CHOICES: tuple[tuple[str, str], ...] = tuple((kind.name, kind.label) for kind in CATALOG.values())
_OWN_ADDRESSES = frozenset({"loopback", "private", "unix"})


def is_local(kind: str, address_class: str) -> bool:
    """Whether answers cost nothing unless a price row says otherwise: a local kind of server at an address of one's
    own. A local kind at a public address is somebody's service, a cloud's kind at a private one a proxy to it."""
    row = CATALOG.get(kind)
    return row is not None and row.local and address_class in _OWN_ADDRESSES
