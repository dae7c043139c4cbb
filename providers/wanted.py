"""What a configuration file asks for, in one form: read from hoosh's own file (a `Plan`) or from our tables.

Nothing is looked up or written here; `providers.importing` does that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import models

from providers import exporting
from providers.hoosh_toml import Plan, PlanProvider
from providers.models import (
    Credential,
    DataPattern,
    GatewaySettings,
    ModelCard,
    PrivacyPolicy,
    Provider,
    Route,
    RoutingPolicy,
)

_BESIDE_PROVIDER = ("credential", exporting.CLIENT_CHAIN, exporting.CLIENT_KEY)
IMPORTED_CREDENTIAL = "imported"  # the name of the one credential a hoosh entry can have


class ImportRefusedError(Exception):
    """The file cannot be applied; nothing was changed. `reasons` name each place and what is wrong there."""

    def __init__(self, reasons: Iterable[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("\n".join(self.reasons))


@dataclass(slots=True)
class WantedCredential:
    """A credential; `secret` None = its variable is not set."""

    name: str
    secret: str | None = field(repr=False)
    enabled: bool = True


@dataclass(slots=True)
class WantedClient:
    """A client certificate; `key` None = its variable is not set. Without a chain: there shall be none."""

    chain: str = ""
    key: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class WantedRoute:
    """A route; without a "name" in `values` the importer chooses one."""

    origin: str
    values: dict[str, Any]


@dataclass(slots=True)
class WantedProvider:
    """A provider with its routes; without a "name" in `values` the importer chooses one."""

    origin: str
    values: dict[str, Any]
    credentials: list[WantedCredential] = field(default_factory=list)
    routes: list[WantedRoute] = field(default_factory=list)
    ca_files: tuple[str, ...] = ()
    address_class: str = ""
    client: WantedClient | None = None  # None = the file cannot say


@dataclass(slots=True)
class Wanted:
    """Everything a file asks of this application.

    `privacy_policy` is the name of the gateway's own ("" = none); None where the file does not say.
    """

    providers: list[WantedProvider] = field(default_factory=list)
    policies: list[dict[str, Any]] = field(default_factory=list)
    patterns: list[dict[str, Any]] = field(default_factory=list)
    privacy: list[dict[str, Any]] = field(default_factory=list)
    privacy_policy: str | None = None
    cards: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def from_plan(plan: Plan) -> Wanted:
    """What a hoosh file asks for. Raises `ImportRefusedError` when the plan has errors."""
    if plan.errors:
        raise ImportRefusedError(plan.errors)
    return Wanted(
        providers=[_from_plan(entry) for entry in plan.providers],
        patterns=[dict(pattern) for pattern in plan.patterns],
        privacy=[dict(plan.privacy)] if plan.privacy else [],
        privacy_policy=plan.privacy["name"] if plan.privacy else None,
        settings=dict(plan.settings),
    )


def _from_plan(entry: PlanProvider) -> WantedProvider:
    routes = [
        WantedRoute(
            f"{entry.origin}.models",
            {
                "pattern": route.pattern,
                "priority": route.priority,
                "output_cap": route.output_cap,
                "enabled": route.enabled,
                **({} if route.cache_s is None else {"cache_s": route.cache_s}),
            },
        )
        for route in entry.routes
    ]
    values = {
        "kind": entry.kind,
        "base_url": entry.base_url,
        "enabled": entry.enabled,
        "ca_pem": "",
        "requests_per_minute": entry.requests_per_minute,
    }
    credentials = [WantedCredential(IMPORTED_CREDENTIAL, entry.secret.text)] if entry.secret else []
    return WantedProvider(entry.origin, values, credentials, routes, entry.ca_files)


def from_tables(tables: Mapping[str, Any], environ: Mapping[str, str]) -> Wanted:
    """What a file of our own asks for. Raises `ImportRefusedError` for unknown keys, wrong types, missing providers."""
    reader = _Tables(environ)
    wanted = reader.read(tables)
    if reader.reasons:
        raise ImportRefusedError(reader.reasons)
    return wanted


class _Tables:
    """Reads our own tables strictly: a misspelt key must not silently mean a default."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.reasons: list[str] = []

    def read(self, tables: Mapping[str, Any]) -> Wanted:
        """The whole file; `reasons` is filled on the way."""
        wanted = Wanted()
        by_name: dict[str, WantedProvider] = {}
        for where, table in self._list(tables, "provider"):
            entry = WantedProvider(
                where, self._values(where, table, Provider, exporting.PROVIDER_FIELDS, _BESIDE_PROVIDER)
            )
            entry.client = self._client(where, table)
            entry.credentials = [
                credential
                for place, each in self._list(table, "credential", where)
                if (credential := self._credential(place, each)) is not None
            ]
            if self._needs(where, entry.values, "name", "kind"):
                by_name[entry.values["name"]] = entry
                wanted.providers.append(entry)
        for where, table in self._list(tables, "route"):
            values = self._values(where, table, Route, exporting.ROUTE_FIELDS, ("provider",))
            provider = by_name.get(str(table.get("provider")))
            if provider is None:
                self.reasons.append(f"{where}.provider must name a [[provider]] of this file.")
            elif self._needs(where, values, "name", "pattern"):
                provider.routes.append(WantedRoute(where, values))
        for key, model, fields, into in (
            ("policy", RoutingPolicy, exporting.POLICY_FIELDS, wanted.policies),
            ("data_pattern", DataPattern, exporting.PATTERN_FIELDS, wanted.patterns),
            ("privacy_policy", PrivacyPolicy, exporting.PRIVACY_FIELDS, wanted.privacy),
            ("card", ModelCard, exporting.CARD_FIELDS, wanted.cards),
        ):
            into += [self._values(where, table, model, fields) for where, table in self._list(tables, key)]
        settings = tables.get("settings", {})
        if isinstance(settings, Mapping):
            names, besides = exporting.SETTINGS_FIELDS, (exporting.PRIVACY,)
            wanted.settings = self._values("settings", settings, GatewaySettings, names, besides, complete=False)
            wanted.privacy_policy = settings.get(exporting.PRIVACY)
            if wanted.privacy_policy is not None and not isinstance(wanted.privacy_policy, str):
                self.reasons.append(f"settings.{exporting.PRIVACY} must be the name of a policy.")
        else:
            self.reasons.append("settings must be one table, [settings].")
        return wanted

    def _list(self, tables: Mapping[str, Any], key: str, inside: str = "") -> list[tuple[str, Mapping[str, Any]]]:
        found = tables.get(key, [])
        place = f"{inside}.{key}" if inside else key
        if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
            self.reasons.append(f"{place} must be written as [[{key if not inside else 'provider.' + key}]].")
            return []
        return [(f"{place}[{number}]", entry) for number, entry in enumerate(found, 1)]

    def _needs(self, where: str, values: Mapping[str, Any], *names: str) -> bool:
        missing = [name for name in names if not values.get(name)]
        self.reasons += [f"{where} needs {name}." for name in missing]
        return not missing

    def _credential(self, where: str, table: Mapping[str, Any]) -> WantedCredential | None:
        values = self._values(where, table, Credential, exporting.CREDENTIAL_FIELDS, ("secret",))
        secret = table.get("secret")
        if not isinstance(secret, str) or not secret:
            self.reasons.append(f"{where}.secret must be a text, best as $NAME of an environment variable.")
            return None
        return WantedCredential(values.get("name") or "default", self._secret(secret), values.get("enabled", True))

    def _client(self, where: str, table: Mapping[str, Any]) -> WantedClient:
        chain, key = table.get(exporting.CLIENT_CHAIN, ""), table.get(exporting.CLIENT_KEY, "")
        if not isinstance(chain, str) or not isinstance(key, str) or bool(chain) != bool(key):
            names = f"{exporting.CLIENT_CHAIN} and {exporting.CLIENT_KEY}"
            self.reasons.append(f"{where}: {names} are two texts that belong together; the key is best a $NAME.")
            return WantedClient()
        return WantedClient(chain, self._secret(key))

    def _secret(self, written: str) -> str | None:
        """A secret as it is meant; None when it is a variable that is not set."""
        match = re.fullmatch(r"\$([A-Za-z_][A-Za-z0-9_]*)", written)
        return (self._environ.get(match[1]) or None) if match else written

    def _values(
        self,
        where: str,
        table: Mapping[str, Any],
        model: type[models.Model],
        fields: Iterable[str],
        besides: Iterable[str] = (),
        *,
        complete: bool = True,
    ) -> dict[str, Any]:
        """Field values of a table; with `complete`, fields that are not named get the model's default."""
        names = tuple(fields)
        self.reasons += [f"{where}.{key} is not known." for key in table if key not in names and key not in besides]
        found: dict[str, Any] = {}
        for name in names:
            field_: Any = model._meta.get_field(name)
            if name in table:
                found[name] = self._value(f"{where}.{name}", table[name], name, field_)
            elif complete:
                found[name] = field_.get_default()
        return found

    def _value(self, place: str, value: object, name: str, field_: Any) -> Any:
        if name in exporting.LISTS:
            if isinstance(value, list) and all(isinstance(entry, str) and "," not in entry for entry in value):
                return ",".join(value)
            self.reasons.append(f"{place} must be a list of texts without commas.")
            return ""
        kinds: tuple[type, ...] = {
            "BooleanField": (bool,),
            "FloatField": (int, float),
            "IntegerField": (int,),
            "PositiveIntegerField": (int,),
        }.get(field_.get_internal_type(), (str,))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self.reasons.append(f"{place} must be {' or '.join(kind.__name__ for kind in kinds)}.")
            return field_.get_default()
        return float(value) if float in kinds and isinstance(value, int | float) else value
