"""Who is calling: one credential, one key, from memory. Pure but for the clock."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from typing import TypeVar

from budgets.records import QUEUE_CLASSES
from gateway.errors import BadRequestError, UnauthorizedError
from gateway.exchange import Headers
from gateway.snapshot import Key

# Every carrier goes through `credential`, so that no limit can be dodged by using another header.
CARRIERS = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})
_READ = CARRIERS | {b"content-length", b"content-encoding", b"idempotency-key", b"cache-control"}
OURS = b"x-hoosh-"
_YES = (b"1", b"true", b"yes")
_CLASSES = {name.encode(): rank for rank, name in enumerate(QUEUE_CLASSES)}
SESSION_BYTES = 256
_T = TypeVar("_T")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}\Z")


class Head:
    """What the gateway reads of a request's headers, in one pass."""

    __slots__ = (
        *("cache_control", "coding", "explain", "idempotency", "is_inner", "length", "pool", "priority", "route"),
        *("secret", "session", "tags"),
    )

    def __init__(self, headers: Headers) -> None:
        """Raises UnauthorizedError without a credential, BadRequestError when two of them or of the keys differ."""
        secret: bytes | None = None
        self.cache_control = self.coding = self.pool = self.route = self.session = self.tags = b""
        self.explain: bool | None = None
        self.priority: int | None = None  # the class it asks for, a place in `QUEUE_CLASSES`
        self.is_inner = False
        self.idempotency: bytes | None = None
        self.length = -1
        for name, value in headers:
            if name not in _READ:
                if name.startswith(OURS):
                    self._read_ours(name, value)
                continue
            if name in CARRIERS:
                secret = _same(secret, _token(name, value))
            elif name == b"content-length":
                self.length = int(value) if value.isdigit() else -1
            elif name == b"cache-control":
                self.cache_control = value if not self.cache_control else b"%b,%b" % (self.cache_control, value)
            elif name == b"idempotency-key":
                if self.idempotency is not None and self.idempotency != value:
                    raise BadRequestError(
                        "The request carries two different Idempotency-Key headers. Send exactly one.",
                        param="idempotency-key",
                        code="invalid_idempotency_key",
                    )
                self.idempotency = value
            else:
                self.coding = value
        if not secret:
            raise UnauthorizedError()
        self.secret = secret

    @classmethod
    def inner(cls, *headers: tuple[bytes, bytes]) -> Head:
        """The head of a request that the gateway makes itself. Its key is known: what stands for one is not read."""
        head = cls([(b"x-api-key", b"-"), *headers])
        head.is_inner = True
        return head

    def _read_ours(self, name: bytes, value: bytes) -> None:
        """The gateway's own headers; others of that prefix are left alone. Each may be there again with the same value;
        with another it is refused, but tags are a list."""
        if name == b"x-hoosh-pool":
            self.pool = _only(name, self.pool or None, value)
        elif name == b"x-hoosh-tags":
            self.tags = value if not self.tags else b"%b,%b" % (self.tags, value)
        elif name == b"x-hoosh-route":
            self.route = _only(name, self.route or None, value.strip())
        elif name == b"x-hoosh-session":
            self.session = _only(name, self.session or None, value[:SESSION_BYTES])
        elif name == b"x-hoosh-explain":
            self.explain = _only(name, self.explain, value.strip().lower() in _YES)
        elif name == b"x-hoosh-priority":
            self.priority = _only(name, self.priority, _class_of(value))


def _only(name: bytes, known: _T | None, value: _T) -> _T:
    """The value of a header, unless another one was read before."""
    if known is not None and known != value:
        shown = name.decode("ascii")
        raise BadRequestError(f"The header '{shown}' is there twice, with different values.", param=shown)
    return value


def _class_of(value: bytes) -> int:
    rank = _CLASSES.get(value.strip().lower())
    if rank is None:
        raise BadRequestError(
            f"The header 'x-hoosh-priority' must be one of {', '.join(QUEUE_CLASSES)}.", param="x-hoosh-priority"
        )
    return rank


def credential(headers: Headers) -> bytes:
    """The one credential of a request. Raises UnauthorizedError without one, BadRequestError when two differ."""
    found: bytes | None = None
    for name, value in headers:
        if name in CARRIERS:
            found = _same(found, _token(name, value))
    if not found:
        raise UnauthorizedError()
    return found


def _token(name: bytes, value: bytes) -> bytes:
    if name == b"authorization":
        scheme, _, value = value.partition(b" ")
        if scheme.lower() != b"bearer":
            raise UnauthorizedError("The Authorization header must be 'Bearer' and an API key.")
    return value.strip()


def _same(known: bytes | None, value: bytes) -> bytes:
    if known is not None and known != value:
        raise BadRequestError(
            "The request carries two different credentials. Send exactly one.", code="conflicting_credentials"
        )
    return value


def find_key(keys: Mapping[bytes, Key], secret: bytes) -> Key:
    """The key a credential belongs to. Looked up by its whole SHA-256, so nothing about others leaks in time."""
    return usable(keys.get(hashlib.sha256(secret).digest()))


def usable(key: Key | None) -> Key:
    """The key, if it may be used now. Raises UnauthorizedError else, also for None."""
    if key is None or not key.record.enabled:
        raise UnauthorizedError("This API key is not known or was revoked.")
    if key.record.expires_at is not None and key.record.expires_at <= time.time():
        raise UnauthorizedError("This API key has expired.", code="key_expired")
    return key


def client_request_id(headers: Headers) -> bytes:
    """The caller's own x-request-id if it is sane (1 to 128 plain characters), else nothing."""
    for name, value in headers:
        if name == b"x-request-id" and REQUEST_ID.match(value):
            return value
    return b""
