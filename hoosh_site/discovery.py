"""First start: find model servers on this host and provider keys in the environment, and make rows for them.

Looks only at 127.0.0.1, at the usual ports, for half a second in all; sends nothing but GET requests without keys.
Runs when there is no provider at all and no HOOSH_CONFIG, so it never touches what an operator has set up.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction

from gateway.probes import model_names
from hoosh_site import env
from providers import services
from providers.catalog import CATALOG, Kind
from providers.models import Provider, Route

ACTOR = "first-run"
TOTAL_S = 0.5
MAX_ROUTED_MODELS = 100  # of one local server
_MAX_REPLY_BYTES = 2 * 1024 * 1024
_CATCH_ALL_PRIORITY = 100
_DEMO_PRIORITY = 1000

# Which requested names go to a provider whose key was found. Later ones have a lower rank where patterns overlap.
REMOTE_PATTERNS: Mapping[str, tuple[str, ...]] = {
    "openai": ("gpt-*", "o1*", "o3*", "o4*", "chatgpt-*", "text-embedding-*"),
    "anthropic": ("claude-*",),
    "google": ("gemini-*", "models/gemini-*", "gemma-*"),
    "deepseek": ("deepseek-*",),
    "mistral": (
        "mistral-*",
        "ministral-*",
        "magistral-*",
        "codestral-*",
        "devstral-*",
        "pixtral-*",
        "open-mistral-*",
        "open-mixtral-*",
    ),
    "groq": ("llama-*", "gemma2-*", "qwen/*", "openai/gpt-oss-*"),
    "grok": ("grok-*",),
    "openrouter": ("*/*",),
}
_PRIORITIES = {"openrouter": 20}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said to one GET."""

    status: int
    server: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Backend:
    """A model server that was found."""

    kind: str
    base_url: str
    models: tuple[str, ...]


def discover(*, ports: Mapping[str, int] | None = None, timeout_s: float = TOTAL_S) -> list[str]:
    """Make providers, credentials and routes for what is found; returns one sentence for each thing made.

    An empty list when providers exist already or HOOSH_CONFIG is set. `ports` moves the usual ports (for tests):
    "ollama", "lmstudio", "llamacpp" (LocalAI is told apart by its answer) and "vllm".
    """
    if settings.HOOSH_CONFIG or Provider.objects.exists():
        return []
    backends = asyncio.run(find_backends(ports or {}, timeout_s=timeout_s))
    with transaction.atomic():  # one transaction, so all of it is one published version
        made = [sentence for kind in CATALOG.values() if kind.env for sentence in _remote(kind)]
        made += [sentence for first, backend in _numbered(backends) for sentence in _local(backend, catch_all=first)]
        made.append(_demo())
    return made


def _numbered(backends: list[Backend]) -> list[tuple[bool, Backend]]:
    return [(number == 0, backend) for number, backend in enumerate(backends)]


async def find_backends(ports: Mapping[str, int], *, timeout_s: float = TOTAL_S) -> list[Backend]:
    """The model servers on this host, in a fixed order; whoever does not answer in time is not there."""
    # Only http to this host: loading certificates would cost a tenth of the time there is.
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=timeout_s) as client:  # noqa: S501
        looks = []
        for name, default, path, tell in _PLACES:
            port = ports.get(name, default)
            if port != settings.HOOSH_PORT:  # that is this gateway
                looks.append(_look(client, name, f"http://127.0.0.1:{port}", path, tell, timeout_s))
        found = await asyncio.gather(*looks)
    return [backend for backend in found if backend is not None]


async def _look(
    client: httpx.AsyncClient,
    name: str,
    base_url: str,
    path: str,
    tell: Callable[[Answer, Answer | None], str],
    timeout_s: float,
) -> Backend | None:
    try:
        async with asyncio.timeout(timeout_s):
            listed = await _get(client, base_url + path)
            models = model_names(listed.body) if listed is not None and listed.status == 200 else None
            if listed is None or models is None:
                return None
            # Only the server at the port that two kinds share is asked a second time.
            version = await _get(client, f"{base_url}/version") if name == "llamacpp" else None
    except (TimeoutError, httpx.HTTPError, OSError):
        return None
    kind = tell(listed, version)
    return Backend(kind, base_url, models) if kind else None


async def _get(client: httpx.AsyncClient, url: str) -> Answer | None:
    async with client.stream("GET", url) as reply:
        body = b""
        async for piece in reply.aiter_bytes():
            body += piece
            if len(body) > _MAX_REPLY_BYTES:
                return None
        return Answer(reply.status_code, reply.headers.get("server", ""), body)


def _ollama(listed: Answer, version: Answer | None) -> str:
    return "ollama" if b'"models"' in listed.body else ""


def _lmstudio(listed: Answer, version: Answer | None) -> str:
    return "lmstudio"


def _on_8080(listed: Answer, version: Answer | None) -> str:
    if b"llamacpp" in listed.body or "llama.cpp" in listed.server.lower():
        return "llamacpp"
    if version is not None and version.status == 200 and b'"version"' in version.body:
        return "localai"
    return "custom"


def _on_8000(listed: Answer, version: Answer | None) -> str:
    owned_by = re.search(rb'"owned_by"\s*:\s*"([^"]{1,40})"', listed.body)
    owner = owned_by[1] if owned_by else b""
    return {b"vllm": "vllm", b"tensorrt_llm": "tensorrt"}.get(owner, "custom")


_PLACES: tuple[tuple[str, int, str, Callable[[Answer, Answer | None], str]], ...] = (
    ("ollama", 11434, "/api/tags", _ollama),
    ("lmstudio", 1234, "/v1/models", _lmstudio),
    ("llamacpp", 8080, "/v1/models", _on_8080),
    ("vllm", 8000, "/v1/models", _on_8000),
)


def _remote(kind: Kind) -> list[str]:
    """Provider, credential and routes for a kind whose key is in the environment."""
    secret = env.text(kind.env)
    if not secret:
        return []
    patterns = REMOTE_PATTERNS.get(kind.name, ())
    try:
        with transaction.atomic():
            provider = services.save_provider(Provider(name=kind.name, kind=kind.name), actor=ACTOR)
            services.set_credential(provider, "default", secret, actor=ACTOR)
            for pattern in patterns:
                _route(provider, pattern, priority=_PRIORITIES.get(kind.name, 10))
    except ValidationError as exc:
        return [f"{kind.env} is set, but {kind.label} could not be set up: {' '.join(exc.messages)}"]
    return [f"{kind.label}: key taken from {kind.env}; routes for {', '.join(patterns)}."]


def _local(backend: Backend, *, catch_all: bool) -> list[str]:
    """Provider and routes for a local server: one per model, and everything else to the first server."""
    kind = CATALOG[backend.kind]
    port = backend.base_url.rpartition(":")[2]
    name = kind.name if kind.name != "custom" else f"local-{port}"
    routed = 0
    try:
        with transaction.atomic():
            row = Provider(name=name, kind=kind.name, base_url=backend.base_url)
            provider = services.save_provider(row, actor=ACTOR)
            for model in backend.models[:MAX_ROUTED_MODELS]:
                routed += _route(provider, model, priority=10)
            if catch_all:
                _route(provider, "*", priority=_CATCH_ALL_PRIORITY)
    except ValidationError as exc:
        return [f"{kind.label} answers at {backend.base_url}, but could not be set up: {' '.join(exc.messages)}"]
    rest = "; every other model goes there too" if catch_all else ""
    return [f"{kind.label} found at {backend.base_url}: {routed} of {len(backend.models)} models routed{rest}."]


def _demo() -> str:
    provider = services.save_provider(Provider(name="demo", kind="demo"), actor=ACTOR)
    _route(provider, "demo", priority=_DEMO_PRIORITY)
    return "The model “demo” is built in and needs no network: use it to try the gateway."


def _route(provider: Provider, pattern: str, *, priority: int) -> bool:
    """Make one route; False for a model whose name cannot be a pattern (it is left out)."""
    readable = re.sub(r"[^A-Za-z0-9._:/+-]+", "-", pattern.replace("*", "any")).strip("-") or "model"
    wanted = f"{provider.name}-{readable}"[:60]
    name, number = wanted, 1
    while Route.objects.filter(name=name).exists():
        number += 1
        name = f"{wanted}-{number}"[:64]
    try:
        services.save_route(Route(name=name, pattern=pattern, provider=provider, priority=priority), actor=ACTOR)
    except ValidationError:
        return False
    return True
