"""Checkpoints as signed notes (C2SP signed-note, tlog-checkpoint), and the keys that sign them (Ed25519, RFC 8032).

A checkpoint's text is six lines: origin, size, base64 root, `time`, `epoch`, `previous`. Then an empty line and one
signature line per key. A public key is written as a "vkey": name, hash and key, joined by "+". Pure but for the Ed25519
of `cryptography`; imports nothing of Django.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

NO_PREVIOUS = "-"
_ALGORITHM = b"\x01"  # Ed25519, as C2SP signed-note numbers it
_SIGNATURE_MARK = "— "
_TEXT = re.compile(
    r"(?P<origin>[!-~]+)\n(?P<size>0|[1-9][0-9]{0,18})\n(?P<root>[A-Za-z0-9+/]{43}=)\n"
    r"time (?P<at>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z)\n"
    r"epoch (?P<epoch>[1-9][0-9]{0,8})\nprevious (?P<previous>-|[0-9a-f]{64})\n"
)
_SIGNATURE = re.compile(r"— (?P<name>[^\s+]+) (?P<blob>[A-Za-z0-9+/]+={0,2})")


class NoteError(ValueError):
    """A note, checkpoint or key that is malformed or not signed as it should be."""


@dataclass(frozen=True, slots=True)
class Vkey:
    """A public key as notes know it."""

    name: str  # "hoosh/<instance>"
    hash: bytes  # 4 bytes
    public: bytes  # 32 bytes

    def __str__(self) -> str:
        return f"{self.name}+{self.hash.hex()}+{_base64(_ALGORITHM + self.public)}"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line of a note."""

    name: str
    key_hash: bytes
    signature: bytes  # 64 bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A parsed checkpoint; that it parses says nothing about its signatures."""

    origin: str  # "hoosh/<instance>/<log name>"
    size: int
    root: bytes
    at: str
    epoch: int
    previous: str  # hex SHA-256 of the whole previous note, or "-"
    text: str  # what is signed
    signatures: tuple[Signature, ...]


def instance_of(public: bytes) -> str:
    """The instance's id: the first 16 hexadecimal digits of the SHA-256 of its first public key ever."""
    return sha256(public).hexdigest()[:16]


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of the public key."""
    return key.public_key().public_bytes_raw()


def make_vkey(name: str, public: bytes) -> Vkey:
    """The verification key of this name."""
    return Vkey(name, sha256(name.encode() + b"\n" + _ALGORITHM + public).digest()[:4], public)


def parse_vkey(text: str) -> Vkey:
    """Read `str(vkey)`; raises NoteError for anything but its exact form."""
    parts = text.split("+", 2)
    if len(parts) != 3 or not parts[0]:
        raise NoteError("a key is written as name+hash+base64")
    blob = _unbase64(parts[2])
    if len(blob) != 33 or blob[:1] != _ALGORITHM:
        raise NoteError("the key is not an Ed25519 key")
    vkey = make_vkey(parts[0], blob[1:])
    if str(vkey) != text:
        raise NoteError("the key's hash is not the one of its name and bytes")
    return vkey


def checkpoint_text(origin: str, size: int, root: bytes, *, at: str, epoch: int, previous: str) -> str:
    """What is signed: `at` as `canonical.moment_text` writes it, `previous` as `note_hash` or NO_PREVIOUS."""
    text = f"{origin}\n{size}\n{_base64(root)}\ntime {at}\nepoch {epoch}\nprevious {previous}\n"
    if not _TEXT.fullmatch(text):
        raise NoteError("not the values of a checkpoint")
    return text


def sign(text: str, name: str, *keys: Ed25519PrivateKey) -> str:
    """The note of `text` with one signature line per key, in the order given (old key first at a rotation)."""
    lines = []
    for key in keys:
        vkey = make_vkey(name, public_bytes(key))
        lines.append(f"{_SIGNATURE_MARK}{name} {_base64(vkey.hash + key.sign(text.encode()))}\n")
    return f"{text}\n{''.join(lines)}"


def parse(note: str) -> Checkpoint:
    """Read a checkpoint note; raises NoteError for anything but its exact form."""
    text, separator, rest = note.partition("\n\n")
    text += "\n"
    found = _TEXT.fullmatch(text)
    if not separator or not found or not rest.endswith("\n"):
        raise NoteError("not a checkpoint note")
    signatures = []
    for line in rest[:-1].split("\n"):
        signed = _SIGNATURE.fullmatch(line)
        blob = _unbase64(signed["blob"]) if signed else b""
        if not signed or len(blob) != 68:
            raise NoteError("not a signature line")
        signatures.append(Signature(signed["name"], blob[:4], blob[4:]))
    return Checkpoint(
        origin=found["origin"],
        size=int(found["size"]),
        root=_unbase64(found["root"]),
        at=found["at"],
        epoch=int(found["epoch"]),
        previous=found["previous"],
        text=text,
        signatures=tuple(signatures),
    )


def verify(note: str, vkeys: Sequence[Vkey]) -> Checkpoint:
    """The checkpoint of a note that has exactly one signature line for each of `vkeys`, in their order, all valid.

    Raises NoteError otherwise. A further signature is refused too: after a rotation the old key signs nothing.
    """
    checkpoint = parse(note)
    if not vkeys or len(checkpoint.signatures) != len(vkeys):
        raise NoteError(f"{len(checkpoint.signatures)} signatures where {len(vkeys)} are due")
    for signature, vkey in zip(checkpoint.signatures, vkeys, strict=True):
        if (signature.name, signature.key_hash) != (vkey.name, vkey.hash):
            raise NoteError(f"signed by {signature.name}+{signature.key_hash.hex()}, not by {vkey}")
        if not signed_by(vkey, signature.signature, checkpoint.text.encode()):
            raise NoteError(f"the signature by {vkey} is wrong")
    return checkpoint


def signed_by(vkey: Vkey, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is the key's over `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(vkey.public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def note_hash(note: str) -> str:
    """What the next checkpoint names as `previous`: hexadecimal SHA-256 of the whole note, signatures too."""
    return sha256(note.encode()).hexdigest()


def rotation_text(old: Vkey | str, new: Vkey | str) -> bytes:
    """What the new key signs in a `key.rotated` entry."""
    return f"hoosh key rotation\n{old}\n{new}\n".encode()


def export_text(lines: int, digest: str) -> bytes:
    """What the current key signs in the last line of an export; `digest` is the hex SHA-256 of all lines before."""
    return f"hoosh export\n{lines}\n{digest}\n".encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unbase64(text: str) -> bytes:
    """Strict: only the text that `_base64` would write."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteError("not base64") from None
    if _base64(data) != text:
        raise NoteError("not base64 in its shortest form")
    return data
