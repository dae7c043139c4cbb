"""Paths that nobody serves here, told in the API they belong to, with what of it is served.

Which API that is says the path or, below `/v1`, where several meet, a header that only the clients of one send. What is
control's is not looked at: it knows its own paths, and answers in the shape of the OpenAI API.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gateway.counting import COUNTERS
from gateway.dialects import anthropic, gemini, ollama, openai
from gateway.dialects.base import Dialect
from gateway.endpoints import INFERENCE
from gateway.errors import NotFoundError
from gateway.exchange import Headers

# Below these control answers; a test holds them against its own table.
_CONTROL = (
    *("/v1/admin/", "/v1/cache/", "/v1/catalog/", "/v1/cost/", "/v1/costs", "/v1/events", "/v1/health/", "/v1/models/"),
    *("/v1/audit", "/v1/queue/", "/v1/requests/", "/v1/tokens/", "/v1/training/", "/api/schema/", "/api/v1/"),
)
_GEMINI = ("/v1beta/", "/v1alpha/", "/upload/", "/download/", "/models", "/tunedModels")
_OPENAI_AT_GOOGLE = ("/v1beta/openai/", "/v1alpha/openai/")
_SHOWN = 200  # characters of a path


def dialect_of(path: str, headers: Headers) -> Dialect | None:
    """The API that a path belongs to which nothing here serves; None for control's."""
    if path.startswith(_CONTROL) or path in ("/api/schema", "/api/v1"):
        return None
    if path.startswith("/api/"):
        return ollama.CHAT
    if path.startswith(_OPENAI_AT_GOOGLE):
        return openai.DIALECT
    if path.startswith(_GEMINI):
        return gemini.GEMINI_SSE
    if not path.startswith("/v1/"):
        return None
    names = {name for name, _ in headers}
    if b"anthropic-version" in names or path == "/v1/complete" or path.startswith("/v1/messages/"):
        return anthropic.ANTHROPIC
    return gemini.GEMINI_SSE if b"x-goog-api-key" in names else openai.DIALECT


def error(path: str, dialect: Dialect) -> NotFoundError:
    """The 404 of such a path, which is told as the caller wrote it."""
    return NotFoundError(f"There is nothing at '{path[:_SHOWN]}'. {_SERVED[dialect.name]}")


def _paths(*names: str) -> list[str]:
    """The paths of inference and of counting in these APIs."""
    endpoints = (*INFERENCE.values(), *(counter.endpoint for counter in COUNTERS.values()))
    return [endpoint.path for endpoint in endpoints if endpoint.dialect.name in names]


def _sentence(api: str, served: list[str]) -> str:
    return f"Of {api} the gateway serves {', '.join(served[:-1])} and {served[-1]}."


_SERVED: Mapping[str, str] = MappingProxyType(
    {
        "openai": _sentence("the OpenAI API", [*_paths("openai", "responses"), "/v1/models"]),
        "anthropic": _sentence("Anthropic's API", [*_paths("anthropic"), "/v1/models"]),
        "gemini": _sentence(
            "the Gemini API",
            ["/v1beta/models", *(f"/v1beta/models/MODEL:{action}" for action in sorted(gemini.ACTIONS))],
        ),
        "ollama": _sentence("Ollama's API", [*_paths("ollama"), "/api/tags", "/api/show", "/api/ps", "/api/version"]),
    }
)
