"""Operations on a provider's own server, for operators: `/v1/models/pull`, `/v1/models/delete` (Ollama),
`/v1/training/status`, `/v1/catalog/sync` (Synapse).

What changes something is an audit entry before it is sent, and a second one with the outcome; behind it the provider is
probed again, so that the list of models follows. That happens in a thread, because the client may be gone by then.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import msgspec
from asgiref.sync import async_to_sync
from django.db import close_old_connections, connections
from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from audit.record import record
from gateway.api import backend_calls
from gateway.api.authentication import IsOperator, caller_of
from gateway.api.backend_calls import CLIENT_LEFT, SUCCESS, Backend, Pull
from gateway.api.fields import TextField, TruthField, read
from gateway.api.serializers import ErrorSerializer
from gateway.api.views import ControlView
from gateway.errors import BadRequestError, GatewayError, NotFoundError, UpstreamCredentialError, to_openai
from gateway.probes import probe_provider
from providers import services, validation
from providers.catalog import CATALOG
from providers.models import Provider
from providers.vault import VaultError

log = logging.getLogger(__name__)

OLLAMA, SYNAPSE = ("ollama", "ollama-v1"), ("synapse",)
HEAD_S = 60.0  # how long a whole answer is waited for before its head is sent; the forwarder gives up after 120 s
PING_S = 15.0
NAMES_SHOWN = 8

_ERRORS = {
    400: OpenApiResponse(ErrorSerializer, "A field is not what it should be, or the provider is not suitable."),
    401: OpenApiResponse(ErrorSerializer, "No usable API key."),
    403: OpenApiResponse(ErrorSerializer, "The key is not an operator's."),
    404: OpenApiResponse(ErrorSerializer, "No such provider, model or job."),
    502: OpenApiResponse(ErrorSerializer, "The provider is not there, refused the gateway's credential or failed."),
    504: OpenApiResponse(ErrorSerializer, "The provider did not answer in time."),
}
_encode = msgspec.json.Encoder().encode


class PatternField(TextField):
    """A text of certain characters, because it becomes a part of another server's address or of its files' names."""

    def __init__(self, pattern: str, *, most: int, **options: Any) -> None:
        super().__init__(most=most, **options)
        self._pattern = re.compile(pattern)

    def to_internal_value(self, data: Any) -> str:
        """The text; anything else is refused."""
        text = super().to_internal_value(data)
        if not self._pattern.fullmatch(text):
            raise serializers.ValidationError(f"{self.field_name} has a character or a form that is not allowed.")
        return text


@extend_schema_field(OpenApiTypes.STR)
class ModelField(PatternField):
    """The name of a model as Ollama writes it: [host/][namespace/]name[:tag], without a scheme."""

    def __init__(self, **options: Any) -> None:
        super().__init__(r"(?!.*(?://|\.\.))[A-Za-z0-9_][A-Za-z0-9._:/@-]*", most=256, **options)


@extend_schema_field(OpenApiTypes.STR)
class JobField(PatternField):
    """The id of a training job."""

    def __init__(self, **options: Any) -> None:
        super().__init__(r"[A-Za-z0-9_][A-Za-z0-9._:~-]*", most=128, **options)


class ProviderRequest(serializers.Serializer[None]):
    """Which provider; without a name the only enabled one of the kind."""

    provider = TextField(most=64, required=False)


class ModelRequest(ProviderRequest):
    """Which model of which provider."""

    model = ModelField()


class PullRequest(ModelRequest):
    """What to pull, and how to be told."""

    stream = TruthField(default=True)


class JobRequest(ProviderRequest):
    """Which training job."""

    job = JobField()


class JobIdRequest(ProviderRequest):
    """Which training job."""

    job_id = JobField()


class DoneSerializer(serializers.Serializer[None]):
    """It is done."""

    status = serializers.ChoiceField(choices=(SUCCESS,))
    provider = serializers.CharField()
    model = serializers.CharField(required=False)


class AnswerCutError(Exception):
    """The operation failed after its answer had begun; the server cuts the connection for it."""


class Streamed(StreamingHttpResponse):
    """An answer in pieces. Their source is closed when the client leaves while one is being sent: Django closes what
    `aiter` gives it, which by default only stands around the source."""

    def __init__(self, pieces: AsyncGenerator[bytes], content_type: str) -> None:
        super().__init__(pieces, content_type=content_type)
        self._pieces = pieces

    def __aiter__(self) -> AsyncGenerator[bytes]:
        return self._pieces


class PullView(ControlView):
    """Have Ollama load a model from its library."""

    permission_classes = (IsOperator,)

    @extend_schema(
        request=PullRequest,
        responses={
            (200, "application/json"): DoneSerializer,
            (200, "application/x-ndjson"): OpenApiTypes.STR,
            **_ERRORS,
        },
        summary="Pull a model",
    )
    def post(self, request: Request) -> HttpResponseBase:
        """Ollama's lines of progress as they come, or one answer at the end with `stream` false."""
        asked = read(PullRequest, request.data)
        backend, model = choose(asked.get("provider"), OLLAMA), asked["model"]
        pull = Pull(backend, model, _ordered("model.pull", caller_of(request).name, backend, model))
        if not asked["stream"]:
            return async_to_sync(whole)(pull, _done(backend, model))
        async_to_sync(pull.begin)()
        return Streamed(_progress(pull), "application/x-ndjson")


class DeleteView(ControlView):
    """Have Ollama delete a model."""

    permission_classes = (IsOperator,)

    @extend_schema(
        request=ModelRequest, responses={200: DoneSerializer, **_ERRORS}, summary="Delete a model from its server"
    )
    def post(self, request: Request) -> HttpResponseBase:
        """The model's files are gone when this answers."""
        return self._delete(request, {})

    @extend_schema(
        parameters=[ModelRequest], responses={200: DoneSerializer, **_ERRORS}, summary="Delete a model from its server"
    )
    def delete(self, request: Request) -> HttpResponseBase:
        """The same. Fields may stand in the body or in the query."""
        return self._delete(request, request.query_params.dict())

    def _delete(self, request: Request, query: dict[str, Any]) -> HttpResponseBase:
        given: Any = request.data
        asked = read(ModelRequest, {**query, **given})
        backend, model = choose(asked.get("provider"), OLLAMA), asked["model"]
        ended = _ordered("model.delete", caller_of(request).name, backend, model)
        _carry_out(ended, backend, "DELETE", "/api/delete", {"model": model})
        return Response(_done(backend, model))


class TrainingView(ControlView):
    """The state of a training job."""

    permission_classes = (IsOperator,)

    @extend_schema(
        parameters=[JobRequest], responses={200: OpenApiTypes.OBJECT, **_ERRORS}, summary="State of a training job"
    )
    def get(self, request: Request) -> HttpResponseBase:
        """Synapse's own answer."""
        return self._status(read(JobRequest, request.query_params.dict()))

    @extend_schema(
        request=JobIdRequest, responses={200: OpenApiTypes.OBJECT, **_ERRORS}, summary="State of a training job"
    )
    def post(self, request: Request) -> HttpResponseBase:
        """The same, asked as older clients do."""
        asked = read(JobIdRequest, request.data)
        return self._status({**asked, "job": asked["job_id"]})

    def _status(self, asked: Mapping[str, Any]) -> HttpResponseBase:
        backend = choose(asked.get("provider"), SYNAPSE)
        close_old_connections()
        path = f"/v1/training/{quote(asked['job'], safe='')}"
        return _passed_on(async_to_sync(backend_calls.call)(backend, "GET", path))


class CatalogSyncView(ControlView):
    """Have Synapse synchronise its catalogue of models."""

    permission_classes = (IsOperator,)

    @extend_schema(
        request=ProviderRequest,
        responses={200: OpenApiTypes.OBJECT, **_ERRORS},
        summary="Synchronise a provider's catalogue",
    )
    def post(self, request: Request) -> HttpResponseBase:
        """Synapse's own answer."""
        asked = read(ProviderRequest, request.data)
        backend = choose(asked.get("provider"), SYNAPSE)
        ended = _ordered("catalog.sync", caller_of(request).name, backend)
        told = _carry_out(ended, backend, "POST", "/v1/catalog/sync")
        return _passed_on(told) if told.strip() else Response(_done(backend))


def choose(name: str | None, kinds: tuple[str, ...]) -> Backend:
    """The provider with this name, or the only enabled one of the kinds. Raises `GatewayError` when that is nobody."""
    rows = Provider.objects.select_related("client_certificate").prefetch_related("credentials")
    wanted = " or ".join(f"“{kind}”" for kind in kinds)
    if name is not None:
        row = rows.filter(name=name).first()
        if row is None:
            raise NotFoundError(f"There is no provider “{name}”.", code="provider_not_found", param="provider")
        if row.kind not in kinds:
            raise _unsuitable(f"The provider “{name}” cannot do this: it is not of kind {wanted}.")
        if not row.enabled:
            raise _unsuitable(f"The provider “{name}” is disabled.")
        return _backend(row)
    found = list(rows.filter(enabled=True, kind__in=kinds).order_by("name")[: NAMES_SHOWN + 1])
    if not found:
        raise NotFoundError(f"No enabled provider is of kind {wanted}.", code="provider_not_found", param="provider")
    if len(found) > 1:
        names = ", ".join(f"“{row.name}”" for row in found[:NAMES_SHOWN])
        raise BadRequestError(
            f"Several providers could do this; name one as `provider`: {names}"
            + (", …" if len(found) > NAMES_SHOWN else ""),
            code="provider_ambiguous",
            param="provider",
        )
    return _backend(found[0])


async def whole(
    pull: Pull, answer: dict[str, str], *, head_s: float = HEAD_S, ping_s: float = PING_S
) -> HttpResponseBase:
    """One answer at the end of a pull. After `head_s` its head is sent, and blanks until the end is known: whoever is
    between us and the client would take a longer silence for a failure."""
    running = asyncio.ensure_future(pull.run())
    try:
        if (await asyncio.wait((running,), timeout=head_s))[0]:
            running.result()
            return HttpResponse(_encode(answer), content_type="application/json")
    except BaseException:
        await _end(running)
        raise
    return Streamed(_slowly(running, answer, ping_s), "application/json")


async def _slowly(running: asyncio.Future[None], answer: dict[str, str], ping_s: float) -> AsyncGenerator[bytes]:
    try:
        yield b" "
        while not (await asyncio.wait((running,), timeout=ping_s))[0]:
            yield b" "
        try:
            running.result()
        except GatewayError as exc:
            yield to_openai(exc)
            raise AnswerCutError(f"a pull failed: {exc.code}") from None
        yield _encode(answer)
    finally:
        await _end(running)


async def _progress(pull: Pull) -> AsyncGenerator[bytes]:
    lines = pull.lines()
    try:
        async for line in lines:
            yield line
    except GatewayError as exc:
        yield to_openai(exc) + b"\n"
        raise AnswerCutError(f"a pull failed: {exc.code}") from None
    finally:
        await lines.aclose()


async def _end(running: asyncio.Future[None]) -> None:
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def _carry_out(ended: Callable[[str], None], backend: Backend, method: str, path: str, body: Any = None) -> bytes:
    """Make a call from this thread on the server's loop, which cancels it when the client leaves."""

    async def made() -> bytes:
        outcome = CLIENT_LEFT
        try:
            data = await backend_calls.call(backend, method, path, body)
            outcome = SUCCESS
            return data
        except GatewayError as exc:
            outcome = str(exc.code)
            raise
        finally:
            ended(outcome)

    return async_to_sync(made)()


def _ordered(action: str, actor: str, backend: Backend, model: str = "") -> Callable[[str], None]:
    """Record an operation that is about to be sent; call what is returned with its outcome."""
    target = f"{backend.name}/{model}" if model else backend.name
    record(action, actor=actor, target=target[:200], data={"provider": backend.provider_id, "model": model})
    close_old_connections()  # what follows may take hours
    settle = functools.partial(_settle, action, actor, target[:200], backend.provider_id)
    return lambda outcome: threading.Thread(target=settle, args=(outcome,), daemon=True).start()


def _settle(action: str, actor: str, target: str, provider_id: int, outcome: str) -> None:
    """Record how an operation ended and look what the provider serves now. The thread's whole life."""
    level = "info" if outcome == SUCCESS else "warning"
    try:
        record(f"{action}.ended", actor=actor, target=target, level=level, data={"outcome": outcome})
        with suppress(Provider.DoesNotExist):
            probe_provider(provider_id)
    except Exception:
        log.exception("backends.settling_failed")
    finally:
        connections.close_all()


def _backend(row: Provider) -> Backend:
    kind = CATALOG[row.kind]
    secret = _secret(row) if kind.auth != "none" else ""
    return Backend(
        provider_id=row.pk,
        name=row.name,
        base_url=row.base_url or kind.base_url,
        address_class=row.address_class,
        ca_pem=row.ca_pem,
        pins=validation.split_pins(row.pins),
        client_pem=services.read_client_pem(row),
        credential=kind.credential_header(secret),
    )


def _secret(row: Provider) -> str:
    """The secret workers would send first, "" when none is stored. Raises when none that is stored can be opened."""
    stored = [credential for credential in row.credentials.all() if credential.enabled and credential.ciphertext]
    for credential in stored:
        if credential.is_usable:
            with suppress(VaultError):
                return services.read_secret(credential)
    if stored:
        raise UpstreamCredentialError(
            "The provider's stored credential cannot be opened: the URL or the vault key changed. Type it again."
        )
    return ""


def _unsuitable(message: str) -> BadRequestError:
    return BadRequestError(message, code="provider_unsuitable", param="provider")


def _done(backend: Backend, model: str = "") -> dict[str, str]:
    return {"status": SUCCESS, "provider": backend.name, **({"model": model} if model else {})}


def _passed_on(data: bytes) -> HttpResponse:
    """A provider's JSON as it came."""
    backend_calls.json_of(data)
    return HttpResponse(data, content_type="application/json")
