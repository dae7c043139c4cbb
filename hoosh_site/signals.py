"""Sign-ins, sign-outs and refused sign-ins become audit entries."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.http import HttpRequest

from audit.record import record
from hoosh_site.people.session import EXTERNAL, FACTOR

NOBODY = "(no name)"
_NAME_LIMIT = 150  # as long as a user name may be; what is typed there can be anything


def connect() -> None:
    """Start listening. Safe to call twice."""
    user_logged_in.connect(signed_in, dispatch_uid="hoosh.signed_in")
    user_logged_out.connect(signed_out, dispatch_uid="hoosh.signed_out")
    user_login_failed.connect(refused, dispatch_uid="hoosh.sign_in_refused")


def _visible(name: object) -> str:
    """A typed name as it may be stored: bounded, without characters a database refuses or a terminal obeys."""
    return "".join(char if char.isprintable() else "?" for char in str(name)[:_NAME_LIMIT])


def _personal(request: HttpRequest | None) -> dict[str, str]:
    return {"address": request.META.get("REMOTE_ADDR", "")} if request is not None else {}


def signed_in(sender: type, request: HttpRequest | None, user: Any, **kwargs: Any) -> None:
    """An operator signed in; the session keeps by what."""
    factor = getattr(user, "hoosh_factor", None)
    if request is not None and factor is not None:
        request.session[FACTOR] = factor
    data = {}
    if factor is not None:  # besides or instead of a password
        data["with"] = "identity provider" if factor == EXTERNAL else "code"
    name = user.get_username()
    record("operator.signed_in", actor=name, target=name, about=True, data=data, personal=_personal(request))


def signed_out(sender: type, request: HttpRequest | None, user: Any, **kwargs: Any) -> None:
    """An operator signed out; an expired session has no user and is not recorded."""
    if user is not None:
        name = user.get_username()
        record("operator.signed_out", actor=name, target=name, about=True, personal=_personal(request))


def refused(sender: str, credentials: dict[str, Any], request: HttpRequest | None = None, **kwargs: Any) -> None:
    """Somebody gave a wrong name or password. The password is not in `credentials` (Django masks it)."""
    record(
        "operator.sign_in_refused",
        target=_visible(credentials.get("username", "")) or NOBODY,
        about=True,  # also of nobody's name: what is typed there may be a password
        level="warning",
        personal=_personal(request),
    )
