"""API keys: made, imported, rotated and revoked here, nowhere else. The text of a key is never stored."""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
from collections.abc import Iterable

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from budgets import access
from budgets.models.access import Agent, ApiKey, Pool

KEY_PREFIX = "hk-"
_KEY_BYTES = 32
_VISIBLE = 11  # characters of our own keys that are shown: "hk-" and eight more
_VISIBLE_FOREIGN = 6
TOKEN_LIMIT = 512


def digest_of(text: str) -> str:
    """SHA-256 of a key's whole text, in hex: what is stored and looked up."""
    return hashlib.sha256(text.encode()).hexdigest()


def new_text() -> str:
    """A fresh key: `hk-` and 43 characters carrying 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def create_key(
    agent: Agent,
    pool: Pool,
    name: str,
    scopes: Iterable[str] = ("inference",),
    *,
    actor: str,
    models_allowed: Iterable[str] = (),
    own_pool: Pool | None = None,
    pools_allowed: Iterable[str] = (),
    expires_at: dt.datetime | None = None,
    limits: tuple[int | None, int | None, int | None] = (None, None, None),
    queue_class: str = "interactive",
    managed_by: str = "",
) -> tuple[ApiKey, str]:
    """Make a key that draws on `pool` where a request names none, and always on `own_pool` and the budgets above it.

    `pools_allowed` are globs over names of further pools a request may name; `limits` are requests per minute, tokens
    per minute and requests at once; `queue_class` is one of `budgets.records.QUEUE_CLASSES`. Returns the row and the
    text, which exists nowhere else: show it once.
    """
    if expires_at is not None and expires_at <= timezone.now():
        raise ValidationError({"expires_at": "The key would already be expired."})
    text = new_text()
    requests_per_minute, tokens_per_minute, concurrent_requests = limits
    key = ApiKey(
        agent=agent,
        pool=pool,
        name=name,
        prefix=text[:_VISIBLE],
        digest=digest_of(text),
        own_pool=own_pool,
        scopes=",".join(scopes),
        models_allowed=",".join(models_allowed),
        pools_allowed=",".join(pools_allowed),
        expires_at=expires_at,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent_requests=concurrent_requests,
        queue_class=queue_class,
        managed_by=managed_by,
    )
    return access.write(key, what="key", actor=actor), text


def import_key(
    text: str,
    agent: Agent,
    pool: Pool,
    name: str,
    scopes: Iterable[str] = ("inference",),
    *,
    actor: str,
    managed_by: str,
) -> ApiKey:
    """Take over a token made elsewhere, of any shape. Raises `ValidationError` when it is not one, or already known."""
    check_token(text)
    key = ApiKey(
        agent=agent,
        pool=pool,
        name=name,
        prefix=_foreign_prefix(text),
        digest=digest_of(text),
        scopes=",".join(scopes),
        managed_by=managed_by,
    )
    return access.write(key, what="key", actor=actor, action="imported")


def check_token(text: str) -> None:
    """Refuse what cannot be sent as a bearer token: blanks, control or non-ASCII characters, over 512 characters."""
    if not text or len(text) > TOKEN_LIMIT or not all("!" <= character <= "~" for character in text):
        raise ValidationError(f"A token has 1 to {TOKEN_LIMIT} visible ASCII characters and no blanks.")


def _foreign_prefix(text: str) -> str:
    return text[: min(_VISIBLE_FOREIGN, len(text) // 3)]  # of a short token not even six characters may be shown


def update_key(key: ApiKey, *, actor: str) -> ApiKey:
    """Change a key's name, agent, pools, scopes, models, expiry or limits."""
    return access.write(key, what="key", actor=actor)


def revoke_key(key: ApiKey, *, actor: str) -> ApiKey:
    """Stop a key for good; workers know within a second. Revoking twice changes nothing."""
    if key.revoked_at is None:
        key.revoked_at = timezone.now()
        access.write(key, what="key", actor=actor, action="revoked")
    return key


def rotate_key(key: ApiKey, *, actor: str, overlap: dt.timedelta = dt.timedelta(days=1)) -> tuple[ApiKey, str]:
    """A new key with the rights of an old one, which goes on working for `overlap` and then expires."""
    if key.revoked_at is not None:
        raise ValidationError("A revoked key is not rotated; create a new one.")
    until = timezone.now() + overlap
    with transaction.atomic():
        made, text = create_key(
            key.agent,
            key.pool,
            key.name,
            [key.scopes],
            actor=actor,
            models_allowed=[key.models_allowed] if key.models_allowed else (),
            own_pool=key.own_pool,
            pools_allowed=[key.pools_allowed] if key.pools_allowed else (),
            expires_at=key.expires_at,
            limits=key.limits,
            queue_class=key.queue_class,
        )
        if key.expires_at is None or key.expires_at > until:
            key.expires_at = until
            access.write(key, what="key", actor=actor, action="rotated")
    return made, text
