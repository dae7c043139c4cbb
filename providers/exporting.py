"""The rows as plain data for our own configuration file, and the fields that file has. Secrets leave as `$NAME` only.

`providers.importing` reads the same fields back. Ids, address classes and the mark of imported rows stay out: they
belong to one installation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from django.db import models

from providers import validation
from providers.models import (
    ClientCertificate,
    DataPattern,
    GatewaySettings,
    ModelCard,
    PrivacyPolicy,
    Provider,
    Route,
    RoutingPolicy,
)

LIMIT_FIELDS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")
PROVIDER_FIELDS = ("name", "kind", "base_url", "ca_pem", "pins", *LIMIT_FIELDS, "enabled", "note")
CLIENT_CHAIN, CLIENT_KEY = "client_certificate", "client_key"
CREDENTIAL_FIELDS = ("name", "enabled")
ROUTE_FIELDS = (
    "name",
    "pattern",
    "upstream_model",
    "priority",
    "weight",
    "sticky",
    "tags",
    "capabilities",
    "connect_timeout_s",
    "first_byte_timeout_s",
    "gap_timeout_s",
    "total_timeout_s",
    "output_cap",
    "on_disconnect",
    "disconnect_cap",
    "duplicates_allowed",
    *LIMIT_FIELDS,
    "cache_s",
    "cache_price_percent",
    "semantic_threshold",
    "compact_percent",
    "compress",
    "enabled",
)
POLICY_FIELDS = ("name", "pattern", "strategy", "fallbacks", "tags", "position", "enabled")
CARD_FIELDS = (
    *("pattern", "display_name", "context_tokens", "max_output_tokens", "min_bytes_per_token", "capabilities", "note"),
)
PATTERN_FIELDS = ("name", "source", "level", "ignore_case", "enabled", "note")
PRIVACY_FIELDS = (
    *("name", "default_level", "internal", "confidential", "restricted", "disabled", "redact_local"),
    *("scan_tool_results", "scan_answers", "answer_level", "answer_action", "note"),
)
PRIVACY = "privacy_policy"  # of settings and teams: its name, "" = none
SETTINGS_FIELDS = tuple(
    field.name for field in GatewaySettings._meta.concrete_fields if not field.primary_key and field.name != PRIVACY
)
# Stored comma-separated, written as arrays.
LISTS = frozenset({"pins", "tags", "capabilities", "fallbacks", "cors_origins", "disabled"})


def tables() -> dict[str, Any]:
    """All configuration rows: {"settings": {…}, "provider": […], "route": […], "policy": […], …, "card": […]}."""
    row = GatewaySettings.objects.filter(pk=1).first() or GatewaySettings(pk=1)
    names: set[str] = set()
    providers = Provider.objects.order_by("name").select_related("client_certificate").prefetch_related("credentials")
    routes = Route.objects.order_by("name").select_related("provider")
    return {
        "settings": {
            **{name: _plain(row, name) for name in SETTINGS_FIELDS},
            PRIVACY: row.privacy_policy.name if row.privacy_policy is not None else "",
        },
        "provider": [_provider(each, names) for each in providers],
        "route": [{**_values(each, ROUTE_FIELDS), "provider": each.provider.name} for each in routes],
        "policy": [_values(each, POLICY_FIELDS) for each in RoutingPolicy.objects.order_by("position", "id")],
        "data_pattern": [_values(each, PATTERN_FIELDS) for each in DataPattern.objects.order_by("name")],
        "privacy_policy": [_values(each, PRIVACY_FIELDS) for each in PrivacyPolicy.objects.order_by("name")],
        "card": [_values(each, CARD_FIELDS) for each in ModelCard.objects.order_by("pattern")],
    }


def _provider(row: Provider, names: set[str]) -> Mapping[str, Any]:
    credentials = sorted(row.credentials.all(), key=lambda each: (each.position, each.pk))
    found = [
        {"name": each.name, "secret": f"${_variable(row.name, each.name, names)}", "enabled": each.enabled}
        for each in credentials
    ]
    client: ClientCertificate | None = getattr(row, "client_certificate", None)
    shown = (
        {
            CLIENT_CHAIN: client.chain_pem,
            CLIENT_KEY: f"${_variable(row.name, 'client', names, 'KEY')}",
        }
        if client
        else {}
    )
    return {**_values(row, PROVIDER_FIELDS), **shown, **({"credential": found} if found else {})}


def _variable(provider: str, credential: str, taken: set[str], ending: str = "SECRET") -> str:
    """A name for the environment variable that is to hold a secret, the same one for the same rows."""
    stem = re.sub(r"[^A-Z0-9]+", "_", f"HOOSH_{provider}_{credential}".upper()).strip("_")
    name, number = f"{stem}_{ending}", 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}_{ending}"
    taken.add(name)
    return name


def _values(row: models.Model, names: Iterable[str]) -> dict[str, Any]:
    """Values by field; what is blank is left out, since every such field is blank by default."""
    found = {name: _plain(row, name) for name in names}
    return {name: value for name, value in found.items() if value not in (None, "", [])}


def _plain(row: models.Model, name: str) -> Any:
    value = getattr(row, name)
    return list(validation.split(value)) if name in LISTS else value
