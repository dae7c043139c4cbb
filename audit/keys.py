"""The Ed25519 key that signs the log: read from a file or the environment, never from a database, never made here.

`manage.py init` makes `signing.key`. The next key waits in `signing.key.next`; the log's keeper (`audit.sequencer`)
hands over to it and then renames it. With keys from the environment (`HOOSH_SIGNING_KEY`,
`HOOSH_SIGNING_KEY_NEXT`) whoever sets them moves the second to the first.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.notes import public_bytes

KEY_FILE, NEXT_FILE = "signing.key", "signing.key.next"
SEED_BYTES = 32
_DIFFERENT_BYTES = 12  # of 32 random ones fewer never differ


class SigningKeyError(Exception):
    """There is no usable signing key; the message says what to do and quotes nothing of it."""


def parse_key(text: bytes, where: str) -> Ed25519PrivateKey:
    """An Ed25519 key as PEM (PKCS 8, not encrypted) or as the base64 of its 32-byte seed.

    `where` names its place in messages. Refuses what is no such key, and seeds that nobody drew at random.
    """
    text = text.strip()
    if not text:
        raise SigningKeyError(f"The signing key in {where} is empty. Restore it from your backup.")
    if text.startswith(b"-----BEGIN"):
        try:
            key = serialization.load_pem_private_key(text, password=None)
        except (ValueError, TypeError) as exc:
            raise SigningKeyError(f"The signing key in {where} is damaged or encrypted.") from exc
        if not isinstance(key, Ed25519PrivateKey):
            raise SigningKeyError(f"The signing key in {where} is not an Ed25519 key.")
    else:
        try:
            seed = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise SigningKeyError(f"The signing key in {where} is neither PEM nor base64.") from None
        if len(seed) != SEED_BYTES:
            raise SigningKeyError(f"The signing key in {where} has {len(seed)} bytes instead of {SEED_BYTES}.")
        key = Ed25519PrivateKey.from_private_bytes(seed)
    if len(set(key.private_bytes_raw())) < _DIFFERENT_BYTES:
        raise SigningKeyError(f"The signing key in {where} was not drawn at random. Make one with `manage.py init`.")
    return key


def new_key_text() -> bytes:
    """A new key, PEM."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Signer:
    """Where the keys are. `load` before anything else; nothing is remembered of a key that was refused."""

    def __init__(self, directory: Path, *, text: str = "", next_text: str = "") -> None:
        """Keys in `directory`, or the texts of the environment, which count before the files."""
        self._directory = directory
        self._text, self._next_text = text, next_text
        self._key: Ed25519PrivateKey | None = None

    @property
    def key(self) -> Ed25519PrivateKey:
        """The key that signs. Raises `SigningKeyError` before `load`."""
        if self._key is None:
            raise SigningKeyError("No signing key is loaded.")
        return self._key

    def load(self, known: bytes | None) -> None:
        """Read the key whose public bytes are `known` to the log; None: there is no log yet, any key will do.

        Ends a change of keys that was cut short behind its entry in the log. Raises `SigningKeyError`.
        """
        self._key = None
        try:
            key = self._first()
        except SigningKeyError:
            following = self._safe_following()
            if known is None or following is None or public_bytes(following) != known:
                raise
            key = following
        if known is not None and public_bytes(key) != known:
            following = self._following()
            if following is None or public_bytes(following) != known:
                raise SigningKeyError(
                    f"The signing key in {self._place(KEY_FILE, 'HOOSH_SIGNING_KEY', self._text)} is not the one the "
                    "log is signed with. Restore that one, or copy it from the host that began the log."
                )
            key = following
        if known is not None and not self._text and self._is_following(key):
            self._rename()
        self._key = key

    def following(self) -> Ed25519PrivateKey | None:
        """The key to hand over to, when another one than the one in force waits. Raises `SigningKeyError`."""
        found = self._following()
        return None if found is None or public_bytes(found) == public_bytes(self.key) else found

    def handed_over(self, key: Ed25519PrivateKey) -> None:
        """The log is signed with `key` from now on."""
        self._key = key
        if not self._text:
            self._rename()

    def _first(self) -> Ed25519PrivateKey:
        if self._text:
            return parse_key(self._text.encode(), "HOOSH_SIGNING_KEY")
        path = self._directory / KEY_FILE
        try:
            return parse_key(path.read_bytes(), str(path))
        except OSError as exc:
            raise SigningKeyError(
                f"The signing key {path} cannot be read ({exc.strerror}). Restore it from your backup, or run "
                "`manage.py init` where there was none yet."
            ) from exc

    def _following(self) -> Ed25519PrivateKey | None:
        if self._text:
            return parse_key(self._next_text.encode(), "HOOSH_SIGNING_KEY_NEXT") if self._next_text else None
        path = self._directory / NEXT_FILE
        try:
            return parse_key(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise SigningKeyError(f"The next signing key {path} cannot be read ({exc.strerror}).") from exc

    def _safe_following(self) -> Ed25519PrivateKey | None:
        with contextlib.suppress(SigningKeyError):
            return self._following()
        return None

    def _is_following(self, key: Ed25519PrivateKey) -> bool:
        following = self._safe_following()
        return following is not None and public_bytes(following) == public_bytes(key)

    def _rename(self) -> None:
        os.replace(self._directory / NEXT_FILE, self._directory / KEY_FILE)
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _place(self, name: str, variable: str, text: str) -> str:
        return variable if text else str(self._directory / name)


def write_next(directory: Path) -> Path:
    """Make the next key beside the one in force, readable by its owner only. Raises `SigningKeyError` if one waits."""
    path = directory / NEXT_FILE
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(new_key_text())
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename this never replaces a key
    except FileExistsError as exc:
        raise SigningKeyError(f"The next signing key {path} waits already to be taken over.") from exc
    finally:
        temporary.unlink(missing_ok=True)
    return path
