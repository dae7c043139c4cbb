"""`manage.py health`: is the running gateway well? Exit status 1 when it is not."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from hoosh_site.management import remote


class Command(BaseCommand):
    """Asks `/v1/health`, and with a key what is known of each provider."""

    help = "Say whether a running gateway and its providers are well; exit status 1 when not."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Only the common options."""
        remote.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Print a sentence and one line per provider."""
        with remote.Gateway(options) as gateway:
            _, state = gateway.get("/v1/health", accepted=(200, 503))
            providers = _providers(gateway)
        if not isinstance(state, dict) or "status" not in state:
            raise CommandError(f"{gateway.address} does not answer like a gateway.")
        if options["json"]:
            self.stdout.write(remote.dump({**state, "providers": providers}))
        else:
            self._write(gateway.address, state, providers)
        if state["status"] != "ok":
            sys.exit(1)

    def _write(self, address: str, state: dict[str, Any], providers: list[dict[str, Any]] | None) -> None:
        configured, down = state.get("providers_configured", 0), state.get("providers_down", 0)
        sentence = f"{address} is {state['status']}: {configured} providers configured, {down} down."
        self.stdout.write(remote.printable(sentence))
        for entry in providers or ():
            detail = f": {entry['detail']}" if entry.get("detail") else ""
            self.stdout.write(remote.printable(f"  {entry.get('provider')}  {entry.get('status')}{detail}"))


def _providers(gateway: remote.Gateway) -> list[dict[str, Any]] | None:
    """What is known of each provider; None without a key (the gateway's own state needs none)."""
    try:
        _, reply = gateway.get("/v1/health/providers")
    except CommandError:
        return None
    found = reply.get("providers") if isinstance(reply, dict) else None
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else None
