"""The only writer of events. Call it inside the transaction of what it tells about: both are committed, or neither."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from django.db import router, transaction

from events import names, order
from events.models import Event
from events.wake import wake

DATA_BYTES = 8192


def emit(name: str, data: Mapping[str, Any], *, level: str = "", topic: str = "") -> None:
    """Append one event. `name` is dotted; topic and level follow from it where it is one of `names.KINDS`.

    `data` becomes JSON of at most 8 KiB and must hold neither secrets nor prompt text. Raises `ValueError`.
    """
    emit_all([made(name, data, level=level, topic=topic)])


def made(name: str, data: Mapping[str, Any], *, level: str = "", topic: str = "") -> Event:
    """An event that is not written yet, for `emit_all`."""
    kind = names.KINDS.get(name)
    topic = topic or (kind.topic if kind else name.replace(".", "/"))
    if len(json.dumps(data)) > DATA_BYTES:
        raise ValueError(f"An event's data is larger than {DATA_BYTES} bytes: {name}.")
    return Event(name=name, topic=topic, level=level or (kind.level if kind else "info"), data=dict(data))


def emit_all(events: Iterable[Event]) -> None:
    """Append events in this order."""
    rows = list(events)
    if not rows:
        return
    using = router.db_for_write(Event)
    with transaction.atomic(using=using):
        order.writing(using)
        Event.objects.using(using).bulk_create(rows)
        transaction.on_commit(wake, using=using, robust=True)
