"""`manage.py models`: what the running gateway serves to this key."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from hoosh_site.management import remote


class Command(BaseCommand):
    """Lists models with the provider that answers for each."""

    help = "List the models a running gateway serves to your key."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Only the common options."""
        remote.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Print one line per model."""
        with remote.Gateway(options) as gateway:
            _, reply = gateway.get("/v1/models")
        if options["json"]:
            self.stdout.write(remote.dump(reply))
            return
        models = [model for model in reply.get("data", ()) if isinstance(model, dict)]
        if not models:
            self.stdout.write("No models: add a provider and a route in the admin.")
        width = min(max((len(str(model.get("id", ""))) for model in models), default=0), 60)
        for model in models:
            name, owner = str(model.get("id", "")), str(model.get("owned_by", ""))
            self.stdout.write(remote.printable(f"{name:<{width}}  {owner}"))
