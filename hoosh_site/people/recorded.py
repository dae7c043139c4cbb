"""Audit entries for what Django's own commands do to people: written in the transaction of the change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models.signals import post_save, pre_save

from hoosh_site.people import noting


@contextmanager
def saves_recorded(actor: str) -> Iterator[None]:
    """Inside, each saved user is an entry `user.created` or `user.password_set` by `actor`: both or neither is kept.

    For code that saves users and knows nothing of the log, in a process that does nothing else.
    """
    with ExitStack() as opened:

        def before(sender: Any, instance: User, using: str, **kwargs: Any) -> None:
            opened.enter_context(transaction.atomic(using=using))

        def after(sender: Any, instance: User, created: bool, **kwargs: Any) -> None:
            data = {"is_superuser": instance.is_superuser} if created else {"usable": instance.has_usable_password()}
            noting.note(instance, "created" if created else "password_set", actor=actor, level="warning", data=data)
            opened.close()

        pre_save.connect(before, sender=User, weak=False)
        post_save.connect(after, sender=User, weak=False)
        try:
            yield
        finally:
            pre_save.disconnect(before, sender=User)
            post_save.disconnect(after, sender=User)
