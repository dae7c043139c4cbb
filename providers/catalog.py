"""The catalogue of provider kinds: one row each. Pure data; a new OpenAI-compatible kind is a row, not a file.

Default addresses and quirks: the providers' public documentation. Base URLs are stored without `/v1`; `paths` say what
is appended for each operation. Installed packages add rows through entry points of the group `hoosh.kinds`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from types import MappingProxyType

log = logging.getLogger("hoosh.catalog")

ENTRY_POINTS = "hoosh.kinds"

OPENAI_PATHS: Mapping[str, str] = MappingProxyType(
    {
        "chat": "/v1/chat/completions",
        "completions": "/v1/completions",
        "embeddings": "/v1/embeddings",
        "models": "/v1/models",
    }
)
# Without the legacy completions, which are then answered by chats.
_NO_COMPLETIONS: Mapping[str, str] = MappingProxyType(
    {name: path for name, path in OPENAI_PATHS.items() if name != "completions"}
)
_NO_EMBEDDINGS: Mapping[str, str] = MappingProxyType(
    {name: path for name, path in OPENAI_PATHS.items() if name != "embeddings"}
)
_CHATS_ALONE: Mapping[str, str] = MappingProxyType(
    {name: path for name, path in _NO_COMPLETIONS.items() if name != "embeddings"}
)
NOTHING: Mapping[str, str] = MappingProxyType({})
# The rules of `Kind.params`. A value that says no more than its absence is left out under each of them.
DROP, REFUSE, PASS = "drop", "refuse", "pass"
# Fields of the gateway's own, or ones that every adapter writes itself.
WRITTEN = frozenset({"model", "stream", "stream_options", "pool", "max_tokens", "max_completion_tokens"})
ENDPOINTS = ("chat", "completions", "embeddings")


@dataclass(frozen=True, slots=True)
class Kind:
    """What is declared of one provider kind.

    `adapters` names the adapter of single endpoints or dialects instead of `adapter`: "embeddings" for calls of that
    endpoint, "responses" for callers that speak the Responses API, … `paths` are by operation and may hold `{model}`;
    `serves` are the endpoints that can be answered (by default those of chat, completions and embeddings that have a
    path). `limit_field` is the body field for the output limit on chat ("max_completion_tokens" or "max_tokens"); a
    request that uses the other name is renamed, because a server that ignores the field would answer without a limit.
    `auth` is "bearer", "none" or the name of the header that carries the credential (nothing is sent while there is
    none). `stream_usage` says whether `stream_options` may be sent. `params` has the rule of each parameter the
    provider is known not to honour (`providers.adapters.params`), `only` the fields of a chat that it takes, where it
    refuses all others (empty: it takes any): those without a rule are dropped. `renamed` has the provider's own names
    of fields, and `tool_choices` its words for those of `tool_choice`, `call_ids` the regular expression that the
    ids of tool calls must match ("" = any). `responses_only` are globs of models that answer
    only on the Responses API. `list_headers` are sent when models are listed. `env` names the variable looked at on
    first start.
    """

    name: str
    label: str
    base_url: str
    adapter: str = "openai_compatible"
    auth: str = "bearer"
    paths: Mapping[str, str] = field(default_factory=lambda: OPENAI_PATHS)
    limit_field: str = "max_tokens"
    stream_usage: bool = True
    plain: bool = False  # fields that the OpenAI API does not have are taken out of messages that were translated
    reasoning_excluded: bool = False  # completion_tokens do not include reasoning tokens (xAI)
    adapters: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    serves: tuple[str, ...] = ()
    params: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    only: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    tool_choices: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    call_ids: str = ""
    responses_only: tuple[str, ...] = ()
    list_headers: tuple[tuple[str, str], ...] = ()
    env: str = ""
    local: bool = False  # only a hint for defaults; "local" for policy is the address class
    quirks: frozenset[str] = field(init=False)  # fields of a request that cannot be sent on as they are
    known: frozenset[str] = field(init=False)  # where it takes no others: those, and the ones that become them

    def __post_init__(self) -> None:
        choices = {"tool_choice"} if self.tool_choices else set()
        object.__setattr__(self, "quirks", frozenset({*self.params, *self.renamed, *choices}))
        object.__setattr__(self, "known", self.only | self.quirks | WRITTEN)
        if not self.serves:
            object.__setattr__(self, "serves", tuple(name for name in ENDPOINTS if name in self.paths))

    def credential_header(self, secret: str) -> tuple[str, str] | None:
        """The header that carries a credential, if this kind has one and there is a credential."""
        if not secret or self.auth == "none":
            return None
        return ("Authorization", f"Bearer {secret}") if self.auth == "bearer" else (self.auth, secret)


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


_OPENAI_ONLY_RESPONSES = (
    "o1-pro*",
    "o3-pro*",
    "gpt-5-pro*",
    "*-codex*",
    "codex-mini*",
    "o3-deep-research*",
    "o4-mini-deep-*",
)
_SAMPLING = MappingProxyType(dict.fromkeys(("top_k", "min_p", "repetition_penalty"), DROP))  # OpenAI has none of them
_RESPONSES: Mapping[str, str] = MappingProxyType({"responses": "responses"})
# What changes the answer where a provider has no such thing.
_OTHER_ANSWERS = MappingProxyType(
    {
        **dict.fromkeys(("audio", "modalities", "web_search_options", "moderation", "best_of"), REFUSE),
        **dict.fromkeys(("structured_outputs", "grammar", "json_schema", "format"), REFUSE),
        **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), REFUSE),
    }
)
# The parameters of chats in the types of mistralai 3.7 and groq 1.7, the vendors' own clients. Both services refuse
# others ("Extra inputs are not permitted", "property … is unsupported").
_OF_MISTRAL = _names(
    """messages temperature top_p stop random_seed metadata response_format tools tool_choice presence_penalty
    frequency_penalty min_tokens repetition_penalty top_k logprobs top_logprobs prompt_logprobs top_prompt_logprobs n
    prediction parallel_tool_calls reasoning_effort prompt_mode guardrails prompt_cache_key safe_prompt"""
)
_OF_GROQ = _names(
    """messages citation_options compound_custom disable_tool_validation documents exclude_domains frequency_penalty
    function_call functions include_domains include_reasoning parallel_tool_calls presence_penalty reasoning_effort
    reasoning_format response_format search_settings seed stop temperature tool_choice tools top_p user"""
)

_ROWS = (
    Kind(
        "openai",
        "OpenAI",
        "https://api.openai.com",
        paths=MappingProxyType({**OPENAI_PATHS, "responses": "/v1/responses", "count": "/v1/responses/input_tokens"}),
        adapters=_RESPONSES,
        plain=True,
        responses_only=_OPENAI_ONLY_RESPONSES,
        params=_SAMPLING,
        limit_field="max_completion_tokens",
        env="OPENAI_API_KEY",
    ),
    Kind(
        "azure",
        "Azure OpenAI",
        "",
        auth="api-key",
        paths=MappingProxyType(
            {name: f"/openai{path}" for name, path in {**OPENAI_PATHS, "responses": "/v1/responses"}.items()}
        ),
        adapters=_RESPONSES,
        plain=True,
        responses_only=_OPENAI_ONLY_RESPONSES,
        params=_SAMPLING,
        limit_field="max_completion_tokens",
    ),
    Kind(
        "anthropic",
        "Anthropic",
        "https://api.anthropic.com",
        adapter="anthropic",
        auth="x-api-key",
        paths=MappingProxyType(
            {"messages": "/v1/messages", "count": "/v1/messages/count_tokens", "models": "/v1/models?limit=1000"}
        ),
        serves=("chat",),
        list_headers=(("anthropic-version", "2023-06-01"),),
        env="ANTHROPIC_API_KEY",
    ),
    Kind(
        "google",
        "Google Gemini",
        "https://generativelanguage.googleapis.com",
        adapter="google",
        auth="x-goog-api-key",
        paths=MappingProxyType(
            {
                "generate": "/v1beta/models/{model}:generateContent",
                "generate_stream": "/v1beta/models/{model}:streamGenerateContent?alt=sse",
                "embeddings": "/v1beta/models/{model}:batchEmbedContents",
                "count": "/v1beta/models/{model}:countTokens",
                "models": "/v1beta/models?pageSize=1000",
            }
        ),
        serves=("chat", "embeddings"),
        env="GEMINI_API_KEY",
    ),
    Kind(
        "ollama",
        "Ollama",
        "http://127.0.0.1:11434",
        adapter="ollama",
        paths=MappingProxyType(
            {
                "chat": "/api/chat",
                "generate_text": "/api/generate",
                "embeddings": "/api/embed",
                "completions": "/v1/completions",
                "models": "/v1/models",
            }
        ),
        adapters=MappingProxyType({"completions": "openai_compatible"}),
        local=True,
    ),
    Kind(
        "ollama-v1",
        "Ollama (its OpenAI path)",
        "http://127.0.0.1:11434",
        params=MappingProxyType(
            {"n": REFUSE, "logit_bias": REFUSE, "tool_choice": REFUSE, "user": DROP, "parallel_tool_calls": DROP}
        ),
        local=True,
    ),
    Kind("llamacpp", "llama.cpp server", "http://127.0.0.1:8080", local=True),
    Kind("lmstudio", "LM Studio", "http://127.0.0.1:1234", local=True),
    Kind("localai", "LocalAI", "http://127.0.0.1:8080", local=True),
    Kind("vllm", "vLLM", "http://127.0.0.1:8000", local=True),
    Kind("tensorrt", "TensorRT-LLM", "http://127.0.0.1:8000", local=True),
    Kind(
        "onnx",
        "ONNX (KServe's OpenAI path)",
        "http://127.0.0.1:8000",
        paths=MappingProxyType({name: f"/openai{path}" for name, path in OPENAI_PATHS.items()}),
        local=True,
    ),
    Kind("synapse", "Synapse", "http://127.0.0.1:7860", local=True),
    Kind("deepseek", "DeepSeek", "https://api.deepseek.com", paths=_CHATS_ALONE, env="DEEPSEEK_API_KEY"),
    Kind(
        "mistral",
        "Mistral",
        "https://api.mistral.ai",
        paths=_NO_COMPLETIONS,
        plain=True,
        stream_usage=False,
        renamed=MappingProxyType({"seed": "random_seed", "dimensions": "output_dimension"}),
        tool_choices=MappingProxyType({"required": "any"}),
        call_ids="[a-zA-Z0-9]{9}",
        only=_OF_MISTRAL,
        params=MappingProxyType(
            {**_OTHER_ANSWERS, **dict.fromkeys(("logit_bias", "functions", "function_call"), REFUSE), "user": DROP}
        ),
        env="MISTRAL_API_KEY",
    ),
    Kind(
        "groq",
        "Groq",
        "https://api.groq.com/openai",
        paths=_CHATS_ALONE,
        plain=True,
        limit_field="max_completion_tokens",
        only=_OF_GROQ,
        params=MappingProxyType(
            {
                **_OTHER_ANSWERS,
                **dict.fromkeys(("n", "logprobs", "top_logprobs", "logit_bias"), REFUSE),
                "service_tier": PASS,  # its own words: it has no "default"
            }
        ),
        env="GROQ_API_KEY",
    ),
    Kind(
        "grok",
        "xAI Grok",
        "https://api.x.ai",
        paths=_NO_EMBEDDINGS,
        limit_field="max_completion_tokens",
        reasoning_excluded=True,
        env="XAI_API_KEY",
    ),
    Kind("openrouter", "OpenRouter", "https://openrouter.ai/api", env="OPENROUTER_API_KEY"),
    Kind("custom", "Custom (OpenAI-compatible)", ""),
    Kind("demo", "Demo (built in, no network)", "demo://local", adapter="demo", auth="none", local=True),
)


def _installed() -> Iterable[Kind]:
    """The rows of installed packages. One that cannot be loaded is logged and left out: the gateway must start."""
    for point in metadata.entry_points(group=ENTRY_POINTS):
        try:
            row = point.load()
        except Exception:
            log.exception("a provider kind of an installed package could not be loaded: %s", point.value)
            continue
        if isinstance(row, Kind):
            yield row
        else:
            log.error("%s is not a Kind; it is left out", point.value)


CATALOG: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in (*_installed(), *_ROWS)})

KIND_CHOICES: tuple[tuple[str, str], ...] = tuple((kind.name, kind.label) for kind in CATALOG.values())
_OWN_ADDRESSES = frozenset({"loopback", "private", "unix"})


def is_local(kind: str, address_class: str) -> bool:
    """Whether answers cost nothing unless a price row says otherwise: a local kind of server at an address of one's
    own. A local kind at a public address is somebody's service, a cloud's kind at a private one a proxy to it."""
    row = CATALOG.get(kind)
    return row is not None and row.local and address_class in _OWN_ADDRESSES
