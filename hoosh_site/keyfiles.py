"""The keys this gateway makes for itself, as files only their owner may read. Made by `manage.py init`, read by others.

session.key signs cookies, vault.key (one Fernet key per line) encrypts provider secrets, signing.key (Ed25519, PEM)
signs the audit log (`audit.keys`). None of them can be made anew without losing what it protects: they belong into the
backup.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings

from audit.keys import Signer, SigningKeyError, new_key_text
from providers.vault import Vault

_SESSION_BYTES = 48


class KeyFileError(Exception):
    """A key file or directory cannot be made or is not safe; the message says what to do."""


def _session_key() -> bytes:
    return secrets.token_urlsafe(_SESSION_BYTES).encode()


_MAKERS: Mapping[str, Callable[[], bytes]] = {
    "session.key": _session_key,
    "vault.key": Vault.new_key,
    "signing.key": new_key_text,
}


def create_missing() -> list[Path]:
    """Make the key files that do not exist and return their paths. Existing ones are never touched."""
    make_private_directory(settings.HOOSH_KEYS_DIR)
    paths = {settings.HOOSH_KEYS_DIR / name: make for name, make in _MAKERS.items()}
    return [path for path, make in paths.items() if _create(path, make)]


def unsafe_files() -> list[str]:
    """Sentences about key files that others could read or replace."""
    found = []
    for path in (settings.HOOSH_KEYS_DIR, *(settings.HOOSH_KEYS_DIR / name for name in _MAKERS)):
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0
        if mode & 0o077:
            right = "700" if path.is_dir() else "600"
            found.append(f"{path} can be used by others on this host. Run: chmod {right} {path}")
    return found


def load_signing_key() -> Ed25519PrivateKey:
    """The key that signs the audit log, from the environment or its file. Raises `KeyFileError` when it is missing or
    of another kind."""
    signer = Signer(settings.HOOSH_KEYS_DIR, text=settings.HOOSH_SIGNING_KEY)
    try:
        signer.load(None)
    except SigningKeyError as exc:
        raise KeyFileError(str(exc)) from exc
    return signer.key


def make_private_directory(path: Path) -> None:
    """Make a directory only its owner may enter. One that belongs to somebody else is refused, so is a link.

    A directory under a shared temporary directory could have been put there by anybody.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as exc:
        raise KeyFileError(f"The directory {path} cannot be made: {exc.strerror}.") from exc
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.getuid(), 0):
        raise KeyFileError(f"{path} is not a directory of this user. Remove it or choose another HOOSH_DATA_DIR.")


def _create(path: Path, make: Callable[[], bytes]) -> bool:
    """Write the file whole or not at all; False when it exists, also when another process was first."""
    if path.exists():
        return False
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(make().rstrip() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename this never replaces a key
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True
