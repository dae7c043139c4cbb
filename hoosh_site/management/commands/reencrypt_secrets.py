"""`manage.py reencrypt_secrets`: encrypts everything the vault keeps with the newest of its keys."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import models, transaction

from audit.record import record
from events.models import Webhook
from hoosh_site.people.models import SecondFactor
from providers import sequences
from providers.models import ClientCertificate, Credential
from providers.services import open_vault
from providers.vault import Vault, VaultError

# What holds a sealed value, and in which column.
_SEALED: tuple[tuple[type[models.Model], str], ...] = (
    (Credential, "ciphertext"),
    (ClientCertificate, "ciphertext"),
    (Webhook, "ciphertext"),
    (SecondFactor, "secret"),
)


class Command(BaseCommand):
    """All of them in one transaction; running workers get the new texts by the next push."""

    help = (
        "Encrypt the secrets of providers and webhooks and the second factors anew, with the key on the first line of "
        "keys/vault.key. Afterwards the other lines may be deleted."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        """Exit status 1 where something could not be opened: it stays as it is, and its key is still needed."""
        try:
            vault = open_vault()
        except VaultError as exc:
            raise CommandError(str(exc)) from exc
        count = 0
        closed: list[str] = []
        with transaction.atomic():
            sequences.locked(sequences.SECRETS)
            for model, column in _SEALED:
                done, failed = _reencrypt(vault, model, column)
                count, closed = count + done, closed + failed
            sequences.bump(sequences.SECRETS)
            record("secrets.reencrypted", actor="manage.py reencrypt_secrets", data={"secrets": count})
        self.stdout.write(f"{count} secrets are encrypted with the newest key.")
        if closed:
            raise CommandError(
                f"{len(closed)} open with no key of the vault and stay as they are: {', '.join(closed[:20])}. "
                "Keep all lines of the key file, or type these secrets again."
            )


def _reencrypt(vault: Vault, model: type[models.Model], column: str) -> tuple[int, list[str]]:
    """How many there were, and those that cannot be opened."""
    count = 0
    closed: list[str] = []
    for row in model._default_manager.select_for_update().exclude(**{column: ""}).order_by("pk"):
        try:
            sealed = vault.rotate(getattr(row, column))
        except VaultError:
            closed.append(f"{model._meta.verbose_name} “{row}”")
            continue
        model._default_manager.filter(pk=row.pk).update(**{column: sealed})
        count += 1
    return count, closed
