"""Sealing and opening provider secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from providers.vault import Vault, VaultError

URL = "https://api.example.com"


def test_a_sealed_secret_opens_for_the_address_it_was_saved_with() -> None:
    vault = Vault([Vault.new_key()])
    sealed = vault.seal("sk-secret", URL)
    assert "sk-secret" not in sealed
    assert vault.open(sealed, URL) == "sk-secret"


def test_a_secret_does_not_open_for_another_address() -> None:
    vault = Vault([Vault.new_key()])
    with pytest.raises(VaultError, match="another base URL") as caught:
        vault.open(vault.seal("sk-secret", URL), "https://evil.example.com")
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("sealed", ["", "not base64 ü", "gAAAAA"])
def test_garbage_is_not_opened(sealed: str) -> None:
    with pytest.raises(VaultError):
        Vault([Vault.new_key()]).open(sealed, URL)


def test_a_changed_ciphertext_is_not_opened() -> None:
    vault = Vault([Vault.new_key()])
    sealed = vault.seal("sk-secret", URL)
    changed = sealed[:-6] + ("A" if sealed[-6] != "A" else "B") + sealed[-5:]
    with pytest.raises(VaultError):
        vault.open(changed, URL)


def test_sealed_bytes_open_for_what_they_were_bound_to_only() -> None:
    vault = Vault([Vault.new_key()])
    sealed = vault.seal_bytes(b"\x00 words \xff", "answer 1")
    assert b"words" not in sealed
    assert vault.open_bytes(sealed, "answer 1") == b"\x00 words \xff"
    changed = sealed[:-6] + (b"A" if sealed[-6:-5] != b"A" else b"B") + sealed[-5:]
    for data, bound_to in ((sealed, "answer 2"), (changed, "answer 1"), (b"", "answer 1"), (b"\xff", "answer 1")):
        with pytest.raises(VaultError):
            vault.open_bytes(data, bound_to)
    with pytest.raises(VaultError):
        vault.open_bytes(vault.seal("text", "answer 1").encode(), "answer 1")


def test_a_new_key_on_top_opens_the_old_and_rotation_frees_it() -> None:
    old, new = Vault.new_key(), Vault.new_key()
    sealed = Vault([old]).seal("sk-secret", URL)
    rotated = Vault([new, old]).rotate(sealed)
    assert Vault([new]).open(rotated, URL) == "sk-secret"
    with pytest.raises(VaultError):
        Vault([new]).open(sealed, URL)
    with pytest.raises(VaultError):
        Vault([new]).rotate(sealed)


def test_a_key_file_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    path.write_bytes(Vault.new_key() + b"\n")
    path.chmod(0o640)
    with pytest.raises(VaultError, match="chmod 600"):
        Vault.load(path)
    path.chmod(0o600)
    vault = Vault.load(path)
    assert vault.open(vault.seal("x", URL), URL) == "x"


def test_a_missing_empty_or_broken_key_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    with pytest.raises(VaultError, match=r"manage\.py init"):
        Vault.load(path)
    for content in (b"", b"\n\n", b"short\n"):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(VaultError):
            Vault.load(path)


def test_a_fingerprint_depends_on_the_data_and_on_the_key() -> None:
    key = Vault.new_key()
    assert Vault([key]).fingerprint(b"a") == Vault([Vault.new_key(), key]).fingerprint(b"a")
    assert Vault([key]).fingerprint(b"a") != Vault([key]).fingerprint(b"b")
    assert Vault([key]).fingerprint(b"a") != Vault([Vault.new_key()]).fingerprint(b"a")
