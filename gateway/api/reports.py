"""What the control API reads: provider states and the record of one request. Few queries, no writes."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from django.utils import timezone

from budgets.models import DecisionShape, Usage
from budgets.records import Basis
from gateway import accelerators, plane
from gateway.api.authentication import Caller
from providers.models import GatewaySettings, Provider, ProviderProbe, Route

SUSPECT_S, OFFLINE_S = 30.0, 90.0  # since a provider was last found well, at least
MAX_ATTEMPTS = 50  # rows of one request that are shown


def providers_health(*, detailed: bool) -> dict[str, Any]:
    """The state of every provider by name; with `detailed` also what only operators may see."""
    interval = GatewaySettings.objects.filter(pk=1).values_list("probe_interval_s", flat=True).first()
    report: dict[str, Any] = {
        "providers": [
            _provider(provider, getattr(provider, "probe", None), detailed=detailed)
            for provider in Provider.objects.select_related("probe").order_by("name")
        ],
        "check_interval_secs": 30.0 if interval is None else interval,
    }
    if detailed:
        report["workers"] = plane.current.workers() if plane.current is not None else []
    return report


def _provider(provider: Provider, probe: ProviderProbe | None, *, detailed: bool) -> dict[str, Any]:
    seen = probe if probe is not None and probe.checked_at is not None else None
    if not provider.enabled:
        state = "disabled"
    elif seen is None:
        state = "unknown"
    else:
        state = "healthy" if seen.ok else "unhealthy"
    entry: dict[str, Any] = {
        "provider": provider.name,
        "status": state,
        "enabled": provider.enabled,
        "healthy": seen.ok if seen is not None else None,
        "consecutive_failures": seen.consecutive_failures if seen is not None else 0,
        "last_check_ms": int(seen.checked_at.timestamp() * 1000) if seen is not None and seen.checked_at else None,
    }
    if detailed:
        entry |= {
            "kind": provider.kind,
            "base_url": provider.base_url,
            "address_class": provider.address_class,
            "detail": seen.detail if seen is not None else "",
            "latency_ms": seen.latency_ms if seen is not None else None,
            "models": list(seen.models) if seen is not None else [],
        }
    return entry


def heartbeat(*, detailed: bool) -> dict[str, Any]:
    """The fleet by when each enabled provider was last found well: online, suspect, offline, or unknown (never looked
    at, or probes are off). The limits grow with the interval of the probes, so that one late look makes no suspect.

    Accelerators are those of this host.
    """
    interval = GatewaySettings.objects.filter(pk=1).values_list("probe_interval_s", flat=True).first()
    interval = 30.0 if interval is None else interval
    suspect_s, offline_s = max(SUSPECT_S, 1.5 * interval), max(OFFLINE_S, 3 * interval)
    now, nodes = timezone.now(), []
    counts = dict.fromkeys(("online", "suspect", "offline", "unknown"), 0)
    for provider in Provider.objects.filter(enabled=True).select_related("probe").order_by("name"):
        probe = getattr(provider, "probe", None)
        beat = probe.answered_at if probe is not None else None
        status = "unknown"
        if interval and probe is not None and probe.checked_at is not None:
            age_s = (now - (beat or provider.created_at)).total_seconds()
            status = "online" if beat and age_s < suspect_s else "suspect" if age_s < offline_s else "offline"
        counts[status] += 1
        nodes.append(
            {
                "id": f"{provider.kind}:{provider.base_url if detailed else provider.name}",
                "provider": provider.name,
                "status": status,
                "last_beat_ms": int(beat.timestamp() * 1000) if beat else None,
            }
        )
    devices, _ = accelerators.nvidia()
    return {
        "nodes": nodes,
        "total_nodes": len(nodes),
        **counts,
        "suspect_after_secs": suspect_s,
        "offline_after_secs": offline_s,
        "total_gpus": len(devices),
        "total_vram_mb": sum(device.memory_mib for device in devices),
        "available_vram_mb": sum(device.free_mib for device in devices),
    }


def request_report(rid: str, caller: Caller) -> dict[str, Any] | None:
    """The record of a request (32 hex digits), or None when there is none that the caller may see."""
    rows = list(Usage.objects.filter(rid=rid).order_by("attempt")[:MAX_ATTEMPTS])
    if not rows or not caller.may_see_usage_of(rows[-1].key_id):
        return None
    last = rows[-1]
    providers = dict(Provider.objects.filter(pk__in={row.provider_id for row in rows}).values_list("pk", "name"))
    routes = dict(Route.objects.filter(pk__in={row.route_id for row in rows}).values_list("pk", "name"))
    return {
        "id": rid,
        "client_request_id": last.client_request_id or None,
        "at": rows[0].at,
        "key_id": last.key_id,
        "agent_id": last.agent_id,
        "team_id": last.team_id,
        "pool_id": last.pool_id,
        "endpoint": last.endpoint,
        "model": last.model,
        "stream": last.stream,
        "status": last.status,
        "error": last.error or None,
        "cached": last.attempts == 0 and last.provider_id > 0,
        "tokens": sum(row.tokens for row in rows),
        "cost_usd": format(sum((row.cost_usd for row in rows), Decimal(0)), "f"),
        "config_version": last.config_version,
        "attempts": [_attempt(row, providers.get(row.provider_id), routes.get(row.route_id)) for row in rows],
        "decision": _decision(last.shape),
    }


def _attempt(row: Usage, provider: str | None, route: str | None) -> dict[str, Any]:
    return {
        "attempt": row.attempt,
        "provider": provider,
        "route": route,
        "upstream_model": row.upstream_model,
        "status": row.status,
        "error": row.error or None,
        "input_tokens": row.input_tokens,
        "cached_tokens": row.cached_tokens,
        "cache_write_tokens": row.cache_write_tokens,
        "output_tokens": row.output_tokens,
        "reasoning_tokens": row.reasoning_tokens,
        "tokens": row.tokens,
        "held": row.held,
        "basis": Basis(row.basis).name.lower(),
        "cost_usd": format(row.cost_usd, "f"),
        "price_id": row.price_id or None,
        "latency_ms": row.latency_us / 1000,
        "ttft_ms": row.ttft_us / 1000 if row.ttft_us else None,
    }


def _decision(shape: str) -> Any:
    payload = DecisionShape.objects.filter(pk=shape).values_list("payload", flat=True).first() if shape else None
    if payload is None:
        return None
    try:
        return json.loads(payload)
    except ValueError:
        return None
