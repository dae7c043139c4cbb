"""The sign-in form of admin and the team page: name, password and, for who has set one up, a code.

All three are asked at once and refused in the same words, so that neither a name nor a password is confirmed to who
does not have all of them.
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_login_failed
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from hoosh_site.people import factors, lockout
from hoosh_site.people.models import TeamLead

LOCKED = "locked"
_REFUSED = "The name, the password or the code is wrong, or this account may not sign in here."
_TOO_MANY = "Too many sign-ins failed. Try again in a while, or have somebody unlock you."


class SignInForm(AdminAuthenticationForm):
    """Asks for everything at once. Staff and team leads may sign in."""

    code = forms.CharField(
        required=False,
        max_length=32,
        strip=True,
        widget=forms.TextInput(attrs={"autocomplete": "one-time-code", "autocapitalize": "off", "spellcheck": "false"}),
        help_text="From your authenticator app, or a recovery code. Blank if you have not set one up.",
    )
    error_messages = {"invalid_login": _REFUSED, "inactive": _REFUSED}

    def clean(self) -> dict[str, Any]:
        """Count the attempt, then look at all three."""
        attempt = lockout.begin(str(self.cleaned_data.get("username", "")), address_of(self.request))
        if attempt.locked_until is not None:
            raise ValidationError(_TOO_MANY, code=LOCKED)
        try:
            data: dict[str, Any] = super().clean()
            if self.get_user() is None:
                raise self.get_invalid_login_error()
            self._check_code()
        except ValidationError:
            self.user_cache = None
            attempt.failed()
            raise
        attempt.succeeded()
        return data

    def confirm_login_allowed(self, user: Any) -> None:
        """Staff, and leads of a team."""
        if not user.is_active or not (user.is_staff or leads(user)):
            raise self.get_invalid_login_error()

    def _check_code(self) -> None:
        user: Any = self.get_user()
        factor = factors.confirmed(user)
        if factor is None:
            return
        if not factors.accepts(factor, self.cleaned_data.get("code", "")):
            told = {"username": user.get_username()}
            user_login_failed.send(sender=__name__, credentials=told, request=self.request)
            raise self.get_invalid_login_error()
        user.hoosh_factor = factor.pk


def leads(user: User) -> bool:
    """Whether somebody leads a team."""
    return TeamLead.objects.filter(user=user).exists()


def address_of(request: HttpRequest | None) -> str:
    """The client's address, as `HOOSH_TRUSTED_PROXIES` has it told."""
    return str(request.META.get("REMOTE_ADDR") or "") if request is not None else ""
