"""Webhooks: saving them, and one signed call. When calls are made is `hoosh_site.webhook_delivery`'s.

A call is a POST of one event as JSON, signed as Standard Webhooks (standardwebhooks.com) says: `webhook-id`,
`webhook-timestamp` and `webhook-signature: v1,` base64 of HMAC-SHA256 over "id.timestamp.body" with the bytes behind
`whsec_`. The secret is kept sealed by the vault and shown once. Where the address is was seen when it was saved; it
must be there at every call, as with providers, and nothing follows a redirect.
"""

from __future__ import annotations

import asyncio
import base64
import email.utils
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import msgspec
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from audit.changes import changed_fields, object_of, recordable
from audit.record import record
from events import names, order
from events.models import Webhook
from hoosh_site import __version__
from providers.egress import observe_class, split_url
from providers.failures import UpstreamError
from providers.services import open_vault
from providers.transport import open_client
from providers.vault import VaultError

TIMEOUT_S = 10.0
RETRY_AFTER_MAX_S = 3600.0
_SECRET_BYTES = 32
_PREFIX = "whsec_"
_BOUND_TO = "webhook"  # in the vault: such a secret opens as nothing else
_TARGET = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*\Z")
_encode = msgspec.json.Encoder().encode
_UNRECORDED = frozenset({"cursor", "delivered", "failures", "failing_since", "next_try_at"})

_FAILURES = {
    "connect": "No connection: the server is not there, or the address or port is wrong.",
    "tls": "The TLS handshake failed: the certificate is not trusted for this address.",
    "egress": "The address is now in another class than when it was saved. Save the webhook again to accept it.",
    "protocol": "The answer is not valid HTTP.",
}
_NO_ANSWER = "No complete answer in time."


class Address(NamedTuple):
    """A URL as it is called: the origin, then path and query."""

    base: str
    target: str


@dataclass(frozen=True, slots=True)
class Call:
    """Everything a call needs, so that no database is asked while waiting for the network."""

    address: Address
    address_class: str
    secret: bytes = field(repr=False)


class Answer(NamedTuple):
    """What came of a call: `error` says in plain words what is wrong, "" when the event was taken."""

    status: int = 0  # 0 = there was no answer
    error: str = ""
    retry_after_s: float = 0.0


# Saving


def split(url: str) -> Address:
    """The only reading of a webhook's URL there is. Raises `ValidationError` for "url"."""
    try:
        if any(char <= " " for char in url):  # some of them `urlsplit` would drop
            raise ValueError("The URL may not contain spaces or control characters.")
        parts = urlsplit(url)
        base = f"{parts.scheme}://{parts.netloc}"
        address = split_url(base)
    except ValueError as exc:
        raise ValidationError({"url": str(exc)}) from exc
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if address.scheme not in ("http", "https") or parts.fragment or not _TARGET.match(target):
        raise ValidationError({"url": "Write https://host[:port]/path, with %-escapes for what is not plain ASCII."})
    return Address(base, target)


def observe(url: str, *, internal: bool) -> str:
    """The class of the URL's address, seen now; not to be called inside a transaction.

    Raises `ValidationError` for "url": forbidden, unknown, internal without `internal`, or public without TLS.
    """
    address = split(url)
    try:
        found = observe_class(address.base)
    except ValueError as exc:
        raise ValidationError({"url": str(exc)}) from exc
    if found != Webhook.AddressClass.PUBLIC and not internal:
        label = Webhook.AddressClass(found).label.lower()
        raise ValidationError({"url": f"This address is internal ({label}). Allow that below if it is meant."})
    if found == Webhook.AddressClass.PUBLIC and not address.base.startswith("https:"):
        raise ValidationError({"url": "Events go over the internet with https:// only."})
    return found


def create(webhook: Webhook, *, actor: str, address_class: str) -> str:
    """Store a new webhook, told from now on; its secret, which is shown once. Raises `ValidationError`."""
    secret, webhook.ciphertext = _new_secret()
    webhook.cursor = order.newest()
    _write(webhook, None, actor, address_class)
    return secret


def change(webhook: Webhook, *, actor: str, address_class: str) -> None:
    """Store changes. One that was switched off, or moved, is tried anew; it goes on where it stood."""
    before = Webhook.objects.get(pk=webhook.pk)
    if (webhook.enabled and not before.enabled) or webhook.url != before.url:
        webhook.failures, webhook.failing_since, webhook.next_try_at = 0, None, None
    _write(webhook, before, actor, address_class)


def renew_secret(webhook: Webhook, *, actor: str) -> str:
    """A new secret instead of the old one, from the next call on."""
    secret, ciphertext = _new_secret()
    with transaction.atomic():
        Webhook.objects.filter(pk=webhook.pk).update(ciphertext=ciphertext, updated_at=timezone.now())
        data = {"object": object_of(webhook)}
        record("webhook.secret_renewed", actor=actor, target=webhook.name, data=data)
    return secret


def delete(webhook: Webhook, *, actor: str) -> None:
    """Forget a webhook."""
    with transaction.atomic():
        record("webhook.deleted", actor=actor, target=webhook.name, data={"object": object_of(webhook)})
        webhook.delete()


def _new_secret() -> tuple[str, str]:
    secret = _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode("ascii")
    return secret, open_vault().seal(secret, _BOUND_TO)


def _write(webhook: Webhook, before: Webhook | None, actor: str, address_class: str) -> None:
    split(webhook.url)
    webhook.address_class = address_class
    try:
        names.Wanted.parse(webhook.topics)
    except ValueError as exc:
        raise ValidationError({"topics": str(exc)}) from exc
    webhook.full_clean()
    changes = changed_fields(before, webhook)
    if before is not None and not changes:
        return
    told = {name: values for name, values in changes.items() if name not in _UNRECORDED}
    if "url" in told:  # path and query are often what lets one in
        told["url"] = tuple(None if url is None else split(str(url)).base for url in told["url"])  # type: ignore[assignment]
    with transaction.atomic():
        if before is None:
            webhook.save(force_insert=True)
        else:
            webhook.save(update_fields=[*changes, "updated_at"])
        what = "created" if before is None else "changed"
        data = {"object": object_of(webhook), "fields": recordable(told)}
        record(f"webhook.{what}", actor=actor, target=webhook.name, data=data)


# Calling


def call_of(webhook: Webhook) -> Call:
    """What a call needs. Raises `VaultError` when the secret cannot be opened."""
    secret = open_vault().open(webhook.ciphertext, _BOUND_TO)
    return Call(split(webhook.url), webhook.address_class, base64.b64decode(secret.removeprefix(_PREFIX)))


def body_of(told: Mapping[str, Any]) -> bytes:
    """The body for an event (`names.told`): as everywhere else, with the two fields of Standard Webhooks besides."""
    return _encode({"type": told["name"], "timestamp": told["at"], **told})


def signature(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`."""
    signed = b"%b.%d.%b" % (message_id.encode("ascii"), timestamp, body)
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode("ascii")


async def post(call: Call, message_id: str, body: bytes, *, timeout_s: float = TIMEOUT_S) -> Answer:
    """Make one call. Never raises: every failure is an answer. Of the receiver's only status and headers are read."""
    now = int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": f"hoosh/{__version__}",
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": signature(call.secret, message_id, now, body),
    }
    try:
        async with asyncio.timeout(timeout_s):
            client = open_client(call.address.base, call.address_class, headers=headers, timeout_s=timeout_s)
            async with client, client.stream("POST", call.address.target, content=body) as reply:
                return _judged(reply)
    except (UpstreamError, httpx.HTTPError, OSError, ValueError) as exc:  # TimeoutError is an OSError
        return Answer(error=_failure(exc))


def _judged(reply: httpx.Response) -> Answer:
    status = reply.status_code
    if 200 <= status < 300:
        return Answer(status)
    if 300 <= status < 400:
        return Answer(status, f"The receiver answered with a redirect ({status}), which is not followed.")
    if status == 410:
        return Answer(status, "The receiver wants no more events (410).")
    wait_s = _wished_s(reply.headers.get("retry-after", ""))
    return Answer(status, f"The receiver answered with an error ({status}).", wait_s)


def _wished_s(text: str) -> float:
    """The pause a receiver asks for, in seconds or by a date (RFC 9110, 10.2.3); 0 where it is neither."""
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), RETRY_AFTER_MAX_S)
    try:
        left_s = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(left_s, 0.0), RETRY_AFTER_MAX_S)


def _failure(exc: BaseException) -> str:
    """Our sentence for a call without an answer. The transport may have wrapped the cause in one of httpx."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, UpstreamError):
            return _FAILURES.get(seen.kind, _NO_ANSWER)
        seen = seen.__cause__
    return _NO_ANSWER if isinstance(exc, TimeoutError | httpx.TimeoutException) else _FAILURES["connect"]


def send_test(webhook: Webhook) -> Answer:
    """Send an event that stands nowhere else, now and once, and note what came of it. Blocks for seconds."""
    number = f"test_{secrets.token_hex(8)}"
    data = {"webhook": webhook.name}
    told = names.told(number, timezone.now(), names.KINDS[names.TEST].topic, names.TEST, "info", data)
    try:
        call = call_of(webhook)
    except VaultError:
        answer = Answer(error=UNSEALED)
    else:
        answer = asyncio.run(post(call, number, body_of(told)))
    noted = {"last_at": timezone.now(), "last_status": answer.status or None, "last_error": answer.error[:300]}
    Webhook.objects.filter(pk=webhook.pk).update(**noted)
    return answer


UNSEALED = "The stored secret cannot be opened with this vault key. Make a new one."
