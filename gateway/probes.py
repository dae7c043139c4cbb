"""Active looks at providers: list their models, remember what was found, tell who went down or came back.

Runs in control only. Nothing of a provider's answer but its model names is kept, and no failure text quotes a header,
a credential or a body: what an operator reads is our own sentence.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import httpx
import msgspec
from channels.db import database_sync_to_async
from django.db import transaction
from django.utils import timezone

from audit.record import record
from events import names
from events.emit import emit
from gateway import metrics
from providers import adapters, certificates, sequences, services, tls, validation
from providers.adapters import demo
from providers.catalog import CATALOG, Kind
from providers.failures import UpstreamError
from providers.models import GatewaySettings, Provider, ProviderProbe
from providers.transport import open_client
from providers.vault import VaultError

log = logging.getLogger(__name__)

DOWN_AFTER = 3  # consecutive failures
TIMEOUT_S = 8.0
AT_ONCE = 8
MAX_MODELS = 2000
MAX_NAME_CHARS = 256
_OF_CREDENTIAL = frozenset({401, 402, 403, 429})  # what another credential of the provider may not meet
MAX_LIST_BYTES = 8 * 1024 * 1024
LOOK_S = 5.0  # how often the loop looks whether the interval is another one by now

_FAILURES = {
    "connect": "No connection: the server is not there, or the address or port is wrong.",
    "tls": "The TLS handshake failed: the certificate is not trusted for this address.",
    "tls_alert": "The provider ended the TLS connection: it wants a client certificate, or does not accept ours.",
    "egress": "The address is now in another class than when it was saved. Press “Look up address again” to accept it.",
    "write": "The connection broke while the request was sent.",
    "reset": "The connection was closed before the answer was complete.",
    "protocol": "The answer is not valid HTTP. Is this the right port?",
    "too_large": "The answer is too large for a list of models.",
    "first_byte_timeout": "Connected, but no answer in time.",
    "gap_timeout": "The answer stopped half-way.",
    "total_timeout": "The answer took too long.",
}


@dataclass(slots=True)
class Outcome:
    """What one look found: `detail` says in plain words what is wrong, "" when nothing is."""

    ok: bool
    detail: str = ""
    models: tuple[str, ...] = ()
    latency_ms: float | None = None
    chain: tuple[bytes, ...] = ()  # the server's certificates as they were verified, DER; none = not seen


@dataclass(frozen=True, slots=True)
class _Target:
    """Everything a look needs, so that no database is asked while waiting for the network."""

    provider_id: int
    name: str
    kind: Kind
    base_url: str
    address_class: str
    ca_pem: str
    pins: tuple[str, ...] = ()
    client_pem: str | None = field(default="", repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)  # of the credentials workers would use, in their order
    problem: str = ""  # found before any connection


@runtime_checkable
class ListsModels(Protocol):
    """What an adapter offers whose provider lists models in a way of its own."""

    def read_models(self, body: bytes) -> list[str]:
        """The names of those that can be asked here; none when it is no such list. Never raises."""
        ...


class _Model(msgspec.Struct):
    id: str = ""
    name: str = ""


class _ModelList(msgspec.Struct):
    data: list[_Model] | None = None
    models: list[_Model] | None = None


_decode_list = msgspec.json.Decoder(_ModelList, strict=False).decode
_decode_plain = msgspec.json.Decoder(list[_Model], strict=False).decode


def probe_provider(provider_id: int, *, timeout_s: float = TIMEOUT_S) -> Outcome:
    """Look at one provider now and remember the result. Blocks; not to be called on an event loop.

    Raises `Provider.DoesNotExist`.
    """
    target = _target(Provider.objects.get(pk=provider_id))
    outcome = asyncio.run(look(target, timeout_s=timeout_s))
    _remember([(target, outcome)])
    return outcome


async def probe_all() -> dict[int, Outcome]:
    """Look at every enabled provider and remember the results, by provider id."""
    targets = await database_sync_to_async(_targets)()
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(target: _Target) -> Outcome:
        async with gate:
            return await look(target)

    outcomes = await asyncio.gather(*(one(target) for target in targets))
    await database_sync_to_async(_remember)(list(zip(targets, outcomes, strict=True)))
    return {target.provider_id: outcome for target, outcome in zip(targets, outcomes, strict=True)}


async def run_forever(on_change: Callable[[], None] = lambda: None, *, look_s: float = LOOK_S) -> None:
    """Probe at the configured interval until cancelled; `on_change` is called when a provider went down or came back.

    The interval (`GatewaySettings.probe_interval_s`, 0 = off) is read again every `look_s`, so that a shorter one
    need not wait for the end of the longer one before it. Once probes are switched off nobody is held for down.
    """
    down: set[int] | None = None
    began: float | None = None  # the last round
    loop = asyncio.get_running_loop()
    while True:
        pause_s = look_s
        try:
            interval_s = await database_sync_to_async(_interval_s)()
            if interval_s > 0 and (began is None or loop.time() >= began + interval_s):
                await probe_all()
                began = loop.time()
            if interval_s > 0 and began is not None:
                pause_s = min(look_s, max(0.0, began + interval_s - loop.time()))
            now_down = set(await database_sync_to_async(down_providers)())
            if now_down != down:
                down = now_down
                on_change()
        except Exception:
            log.exception("probes.round_failed")
            pause_s = look_s
        await asyncio.sleep(pause_s)


def down_providers() -> list[int]:
    """Enabled providers whose last looks all failed, `DOWN_AFTER` times or more: the hint for workers.

    None where probes are off: nobody would look whether they are back.
    """
    if not _interval_s():
        return []
    rows = ProviderProbe.objects.filter(ok=False, consecutive_failures__gte=DOWN_AFTER, provider__enabled=True)
    return sorted(rows.values_list("provider_id", flat=True))


async def look(target: _Target, *, timeout_s: float = TIMEOUT_S) -> Outcome:
    """Ask one provider for its models. Never raises: every failure is an outcome."""
    if target.problem:
        return Outcome(ok=False, detail=target.problem)
    if target.kind.adapter == "demo":
        return Outcome(ok=True, models=demo.MODELS, latency_ms=0.0)
    seen: list[tuple[bytes, ...]] = []
    outcome = await _ask(target, timeout_s, seen.append)
    outcome.chain = seen[-1] if seen else ()
    return outcome


async def _ask(target: _Target, timeout_s: float, on_chain: Callable[[tuple[bytes, ...]], None]) -> Outcome:
    begin = time.perf_counter()
    try:
        status, body, refused = await asyncio.wait_for(_fetch_any(target, timeout_s, on_chain), timeout_s)
    except TimeoutError:
        return Outcome(ok=False, detail=_FAILURES["total_timeout"])
    except (UpstreamError, httpx.HTTPError, OSError, ValueError) as exc:
        return Outcome(ok=False, detail=_failure(exc))
    latency_ms = round((time.perf_counter() - begin) * 1000, 1)
    problem = _status_problem(status, has_secret=bool(target.secrets))
    if problem:
        return Outcome(ok=False, detail=problem, latency_ms=latency_ms)
    detail = f"A stored credential was refused ({refused}); another one works." if refused else ""
    if status in (404, 405):
        return Outcome(ok=True, detail=detail, latency_ms=latency_ms)  # alive; not every server lists its models
    names = _listed(target.kind, body)
    if names is None:
        detail = "The answer is not a list of models. Is the base URL right (without /v1)?"
        return Outcome(ok=False, detail=detail, latency_ms=latency_ms)
    return Outcome(ok=True, detail=detail, models=names, latency_ms=latency_ms)


def model_names(body: bytes) -> tuple[str, ...] | None:
    """Model names in an OpenAI reply (`data`), Ollama's (`models`) or a bare list; None when it is none of them."""
    found: list[_Model] | None
    try:
        found = _decode_plain(body) if body.lstrip()[:1] == b"[" else _pick(_decode_list(body))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if found is None:
        return None
    return _usable(model.id or model.name for model in found[:MAX_MODELS])


def _listed(kind: Kind, body: bytes) -> tuple[str, ...] | None:
    """The same, as the provider's adapter reads its own list where that says more than names."""
    names = model_names(body)
    adapter = adapters.get(kind.adapter)
    if names is None or not isinstance(adapter, ListsModels):
        return names
    return _usable(adapter.read_models(body)[:MAX_MODELS])


def _usable(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name and len(name) <= MAX_NAME_CHARS and name.isprintable()))


def _pick(reply: _ModelList) -> list[_Model] | None:
    return reply.data if reply.data is not None else reply.models


async def _fetch_any(
    target: _Target, timeout_s: float, on_chain: Callable[[tuple[bytes, ...]], None]
) -> tuple[int, bytes, int]:
    """Status and body of the first credential that is not refused, and the status another one was refused with, 0 =
    none was; where all are, those of the first. While one works the provider is there: workers pass over the rest."""
    first: tuple[int, bytes, int] | None = None
    for secret in target.secrets or ("",):
        status, body = await _fetch(target, secret, timeout_s, on_chain)
        if status not in _OF_CREDENTIAL:
            return status, body, first[0] if first is not None else 0
        first = first or (status, body, 0)
    assert first is not None
    return first


async def _fetch(
    target: _Target, secret: str, timeout_s: float, on_chain: Callable[[tuple[bytes, ...]], None]
) -> tuple[int, bytes]:
    headers = {"accept": "application/json", "accept-encoding": "identity", **dict(target.kind.list_headers)}
    credential = target.kind.credential_header(secret)
    if credential is not None:
        name, value = credential
        headers[name] = value
    client = open_client(
        target.base_url,
        target.address_class,
        ca_pem=target.ca_pem,
        headers=headers,
        timeout_s=timeout_s,
        pins=target.pins,
        client_pem=target.client_pem,
        on_chain=on_chain,
    )
    async with client, client.stream("GET", target.kind.paths.get("models", "/v1/models")) as reply:
        pieces, size = [], 0
        async for piece in reply.aiter_bytes():
            pieces.append(piece)
            size += len(piece)
            if size > MAX_LIST_BYTES:
                raise ValueError("too_large")
        return reply.status_code, b"".join(pieces)


def _failure(exc: BaseException | None) -> str:
    """Our sentence for a failed call. The transport may have wrapped the upstream error in one of httpx."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, UpstreamError):
            return _tls_failure(seen) or _FAILURES.get(seen.kind, f"The call failed ({seen.kind}).")
        seen = seen.__cause__
    if isinstance(exc, httpx.TimeoutException):
        return _FAILURES["first_byte_timeout"]
    if isinstance(exc, ValueError) and str(exc) == "too_large":
        return _FAILURES["too_large"]
    if isinstance(exc, ValueError):
        return "The base URL or the certificates of this provider cannot be used."
    return _FAILURES["connect"]


def _tls_failure(exc: UpstreamError) -> str:
    """What OpenSSL, the provider or we ourselves have against a TLS connection; "" when it is not about that."""
    match exc.__cause__:
        case ssl.SSLCertVerificationError() as cause:
            return f"The server's certificate is not accepted: {cause.verify_message}."
        case ssl.SSLError() as cause if tls.refuses_ours(cause):
            return _FAILURES["tls_alert"]
        case ssl.SSLError() as cause if cause.reason:
            return f"The TLS connection failed ({cause.reason})."
        case None if exc.kind == "tls":  # a refusal of our own: pins, or a client certificate that does not open
            return f"{exc}."
    return ""


def _status_problem(status: int, *, has_secret: bool) -> str:
    if status in (401, 403):
        if has_secret:
            return f"The provider refused the stored credential ({status}). Save a valid one."
        return f"The provider wants a credential ({status}) and none is stored."
    if 200 <= status < 300 or status in (404, 405):
        return ""
    if 300 <= status < 400:
        return f"The provider answered with a redirect ({status}). Enter the address it leads to."
    if status == 429:
        return "The provider refuses for now: too many requests or no quota left (429)."
    return f"The provider answered with an error ({status})."


def _interval_s() -> float:
    value = GatewaySettings.objects.filter(pk=1).values_list("probe_interval_s", flat=True).first()
    return 30.0 if value is None else value


def _targets() -> list[_Target]:
    rows = Provider.objects.filter(enabled=True).select_related("client_certificate").order_by("id")
    return [_target(provider) for provider in rows.prefetch_related("credentials")]


def _target(provider: Provider) -> _Target:
    kind = CATALOG.get(provider.kind)
    secrets: tuple[str, ...] = ()
    problem = ""
    if kind is None:
        kind, problem = CATALOG["custom"], f"The kind “{provider.kind}” is not known to this version."
    elif kind.auth != "none":
        secrets, problem = _secrets(provider)
    return _Target(
        provider_id=provider.pk,
        name=provider.name,
        kind=kind,
        base_url=provider.base_url or kind.base_url,
        address_class=provider.address_class,
        ca_pem=provider.ca_pem,
        pins=validation.split_pins(provider.pins),
        client_pem=services.read_client_pem(provider),
        secrets=secrets,
        problem=problem,
    )


def _secrets(provider: Provider) -> tuple[tuple[str, ...], str]:
    """The secrets that workers would send: they pass over what does not open. Else what is wrong, if anything."""
    stored = [row for row in provider.credentials.all() if row.enabled and row.ciphertext]
    secrets = []
    for credential in stored:
        if credential.is_usable:
            with suppress(VaultError):
                secrets.append(services.read_secret(credential))
    if secrets or not stored:
        return tuple(secrets), ""
    return (), "The stored credential cannot be opened: the URL or the vault key changed. Type it again."


def _remember(found: Iterable[tuple[_Target, Outcome]]) -> None:
    """Store outcomes in one short transaction; a change between up and down is an audit entry in the same one."""
    with transaction.atomic():
        sequences.locked(sequences.CARDS)  # before any row, as everybody who writes
        for target, outcome in found:
            _remember_one(target, outcome)
    for target, outcome in found:
        metrics.set_provider_up(target.name, outcome.ok)


def _remember_one(target: _Target, outcome: Outcome) -> None:
    if not Provider.objects.filter(pk=target.provider_id).exists():
        return  # deleted while it was looked at
    probe = ProviderProbe.objects.filter(provider_id=target.provider_id).first()
    was_known = probe is not None and probe.checked_at is not None
    failures_before = probe.consecutive_failures if probe is not None else 0
    if probe is None:
        probe = ProviderProbe(provider_id=target.provider_id)
    probe.ok = outcome.ok
    probe.consecutive_failures = 0 if outcome.ok else failures_before + 1
    probe.detail = outcome.detail[:300]
    if outcome.ok and probe.models != list(outcome.models):  # a failed look does not forget what was listed
        probe.models = list(outcome.models)
        sequences.bump(sequences.CARDS)  # workers list these names: control must send them on
    if outcome.chain:
        probe.certificates = _certificates(target, outcome)
    probe.latency_ms = outcome.latency_ms
    probe.checked_at = timezone.now()
    if outcome.ok:
        probe.answered_at = probe.checked_at
    probe.save()
    if probe.consecutive_failures == DOWN_AFTER:
        data = {"detail": outcome.detail}
        record("provider.down", actor="probe", target=target.name, level="warning", data=data)
        _tell(target, outcome)
    elif outcome.ok and was_known and failures_before >= DOWN_AFTER:
        record("provider.up", actor="probe", target=target.name, data={"failures": failures_before})
        _tell(target, outcome)


def _tell(target: _Target, outcome: Outcome) -> None:
    """The event of a provider that went down or came back."""
    data = {
        "provider": target.name,
        "base_url": target.base_url,
        "healthy": outcome.ok,
        "detail": outcome.detail,
        "latency_ms": outcome.latency_ms,
    }
    emit(names.HEALTH, data, level="info" if outcome.ok else "warning")


def _certificates(target: _Target, outcome: Outcome) -> dict[str, Any]:
    """What is kept of the certificates seen; only for this address, since a provider may move to another."""
    chain = [
        {"name": each.name, "not_after": each.not_after.isoformat(), "pin": each.pin}
        for each in certificates.describe(outcome.chain)
    ]
    return {"base_url": target.base_url, "seen_at": timezone.now().isoformat(timespec="seconds"), "chain": chain}
