"""`GET /v1/models` and `/v1/models/{id}`, and what stands for them in other APIs: what the calling key may use."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import model_cards, pipeline
from gateway.admission import credential, find_key
from gateway.dialects import anthropic, gemini, mistral_models, ollama, ollama_models, openai
from gateway.dialects.base import Dialect
from gateway.errors import ForbiddenError, GatewayError, ModelNotFoundError
from gateway.exchange import Exchange
from gateway.snapshot import Key, Snapshot
from providers.globs import is_valid

if TYPE_CHECKING:
    from gateway.runtime import Runtime


class Model(msgspec.Struct):
    """One model in the OpenAI API's shape. `created` is not known for other people's models: 0."""

    id: str
    owned_by: str
    object: str = "model"
    created: int = 0


CATALOG = "catalog"
_OLLAMA = frozenset({"/api/tags", "/api/ps", "/api/show", "/api/version"})
_GEMINI_LISTS = ("/v1beta/models", "/v1alpha/models", "/models")


def serves(path: str) -> bool:
    """Whether the path asks for the list of models or for one of them, in any API."""
    if path in _OLLAMA or path.startswith(("/v1/models", *_GEMINI_LISTS)):
        rest = path.partition("models")[2]
        return path in _OLLAMA or rest in ("", "/") or rest.startswith("/")
    return False


def methods(path: str) -> tuple[str, ...]:
    """What may be asked there."""
    return ("POST",) if path == "/api/show" else ("GET", "HEAD")


def dialect_of(exchange: Exchange) -> Dialect:
    """Which API the caller speaks: by the path or, where several share it, by a header only its clients send."""
    path = exchange.path
    if path in _OLLAMA:
        return ollama.CHAT
    if path.startswith(_GEMINI_LISTS):
        return gemini.GEMINI_SSE
    names = {name for name, _ in exchange.headers}
    if b"anthropic-version" in names:
        return anthropic.ANTHROPIC
    return gemini.GEMINI_SSE if b"x-goog-api-key" in names else openai.DIALECT


async def serve(runtime: Runtime, exchange: Exchange) -> None:
    """Answer the list or one model, in the caller's API."""
    dialect = dialect_of(exchange)
    try:
        snapshot = pipeline.snapshot_of(runtime)
        key = find_key(snapshot.keys, credential(exchange.headers))
        if "inference" not in key.record.scopes and not key.is_operator:
            raise ForbiddenError("This API key may not list models.")
        if key.reach is not None:
            key.reach.check("", exchange.client)
        if dialect is ollama.CHAT:
            body = await of_ollama(runtime, snapshot, key, exchange)
        else:
            name = exchange.path.partition("/models")[2].removeprefix("/")
            if dialect.name == "gemini":
                name = name.removeprefix("models/")
            if dialect is openai.DIALECT and mistral_models.is_asked(exchange.headers):
                body = await of_mistral(snapshot, key, name)
            else:
                body = await told(snapshot, key, name, dialect)
    except GatewayError as error:
        await pipeline.refuse_simply(runtime, exchange, error, dialect)
        return
    except asyncio.CancelledError:
        if not exchange.gone:
            raise
        return
    headers = [(b"content-type", b"application/json"), (b"x-hoosh-config", snapshot.version_header)]
    await exchange.respond(200, headers, body)


async def told(snapshot: Snapshot, key: Key, name: str, dialect: Dialect) -> bytes:
    """The list (no name), the list with everything that is known of each model (`catalog`), or one model."""
    if name == CATALOG and dialect is openai.DIALECT:
        return msgspec.json.encode({"object": "list", "data": await catalog(snapshot, key, snapshot.cards.names)})
    if not name or name == CATALOG:
        listed = visible(snapshot, key)
        if dialect is anthropic.ANTHROPIC:
            return anthropic.models([model.id for model in listed])
        if dialect is gemini.GEMINI_SSE:
            return gemini.models([model.id for model in listed])
        return msgspec.json.encode({"object": "list", "data": listed})
    model = one(snapshot, key, name)
    if dialect is anthropic.ANTHROPIC:
        return anthropic.model(model.id)
    if dialect is gemini.GEMINI_SSE:
        return gemini.model(model.id)
    return msgspec.json.encode(model_cards.describe(snapshot, name))


async def of_mistral(snapshot: Snapshot, key: Key, name: str) -> bytes:
    """The list or one model, for Mistral's SDK."""
    if name and name != CATALOG:
        one(snapshot, key, name)
        return msgspec.json.encode(mistral_models.model(model_cards.describe(snapshot, name)))
    listed = await catalog(snapshot, key, snapshot.cards.names if name else ())
    return msgspec.json.encode({"object": "list", "data": list(map(mistral_models.model, listed))})


async def catalog(snapshot: Snapshot, key: Key, names: Iterable[str]) -> list[dict[str, Any]]:
    """Every model the key may use, with all that is known of it: `model_cards.catalog_in_slices`. Others' requests go
    on between two slices."""
    found: list[dict[str, Any]] = []
    for made in model_cards.catalog_in_slices(snapshot, key, names):
        if made is None:
            await asyncio.sleep(0)
        else:
            found = made
    return found


async def of_ollama(runtime: Runtime, snapshot: Snapshot, key: Key, exchange: Exchange) -> bytes:
    """What Ollama's clients ask beside inference."""
    path = exchange.path
    if path == "/api/version":
        return ollama_models.version(runtime.version)
    if path != "/api/show":
        listed = [(model.id, model.owned_by) for model in visible(snapshot, key)]
        return ollama_models.tags(listed) if path == "/api/tags" else ollama_models.ps(listed)
    settings = snapshot.settings
    name = ollama_models.parse_show(await exchange.read_body(settings.body_limit_bytes, settings.body_timeout_s))
    model = one(snapshot, key, name)
    step = snapshot.table.plan(name).steps[0]
    card = snapshot.cards.find(step.model)
    about = {
        "owner": model.owned_by,
        "context_tokens": card.context_tokens,
        "max_output_tokens": card.max_output_tokens,
        "capabilities": card.capabilities,
    }
    return ollama_models.show(name, about)


def visible(snapshot: Snapshot, key: Key) -> list[Model]:
    """Every model the key may use, sorted by name."""
    test = key.may_use
    return [Model(id=name, owned_by=owner) for name, owner in snapshot.models if test is None or test(name)]


def one(snapshot: Snapshot, key: Key, name: str) -> Model:
    """One model, also when only a glob route would serve it. Raises ModelNotFoundError, as for every name that
    inference refuses."""
    if not is_valid(name):
        raise ModelNotFoundError(name if name.isprintable() else "…")
    if key.may_use is not None and not key.may_use(name):
        raise ModelNotFoundError(name)
    for known, owner in snapshot.models:
        if known == name:
            return Model(id=name, owned_by=owner)
    plan = snapshot.table.plan(name)
    for step in plan.steps:
        candidate = snapshot.candidates.get(step.route.id)
        if candidate is not None:
            return Model(id=name, owned_by=candidate.provider.name)
    raise ModelNotFoundError(name)
