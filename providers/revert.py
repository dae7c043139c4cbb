"""Going back: the rows become what a published version says, and that is published as a new version.

Secrets are in no version, so they are never brought back: a credential that is gone has to be stored again, one that
was stored since stays, switched off. Whatever cannot be as it was is told in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models, transaction

from audit.record import record
from providers import config, owners, publish, services
from providers.config import ConfigDocument, ProviderDoc
from providers.models import (
    ConfigVersion,
    DataPattern,
    PrivacyPolicy,
    Provider,
    Route,
    RoutingPolicy,
)
from providers.owners import Owners

_JOINED = frozenset({"tags", "capabilities", "fallbacks", "disabled", "cors_origins"})  # stored comma-separated
_NOT_COLUMNS = frozenset({"credentials", "client_certificate", "pins", "privacy_policy_id"})


class RevertError(Exception):
    """The rows cannot become what the version says; the text says why. Nothing was changed."""


@dataclass
class Reverted:
    """What came of it: the version in force now, and what could not be as it was. `waits`: the rows are as they were,
    as a draft that somebody else has to publish."""

    version: ConfigVersion
    waits: bool = False
    warnings: list[str] = field(default_factory=list)


def revert(number: int, *, actor: str, note: str = "") -> Reverted:
    """Write the rows of version `number` back and publish them. All or nothing. Raises `RevertError`.

    Where changes are reviewed, they become the draft; but what is in force is never a draft.
    """
    document, owned = _document(number)
    warnings: list[str] = []
    waiting = waits(number)
    try:
        with publish.held_back(), transaction.atomic():
            _write(document, owned, actor, warnings)
            data = {"note": note, "warnings": warnings[:50]}
            record("config.reverted", actor=actor, target=f"Version {number}", data=data)
            publish.draft_digest()  # what cannot be published is not written either
        if waiting:
            publish.publish_on_commit(actor, f"back to version {number}")
    except ValidationError as exc:
        raise RevertError(" ".join(exc.messages)) from exc
    except publish.PublishError as exc:
        raise RevertError(str(exc)) from exc
    if waiting:
        return Reverted(ConfigVersion.objects.latest("number"), True, warnings)
    told = f"back to version {number}"
    try:
        return Reverted(publish.publish(actor, f"{told}: {note}" if note else told), False, warnings)
    except publish.PublishError as exc:  # somebody changed rows in between
        raise RevertError(f"The rows were written back, but not published. {exc}") from exc


def waits(number: int) -> bool:
    """Whether going back to this version makes a draft: where changes are reviewed, unless it is in force."""
    found = publish.latest()
    return publish.is_reviewed() and found is not None and found[0] != number


def _document(number: int) -> tuple[ConfigDocument, Owners]:
    found = ConfigVersion.objects.filter(number=number).values_list("document", "owners").first()
    if found is None:
        raise RevertError(f"There is no version {number}.")
    try:
        return config.unpack(bytes(found[0])), owners.read(found[1])
    except ValueError as exc:
        raise RevertError(f"Version {number} was made by a gateway with another format of versions.") from exc


def _write(document: ConfigDocument, owned: Owners, actor: str, warnings: list[str]) -> None:
    names = _set_names_free(document)
    for pattern in document.patterns:
        row = _row(DataPattern, pattern.id, owned)
        services.save_data_pattern(_filled(row, pattern), actor=actor)
    for policy in document.privacy:
        services.save_privacy_policy(_filled(_row(PrivacyPolicy, policy.id, owned), policy), actor=actor)
    _settings(document, actor, warnings)
    for provider in document.providers:
        _provider(provider, owned, actor, warnings)
    for route in document.routes:
        services.save_route(_filled(_row(Route, route.id, owned), route), actor=actor)
    for rule in document.policies:
        services.save_policy(_filled(_row(RoutingPolicy, rule.id, owned), rule), actor=actor)
    _remove(document, actor, warnings, names)


def _row(model: type[models.Model], number: int, owned: Owners) -> Any:
    """The row as it is; one made anew belongs to whom it belonged."""
    found = model._default_manager.filter(pk=number).first()
    return found or model(pk=number, managed_by=owned.get((model, number), ""))


def _filled(row: Any, document: Any, *, without: Iterable[str] = ()) -> Any:
    """The row with the columns a document has of it."""
    left_out = {"id", *_NOT_COLUMNS, *without}
    for name in document.__struct_fields__:
        if name not in left_out:
            value = getattr(document, name)
            setattr(row, name, ",".join(value) if name in _JOINED else value)
    return row


_Names = dict[tuple[type[models.Model], int], str]


def _set_names_free(document: ConfigDocument) -> _Names:
    """Rows that shall have other names, and those that shall not be, give theirs up first: two may change places. What
    they were called."""
    given_up: _Names = {}
    wanted: Sequence[tuple[type[models.Model], Mapping[int, str]]] = (
        (Provider, {row.id: row.name for row in document.providers}),
        (Route, {row.id: row.name for row in document.routes}),
        (RoutingPolicy, {row.id: row.name for row in document.policies}),
        (PrivacyPolicy, {row.id: row.name for row in document.privacy}),
        (DataPattern, {row.id: row.name for row in document.patterns}),
    )
    for model, names in wanted:
        taken = set(names.values())
        for number, name in model._default_manager.values_list("pk", "name"):
            if name in taken and names.get(number) != name:
                given_up[model, number] = name
                model._default_manager.filter(pk=number).update(name=f"renamed-{number}")
    # A pattern is not renamed while a policy switches it off; the policies get their lists back behind the patterns.
    PrivacyPolicy.objects.filter(pk__in=[row.id for row in document.privacy]).update(disabled="")
    return given_up


def _settings(document: ConfigDocument, actor: str, warnings: list[str]) -> None:
    row = services.gateway_settings()
    _filled(row, document.settings)
    number = document.settings.privacy_policy_id
    row.privacy_policy_id = number or None
    services.save_settings(row, actor=actor)


def _provider(document: ProviderDoc, owned: Owners, actor: str, warnings: list[str]) -> None:
    row = _filled(_row(Provider, document.id, owned), document)
    row.pins = ",".join(document.pins)
    row = services.save_provider(row, actor=actor, address_class=document.address_class)
    if row.address_class != document.address_class:
        row.address_class = document.address_class
        row = services.save_provider(row, actor=actor, address_class=document.address_class)
    wanted = {credential.id: credential for credential in document.credentials}
    for credential in row.credentials.all():
        then = wanted.pop(credential.pk, None)
        enabled = then is not None and then.enabled
        if then is None and credential.enabled:
            warnings.append(f"The credential “{credential.name}” of “{row.name}” was stored later: it is off now.")
        elif then is not None and (not credential.ciphertext or credential.bound_base_url != row.base_url):
            warnings.append(
                f"The credential “{credential.name}” of “{row.name}” belongs to another address: enter it anew."
            )
        if then is not None:
            credential.name = then.name
        if credential.enabled != enabled or then is not None:
            credential.enabled = enabled
            services.save_credential(credential, actor=actor)
    for gone in wanted.values():
        warnings.append(f"The credential “{gone.name}” of “{row.name}” was deleted since: store its secret again.")
    client = getattr(row, "client_certificate", None)
    if (client.fingerprint if client else "") != document.client_certificate:
        now = "has another client certificate" if client else "has no client certificate any more"
        warnings.append(f"The provider “{row.name}” {now}: versions do not hold keys, so that stays.")


def _remove(document: ConfigDocument, actor: str, warnings: list[str], names: _Names) -> None:
    """What the version does not have goes; what something else still needs stays, and is told."""

    def beyond(model: Any, rows: Iterable[Any]) -> Any:
        return model._default_manager.exclude(pk__in=[row.id for row in rows])

    for route in beyond(Route, document.routes):
        services.delete_route(route, actor=actor)
    for provider in beyond(Provider, document.providers):
        name = names.get((Provider, provider.pk), provider.name)
        warnings.append(f"The provider “{name}” is deleted, with its stored secrets.")
        services.delete_provider(provider, actor=actor)
    for rule in beyond(RoutingPolicy, document.policies):
        services.delete_policy(rule, actor=actor)
    for policy in beyond(PrivacyPolicy, document.privacy):
        try:
            services.delete_privacy_policy(policy, actor=actor)
        except ValidationError:
            warnings.append(f"The privacy policy “{_kept(policy, names)}” stays: a team has it.")
    for pattern in beyond(DataPattern, document.patterns):
        try:
            services.delete_data_pattern(pattern, actor=actor)
        except ValidationError:
            warnings.append(f"The data pattern “{_kept(pattern, names)}” stays: a privacy policy switches it off.")


def _kept(row: PrivacyPolicy | DataPattern, names: _Names) -> str:
    """The name under which a row stays: what it was called, with a number where another has that name now."""
    if (type(row), row.pk) in names:
        row.name = f"{names[type(row), row.pk][:50]}-{row.pk}"
        type(row)._default_manager.filter(pk=row.pk).update(name=row.name)
    return row.name
