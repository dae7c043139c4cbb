"""Second factors: an authenticator app (TOTP, RFC 6238: six digits, 30 s, SHA-1) and codes for when it is lost.

The secret is sealed by the vault; of recovery codes only digests are kept. A code opens one sign-in: its step and all
before are used up with it, also where two requests bring it at once.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time

import segno
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from hoosh_site.people import noting
from hoosh_site.people.models import RecoveryCode, SecondFactor
from providers.services import open_vault
from providers.vault import VaultError

STEP_S = 30
DIGITS = 6
CODES = 10
_SECRET_BYTES = 20
_CODE_BYTES = 10  # 80 random bits: a plain digest cannot be searched
_GROUP = 4
_AROUND = (0, -1, 1)  # clocks may be a step apart


def confirmed(user: User) -> SecondFactor | None:
    """The second factor that is asked for at this user's sign-in."""
    return SecondFactor.objects.filter(user=user, confirmed_at__isnull=False).first()


def begin(user: User) -> SecondFactor:
    """Start to set up a factor with a new secret, in place of one that was never confirmed.

    A confirmed one is left as it is: it is removed first, with a code.
    """
    with transaction.atomic():
        kept = confirmed(user)
        if kept is not None:
            return kept
        text = base64.b32encode(secrets.token_bytes(_SECRET_BYTES)).decode("ascii")
        values = {"secret": open_vault().seal(text, _bound(user)), "last_step": 0}
        return SecondFactor.objects.update_or_create(user_id=user.pk, defaults=values)[0]


def secret_of(factor: SecondFactor) -> str:
    """The secret in base32, as an app takes it. Raises `VaultError` where the vault's key is not the one it was."""
    return open_vault().open(factor.secret, _bound(factor.user))


def address_of(factor: SecondFactor, issuer: str) -> str:
    """The `otpauth://` address an app reads from a QR code."""
    return _totp(factor).get_provisioning_uri(factor.user.get_username(), issuer)


def picture(address: str) -> str:
    """The address as a QR code: an inline SVG without styles or scripts, dark on white in every theme."""
    return segno.make(address, error="m").svg_inline(
        scale=5, border=3, dark="#000", light="#fff", title="QR code for an authenticator app", omitsize=False
    )


def confirm(factor: SecondFactor, code: str) -> list[str]:
    """Put a factor in force with a first code of the app; the recovery codes, shown once. [] = the code is wrong."""
    with transaction.atomic():
        if not _accept(factor, code):
            return []
        SecondFactor.objects.filter(pk=factor.pk).update(confirmed_at=timezone.now())
        noting.note(factor.user, "second_factor_set", actor=factor.user.get_username())
        return _new_codes(factor)


def renew_codes(factor: SecondFactor) -> list[str]:
    """New recovery codes; the old ones open nothing any more."""
    with transaction.atomic():
        noting.note(factor.user, "recovery_codes_renewed", actor=factor.user.get_username())
        return _new_codes(factor)


def remove(factor: SecondFactor, *, actor: str) -> None:
    """Take a factor and its recovery codes away."""
    with transaction.atomic():
        action = "removed" if actor == factor.user.get_username() else "reset"
        noting.note(factor.user, f"second_factor_{action}", actor=actor, level="warning")
        factor.delete()


def accepts(factor: SecondFactor, text: str) -> bool:
    """Whether a code of the app, or a recovery code, opens a sign-in; it is used up then."""
    plain = "".join(text.split()).replace("-", "").upper()
    if len(plain) == DIGITS and plain.isascii() and plain.isdigit():
        return _accept(factor, plain)
    used = RecoveryCode.objects.filter(factor=factor, digest=_digest(plain), used_at__isnull=True)
    if not used.update(used_at=timezone.now()):
        return False
    left = factor.recovery_codes.filter(used_at__isnull=True).count()
    user = factor.user
    noting.note(user, "recovery_code_used", actor=user.get_username(), level="warning", data={"left": left})
    return True


def codes_left(factor: SecondFactor) -> int:
    """How many recovery codes were not used yet."""
    return RecoveryCode.objects.filter(factor=factor, used_at__isnull=True).count()


def _accept(factor: SecondFactor, code: str) -> bool:
    plain = "".join(code.split())
    if not (len(plain) == DIGITS and plain.isascii() and plain.isdigit()):
        return False
    try:
        totp = _totp(factor)
    except VaultError:
        return False
    now = int(time.time()) // STEP_S
    for step in (now + each for each in _AROUND):
        if secrets.compare_digest(totp.generate(step * STEP_S), plain.encode("ascii")):
            fresh = SecondFactor.objects.filter(Q(last_step__lt=step), pk=factor.pk)
            return bool(fresh.update(last_step=step))
    return False


def _totp(factor: SecondFactor) -> TOTP:
    return TOTP(base64.b32decode(secret_of(factor)), DIGITS, SHA1(), STEP_S)  # noqa: S303 - what every app speaks


def _new_codes(factor: SecondFactor) -> list[str]:
    texts = [base64.b32encode(secrets.token_bytes(_CODE_BYTES)).decode("ascii") for _ in range(CODES)]
    RecoveryCode.objects.filter(factor=factor).delete()
    RecoveryCode.objects.bulk_create([RecoveryCode(factor=factor, digest=_digest(text)) for text in texts])
    return ["-".join(text[at : at + _GROUP] for at in range(0, len(text), _GROUP)) for text in texts]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _bound(user: User) -> str:
    return f"second factor of user {user.pk}"
