"""`manage.py create_key`: make an API key and print it, once."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils import timezone

from budgets import access, keys
from budgets.models import Pool
from budgets.validation import SCOPES, split

ACTOR = "command line"
_LIMITS = {
    "requests-per-minute": "requests per minute",
    "tokens-per-minute": "tokens per minute",
    "concurrent-requests": "requests at once",
}


class Command(BaseCommand):
    """Makes a key for an agent; team and agent are made when they do not exist, a pool is not."""

    help = "Make an API key. Its text is printed once and stored nowhere."

    def add_arguments(self, parser: CommandParser) -> None:
        """Everything but the name has a default."""
        parser.add_argument("name", help="what the key is for")
        parser.add_argument("--team", default="default")
        parser.add_argument("--agent", default="default")
        parser.add_argument(
            "--pool", default=access.DEFAULT_POOL, help="drawn on where a request names no pool (default: default)"
        )
        parser.add_argument("--budget", default="", help="a pool every request of the key draws on besides")
        parser.add_argument("--pools", default="", help="comma-separated globs over further pools a request may name")
        parser.add_argument(
            "--scopes",
            "--scope",
            default="inference",
            help=f"comma-separated: {', '.join(SCOPES)} (default: inference)",
        )
        parser.add_argument("--models", default="", help="comma-separated globs the key may use (default: all)")
        parser.add_argument("--endpoints", default="", help="comma-separated inference endpoints (default: all)")
        parser.add_argument(
            "--addresses", default="", help="comma-separated networks it works from (default: anywhere)"
        )
        parser.add_argument("--expires-days", type=float, help="days until the key expires (default: never)")
        for name, what in _LIMITS.items():
            parser.add_argument(f"--{name}", type=int, help=f"{what}, at most (default: no limit)")
        parser.add_argument("--json", action="store_true", help="print a JSON object with the key under “key”")

    def handle(self, *args: Any, **options: Any) -> None:
        """Make the key and print it."""
        pool = _pool(options["pool"])
        own_pool = _pool(options["budget"]) if options["budget"] else None
        try:
            with transaction.atomic():
                agent = access.agent_named(options["team"], options["agent"], actor=ACTOR)
                key, text = keys.create_key(
                    agent,
                    pool,
                    options["name"],
                    split(options["scopes"]),
                    actor=ACTOR,
                    models_allowed=split(options["models"]),
                    own_pool=own_pool,
                    pools_allowed=split(options["pools"]),
                    endpoints=split(options["endpoints"]),
                    addresses=split(options["addresses"]),
                    expires_at=_expiry(options["expires_days"]),
                    limits=tuple(options[name.replace("-", "_")] for name in _LIMITS),
                )
        except ValidationError as exc:
            raise CommandError(" ".join(exc.messages)) from exc
        if options["json"]:
            shown = {"key": text, "id": key.pk, "name": key.name, "pool": pool.name, "scopes": split(key.scopes)}
            self.stdout.write(json.dumps(shown))
            return
        self.stdout.write(text)
        self.stderr.write("Keep it: it is shown this once.")


def _pool(name: str) -> Pool:
    pool = Pool.objects.filter(name=name).first()
    if pool is None:
        known = ", ".join(Pool.objects.values_list("name", flat=True)[:20])
        raise CommandError(f"There is no pool “{name}”. Pools: {known or 'none; run manage.py init'}.")
    return pool


def _expiry(days: float | None) -> dt.datetime | None:
    if days is None:
        return None
    if not 0 < days <= 36_500:
        raise CommandError("--expires-days is a number above 0, at most 36500.")
    return timezone.now() + dt.timedelta(days=days)
