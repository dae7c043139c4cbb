"""People in the log: random ids in place of names, and what is personal sealed with a key of theirs (AES-256-GCM).

An entry commits to the sealed bytes. Name and key are in one row of `Subject` only; erasing it makes every entry about
the person anonymous and leaves each proof as it was.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.utils import timezone

from audit import canonical
from audit.models import Subject

KEY_BYTES, NONCE_BYTES = 32, 12
NAME_MAX = 150
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Noted(Protocol):
    """What is looked at of a row of an outbox."""

    actor: str
    target: str
    about: bool
    personal: Any
    number: int | None


class People:
    """The subjects of some entries, by name; those that are new are made. In the transaction of the entries."""

    def __init__(self, rows: Iterable[Noted], using: str) -> None:
        """Read, or make, everybody in `rows`."""
        names = {name[:NAME_MAX] for row in rows for name in (row.actor, row.target if row.about else "") if name}
        known = Subject.objects.using(using).filter(name__in=names).exclude(key=None) if names else ()
        self._by_name = {row.name: row for row in known}
        new = [
            Subject(id=new_id(), name=name, key=os.urandom(KEY_BYTES)) for name in sorted(names - set(self._by_name))
        ]
        if new:
            Subject.objects.using(using).bulk_create(new)
            self._by_name |= {row.name: row for row in new}

    def id_of(self, name: str) -> str:
        """The subject of a name; "" of nobody."""
        return self._by_name[name[:NAME_MAX]].pk if name else ""

    def sealed(self, row: Noted, source: str) -> dict[str, str]:
        """The fields of an entry's body that have its people: `sealed` with the actor's key, `sealed_target`."""
        about_target = row.about and bool(row.target)
        personal = dict(row.personal or {})
        same = about_target and row.actor[:NAME_MAX] == row.target[:NAME_MAX]
        found: dict[str, str] = {}
        place = f"{source}/{row.number}"
        if row.actor:
            plain = {**(personal if same or not about_target else {}), "actor": row.actor}
            found["sealed"] = self._seal(row.actor, {**plain, "target": row.target} if same else plain, place)
        if about_target and not same:
            found["sealed_target"] = self._seal(row.target, {**personal, "target": row.target}, place)
        return found

    def _seal(self, name: str, plain: Mapping[str, Any], place: str) -> str:
        return seal(bytes(self._by_name[name[:NAME_MAX]].key or b""), plain, place)


def new_id() -> str:
    """A random id."""
    return f"s-{secrets.token_hex(16)}"


def seal(key: bytes, plain: Mapping[str, Any], place: str) -> str:
    """Canonical JSON sealed for one place in the log ("<source>/<number>"): base64 of nonce and ciphertext."""
    nonce = os.urandom(NONCE_BYTES)
    return base64.b64encode(nonce + AESGCM(key).encrypt(nonce, canonical.encode(plain), place.encode())).decode()


def open_sealed(key: bytes, sealed: str, place: str) -> dict[str, Any] | None:
    """What `seal` was given, values as text; None when the key or the place is another, or the text damaged."""
    try:
        data = base64.b64decode(sealed, validate=True)
        return _decode(AESGCM(key).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], place.encode()))
    except (InvalidTag, binascii.Error, ValueError, msgspec.DecodeError):
        return None


def opened(body: Mapping[str, Any], known: Mapping[str, Subject]) -> tuple[dict[str, Any], bool]:
    """What is sealed in an entry's body, and whether something of it cannot be opened any more.

    `known` are subjects by id: those the entry names, as far as they are there.
    """
    found: dict[str, Any] = {}
    lost = False
    place = f"{body.get('source', '')}/{body.get('number', '')}"
    for field, whose in (("sealed", "actor"), ("sealed_target", "target")):
        text = body.get(field)
        if not isinstance(text, str):
            continue
        subject = known.get(str(body.get(whose, "")))
        plain = open_sealed(bytes(subject.key), text, place) if subject is not None and subject.key else None
        lost = lost or plain is None
        found |= plain or {}
    return found, lost


def ids_of(name: str) -> list[str]:
    """The subjects of a name that were not erased."""
    return list(Subject.objects.filter(name=name[:NAME_MAX]).exclude(key=None).values_list("pk", flat=True))


def erase(subject_id: str, using: str) -> bool:
    """Destroy a subject's name and key, in the transaction of the entry that tells of it; False when it was done."""
    rows = Subject.objects.using(using).filter(pk=subject_id).exclude(key=None)
    return rows.update(name="", key=None, erased_at=timezone.now()) == 1
