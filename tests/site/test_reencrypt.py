"""`manage.py reencrypt_secrets`: afterwards the newest key of the vault alone opens everything."""

from __future__ import annotations

import io
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import TestCase, override_settings

from audit.models import OutboxEntry
from events.models import Webhook
from hoosh_site.people.models import SecondFactor
from providers import sequences, services
from providers.models import Credential, Provider
from providers.vault import Vault, VaultError

pytestmark = pytest.mark.database


class ReencryptTest(TestCase):
    databases = "__all__"

    def setUp(self) -> None:
        self.keys = Path(self.enterContext(TemporaryDirectory()))
        self.enterContext(override_settings(HOOSH_KEYS_DIR=self.keys))
        self.old, self.new = Vault.new_key(), Vault.new_key()
        self.write(self.old)
        self.provider = services.save_provider(
            Provider(name="p", kind="openai", base_url="http://127.0.0.1:9"), actor="test"
        )
        services.set_credential(self.provider, "default", "sk-one", actor="test")
        sealed = Vault([self.old]).seal("of another", "x")
        Webhook.objects.create(name="w", url="https://example.org/", ciphertext=sealed)
        SecondFactor.objects.create(user=User.objects.create_user("ada"), secret=sealed)

    def write(self, *keys: bytes) -> None:
        path = self.keys / "vault.key"
        path.write_bytes(b"\n".join(keys) + b"\n")
        path.chmod(0o600)

    def run_command(self) -> str:
        out = io.StringIO()
        call_command("reencrypt_secrets", stdout=out)
        return out.getvalue()

    def texts(self) -> list[str]:
        factor = SecondFactor.objects.get()
        return [Credential.objects.get().ciphertext, Webhook.objects.get().ciphertext, factor.secret]

    def test_the_newest_key_alone_opens_everything_afterwards(self) -> None:
        self.write(self.new, self.old)
        before = sequences.current(sequences.SECRETS)
        assert self.run_command() == "3 secrets are encrypted with the newest key.\n"
        newest = Vault([self.new])
        assert newest.open(Credential.objects.get().ciphertext, self.provider.base_url) == "sk-one"
        assert {newest.open(text, "x") for text in self.texts()[1:]} == {"of another"}
        with pytest.raises(VaultError):
            Vault([self.old]).open(self.texts()[1], "x")
        assert sequences.current(sequences.SECRETS) > before, "workers are told"
        entry = OutboxEntry.objects.get(action="secrets.reencrypted")
        assert entry.data["secrets"] == 3
        assert "sk-one" not in str(entry.data)

    def test_what_no_key_opens_is_named_and_left_alone_and_the_rest_is_done(self) -> None:
        lost = Vault([Vault.new_key()]).seal("gone", "x")
        Webhook.objects.update(ciphertext=lost)
        self.write(self.new, self.old)
        with pytest.raises(CommandError, match=r"1 open with no key of the vault.*webhook “w”"):
            self.run_command()
        assert Webhook.objects.get().ciphertext == lost
        assert Vault([self.new]).open(SecondFactor.objects.get().secret, "x") == "of another"

    def test_without_a_key_file_it_says_so(self) -> None:
        (self.keys / "vault.key").chmod(0o644)
        before = self.texts()
        with pytest.raises(CommandError, match="chmod 600"):
            self.run_command()
        assert self.texts() == before
