"""The write side of configuration: everything that changes providers, credentials, routes, policies, cards, settings.

Each function validates (`ValidationError` with field names), writes, records an audit entry and moves the change
counters in one transaction, and asks for one publication when the outermost transaction commits. Looking up a
provider's address happens before that transaction.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TypeVar

from django.conf import settings
from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.db import models, transaction
from django.db.models import ProtectedError
from django.utils import timezone

from audit.changes import changed_fields, object_of, recordable
from audit.record import record
from providers import certificates, sequences, validation
from providers.catalog import CATALOG
from providers.models import (
    AddressClass,
    ClientCertificate,
    Credential,
    DataPattern,
    GatewaySettings,
    ModelCard,
    PrivacyPolicy,
    Provider,
    Route,
    RoutingPolicy,
)
from providers.publish import publish_on_commit
from providers.vault import Vault, VaultError

SECRET_LIMIT = 4096
_WELL_KNOWN = frozenset(kind.base_url for kind in CATALOG.values() if not kind.local and kind.base_url)
Row = TypeVar("Row", bound=models.Model)


# Providers and their credentials


def save_provider(provider: Provider, *, actor: str, address_class: str | None = None) -> Provider:
    """Create or change a provider. A new or changed base URL is looked up and its address class fixed from then on;
    credentials saved for another URL are then unusable until typed again.

    A caller that is inside a transaction looks the address up before it and hands in the `address_class` it saw.
    """
    kind = CATALOG.get(provider.kind)
    if kind is None:
        raise ValidationError({"kind": f"“{provider.kind}” is not a kind of the catalogue."})
    try:
        provider.base_url = validation.base_url(provider.base_url, default=kind.base_url)
    except ValidationError as exc:
        raise ValidationError({"base_url": exc.messages}) from exc
    if (provider.base_url == validation.DEMO_URL) != (kind.name == "demo"):
        raise ValidationError({"base_url": f"{validation.DEMO_URL} and the kind “demo” belong together."})
    before = _stored(provider)
    if before is None or before.base_url != provider.base_url:
        provider.address_class = address_class or observe_address(provider.base_url)
    _clean(provider)
    return _write(provider, before, "provider", actor)


def observe_address(base_url: str) -> str:
    """The address class of a stored-form base URL, seen now.

    Raises `ValidationError` on a forbidden address, and with the code "unresolved" when the name is not known just now.
    The catalogue's own internet addresses then count as public, the class that forbids every inner address.
    """
    if base_url == validation.DEMO_URL:
        return AddressClass.LOOPBACK
    if base_url.startswith("unix:"):
        return AddressClass.UNIX
    from providers.egress import observe_class  # loads the resolver only where an address is typed

    try:
        return observe_class(base_url)
    except ValueError as exc:
        unresolved = isinstance(exc.__cause__, OSError)
        if unresolved and base_url in _WELL_KNOWN:
            return AddressClass.PUBLIC
        message = ValidationError(str(exc), code="unresolved" if unresolved else "address")
        raise ValidationError({"base_url": message}) from exc


def observe_again(provider: Provider, *, actor: str) -> Provider:
    """Accept the class a saved provider's address has now, for example after its server moved."""
    before = _stored(provider)
    provider.address_class = observe_address(provider.base_url)
    return _write(provider, before, "provider", actor)


def delete_provider(provider: Provider, *, actor: str) -> None:
    """Delete a provider with its credentials and routes."""
    _delete(provider, "provider", actor, sequences.CONFIG, sequences.SECRETS)


def set_credential(provider: Provider, name: str, secret: str, *, actor: str) -> Credential:
    """Store a secret under a name, sealed to the provider's base URL; replaces the one of that name."""
    check_secret(secret)
    if not provider.base_url:
        raise ValidationError({"provider": "Save the provider's base URL before a credential."})
    credential = provider.credentials.filter(name=name).first()
    if credential is None:
        credential = Credential(provider=provider, name=name, revision=0, position=provider.credentials.count())
    before = _stored(credential)
    credential.ciphertext = open_vault().seal(secret, provider.base_url)
    credential.last4 = secret[-4:] if len(secret) >= 12 else ""  # of a short secret four characters are too many
    credential.bound_base_url = provider.base_url
    credential.revision += 1
    credential.rotated_at = timezone.now()
    _clean(credential)
    return _write(credential, before, "credential", actor, sequences.CONFIG, sequences.SECRETS)


def save_credential(credential: Credential, *, actor: str) -> Credential:
    """Change a credential's name, position or enabled flag; the secret stays as it is."""
    before = _stored(credential)
    if before is None:
        raise ValidationError("A credential is made by storing its secret.")
    _clean(credential)
    return _write(credential, before, "credential", actor, sequences.CONFIG, sequences.SECRETS)


def delete_credential(credential: Credential, *, actor: str) -> None:
    """Forget a secret."""
    _delete(credential, "credential", actor, sequences.CONFIG, sequences.SECRETS)


def read_secret(credential: Credential) -> str:
    """The secret itself, for control's own calls to the provider. Raises `VaultError` when it cannot be used."""
    if not credential.ciphertext:
        raise VaultError("No secret is stored.")
    return open_vault().open(credential.ciphertext, credential.provider.base_url)


def set_client_certificate(provider: Provider, chain_pem: str, key_pem: str, *, actor: str) -> ClientCertificate:
    """Show this certificate to a provider from now on. Blank, the key is the stored one if it belongs to the chain."""
    pem = check_client_certificate(provider, chain_pem, key_pem)
    row = ClientCertificate.objects.filter(provider=provider).first() or ClientCertificate()
    before = _stored(row)
    row.provider = provider
    row.chain_pem = chain_pem.replace("\r\n", "\n").strip()
    row.fingerprint = certificates.fingerprint(pem)
    row.ciphertext = open_vault().seal(pem, provider.base_url)
    row.bound_base_url = provider.base_url
    row.rotated_at = timezone.now()
    _clean(row)
    return _write(row, before, "client_certificate", actor, sequences.CONFIG, sequences.SECRETS)


def check_client_certificate(provider: Provider, chain_pem: str, key_pem: str) -> str:
    """What `set_client_certificate` would seal. Raises `ValidationError` for "client_chain" or "client_key"."""
    if not provider.base_url.startswith("https://"):
        raise ValidationError({"client_chain": "A client certificate needs a base URL with https://."})
    try:
        validation.certificates(chain_pem)
    except ValidationError as exc:
        raise ValidationError({"client_chain": exc.messages}) from exc
    if not key_pem.strip():
        stored = read_client_pem(provider)
        if not stored:
            raise ValidationError({"client_key": "Enter the private key of the certificate."})
        key_pem = certificates.key_of(stored)
    return certificates.client_pem(chain_pem, key_pem)


def remove_client_certificate(provider: Provider, *, actor: str) -> None:
    """Show none any more, and forget the key."""
    row = ClientCertificate.objects.filter(provider=provider).first()
    if row is not None:
        _delete(row, "client_certificate", actor, sequences.CONFIG, sequences.SECRETS)


def read_client_pem(provider: Provider) -> str | None:
    """Chain and key to connect with; "" = there is no client certificate, None = it cannot be opened."""
    row: ClientCertificate | None = getattr(provider, "client_certificate", None)
    if row is None:
        return ""
    try:
        return open_vault().open(row.ciphertext, provider.base_url)
    except VaultError:
        return None


def open_vault() -> Vault:
    """The vault of `manage.py init`. Tests, which have no key file, share one made for the process."""
    path = settings.HOOSH_KEYS_DIR / "vault.key"
    if settings.TESTING and not path.exists():
        return _ephemeral_vault()
    return Vault.load(path)


@functools.cache
def _ephemeral_vault() -> Vault:
    return Vault([Vault.new_key()])


def check_secret(secret: str) -> None:
    """Refuse a secret that could not stand in a header."""
    if not secret:
        raise ValidationError({"secret": "Enter the secret."})
    if len(secret) > SECRET_LIMIT:
        raise ValidationError({"secret": f"A secret has at most {SECRET_LIMIT} characters."})
    if not all("!" <= character <= "~" for character in secret):
        raise ValidationError(
            {"secret": "A secret has visible ASCII characters only, no blanks: it goes into a header."}
        )


# Routes, policies, privacy, cards, settings


def save_route(route: Route, *, actor: str) -> Route:
    """Create or change a route."""
    before = _stored(route)
    _clean(route)
    _check_times(route)
    return _write(route, before, "route", actor)


def delete_route(route: Route, *, actor: str) -> None:
    """Delete a route."""
    _delete(route, "route", actor)


def save_policy(policy: RoutingPolicy, *, actor: str) -> RoutingPolicy:
    """Create or change a routing policy."""
    before = _stored(policy)
    _clean(policy)
    return _write(policy, before, "policy", actor)


def delete_policy(policy: RoutingPolicy, *, actor: str) -> None:
    """Delete a routing policy."""
    _delete(policy, "policy", actor)


def save_privacy_policy(policy: PrivacyPolicy, *, actor: str) -> PrivacyPolicy:
    """Create or change a privacy policy."""
    before = _stored(policy)
    policy.disabled = ",".join(validation.split(policy.disabled))
    _clean(policy)
    return _write(policy, before, "privacy_policy", actor)


def delete_privacy_policy(policy: PrivacyPolicy, *, actor: str) -> None:
    """Delete a privacy policy. `ValidationError` while a team or the gateway settings name it."""
    try:
        with transaction.atomic():
            _delete(policy, "privacy_policy", actor)
    except ProtectedError as exc:
        raise ValidationError(
            f"The privacy policy “{policy}” is a team's or the gateway's. Choose another there first."
        ) from exc


def save_data_pattern(pattern: DataPattern, *, actor: str) -> DataPattern:
    """Create or change a pattern. `ValidationError` for an expression that cannot be used, and for a new name while
    policies switch the pattern off under its old one."""
    before = _stored(pattern)
    _clean(pattern)
    if before is not None and before.name != pattern.name:
        _refuse_switched_off(before, "name")
    return _write(pattern, before, "data_pattern", actor)


def delete_data_pattern(pattern: DataPattern, *, actor: str) -> None:
    """Delete a pattern. `ValidationError` while policies switch it off."""
    _refuse_switched_off(pattern)
    _delete(pattern, "data_pattern", actor)


def _refuse_switched_off(pattern: DataPattern, field: str = NON_FIELD_ERRORS) -> None:
    names = [
        policy.name
        for policy in PrivacyPolicy.objects.filter(disabled__contains=pattern.name).order_by("name")
        if pattern.name in validation.split(policy.disabled)
    ]
    if names:
        raise ValidationError(
            {field: f"Privacy policies switch “{pattern.name}” off: {', '.join(names)}. Take it out there first."}
        )


def save_card(card: ModelCard, *, actor: str) -> ModelCard:
    """Create or change a model card. Cards are live: they are no part of the published document."""
    before = _stored(card)
    _clean(card)
    return _write(card, before, "card", actor, sequences.CARDS)


def delete_card(card: ModelCard, *, actor: str) -> None:
    """Delete a model card."""
    _delete(card, "card", actor, sequences.CARDS)


def gateway_settings() -> GatewaySettings:
    """The one settings row, made with its defaults on first use."""
    return GatewaySettings.objects.get_or_create(pk=1)[0]


def save_settings(row: GatewaySettings, *, actor: str) -> GatewaySettings:
    """Change the behaviour of the gateway."""
    row.pk = 1
    before = _stored(row)
    _check_times(row)
    _clean(row)
    return _write(row, before, "settings", actor)


# The common part of every write


def _check_times(row: Route | GatewaySettings) -> None:
    if problem := validation.times_problem(row.connect_timeout_s, row.first_byte_timeout_s, row.total_timeout_s):
        raise ValidationError({"total_timeout_s": problem})


def _stored(row: Row) -> Row | None:
    return type(row)._default_manager.filter(pk=row.pk).first() if row.pk else None


def _clean(row: models.Model) -> None:
    if isinstance(row, Provider):
        row.ca_pem = row.ca_pem.replace("\r\n", "\n").strip()
        row.pins = ",".join(validation.split_pins(row.pins))
    row.full_clean()


def _write(row: Row, before: Row | None, what: str, actor: str, *counters: str) -> Row:
    changes = changed_fields(before, row)
    if before is not None and not changes:
        return row
    action = f"{what}.{'created' if before is None else 'changed'}"
    moved = counters or (sequences.CONFIG,)
    with transaction.atomic():
        _move(moved)
        if before is None:
            row.save(force_insert=True)
        else:
            row.save(update_fields=[*changes, *(("updated_at",) if hasattr(row, "updated_at") else ())])
        data = {"object": object_of(row), "fields": recordable(changes)}
        record(action, actor=actor, target=str(row)[:200], data=data)
    _publish(row, action, actor, moved)
    return row


def _delete(row: models.Model, what: str, actor: str, *counters: str) -> None:
    action = f"{what}.deleted"
    moved = counters or (sequences.CONFIG,)
    with transaction.atomic():
        _move(moved)
        record(action, actor=actor, target=str(row)[:200], data={"object": object_of(row)})
        row.delete()
    _publish(row, action, actor, moved)


def _move(counters: Iterable[str]) -> None:
    # Before any row is touched: writers that meet at the counter first cannot wait for each other's rows.
    for counter in counters:
        sequences.bump(counter)


def _publish(row: models.Model, action: str, actor: str, moved: Iterable[str]) -> None:
    # Outside of the write's own savepoint: only so do the writes of one transaction share one publication.
    if sequences.CONFIG in moved:
        publish_on_commit(actor, f"{action} {row}"[:200])
