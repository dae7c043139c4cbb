"""Tells webhooks what happened: in the order of the events' ids, each at least once, one call at a time per webhook.

A webhook remembers the last event it has. A call that fails is repeated with growing pauses, up to an hour each; what
comes behind it waits. After a day of failures the webhook is switched off, which is an event, too. Runs in control.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import logging
import random
from collections.abc import Callable

from channels.db import database_sync_to_async
from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from audit.record import record
from events import names, order
from events.emit import emit
from events.models import Event, Webhook
from events.wake import listen
from gateway.event_streams import told
from hoosh_site import webhooks
from hoosh_site.webhooks import Answer, Call
from providers.vault import VaultError

log = logging.getLogger("hoosh.webhooks")

AT_ONCE = 8
CHUNK = 100
LOOK_S = 1.0
FIRST_PAUSE_S = 5.0
PAUSE_MAX_S = 3600.0
JITTER = 0.2
GIVE_UP_S = 86_400.0
GONE = 410


class Deliverer:
    """Delivers to every enabled webhook. `run` belongs to one loop."""

    def __init__(
        self,
        *,
        first_pause_s: float = FIRST_PAUSE_S,
        give_up_s: float = GIVE_UP_S,
        look_s: float = LOOK_S,
        timeout_s: float = webhooks.TIMEOUT_S,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """`first_pause_s` is the pause after the first failure, `look_s` how often it looks for what others wrote."""
        self._first_pause_s, self._give_up_s = first_pause_s, give_up_s
        self._look_s, self._timeout_s, self._rand = look_s, timeout_s, rand
        self._running: dict[int, asyncio.Task[None]] = {}
        self._complaint = ""

    async def run(self) -> None:
        """Deliver until cancelled; a call under way is then cut, and made again by the next process."""
        loop, soon = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(soon.set)

        end = listen(wake)
        try:
            while True:
                soon.clear()
                await self._look(soon)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._look_s):
                        await soon.wait()
        finally:
            end()
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _look(self, soon: asyncio.Event) -> None:
        try:
            for number in await database_sync_to_async(_due)():
                if number not in self._running and len(self._running) < AT_ONCE:
                    task = asyncio.get_running_loop().create_task(self._deliver(number))
                    self._running[number] = task
                    task.add_done_callback(functools.partial(self._done, number, soon))
            self._complaint = ""
        except Exception as exc:
            complaint = f"{type(exc).__name__}: {exc}"
            if complaint != self._complaint:  # not once a second
                log.warning("webhooks_unread", extra={"reason": complaint})
            self._complaint = complaint

    def _done(self, number: int, soon: asyncio.Event, task: asyncio.Task[None]) -> None:
        self._running.pop(number, None)
        if len(self._running) == AT_ONCE - 1:  # somebody may have waited for the place
            soon.set()

    async def _deliver(self, number: int) -> None:
        """Everything one webhook is to be told now."""
        try:
            while await self._deliver_chunk(number):
                pass
        except Exception:
            log.exception("webhook_failed", extra={"webhook": number})

    async def _deliver_chunk(self, number: int) -> bool:
        webhook = await database_sync_to_async(_enabled)(number)
        if webhook is None:
            return False
        events = await database_sync_to_async(_after)(webhook.cursor)
        wanted, passed = names.Wanted.parse(webhook.topics), webhook.cursor
        try:
            call = webhooks.call_of(webhook)
        except VaultError:
            await database_sync_to_async(self._failed)(webhook, Answer(error=webhooks.UNSEALED))
            return False
        for event in events:
            if wanted.has(event.topic, event.name):
                answer = await self._call(call, event)
                note = self._failed if answer.error else self._succeeded
                if not await database_sync_to_async(note)(webhook, answer, event.pk):
                    return False
            passed = event.pk
        if events and not wanted.has(events[-1].topic, events[-1].name):
            await database_sync_to_async(_skip)(webhook, passed)
        return bool(events)

    async def _call(self, call: Call, event: Event) -> Answer:
        return await webhooks.post(call, f"evt_{event.pk}", webhooks.body_of(told(event)), timeout_s=self._timeout_s)

    def _succeeded(self, webhook: Webhook, answer: Answer, event_id: int) -> bool:
        """Note that an event was taken; whether to go on with the same settings."""
        return _update(
            webhook,
            cursor=event_id,
            delivered=F("delivered") + 1,
            failures=0,
            failing_since=None,
            next_try_at=None,
            last_at=timezone.now(),
            last_status=answer.status,
            last_error="",
        )

    def _failed(self, webhook: Webhook, answer: Answer, event_id: int = 0) -> bool:
        """Note that it was not, and when to try again: never with the events behind it first."""
        now = timezone.now()
        row = Webhook.objects.filter(pk=webhook.pk).values("failures", "failing_since").first()
        if row is None:
            return False
        since, failures = row["failing_since"] or now, row["failures"] + 1
        noted = {
            "failures": failures,
            "failing_since": since,
            "last_at": now,
            "last_status": answer.status or None,
            "last_error": answer.error[:300],
        }
        if answer.status == GONE or (now - since).total_seconds() >= self._give_up_s:
            _switch_off(webhook, event_id, answer, noted)
            return False
        pause_s = max(self._pause_s(failures), answer.retry_after_s)
        _update(webhook, next_try_at=now + dt.timedelta(seconds=pause_s), **noted)
        fields = {"webhook": webhook.name, "event": event_id, "failures": failures, "reason": answer.error}
        log.warning("webhook_call_failed", extra={**fields, "pause_s": round(pause_s, 1)})
        return False

    def _pause_s(self, failures: int) -> float:
        pause_s = min(self._first_pause_s * 2.0 ** min(failures - 1, 32), PAUSE_MAX_S)
        return pause_s * (1 + JITTER * (2 * self._rand() - 1))


def _due() -> list[int]:
    """Webhooks with something to be told that may be called now, those that waited longest first."""
    rows = Webhook.objects.filter(Q(next_try_at=None) | Q(next_try_at__lte=timezone.now()), enabled=True)
    found = list(rows.order_by(F("last_at").asc(nulls_first=True)).values_list("id", "cursor"))
    if not found:
        return []
    newest = order.newest()
    return [number for number, cursor in found if cursor < newest]


def _enabled(number: int) -> Webhook | None:
    return Webhook.objects.filter(pk=number, enabled=True).first()


def _after(cursor: int) -> list[Event]:
    return order.after(cursor, CHUNK)[0]


def _skip(webhook: Webhook, passed: int) -> None:
    _update(webhook, cursor=passed)


def _update(webhook: Webhook, **values: object) -> bool:
    """Note something, unless an operator has changed the webhook since it was read; False then."""
    same = Webhook.objects.filter(pk=webhook.pk, enabled=True, updated_at=webhook.updated_at)
    return bool(same.update(**values))


def _switch_off(webhook: Webhook, event_id: int, answer: Answer, noted: dict[str, object]) -> None:
    data = {"webhook": webhook.name, "reason": answer.error, "failing_since": str(noted["failing_since"])}
    with transaction.atomic():
        if not _update(webhook, enabled=False, next_try_at=None, **noted):
            return
        record("webhook.disabled", actor="gateway", target=webhook.name, level="error", data=data)
        emit(names.DISABLED, {**data, "event": event_id})
    log.error("webhook_disabled", extra=data)
