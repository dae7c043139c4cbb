"""What a worker says about itself, from memory: `/livez`, `/readyz`, `GET|HEAD /` and `/v1/health`.

Nothing here asks control, a provider or a database, so the answers stay true and quick while those are away.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

_JSON = (b"content-type", b"application/json")
_NO_STORE = (b"cache-control", b"no-store")


class Answer(NamedTuple):
    """A complete reply: status, headers (lower-case names, content-length included), body."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Vitals(Protocol):
    """What the answers are made of; the worker's runtime has these attributes."""

    @property
    def ready(self) -> bool:
        """True while a configuration is loaded and the worker is not draining."""

    @property
    def config_version(self) -> int:
        """Number of the configuration in use; 0 before the first."""

    @property
    def journal_writable(self) -> bool:
        """False after a failed journal write (disk full), until one works again."""

    @property
    def providers_configured(self) -> int:
        """Enabled providers in the configuration in use."""

    @property
    def providers_down(self) -> int:
        """How many of them the probes or the circuit breakers hold for down."""


def answer(status: int, payload: dict[str, object], *, head: bool = False) -> Answer:
    """A JSON reply; with `head` the body is left out and its length is still told."""
    body = msgspec.json.encode(payload)
    headers = [_JSON, _NO_STORE, (b"content-length", b"%d" % len(body))]
    return Answer(status, headers, b"" if head else body)


def livez(*, head: bool = False) -> Answer:
    """The process runs and its loop turns: always 200."""
    return answer(200, {"status": "ok"}, head=head)


def readyz(vitals: Vitals, *, head: bool = False) -> Answer:
    """200 when requests may be sent here: configuration present, not draining, journal writable. Otherwise 503."""
    reasons = []
    if not vitals.ready:
        reasons.append("draining" if vitals.config_version else "no configuration yet")
    if not vitals.journal_writable:
        reasons.append("the journal cannot be written (is the disk full?)")
    if reasons:
        return answer(503, {"status": "not ready", "reasons": reasons}, head=head)
    return answer(200, {"status": "ready", "config_version": vitals.config_version}, head=head)


def root(version: str, *, head: bool = False) -> Answer:
    """Who is there: clients send `HEAD /` to see whether an address is a gateway at all."""
    links = {"admin": "/admin/", "models": "/v1/models", "health": "/v1/health", "schema": "/api/schema/"}
    return answer(200, {"name": "hoosh", "version": version, "status": "ok", "links": links}, head=head)


def health(vitals: Vitals, version: str, *, head: bool = False) -> Answer:
    """The gateway's state in one word: ok, degraded (some providers down), down (all of them), unavailable (not ready).

    200 for the first two, 503 for the others. Without providers there is nothing to be down: ok.
    """
    configured, down = vitals.providers_configured, vitals.providers_down
    if not vitals.ready or not vitals.journal_writable:
        status, word = 503, "unavailable"
    elif configured and down >= configured:
        status, word = 503, "down"
    else:
        status, word = 200, "degraded" if down else "ok"
    payload: dict[str, object] = {
        "status": word,
        "version": version,
        "config_version": vitals.config_version,
        "providers_configured": configured,
        "providers_down": down,
    }
    return answer(status, payload, head=head)
