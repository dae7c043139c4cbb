"""`manage.py info`: this installation at a glance, and the running gateway if there is one."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from django.utils import timezone

from gateway import accelerators
from hoosh_site import checks
from hoosh_site.management import remote


class Command(BaseCommand):
    """Version, settings, rows and accelerators of this host; state of the running gateway over HTTP. No secrets."""

    help = "Show version, settings, configuration, keys, accelerators and the state of the running gateway."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Only the common options."""
        remote.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Collect and print."""
        found = {
            "version": settings.HOOSH_VERSION,
            "gateway": running(options),
            "settings": in_force(),
            "rows": rows(),
            "accelerators": accelerators.describe(),
            "problems": checks.unsafe_settings(),
        }
        if options["json"]:
            self.stdout.write(remote.dump(found))
            return
        self.stdout.write(f"Hoosh {settings.HOOSH_VERSION}")
        for title, section in found.items():
            if title != "version":
                self._section(title, section)

    def _section(self, title: str, section: Any) -> None:
        self.stdout.write(f"\n{title.capitalize()}")
        lines = [f"{name}: {value}" for name, value in section.items()] if isinstance(section, dict) else section
        for line in lines or ["none"]:
            self.stdout.write(remote.printable(f"  {line}"))


def running(options: dict[str, Any]) -> dict[str, Any]:
    """What the gateway says of itself; why it says nothing, if it does not."""
    try:
        with remote.Gateway(options) as gateway:
            _, state = gateway.get("/v1/health", accepted=(200, 503))
    except CommandError as exc:
        return {"status": str(exc)}
    return {"address": gateway.address, **state} if isinstance(state, dict) else {"status": "unknown"}


def in_force() -> dict[str, Any]:
    """The settings of this process and host that matter; the database without its password."""
    database = settings.DATABASES["default"]
    engine = str(database["ENGINE"]).rpartition(".")[2]
    host = f" at {database['HOST']}" if database.get("HOST") else ""
    return {
        "data directory": str(settings.HOOSH_DATA_DIR),
        "bind": f"{settings.HOOSH_BIND}:{settings.HOOSH_PORT}",
        "workers": settings.HOOSH_WORKERS,
        "public URL": settings.HOOSH_PUBLIC_URL or "none",
        "trusted proxies": ", ".join(settings.HOOSH_TRUSTED_PROXIES) or "none",
        "database": f"{engine} {database['NAME']}{host}",
        "journal sync": settings.HOOSH_JOURNAL_SYNC,
        "access log": settings.HOOSH_ACCESS_LOG,
        "configuration file": settings.HOOSH_CONFIG or "none",
    }


def rows() -> dict[str, Any]:
    """Counts of what is configured; a reason instead when the database cannot be asked."""
    from budgets.models import ApiKey
    from providers.models import ConfigVersion, Provider, Route

    try:
        latest = ConfigVersion.objects.order_by("-number").values_list("number", flat=True).first()
        keys = ApiKey.objects.filter(revoked_at__isnull=True)
        expired = keys.filter(expires_at__lte=timezone.now()).count()
        return {
            "configuration version": latest or "none yet",
            "providers": ", ".join(Provider.objects.values_list("name", flat=True)) or "none",
            "routes": Route.objects.count(),
            "keys": keys.count() - expired,
            "keys revoked or expired": ApiKey.objects.exclude(revoked_at__isnull=True).count() + expired,
        }
    except DatabaseError as exc:
        return {"database": f"cannot be read: {str(exc).splitlines()[0]}"}
