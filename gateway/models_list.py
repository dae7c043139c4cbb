"""`GET /v1/models` and `/v1/models/{id}` from memory: what the calling key may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway import pipeline
from gateway.admission import credential, find_key
from gateway.errors import ForbiddenError, GatewayError, GatewayUnavailableError, ModelNotFoundError
from gateway.exchange import Exchange
from gateway.snapshot import Key, Snapshot

if TYPE_CHECKING:
    from gateway.runtime import Runtime


class Model(msgspec.Struct):
    """One model in the OpenAI API's shape. `created` is not known for other people's models: 0."""

    id: str
    owned_by: str
    object: str = "model"
    created: int = 0


async def serve(runtime: Runtime, exchange: Exchange) -> None:
    """Answer the list or one model."""
    try:
        snapshot = runtime.snapshot
        if snapshot is None:
            raise GatewayUnavailableError("The gateway has no configuration yet.", retry_after_s=1)
        key = find_key(snapshot.keys, credential(exchange.headers))
        if "inference" not in key.record.scopes and not key.is_operator:
            raise ForbiddenError("This API key may not list models.")
        if exchange.path in ("/v1/models", "/v1/models/"):
            payload: object = {"object": "list", "data": visible(snapshot, key)}
        else:
            payload = one(snapshot, key, exchange.path[len("/v1/models/") :])
    except GatewayError as error:
        await pipeline.refuse_simply(runtime, exchange, error)
        return
    headers = [(b"content-type", b"application/json"), (b"x-hoosh-config", snapshot.version_header)]
    await exchange.respond(200, headers, msgspec.json.encode(payload))


def visible(snapshot: Snapshot, key: Key) -> list[Model]:
    """Every model the key may use, sorted by name."""
    test = key.may_use
    return [Model(id=name, owned_by=owner) for name, owner in snapshot.models if test is None or test(name)]


def one(snapshot: Snapshot, key: Key, name: str) -> Model:
    """One model, also when only a glob route would serve it. Raises ModelNotFoundError."""
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
