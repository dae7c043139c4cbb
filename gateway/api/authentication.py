"""Who asks the control API: the holder of an API key, or an operator signed in to the admin.

A key may come in any of four headers. It is looked up by the SHA-256 digest of its text, so no query ever sees the
text, and a key that was revoked, has expired or belongs to a disabled agent or team opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import AbstractUser
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from budgets.models import ApiKey
from budgets.validation import split
from gateway.admission import CARRIERS, credential
from gateway.errors import UnauthorizedError
from gateway.reach import Reach

OPERATOR_SCOPE = "operator"
MAX_KEY_BYTES = 512  # nothing longer is hashed


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated party: exactly one of `key` and `user` is set."""

    key: ApiKey | None = None
    user: AbstractUser | None = None
    is_authenticated: bool = True

    @property
    def name(self) -> str:
        """What audit entries and logs call this caller; never the key's text."""
        if self.key is not None:
            return f"key:{self.key.prefix}"
        return self.user.get_username() if self.user is not None else ""

    @property
    def is_operator(self) -> bool:
        """Whether the caller may see and do what concerns the whole gateway."""
        if self.key is not None:
            return OPERATOR_SCOPE in scopes(self.key)
        return self.user is not None and self.user.has_perm("providers.change_gatewaysettings")

    def may_see_usage_of(self, key_id: int) -> bool:
        """Whether the caller may read what a key used: its own, or any for operators."""
        if self.key is not None and self.key.pk == key_id:
            return True
        return self.is_operator or (self.user is not None and self.user.has_perm("budgets.view_usage"))


def scopes(key: ApiKey) -> frozenset[str]:
    """The key's scopes."""
    return frozenset(part.strip() for part in key.scopes.split(",") if part.strip())


def presented_key(request: Request) -> bytes | None:
    """The key in the request's headers, None when no header carries one.

    Raises what the request path raises for the same headers: two different keys are a 400, another scheme is a 401.
    """
    headers = [(name.lower().encode("latin-1"), value.encode("utf-8")) for name, value in request.headers.items()]
    if not any(name in CARRIERS for name, _ in headers):
        return None
    return credential(headers)


def find_key(secret: bytes) -> ApiKey:
    """The live key with this text. Raises `UnauthorizedError` saying what is wrong with it."""
    if len(secret) > MAX_KEY_BYTES:
        raise UnauthorizedError("This API key is not known or was revoked.")
    digest = hashlib.sha256(secret).hexdigest()
    key = ApiKey.objects.select_related("agent__team").filter(digest=digest).first()
    if key is None or not hmac.compare_digest(key.digest, digest) or key.revoked_at is not None:
        raise UnauthorizedError("This API key is not known or was revoked.")
    if key.expires_at is not None and key.expires_at <= timezone.now():
        raise UnauthorizedError("This API key has expired.", code="key_expired")
    if not key.agent.enabled or not key.agent.team.enabled:
        raise UnauthorizedError("The agent or team of this API key is disabled.", code="key_disabled")
    return key


class ApiKeyAuthentication(BaseAuthentication):
    """A key from any of the four headers; without one, the session of a staff member (with CSRF protection)."""

    def authenticate(self, request: Request) -> tuple[Caller, Any] | None:
        """The caller, or None when the request says nothing about who asks."""
        secret = presented_key(request)
        if secret is not None:
            key = find_key(secret)
            if key.addresses_allowed:
                Reach((), split(key.addresses_allowed)).check("", request.META.get("REMOTE_ADDR") or "")
            return Caller(key=key), key
        user = getattr(request._request, "user", None)
        if user is None or not user.is_active or not user.is_staff:
            return None
        SessionAuthentication().enforce_csrf(request)
        return Caller(user=user), None

    def authenticate_header(self, request: Request) -> str:
        """Makes a missing key a 401 that says how to send one."""
        return 'Bearer realm="hoosh"'


def caller_of(request: Request) -> Caller:
    """The caller of a view that `HasKey` or `IsOperator` guards."""
    caller: object = request.user
    assert isinstance(caller, Caller)
    return caller


class HasKey(BasePermission):
    """Any live key, or a signed-in member of staff."""

    message = "An API key is needed."

    def has_permission(self, request: Request, view: Any) -> bool:
        """True for every authenticated caller."""
        return isinstance(request.user, Caller)


class IsOperator(BasePermission):
    """A key with the operator scope, or an operator signed in to the admin."""

    message = "This needs an API key with the operator scope."

    def has_permission(self, request: Request, view: Any) -> bool:
        """True for operators."""
        return isinstance(request.user, Caller) and request.user.is_operator
