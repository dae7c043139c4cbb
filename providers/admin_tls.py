"""What the provider pages show of certificates: whose they are, when they end, which are pinned. Reads only."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from audit.admin_tools import badge
from providers import certificates, validation
from providers.models import ClientCertificate, Provider, ProviderProbe


@dataclass(frozen=True, slots=True)
class Shown:
    """One certificate. `role` is "server", "above the server", "private CA" or "client"."""

    role: str
    name: str
    not_after: dt.datetime
    pin: str
    is_pinned: bool = False

    @property
    def days(self) -> int:
        """Whole days until it ends; negative when it has ended."""
        return (self.not_after - timezone.now()).days

    @property
    def has_ended(self) -> bool:
        """Whether its last day is over."""
        return self.days < 0

    @property
    def ends_soon(self) -> bool:
        """Whether an operator has to do something about it: it ends soon, or has ended."""
        return self.days < certificates.WARN_DAYS

    @property
    def end(self) -> SafeString:
        """Its last day, with a label when it is near or past."""
        day = f"{self.not_after:%Y-%m-%d}"
        if self.has_ended:
            return format_html("{} {}", day, badge("expired", "bad"))
        return format_html("{} {}", day, badge(f"{self.days} days left", "warn") if self.ends_soon else "")


def server_chain(provider: Provider) -> list[Shown]:
    """The chain the last look at a provider saw at its present address, the server's own certificate first."""
    probe: ProviderProbe | None = getattr(provider, "probe", None)
    seen = probe.certificates if probe else {}
    if seen.get("base_url") != provider.base_url:
        return []
    pinned = validation.split_pins(provider.pins)
    return [
        Shown(
            "above the server" if number else "server",
            each["name"],
            dt.datetime.fromisoformat(each["not_after"]),
            each["pin"],
            each["pin"] in pinned,
        )
        for number, each in enumerate(seen["chain"])
    ]


def all_of(provider: Provider) -> list[Shown]:
    """Everything with an end: the server's chain, private authorities, the client certificate."""
    client: ClientCertificate | None = getattr(provider, "client_certificate", None)
    own = [("private CA", provider.ca_pem), ("client", client.chain_pem if client else "")]
    return server_chain(provider) + [
        Shown(role, each.name, each.not_after, each.pin)
        for role, pem in own
        if pem
        for each in certificates.describe_pem(pem)
    ]


def lost_pins(provider: Provider) -> list[str]:
    """Pins that no certificate of the chain seen last has; nothing where none was seen."""
    seen = {each.pin for each in server_chain(provider)}
    return [pin for pin in validation.split_pins(provider.pins) if pin not in seen] if seen else []


def table(provider: Provider) -> SafeString:
    """All of them, one line each."""
    lines = format_html_join(
        "",
        "<tr><td>{}</td><td>{} {}</td><td>{}</td></tr>",
        (
            (each.role, each.name, badge("pinned", "good") if each.is_pinned else "", each.end)
            for each in all_of(provider)
        ),
    )
    if not lines:
        return SafeString("None seen yet." if provider.base_url.startswith("https:") else "No TLS.")
    heads = SafeString('<th scope="col">of</th><th scope="col">name</th><th scope="col">ends</th>')
    return format_html("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>", heads, lines)
