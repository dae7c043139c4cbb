"""What the tests of signing in share: people with an authenticator app, and the sign-in form."""

from __future__ import annotations

import base64
import time
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client

from audit.models import OutboxEntry
from hoosh_site.people import factors
from hoosh_site.people.models import SecondFactor


def code_of(secret: str, *, steps: int = 0) -> str:
    """What an authenticator app shows now, or so many steps of 30 s later."""
    totp = TOTP(base64.b32decode(secret), 6, SHA1(), 30)
    return totp.generate(int(time.time()) + 30 * steps).decode()


def with_app(user: User) -> tuple[str, list[str]]:
    """Set up an authenticator app; its secret and the recovery codes. The code of one step ago is used up."""
    factor = factors.begin(user)
    secret = factors.secret_of(factor)
    return secret, factors.confirm(factor, code_of(secret, steps=-1))


def sign_in(client: Client, name: str, password: str, code: str = "", **more: Any) -> HttpResponse:
    """Send the form."""
    form = {"username": name, "password": password, "code": code, "next": "/admin/"}
    return client.post("/admin/login/", form, **more)


def is_in(client: Client) -> bool:
    """Whether somebody is signed in."""
    return "_auth_user_id" in client.session


def actions(start: str = "") -> list[str]:
    """The audit entries, the oldest first."""
    found = OutboxEntry.objects.filter(action__startswith=start).order_by("id")
    return list(found.values_list("action", flat=True))


def factor_of(user: User) -> SecondFactor:
    """Read anew."""
    return SecondFactor.objects.get(user=user)
