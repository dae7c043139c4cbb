"""Every key and name of hoosh's configuration file, both generations, and why some have no effect here. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SECTIONS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        section: frozenset(keys.split())
        for section, keys in {
            "server": "bind port strategy health_check_interval_secs",
            "cache": "max_entries ttl_secs enabled",
            "providers": (
                "type base_url api_key priority models enabled max_tokens_limit rate_limit_rpm rate_limit "
                "tls_pinned_certs client_cert client_key"
            ),
            "budgets": "name capacity",
            "audit": "enabled signing_key max_entries",
            "auth": "tokens",
            "telemetry": "otlp_endpoint service_name",
            "context": "enabled compaction_threshold keep_last_messages",
            "retry": "max_retries base_delay_ms max_delay_ms jitter_factor",
            "hardware": "cache_ttl_secs disabled_backends vram_reserve_bytes refresh_interval_secs",
            "whisper": "model",
            "tts": "url",
            "storage": "path",
            "logging": "level",
            "dlp": "enabled default_level",
            "dlp_pattern": "name pattern level",
            "semantic_cache": "enabled threshold embedding_model max_search",
            "compression": "enabled",
            "warming": "model prompt",
        }.items()
    }
)

_ENVIRONMENT = "set it in the environment: {}."
_CACHE = "kept answers are bounded by memory; the gateway settings say how much."
_WARMING = "questions asked ahead belong to an API key: enter them in admin."
_CONTEXT = "each route says whether long conversations are shortened: set it on its page in admin."
_RETRY = "a failed call goes on to the next route; the gateway settings say how many calls a request may take."
_HARDWARE = "routes are not placed by hardware yet."
_CLIENT_CERTIFICATE = "enter the certificate and its key on the provider's page."
_AUDIT = "the signed log is always kept; HOOSH_SIGNING_KEY and HOOSH_AUDIT_MONTHS set its key and how long it is kept."
_SEMANTIC = "similar questions get kept answers where a route has a threshold: set it in admin, and what embeds them."

UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "server.bind": _ENVIRONMENT.format("HOOSH_BIND"),
        "server.port": _ENVIRONMENT.format("PORT"),
        "cache.max_entries": _CACHE,
        "providers.client_cert": _CLIENT_CERTIFICATE,
        "providers.client_key": _CLIENT_CERTIFICATE,
        "audit.enabled": _AUDIT,
        "audit.signing_key": _AUDIT,
        "audit.max_entries": _AUDIT,
        "telemetry.otlp_endpoint": "traces are not exported yet.",
        "telemetry.service_name": "traces are not exported yet.",
        "context.enabled": _CONTEXT,
        "context.compaction_threshold": _CONTEXT,
        "context.keep_last_messages": _CONTEXT,
        "retry.max_retries": _RETRY,
        "retry.base_delay_ms": _RETRY,
        "retry.max_delay_ms": _RETRY,
        "retry.jitter_factor": _RETRY,
        "hardware.cache_ttl_secs": _HARDWARE,
        "hardware.disabled_backends": _HARDWARE,
        "hardware.vram_reserve_bytes": _HARDWARE,
        "hardware.refresh_interval_secs": _HARDWARE,
        "whisper.model": "speech recognition is not available yet.",
        "tts.url": "speech synthesis is not available yet.",
        "storage.path": "data lives in the databases; the environment says where: HOOSH_DATA_DIR or DATABASE_URL.",
        "logging.level": _ENVIRONMENT.format("HOOSH_LOG_LEVEL"),
        "semantic_cache.enabled": _SEMANTIC,
        "semantic_cache.threshold": _SEMANTIC,
        "semantic_cache.embedding_model": _SEMANTIC,
        "semantic_cache.max_search": _SEMANTIC,
        "compression.enabled": "each route says whether prompts are compressed: set it on its page in admin.",
        "warming.model": _WARMING,
        "warming.prompt": _WARMING,
    }
)

# Names are compared in lower case, without blanks, dots, dashes and underscores.
KINDS: Mapping[str, str] = MappingProxyType(
    {
        "ollama": "ollama",
        "llamacpp": "llamacpp",
        "synapse": "synapse",
        "lmstudio": "lmstudio",
        "localai": "localai",
        "openai": "openai",
        "azure": "azure",
        "azureopenai": "azure",
        "anthropic": "anthropic",
        "deepseek": "deepseek",
        "mistral": "mistral",
        "google": "google",
        "gemini": "google",
        "groq": "groq",
        "grok": "grok",
        "xai": "grok",
        "openrouter": "openrouter",
        "whisper": "whisper",
        "vllm": "vllm",
        "tensorrt": "tensorrt",
        "tensorrtllm": "tensorrt",
        "trtllm": "tensorrt",
        "onnx": "onnx",
        "onnxruntime": "onnx",
        "custom": "custom",
        "demo": "demo",
    }
)

# Squeezed name -> (strategy here, why it is not quite what was asked for)
STRATEGIES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "priority": ("priority", ""),
        "roundrobin": ("round_robin", ""),
        "lowestlatency": ("lowest_latency", ""),
        "direct": ("priority", "hoosh treats it as priority, and so does this gateway; later routes remain fallbacks."),
    }
)
