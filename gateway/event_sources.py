"""Where events come from besides `events.emit` at the spot: what workers tell, alerts of pools, finished calls.

Alerts and usage rows lie in the ledger, which may be another database than that of the events: a cursor beside the
events says how far they are turned into events, and moves in one transaction with them, so each becomes exactly one.
Control's only; nothing of it runs in a request.
"""

from __future__ import annotations

import datetime as dt
import logging
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from django.db import connections, transaction
from django.db.models import Max, Model

from audit.heads import Head
from audit.record import record
from audit.walking import Fault
from budgets.models import ApiKey, Pool, PoolAlert, Usage
from budgets.models.fields import usd
from budgets.records import Unit
from events import names
from events.emit import emit, emit_all, made
from events.models import Cursor, Event
from gateway.happenings import OTHERS
from providers.models import Provider

log = logging.getLogger("hoosh.events")

CHUNK = 500
BEHIND = 50_000  # usage rows; further back nobody wants to be told any more
_TRESPASSES = ("auth", "privacy")
_CIRCUIT_LEVELS = {"open": "warning"}
_BAD = (ValueError, TypeError, IndexError, OverflowError)


def from_workers(told: Iterable[tuple[int, Sequence[Any]]]) -> None:
    """Write what workers told (worker's index, item of `gateway.happenings`). What cannot be read is left out.

    Refused requests go into the audit log as well.
    """
    items = list(told)
    providers = dict(Provider.objects.values_list("id", "name")) if items else {}
    rows: list[Event] = []
    for worker, item in items:
        try:
            rows.append(_READERS[item[0]](item, worker, providers))
        except (*_BAD, KeyError):
            log.warning("happening_skipped", extra={"worker": worker, "kind": str(item[:1])[:40]})
    with transaction.atomic():
        emit_all(rows)
        for row in rows:
            if row.name == names.REFUSED:
                _record_refusal(row.data)


def _record_refusal(data: dict[str, Any]) -> None:
    """The audit entry of a refusal, or of how many more there were like it in that minute."""
    key_id = data.get("key_id")
    told = {**data, "object": f"{ApiKey._meta.label_lower}:{key_id}"} if key_id else data
    level = "warning" if data["kind"] in _TRESPASSES else "info"
    record("request.refused", target=str(data.get("key", ""))[:200], level=level, data=told)


def from_checkpoint(head: Head) -> None:
    """Tell of the audit log's last checkpoint. For a thread of its own: its connection is closed."""
    try:
        emit(names.CHECKPOINT, {"log": head.log, "size": head.size, "root": head.root.hex(), "note": head.note})
    finally:
        connections.close_all()


def from_audit_fault(fault: Fault) -> None:
    """Tell that the audit log is not what was signed, and record it. For a thread of its own, as above."""
    data = {"seq": fault.seq, "what": fault.what}
    try:
        with transaction.atomic():
            record("audit.broken", actor="gateway", target=f"entry {fault.seq}", level="critical", data=data)
            emit(names.BROKEN, data)
    finally:
        connections.close_all()


def from_alerts() -> bool:
    """Turn alerts of pools into events; whether there may be more."""
    return _follow("alerts", PoolAlert, _of_alerts)


def from_usage(share: float) -> bool:
    """Turn the given share of finished calls into events, chosen by their ids; whether there may be more.

    With 0 nothing is written, and the next time begins with the calls of then.
    """
    if not share:
        if Cursor.objects.filter(name="usage").exists():
            Cursor.objects.filter(name="usage").delete()
        return False
    return _follow("usage", Usage, lambda rows: _of_usage(rows, share), behind=BEHIND)


def _follow(name: str, model: Any, turned: Callable[[Sequence[Any]], list[Event]], *, behind: int = 0) -> bool:
    """One chunk of the rows behind the cursor. The first time it begins behind what is there already."""
    stored = Cursor.objects.filter(name=name).values_list("value", flat=True).first()
    if stored is None:
        Cursor.objects.create(name=name, value=_last(model))
        return False
    rows = list(model.objects.filter(id__gt=stored).order_by("id")[:CHUNK])
    if not rows:
        return False
    reached = rows[-1].pk
    if behind and len(rows) == CHUNK and (last := _last(model)) - reached > behind:
        log.warning("events_skipped", extra={"source": name, "rows": last - stored})
        rows, reached = [], last
    events = turned(rows)
    with transaction.atomic():
        moved = Cursor.objects.filter(name=name, value=stored).update(value=reached)
        if moved:  # else another process on this database has told them
            emit_all(events)
    return len(rows) == CHUNK


def _last(model: type[Model]) -> int:
    return model._default_manager.aggregate(last=Max("id"))["last"] or 0


def _of_alerts(rows: Sequence[PoolAlert]) -> list[Event]:
    pools = dict(Pool.objects.filter(pk__in={row.pool_id for row in rows}).values_list("id", "name"))
    found = []
    for row in rows:
        in_tokens = row.unit == Unit.TOKENS
        data = {
            "pool": pools.get(row.pool_id, f"#{row.pool_id}"),
            "pool_id": row.pool_id,
            "unit": "tokens" if in_tokens else "usd",
            "percent": row.percent,
            "used": row.committed if in_tokens else f"{usd(row.committed):f}",
            "limit": row.capacity if in_tokens else f"{usd(row.capacity):f}",
            "window_start": _moment(row.window_start) if row.window_start else None,
        }
        found.append(_at(made(names.THRESHOLD, data, level="error" if row.percent >= 100 else "warning"), row.at))
    return found


def _of_usage(rows: Sequence[Usage], share: float) -> list[Event]:
    chosen = [row for row in rows if zlib.crc32(row.rid.encode()) < share * 2**32]
    if not chosen:
        return []
    providers = dict(Provider.objects.values_list("id", "name"))
    found = []
    for row in chosen:
        ok = row.status == 200
        data = {
            "provider": _provider(providers, row.provider_id) if row.provider_id else "",
            "model": row.model,
            "latency_ms": round(row.latency_us / 1000),
            "tokens": row.tokens,
            "request_id": row.rid,
            "attempt": row.attempt,
            "endpoint": row.endpoint,
            "upstream_model": row.upstream_model,
            "status": row.status,
            "input_tokens": row.input_tokens,
            "output_tokens": row.output_tokens,
            "cost_usd": f"{row.cost_usd:f}",
            "key_id": row.key_id,
        }
        if not ok:
            data["error"] = row.error or str(row.status)
        event = made(names.COMPLETED if ok else names.FAILED, data)
        found.append(_at(event, row.at + dt.timedelta(microseconds=row.latency_us)))
    return found


def _circuit(item: Sequence[Any], worker: int, providers: dict[int, str]) -> Event:
    _, at, provider_id, state, error = item
    data = {"provider": _provider(providers, provider_id), "state": str(state), "error": str(error), "worker": worker}
    return _at(made(names.CIRCUIT, data, level=_CIRCUIT_LEVELS.get(state, "info")), _when(at))


def _refused(item: Sequence[Any], worker: int, providers: dict[int, str]) -> Event:
    _, at, kind, code, status, key_id, key, model, request_id, more = item
    data: dict[str, Any] = {"kind": _text(kind), "code": _text(code), "status": int(status), "worker": worker}
    if key_id:
        data |= {"key_id": None if key_id == OTHERS else int(key_id), "key": _text(key)}
    if more:
        data |= {"more": int(more), "minute": _moment(at)}  # besides the one that was told in full
    else:
        data |= {"model": _text(model), "request_id": _text(request_id)}
    return _at(made(names.REFUSED, data), None if more else _when(at))


def _rate_limited(item: Sequence[Any], worker: int, providers: dict[int, str]) -> Event:
    _, at, provider_id, more = item
    data: dict[str, Any] = {"provider": _provider(providers, provider_id), "worker": worker}
    if more:
        data |= {"more": int(more), "minute": _moment(at)}
    return _at(made(names.RATE_LIMITED, data), None if more else _when(at))


_READERS: dict[str, Callable[[Sequence[Any], int, dict[int, str]], Event]] = {
    "circuit": _circuit,
    "refused": _refused,
    "rate_limited": _rate_limited,
}


def _provider(providers: dict[int, str], number: int) -> str:
    return providers.get(number, f"#{int(number)}")


def _text(value: object) -> str:
    """A text that any database takes."""
    return str(value).replace("\0", "�").encode("utf-8", "replace").decode("utf-8")


def _at(event: Event, at: dt.datetime | None) -> Event:
    if at is not None:
        event.at = at
    return event


def _when(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def _moment(seconds: float) -> str:
    return f"{_when(seconds):%Y-%m-%dT%H:%M:%SZ}"
