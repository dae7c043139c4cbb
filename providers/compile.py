"""From rows to the configuration document, and the check of a whole document.

`compile_document` reads; `problems` is pure over the document, so that a draft can be judged without publishing it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from django.core.exceptions import ValidationError

from providers import privacy_rules, validation
from providers.catalog import CATALOG
from providers.config import (
    ConfigDocument,
    CredentialDoc,
    PatternDoc,
    PolicyDoc,
    PrivacyDoc,
    ProviderDoc,
    RouteDoc,
    SettingsDoc,
)
from providers.models import (
    AddressClass,
    ClientCertificate,
    DataPattern,
    DisconnectPolicy,
    GatewaySettings,
    PrivacyPolicy,
    Provider,
    Route,
    RoutingPolicy,
    Strategy,
    UnknownPrice,
    UnsupportedParams,
)

SETTINGS_FIELDS = tuple(
    name for name in SettingsDoc.__struct_fields__ if name not in ("cors_origins", "privacy_policy_id")
)
_PATTERN_FIELDS = tuple(name for name in PatternDoc.__struct_fields__)
_PRIVACY_FIELDS = tuple(name for name in PrivacyDoc.__struct_fields__ if name != "disabled")
_ROUTE_FIELDS = tuple(name for name in RouteDoc.__struct_fields__ if name not in ("tags", "capabilities"))


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a document may not run: the row, the field and what to do."""

    row: str
    field: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.row}, {self.field}: {self.remedy}"


def compile_document() -> ConfigDocument:
    """The document the rows describe at this moment. Unusable credentials (no secret, other address) are left out."""
    row = GatewaySettings.objects.filter(pk=1).first() or GatewaySettings(pk=1)
    rows = Provider.objects.order_by("id").select_related("client_certificate")
    return ConfigDocument(
        settings=_settings(row),
        providers=tuple(_provider(row) for row in rows.prefetch_related("credentials")),
        routes=tuple(_route(row) for row in Route.objects.order_by("id")),
        policies=tuple(_policy(row) for row in RoutingPolicy.objects.order_by("position", "id")),
        patterns=tuple(pattern_doc(row) for row in DataPattern.objects.order_by("id")),
        privacy=tuple(privacy_doc(row) for row in PrivacyPolicy.objects.order_by("id")),
    )


def _settings(row: GatewaySettings) -> SettingsDoc:
    values = {name: getattr(row, name) for name in SETTINGS_FIELDS}
    return SettingsDoc(
        **values, cors_origins=validation.split(row.cors_origins), privacy_policy_id=row.privacy_policy_id or 0
    )


def pattern_doc(row: DataPattern) -> PatternDoc:
    """A pattern as the document has it."""
    return PatternDoc(**{name: getattr(row, name) for name in _PATTERN_FIELDS})


def privacy_doc(row: PrivacyPolicy) -> PrivacyDoc:
    """A privacy policy as the document has it."""
    values = {name: getattr(row, name) for name in _PRIVACY_FIELDS}
    return PrivacyDoc(**values, disabled=validation.split(row.disabled))


def _provider(row: Provider) -> ProviderDoc:
    kind = CATALOG.get(row.kind)
    client: ClientCertificate | None = getattr(row, "client_certificate", None)
    credentials = sorted(row.credentials.all(), key=lambda credential: (credential.position, credential.pk))
    return ProviderDoc(
        id=row.pk,
        name=row.name,
        kind=row.kind,
        base_url=row.base_url or (kind.base_url if kind else ""),
        address_class=row.address_class,
        enabled=row.enabled,
        credentials=tuple(
            CredentialDoc(id=each.pk, name=each.name, revision=each.revision, enabled=each.enabled)
            for each in credentials
            if each.ciphertext and each.bound_base_url == row.base_url
        ),
        ca_pem=row.ca_pem,
        pins=validation.split_pins(row.pins),
        client_certificate=client.fingerprint if client else "",
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        concurrent_requests=row.concurrent_requests,
    )


def _route(row: Route) -> RouteDoc:
    values = {name: getattr(row, name) for name in _ROUTE_FIELDS}
    return RouteDoc(**values, tags=validation.split(row.tags), capabilities=validation.split(row.capabilities))


def _policy(row: RoutingPolicy) -> PolicyDoc:
    return PolicyDoc(
        id=row.pk,
        name=row.name,
        pattern=row.pattern,
        strategy=row.strategy,
        fallbacks=validation.split(row.fallbacks),
        tags=validation.split(row.tags),
        position=row.position,
        enabled=row.enabled,
    )


def problems(document: ConfigDocument) -> list[Problem]:
    """Everything that forbids publishing a document; empty = it may run."""
    found = list(_settings_problems(document.settings))
    for provider in document.providers:
        found.extend(_provider_problems(provider))
    known = {provider.id for provider in document.providers}
    for route in document.routes:
        found.extend(_route_problems(route, known))
    for policy in document.policies:
        row = f"Policy “{policy.name}”"
        found.extend(_check(row, "pattern", validation.pattern, policy.pattern))
        found.extend(_check(row, "fallbacks", validation.model_names, ",".join(policy.fallbacks)))
        if policy.strategy not in Strategy.values:
            found.append(Problem(row, "strategy", f"choose one of {', '.join(Strategy.values)}."))
    for what, rows in (
        ("Provider", document.providers),
        ("Route", document.routes),
        ("Policy", document.policies),
        ("Data pattern", document.patterns),
        ("Privacy policy", document.privacy),
    ):
        found.extend(_doubles(what, (row.name for row in rows)))
    found.extend(Problem(*told) for told in privacy_rules.problems(document))
    return found


def _settings_problems(settings: SettingsDoc) -> Iterator[Problem]:
    row = "Gateway settings"
    if settings.strategy not in Strategy.values:
        yield Problem(row, "strategy", f"choose one of {', '.join(Strategy.values)}.")
    if settings.unsupported_params not in UnsupportedParams.values:
        yield Problem(row, "unsupported parameters", f"choose one of {', '.join(UnsupportedParams.values)}.")
    if settings.unknown_price not in UnknownPrice.values:
        yield Problem(row, "unknown price", f"choose one of {', '.join(UnknownPrice.values)}.")
    may_be_zero = ("hold_wait_s", "probe_interval_s", "ping_interval_s", "retry_percent", "queue_wait_s", "queue_size")
    for name in SETTINGS_FIELDS:
        value = getattr(settings, name)
        if isinstance(value, str | bool):
            continue
        if not math.isfinite(value) or value < 0 or (value == 0 and name not in may_be_zero):
            yield Problem(row, name, "enter a number above zero.")


def _provider_problems(provider: ProviderDoc) -> Iterator[Problem]:
    row = f"Provider “{provider.name}”"
    yield from _check(row, "name", validation.name, provider.name)
    if provider.kind not in CATALOG:
        yield Problem(
            row, "kind", f"“{provider.kind}” is not a kind of this version; choose another or delete the row."
        )
        return
    try:
        stored = validation.base_url(provider.base_url)
    except ValidationError as exc:
        yield Problem(row, "base URL", " ".join(exc.messages))
        return
    if stored != provider.base_url:
        yield Problem(row, "base URL", f"save it as {stored}.")
    if (stored == validation.DEMO_URL) != (provider.kind == "demo"):
        yield Problem(row, "base URL", f"{validation.DEMO_URL} and the kind “demo” belong together.")
    if provider.address_class not in AddressClass.values:
        yield Problem(row, "address class", "save the provider again so that its address is looked up.")
    elif stored.startswith("unix:") != (provider.address_class == AddressClass.UNIX):
        yield Problem(row, "address class", "save the provider again: its address class does not fit its URL.")
    yield from _limit_problems(row, provider)
    yield from _check(row, "private CA", validation.certificates, provider.ca_pem)
    yield from _check(row, "certificate pins", validation.pins, ",".join(provider.pins))
    for field, value in (("certificate pins", provider.pins), ("client certificate", provider.client_certificate)):
        if value and not stored.startswith("https:"):
            yield Problem(row, field, "it needs a base URL with https://; remove it or change the URL.")


def _route_problems(route: RouteDoc, providers: set[int]) -> Iterator[Problem]:
    row = f"Route “{route.name}”"
    yield from _check(row, "name", validation.name, route.name)
    yield from _check(row, "pattern", validation.pattern, route.pattern)
    if route.upstream_model:
        yield from _check(row, "upstream model", validation.model_name, route.upstream_model)
    if route.provider_id not in providers:
        yield Problem(row, "provider", "its provider does not exist; choose one or delete the route.")
    if route.on_disconnect not in DisconnectPolicy.values:
        yield Problem(row, "on disconnect", f"choose one of {', '.join(DisconnectPolicy.values)}.")
    if route.disconnect_cap < 1:
        yield Problem(row, "tokens read on", "enter a number above zero.")
    if not 0 <= route.cache_price_percent <= 100:
        yield Problem(row, "price of a kept answer", "enter a number from 0 to 100.")
    if route.compact_percent > 100:
        yield Problem(row, "shorten conversations above", "enter a number from 0 to 100.")
    yield from _check(row, "tell them to similar questions from", validation.threshold, route.semantic_threshold)
    yield from _limit_problems(row, route)
    for name in ("connect_timeout_s", "first_byte_timeout_s", "gap_timeout_s", "total_timeout_s", "output_cap"):
        value = getattr(route, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            yield Problem(row, name, "enter a number above zero or leave it blank.")


def _limit_problems(row: str, limited: ProviderDoc | RouteDoc) -> Iterator[Problem]:
    for name in ("requests_per_minute", "tokens_per_minute", "concurrent_requests"):
        value = getattr(limited, name)
        if value is not None and not 1 <= value <= validation.RATE_LIMIT:
            remedy = f"enter a number from 1 to {validation.RATE_LIMIT:,} or leave it blank."
            yield Problem(row, name.replace("_", " "), remedy)


def _check(row: str, field: str, check: object, value: object) -> Iterator[Problem]:
    assert callable(check)
    try:
        check(value)
    except ValidationError as exc:
        yield Problem(row, field, " ".join(exc.messages))


def _doubles(what: str, names: Iterable[str]) -> Iterator[Problem]:
    for name, count in Counter(names).items():
        if count > 1:
            yield Problem(f"{what} “{name}”", "name", f"{count} rows have this name; rename all but one.")
