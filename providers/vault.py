"""Provider secrets at rest: encrypted with keys kept outside the database, bound to the base URL they were typed for.

The key file has one Fernet key per line; the first encrypts, all decrypt, so rotation is: put a new key on top, call
`rotate` on what is stored, remove the old line. Workers load this module: it knows neither Django nor the database.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

_UNSAFE_BITS = 0o077  # any right for group or others


class VaultError(Exception):
    """A secret cannot be sealed or opened. The message never contains the secret."""


class _Sealed(msgspec.Struct, array_like=True):
    bound_to: str
    secret: str


class _SealedBytes(msgspec.Struct, array_like=True):
    bound_to: str
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Sealed).decode
_decode_bytes = msgspec.msgpack.Decoder(_SealedBytes).decode


class Vault:
    """Seals and opens secrets with a list of Fernet keys, the newest first."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise VaultError("The vault has no key.")
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys])
        except ValueError as exc:
            raise VaultError("A line of the vault's key file is not a Fernet key.") from exc
        self._mac_key = hashlib.sha256(b"hoosh fingerprint" + keys[-1]).digest()

    @classmethod
    def load(cls, path: Path) -> Vault:
        """The vault of a key file. Raises `VaultError` when it is missing, empty or readable by others."""
        try:
            with path.open("rb") as file:
                mode = path.stat().st_mode
                lines = file.read().split()
        except OSError as exc:
            raise VaultError(
                f"The vault key {path} cannot be read ({exc.strerror}); `manage.py init` makes one."
            ) from exc
        if mode & _UNSAFE_BITS:
            raise VaultError(f"The vault key {path} may be read by others; run chmod 600 on it.")
        return cls(lines)

    @staticmethod
    def new_key() -> bytes:
        """A fresh key for the first line of a key file."""
        return Fernet.generate_key()

    def seal(self, secret: str, bound_to: str) -> str:
        """Encrypt a secret so that only `open` with the same `bound_to` gives it back. ASCII text."""
        return self._fernet.encrypt(_encode(_Sealed(bound_to, secret))).decode("ascii")

    def open(self, ciphertext: str, bound_to: str) -> str:
        """The secret. Raises `VaultError` when it was sealed for another address, by another key, or was changed."""
        try:
            sealed = _decode(self._fernet.decrypt(ciphertext.encode("ascii", "replace")))
        except (InvalidToken, msgspec.MsgspecError) as exc:
            raise VaultError("A stored secret cannot be opened with this vault key.") from exc
        if sealed.bound_to != bound_to:
            raise VaultError("A stored secret was saved for another base URL; type it again.")
        return sealed.secret

    def seal_bytes(self, data: bytes, bound_to: str) -> bytes:
        """Encrypt data that is no secret of a provider's, such as an answer kept for a while; ASCII."""
        return self._fernet.encrypt(_encode(_SealedBytes(bound_to, data)))

    def open_bytes(self, ciphertext: bytes, bound_to: str) -> bytes:
        """What `seal_bytes` was given. Raises `VaultError` when it was bound otherwise, by another key, or changed."""
        try:
            sealed = _decode_bytes(self._fernet.decrypt(ciphertext))
        except (InvalidToken, msgspec.MsgspecError) as exc:
            raise VaultError("Stored data cannot be opened with this vault key.") from exc
        if sealed.bound_to != bound_to:
            raise VaultError("Stored data was kept for something else.")
        return sealed.data

    def rotate(self, ciphertext: str) -> str:
        """The same secret, bound as before, encrypted with the newest key."""
        try:
            return self._fernet.rotate(ciphertext.encode("ascii", "replace")).decode("ascii")
        except InvalidToken as exc:
            raise VaultError("A stored secret cannot be opened with this vault key.") from exc

    def fingerprint(self, data: bytes) -> str:
        """A keyed digest in hex: says whether secret-bearing data changed without being a digest of it for others."""
        return hmac.new(self._mac_key, data, hashlib.sha256).hexdigest()
