"""The signing key changes under the eyes of the old one, and a crash in between is ended at the next start."""

from __future__ import annotations

import base64
import io
import json
import stat
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import override_settings

from audit import keys, notes
from audit.growing import state
from audit.models import AuditEntry
from audit.record import record
from audit.walking import Walk
from tests.audit.log_case import LogCase, assert_whole

pytestmark = pytest.mark.database


class Crash(BaseException):
    """Ends a process on the spot."""


class CrashingSigner(keys.Signer):
    """Dies behind the commit of a rotation, before the file is renamed."""

    def handed_over(self, key: Any) -> None:
        raise Crash


class DyingKey:
    """Signs what is due inside the transaction once, and then dies."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key, self._signed = key, 0

    def public_key(self) -> Ed25519PublicKey:
        return self._key.public_key()

    def sign(self, data: bytes) -> bytes:
        if self._signed:
            raise Crash
        self._signed += 1
        return self._key.sign(data)


class SignerOfDyingKey(keys.Signer):
    """Hands over to a key that dies before the commit."""

    def following(self) -> Any:
        found = super().following()
        return None if found is None else DyingKey(found)


class RotationCase(LogCase):
    @property
    def next_file(self) -> Any:
        return self.directory / keys.NEXT_FILE

    def public(self) -> bytes:
        return notes.public_bytes(keys.parse_key(self.key_file.read_bytes(), "file"))

    def test_both_keys_sign_the_checkpoint_over_the_change_and_then_only_the_new_one(self) -> None:
        record("a.before")
        self.log()
        old = self.public()
        keys.write_next(self.directory)
        new = notes.public_bytes(keys.parse_key(self.next_file.read_bytes(), "file"))
        record("a.behind")
        self.log()
        assert not self.next_file.exists()
        assert self.public() == new
        name = notes.parse(self.heads[0].note).signatures[0].name
        vkeys = [notes.make_vkey(name, public) for public in (old, new)]
        body = next(body for body in self.bodies(own=True) if body["action"] == "key.rotated")
        assert (body["data"]["epoch"], body["data"]["old"], body["data"]["new"]) == ("2", *map(str, vkeys))
        assert notes.signed_by(vkeys[1], base64.b64decode(body["data"]["proof"]), notes.rotation_text(*vkeys))
        assert [notes.parse(head.note).epoch for head in self.heads] == [1, 1, 2, 2]
        notes.verify(self.heads[2].note, vkeys)
        notes.verify(self.heads[3].note, vkeys[1:])
        assert [entry["epoch"] for entry in json.loads(state(self.connection.alias, "keys"))] == [1, 2]
        assert_whole()
        assert Walk().step(1000) is None

    def test_a_crash_before_the_commit_changes_nothing_and_the_change_is_made_later(self) -> None:
        self.log()
        keys.write_next(self.directory)
        old = self.public()
        with pytest.raises(Crash):
            self.make_sequencer(signer=SignerOfDyingKey(self.directory)).run(self.connection)
        assert (self.public(), self.next_file.exists(), self.actions()) == (old, True, ["log.opened"])
        self.log(self.make_sequencer())
        assert self.public() != old
        assert self.actions() == ["log.opened", "key.rotated"]
        assert_whole()

    def test_a_crash_behind_the_commit_is_ended_by_the_next_process(self) -> None:
        self.log()
        keys.write_next(self.directory)
        old = self.public()
        crashing = self.make_sequencer(signer=CrashingSigner(self.directory))
        with pytest.raises(Crash):
            crashing.run(self.connection)
        assert (self.public(), self.next_file.exists()) == (old, True)
        record("a.behind")
        self.log(self.make_sequencer())
        assert not self.next_file.exists()
        assert self.public() != old
        assert self.actions() == ["log.opened", "key.rotated", "a.behind"]
        assert_whole()

    def test_the_old_key_signs_nothing_any_more(self) -> None:
        self.log()
        old = self.key_file.read_bytes()
        keys.write_next(self.directory)
        self.log()
        self.key_file.write_bytes(old)
        record("a.forged")
        assert self.make_sequencer().run(self.connection) is False
        assert self.actions() == ["log.opened", "key.rotated"]
        assert json.loads(state(self.connection.alias, "keeper"))["state"] == "key"

    def test_a_lost_old_key_is_no_harm_once_the_log_names_the_new_one(self) -> None:
        self.log()
        keys.write_next(self.directory)
        with pytest.raises(Crash):
            self.make_sequencer(signer=CrashingSigner(self.directory)).run(self.connection)
        self.key_file.unlink()
        record("a.behind")
        self.log(self.make_sequencer())
        assert self.actions()[-1] == "a.behind"
        assert_whole()

    def test_keys_of_the_environment_hand_over_and_are_moved_by_hand(self) -> None:
        first, second = (keys.new_key_text().decode() for _ in range(2))
        self.key_file.unlink()
        self.log(self.make_sequencer(signer=keys.Signer(self.directory, text=first)))
        both = self.make_sequencer(signer=keys.Signer(self.directory, text=first, next_text=second))
        self.log(both)
        record("a.one")
        self.log(self.make_sequencer(signer=keys.Signer(self.directory, text=first, next_text=second)))
        record("a.two")
        self.log(self.make_sequencer(signer=keys.Signer(self.directory, text=second)))
        assert self.actions() == ["log.opened", "key.rotated", "a.one", "a.two"]
        assert_whole()

    def test_a_next_key_that_cannot_be_used_stops_nothing(self) -> None:
        self.log()
        self.next_file.write_bytes(b"not a key")
        record("a.done")
        self.log()
        self.log(self.make_sequencer())
        assert self.actions() == ["log.opened", "a.done"]
        assert self.next_file.exists()

    def test_a_seed_in_base64_is_the_same_key_as_its_pem(self) -> None:
        key = keys.parse_key(self.key_file.read_bytes(), "file")
        seed = base64.b64encode(key.private_bytes_raw())
        assert notes.public_bytes(keys.parse_key(seed + b"\n", "text")) == notes.public_bytes(key)

    def test_the_command_makes_the_next_key_for_its_owner_only_and_never_twice(self) -> None:
        out = io.StringIO()
        with override_settings(HOOSH_KEYS_DIR=self.directory, HOOSH_SIGNING_KEY=""):
            call_command("audit_rotate_key", stdout=out)
            assert stat.S_IMODE(self.next_file.stat().st_mode) == 0o600
            assert str(self.next_file) in out.getvalue()
            with pytest.raises(CommandError, match="waits already"):
                call_command("audit_rotate_key")
            self.key_file.unlink()
            with pytest.raises(CommandError, match="cannot be read"):
                call_command("audit_rotate_key")
        with override_settings(HOOSH_SIGNING_KEY="x"), pytest.raises(CommandError, match="HOOSH_SIGNING_KEY_NEXT"):
            call_command("audit_rotate_key")
        self.log()
        assert AuditEntry.objects.count() == 0
