"""Bringing the rows in line with what a configuration file asks for (`providers.wanted`).

`read_certificates` and `look_up` complete it from outside, then `apply` writes inside the caller's transaction.
The importer owns only rows it made (`managed_by="import"`): it changes those and removes the ones the file no longer
names. A row of an operator that is in the way is left alone and reported, unless it is to be adopted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from django.core.exceptions import ValidationError
from django.db import models, transaction

from providers import certificates, exporting, sequences, services, validation
from providers.catalog import CATALOG
from providers.models import (
    AddressClass,
    ClientCertificate,
    Credential,
    DataPattern,
    ModelCard,
    PrivacyPolicy,
    Provider,
    Route,
    RoutingPolicy,
)
from providers.vault import VaultError
from providers.wanted import IMPORTED_CREDENTIAL, ImportRefusedError, Wanted, WantedClient, WantedProvider, WantedRoute

OWNER = "import"
_MAX_PEM_BYTES = 1024 * 1024
Row = TypeVar("Row", Provider, Route, RoutingPolicy, ModelCard, DataPattern, PrivacyPolicy)


@dataclass(slots=True)
class Outcome:
    """What was done, one sentence each, and what the operator should know."""

    changes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_certificates(wanted: Wanted, *, directory: Path) -> None:
    """Read the certificate files that are named, relative to `directory`. Raises `ImportRefusedError`."""
    reasons: list[str] = []
    for entry in wanted.providers:
        try:
            if entry.ca_files:
                entry.values["ca_pem"] = "\n".join(_read_pem(directory / name) for name in entry.ca_files)
        except ValidationError as exc:
            reasons += [f"{entry.origin}: {message}" for message in exc.messages]
    if reasons:
        raise ImportRefusedError(reasons)


def look_up(wanted: Wanted) -> list[str]:
    """Bring every base URL into its stored form and look its address up. Returns warnings.

    Slow, since names are resolved: call it outside of a transaction. Raises `ImportRefusedError`.
    """
    warnings: list[str] = []
    reasons: list[str] = []
    for entry in wanted.providers:
        try:
            kind = CATALOG.get(entry.values.get("kind", ""))
            default = kind.base_url if kind else ""
            entry.values["base_url"] = validation.base_url(entry.values.get("base_url", ""), default=default)
            _look_up(entry, warnings, is_local=kind is not None and kind.local)
        except ValidationError as exc:
            reasons += [f"{entry.origin}: {message}" for message in exc.messages]
    if reasons:
        raise ImportRefusedError(reasons)
    return warnings


def _read_pem(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_PEM_BYTES + 1)
        text = data.decode("ascii")
    except (OSError, UnicodeDecodeError) as exc:
        raise ValidationError(f"the certificate file {path} cannot be read: {exc}") from exc
    if len(data) > _MAX_PEM_BYTES or not text.strip() or "\0" in text:
        raise ValidationError(f"the certificate file {path} is empty, far too large or not text")
    return text


def _look_up(entry: WantedProvider, warnings: list[str], *, is_local: bool) -> None:
    url = entry.values["base_url"]
    try:
        entry.address_class = services.observe_address(url)
    except ValidationError as exc:
        if [error.code for errors in exc.error_dict.values() for error in errors] != ["unresolved"]:
            raise
        entry.address_class = AddressClass.PRIVATE if is_local else AddressClass.PUBLIC
        warnings.append(
            f"{entry.origin}: {url} cannot be resolved now; only {entry.address_class} addresses are allowed."
        )
    if url.startswith("http:") and entry.address_class == AddressClass.PUBLIC and entry.credentials:
        warnings.append(f"{entry.origin}: its secret crosses the internet in clear, since {url} is not https.")


def apply(wanted: Wanted, *, actor: str, adopt: bool = False) -> Outcome:
    """Write what is wanted. Call inside a transaction, after `look_up`. Raises `ImportRefusedError`."""
    sequences.lock_all()
    try:
        return _Applier(actor, adopt=adopt).run(wanted)
    except _RefusedHereError as exc:
        reasons = [f"{exc.origin}, {name}: {text}" for name, text in _by_field(exc.error)]
        raise ImportRefusedError(reasons) from exc


def retire_privacy(wanted: Wanted, outcome: Outcome, *, actor: str) -> None:
    """Remove the policies and patterns an import made that the file no longer names; behind everything that names some.

    The gateway's own is taken back first. One that an operator's rows still name is left, and reported.
    """
    policies = {values.get("name") for values in wanted.privacy}
    patterns = {values.get("name") for values in wanted.patterns}
    settings = services.gateway_settings()
    for policy in PrivacyPolicy.objects.filter(managed_by=OWNER).exclude(name__in=policies):
        if settings.privacy_policy_id == policy.pk:
            settings.privacy_policy = None
            services.save_settings(settings, actor=actor)
            outcome.changes.append(f"gateway settings “{exporting.PRIVACY}” changed")
        _retire("privacy policy", policy, services.delete_privacy_policy, outcome, actor)
    for pattern in DataPattern.objects.filter(managed_by=OWNER).exclude(name__in=patterns):
        _retire("data pattern", pattern, services.delete_data_pattern, outcome, actor)


def _retire(what: str, row: models.Model, delete: Any, outcome: Outcome, actor: str) -> None:
    try:
        with transaction.atomic():
            delete(row, actor=actor)
        outcome.changes.append(f"{what} “{row}” removed")
    except ValidationError as exc:
        outcome.warnings.append(f"The {what} “{row}” stays. {' '.join(exc.messages)}")


class _RefusedHereError(Exception):
    def __init__(self, origin: str, error: ValidationError) -> None:
        super().__init__(origin)
        self.origin = origin
        self.error = error


def _by_field(error: ValidationError) -> list[tuple[str, str]]:
    if hasattr(error, "error_dict"):
        return [(name, text) for name, texts in error.message_dict.items() for text in texts]
    return [("value", text) for text in error.messages]


class _Applier:
    """One import: first decide which rows are meant, then remove, then write, so that names are free in time."""

    def __init__(self, actor: str, *, adopt: bool) -> None:
        self._actor = actor
        self._adopt = adopt
        self._outcome = Outcome()

    def run(self, wanted: Wanted) -> Outcome:
        """All of it."""
        pairs = [(entry, self._provider_of(entry)) for entry in wanted.providers]
        pairs = self._resolve_unnamed(pairs)
        kept = {row.pk for _, row in pairs if row is not None}
        claimed: set[int] = set()
        routes = [(entry, [self._route_of(route, row, claimed) for route in entry.routes]) for entry, row in pairs]
        for leftover in Route.objects.filter(managed_by=OWNER).exclude(pk__in=claimed):
            self._done("route", leftover.name, "removed")
            services.delete_route(leftover, actor=self._actor)
        self._remove_providers(kept)
        for (entry, row), (_, rows) in zip(pairs, routes, strict=True):
            if (provider := self._provider(entry, row)) is None:
                continue
            self._client(entry, provider)
            self._credentials(entry, provider)
            for route, found in zip(entry.routes, rows, strict=True):
                self._route(route, found, provider)
        self._named(RoutingPolicy, "name", wanted.policies, "policy", services.save_policy, services.delete_policy)
        self._named(ModelCard, "pattern", wanted.cards, "card", services.save_card, services.delete_card)
        # Of these none is removed here: what names them may be changed only later (`retire_privacy`).
        self._written(DataPattern, "name", wanted.patterns, "data pattern", services.save_data_pattern)
        self._written(PrivacyPolicy, "name", wanted.privacy, "privacy policy", services.save_privacy_policy)
        self._settings(wanted.settings, wanted.privacy_policy)
        return self._outcome

    # Which row is meant

    def _provider_of(self, entry: WantedProvider) -> Provider | None:
        name = entry.values.get("name")
        return Provider.objects.filter(name=name).first() if name else None

    def _resolve_unnamed(
        self, pairs: list[tuple[WantedProvider, Provider | None]]
    ) -> list[tuple[WantedProvider, Provider | None]]:
        """An entry without a name is the row of the same kind and address: that is a provider's identity there."""
        taken = {row.pk for _, row in pairs if row is not None}
        found = []
        for entry, row in pairs:
            if row is None and not entry.values.get("name"):
                same = Provider.objects.filter(
                    managed_by=OWNER, kind=entry.values["kind"], base_url=entry.values["base_url"]
                )
                row = same.exclude(pk__in=taken).order_by("id").first()
                taken.update([row.pk] if row else [])
            found.append((entry, row))
        return found

    def _route_of(self, route: WantedRoute, provider: Provider | None, claimed: set[int]) -> Route | None:
        if name := route.values.get("name"):
            row = Route.objects.filter(name=name).first()
        elif provider is not None:
            same = Route.objects.filter(managed_by=OWNER, provider=provider, pattern=route.values["pattern"])
            row = same.exclude(pk__in=claimed).order_by("id").first()
        else:
            row = None
        claimed.update([row.pk] if row else [])
        return row

    def _is_mine(self, row: Row, what: str) -> bool:
        if row.managed_by == OWNER or self._adopt:
            return True
        self._outcome.warnings.append(f"The {what} “{row}” was made by an operator; it is left as it is.")
        return False

    # Writing

    def _remove_providers(self, kept: set[int]) -> None:
        for row in Provider.objects.filter(managed_by=OWNER).exclude(pk__in=kept):
            if not row.routes.exclude(managed_by=OWNER).exists():
                services.delete_provider(row, actor=self._actor)
                self._done("provider", row.name, "removed")
            elif row.enabled:
                row.enabled = False
                services.save_provider(row, actor=self._actor)
                self._done("provider", row.name, "disabled, since an operator's route uses it")

    def _provider(self, entry: WantedProvider, row: Provider | None) -> Provider | None:
        if row is not None and not self._is_mine(row, "provider"):
            return None
        row = row or Provider(name=self._free_name(Provider, entry.values["kind"]))
        self._save(
            entry.origin, "provider", row, entry.values, services.save_provider, address_class=entry.address_class
        )
        return row

    def _route(self, wanted: WantedRoute, row: Route | None, provider: Provider) -> None:
        if row is not None and not self._is_mine(row, "route"):
            return
        pattern = re.sub(r"[^!-~]+", "-", wanted.values["pattern"])
        row = row or Route(name=self._free_name(Route, f"{provider.name}:{pattern}"))
        self._save(wanted.origin, "route", row, {**wanted.values, "provider": provider}, services.save_route)

    def _client(self, entry: WantedProvider, provider: Provider) -> None:
        wanted, stored = entry.client, ClientCertificate.objects.filter(provider=provider).first()
        if wanted is None:
            return
        if not wanted.chain:
            if stored is not None:
                self._checked(entry.origin, services.remove_client_certificate, provider)
                self._done("client certificate", provider.name, "removed")
        elif wanted.key is None:
            state = "the stored one stays in use" if stored else "no certificate is shown until then"
            self._outcome.warnings.append(f"{entry.origin}: the variable of its client key is not set; {state}.")
        elif stored is None or not _shows(stored, wanted):
            self._checked(entry.origin, services.set_client_certificate, provider, wanted.chain, wanted.key)
            self._done("client certificate", provider.name, "stored")

    def _credentials(self, entry: WantedProvider, provider: Provider) -> None:
        stored = {row.name: row for row in Credential.objects.filter(provider=provider)}
        for wanted in entry.credentials:
            row = stored.get(wanted.name)
            if wanted.secret is None:
                state = "the stored one stays in use" if row and row.is_usable else "it has none until then"
                self._outcome.warnings.append(f"{entry.origin}: the variable of its secret is not set; {state}.")
            elif row is None or not _holds(row, wanted.secret):
                row = self._checked(entry.origin, services.set_credential, provider, wanted.name, wanted.secret)
                self._done("credential", f"{provider.name} / {wanted.name}", "stored")
            if row is not None and row.enabled != wanted.enabled:
                row.enabled = wanted.enabled
                self._checked(entry.origin, services.save_credential, row)
        gone = stored.get(IMPORTED_CREDENTIAL)
        if gone is not None and not any(wanted.name == IMPORTED_CREDENTIAL for wanted in entry.credentials):
            services.delete_credential(gone, actor=self._actor)
            self._done("credential", f"{provider.name} / {IMPORTED_CREDENTIAL}", "removed")

    def _named(
        self, model: type[Row], key: str, wanted: list[dict[str, Any]], what: str, save: Any, delete: Any
    ) -> None:
        rows = {getattr(row, key): row for row in model._default_manager.all()}
        names = {values.get(key) for values in wanted}
        for name, row in rows.items():
            if row.managed_by == OWNER and name not in names:
                delete(row, actor=self._actor)
                self._done(what, str(row), "removed")
        self._written(model, key, wanted, what, save)

    def _written(self, model: type[Row], key: str, wanted: list[dict[str, Any]], what: str, save: Any) -> None:
        rows = {getattr(row, key): row for row in model._default_manager.all()}
        for values in wanted:
            known = rows.get(values.get(key))
            row = model(managed_by=OWNER) if known is None else known
            if known is None or self._is_mine(known, what):
                self._save(f"{what} “{values.get(key, '')}”", what, row, values, save)

    def _settings(self, values: Mapping[str, Any], policy: str | None) -> None:
        row = services.gateway_settings()
        if policy is not None:
            found = PrivacyPolicy.objects.filter(name=policy).first()
            if policy and found is None:
                error = ValidationError({exporting.PRIVACY: f"There is no privacy policy named “{policy}”."})
                raise _RefusedHereError("settings", error)
            values = {**values, exporting.PRIVACY: found}
        changed = [name for name, value in values.items() if getattr(row, name) != value]
        for name in changed:
            setattr(row, name, values[name])
        if changed:
            self._checked("settings", services.save_settings, row)
            self._done("gateway settings", ", ".join(changed), "changed")

    def _save(self, origin: str, what: str, row: Row, values: Mapping[str, Any], save: Any, **options: Any) -> None:
        is_new = row.pk is None
        before = {name: getattr(row, name, None) for name in values} if not is_new else {}
        was_mine = not is_new and row.managed_by == OWNER
        for name, value in values.items():
            setattr(row, name, value)
        row.managed_by = OWNER
        self._checked(origin, save, row, **options)
        if is_new:
            self._done(what, str(row), "created")
        elif not was_mine or any(getattr(row, name) != old for name, old in before.items()):
            self._done(what, str(row), "changed")

    def _checked(self, origin: str, save: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return save(*arguments, actor=self._actor, **options)
        except ValidationError as exc:
            raise _RefusedHereError(origin, exc) from exc

    def _free_name(self, model: type[models.Model], wanted: str) -> str:
        name, number = wanted[: validation.NAME_LIMIT], 1
        while model._default_manager.filter(name=name).exists():
            number += 1
            suffix = f"-{number}"
            name = wanted[: validation.NAME_LIMIT - len(suffix)] + suffix
        return name

    def _done(self, what: str, name: str, verb: str) -> None:
        self._outcome.changes.append(f"{what} “{name}” {verb}")


def _holds(row: Credential, secret: str) -> bool:
    try:
        return services.read_secret(row) == secret
    except VaultError:
        return False


def _shows(row: ClientCertificate, wanted: WantedClient) -> bool:
    """Whether exactly this is stored, for the present address."""
    try:
        return certificates.client_pem(wanted.chain, wanted.key or "") == services.read_client_pem(row.provider)
    except ValidationError:
        return False
