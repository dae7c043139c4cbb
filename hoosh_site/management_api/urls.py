"""The paths of the management API. Each works with and without a slash at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.urls import URLPattern, path

from hoosh_site.management_api import (
    docs,
    files,
    limits,
    members,
    money,
    people,
    providers,
    records,
    routing,
    sign_ins,
    versions,
    watching,
    webhooks,
)

_LIST = {"get": "list", "post": "create"}
_ITEM = {"get": "retrieve", "patch": "partial_update", "delete": "destroy"}
_READ_LIST, _READ_ITEM = {"get": "list"}, {"get": "retrieve"}


def _both(route: str, view: Any, methods: Mapping[str, str]) -> Iterator[URLPattern]:
    made = view.as_view(dict(methods))
    yield from (path(route, made), path(f"{route}/", made))


def _rows(
    name: str,
    view: Any,
    *,
    of_list: Mapping[str, str] = _LIST,
    of_item: Mapping[str, str] = _ITEM,
    item: str = "<int:pk>",
    **more: tuple[str, str],
) -> Iterator[URLPattern]:
    """A resource: its list, its rows and what else can be asked of a row (`path="method action"`)."""
    yield from _both(name, view, of_list)
    yield from _both(f"{name}/{item}", view, of_item)
    for part, (method, action) in more.items():
        yield from _both(f"{name}/{item}/{part.replace('_', '-')}", view, {method: action})


def _read(name: str, view: Any, item: str = "<int:pk>") -> Iterator[URLPattern]:
    yield from _rows(name, view, of_list=_READ_LIST, of_item=_READ_ITEM, item=item)


def _changed_only(*without: str) -> dict[str, str]:
    return {method: action for method, action in _ITEM.items() if action not in without}


urlpatterns = [
    *_rows(
        "providers",
        providers.Providers,
        test=("post", "test"),
        models=("get", "models"),
        observe_address=("post", "observe"),
        disable_now=("post", "disable_now"),
    ),
    *_rows("providers/<int:provider_pk>/credentials", providers.Credentials),
    *_both(
        "providers/<int:provider_pk>/client-certificate",
        providers.ClientCertificates,
        {"get": "retrieve", "put": "replace", "delete": "destroy"},
    ),
    *_both("routes/explain", routing.Routes, {"post": "explain"}),
    *_both("routes/matches", routing.Routes, {"get": "matches"}),
    *_rows("routes", routing.Routes, clone=("post", "clone"), move=("post", "move")),
    *_rows("routing-policies", routing.RoutingPolicies),
    *_rows("privacy-policies", routing.PrivacyPolicies, trial=("post", "trial")),
    *_rows("data-patterns", routing.DataPatterns, trial=("post", "trial")),
    *_rows("model-cards", routing.ModelCards),
    *_read("imported-model-cards", routing.ImportedCards),
    *_both("settings", routing.Settings, _changed_only("destroy")),
    *_rows(
        "versions",
        versions.Versions,
        of_list=_READ_LIST,
        of_item=_READ_ITEM,
        diff=("get", "diff"),
        revert=("post", "revert"),
    ),
    *_both("draft", versions.Draft, _READ_ITEM),
    *_both("draft/publish", versions.Draft, {"post": "publish"}),
    *_both("draft/discard", versions.Draft, {"post": "discard"}),
    *_both("draft/dry-run", versions.Draft, {"get": "dry_run"}),
    *_both("draft/schedule", versions.Draft, {"post": "schedule"}),
    *_rows("scheduled-publications", versions.Scheduled, of_list=_READ_LIST, of_item=_changed_only("partial_update")),
    *_rows("teams", members.Teams),
    *_rows("agents", members.Agents),
    *_rows(
        "keys",
        members.Keys,
        of_item=_changed_only("destroy"),
        rotate=("post", "rotate"),
        revoke=("post", "revoke"),
    ),
    *_rows("pools", money.Pools, balance=("get", "balance")),
    *_rows("ledger-orders", money.Orders, of_item=_READ_ITEM),
    *_both("prices/import", money.Prices, {"post": "import_prices"}),
    *_rows("prices", money.Prices, of_item=_READ_ITEM),
    *_rows("questions-asked-ahead", watching.AskedAhead),
    *_rows(
        "anomalies", watching.Anomalies, of_list=_READ_LIST, of_item=_READ_ITEM, acknowledge=("post", "acknowledge")
    ),
    *_both("attention", watching.Attention, _READ_ITEM),
    *_read("usage", records.UsageRows),
    *_both("reports/usage", records.Reports, {"get": "usage"}),
    *_both("limits", limits.Limits, _READ_ITEM),
    *_read("pool-windows", records.Windows),
    *_read("ledger-entries", records.Entries),
    *_read("leases", records.Leases),
    *_both("reservations", records.Reservations, _READ_LIST),
    *_read("alerts", records.Alerts),
    *_read("events", records.Events),
    *_read("audit-entries", records.AuditEntries),
    *_read("audit-entries-on-their-way", records.WaitingEntries),
    *_rows("webhooks", webhooks.Webhooks, test=("post", "test"), secret=("post", "secret")),
    *_rows("users", people.Users, password=("post", "password")),
    *_rows("groups", people.Groups),
    *_rows("team-leads", sign_ins.TeamLeads),
    *_rows("second-factors", sign_ins.SecondFactors, of_list=_READ_LIST, of_item=_changed_only("partial_update")),
    *_rows("failed-sign-ins", sign_ins.FailedSignIns, of_list=_READ_LIST, of_item=_changed_only("partial_update")),
    *_rows(
        "external-identities",
        sign_ins.ExternalIdentities,
        of_list=_READ_LIST,
        of_item=_changed_only("partial_update"),
    ),
    *_both("import-config", files.ImportConfig, {"post": "create"}),
    *_both("export-config", files.ExportConfig, _READ_ITEM),
    path("schema/", docs.Schema.as_view(), name="management-schema"),
    path("docs/", docs.docs_view, name="management-docs"),
]
