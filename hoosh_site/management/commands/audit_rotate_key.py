"""`manage.py audit_rotate_key`: make the key the audit log is signed with from now on."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from audit.keys import SigningKeyError, write_next
from hoosh_site.keyfiles import KeyFileError, load_signing_key


class Command(BaseCommand):
    """Leaves the next key beside the one in force; the control process hands over."""

    help = "Make a new signing key for the audit log. The old key confirms it in the log, and is replaced by it."

    def handle(self, *args: Any, **options: Any) -> None:
        """Make the key and say what happens with it."""
        if settings.HOOSH_SIGNING_KEY:
            raise CommandError(
                "The signing key comes from HOOSH_SIGNING_KEY: set the new one as HOOSH_SIGNING_KEY_NEXT and restart. "
                "Once the log says that it took over, move it to HOOSH_SIGNING_KEY."
            )
        try:
            load_signing_key()
            path = write_next(settings.HOOSH_KEYS_DIR)
        except (KeyFileError, SigningKeyError) as exc:
            raise CommandError(str(exc)) from exc
        except OSError as exc:
            raise CommandError(f"The key cannot be written: {exc}") from exc
        self.stdout.write(
            f"Made {path}. The control process hands over to it within a second, or when it starts, and renames it to "
            "signing.key. Put the new file into your backup."
        )
