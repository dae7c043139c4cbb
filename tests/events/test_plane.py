"""What workers tell reaches control over a real socket and is written by control's thread of events."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import TransactionTestCase
from django.utils import timezone

from events import names
from events.emit import emit_all, made
from events.models import Event
from gateway.errors import UnauthorizedError
from gateway.happenings import Happenings
from hoosh_site.event_plane import EventPlane
from hoosh_site.link import Happened, LinkServer, Register
from hoosh_site.worker import connect
from tests.site.stub_worker import StubRuntime


def test_what_happened_in_a_worker_crosses_the_line_and_waits_while_it_is_down(short_dir: Path) -> None:
    told: list[Happened] = []

    async def live() -> None:
        runtime: Any = StubRuntime()
        happenings = runtime.happenings = Happenings()
        server = LinkServer(
            short_dir / "link.sock", hello=list, on_ask=lambda ask, reply: None, on_happened=told.append
        )
        client = connect(runtime, short_dir / "link.sock", Register("w-1", 3, 1, "test"))
        client.start()
        happenings.refused(UnauthorizedError(), 1_800_000_000.25)
        happenings.flush(1_800_000_000.5)
        assert told == []
        await server.start()
        async with asyncio.timeout(5):
            while not told:
                happenings.flush(1_800_000_001.0)
                await asyncio.sleep(0.05)
        await client.close()
        await server.stop()

    asyncio.run(live())
    (message,) = told
    assert (message.owner, message.index) == ("w-1", 3)
    item = ("refused", 1_800_000_000.25, "auth", "invalid_api_key", 401, 0, "", "", "", 0)
    assert [tuple(each) for each in message.items] == [item]


@pytest.mark.database
class PlaneTests(TransactionTestCase):
    databases = "__all__"

    def test_what_was_taken_is_written_within_seconds_and_at_the_latest_at_the_end(self):
        plane = EventPlane(sample=0.0, days=30)
        plane.start()
        plane.take(2, [["rate_limited", 1_800_000_000, 7, 0]])
        end = time.monotonic() + 60
        while not Event.objects.exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert Event.objects.get().data == {"provider": "#7", "worker": 2}
        plane.take(2, [["rate_limited", 1_800_000_060, 7, 0]] * 700)
        plane.stop()
        assert Event.objects.count() == 701

    def test_while_the_database_fails_the_newest_are_kept_and_written_later(self):
        plane = EventPlane(sample=0.0, days=30)
        plane.take(0, [["circuit", 1_800_000_000 + n, n, "open", ""] for n in range(5100)])
        with connections["default"].schema_editor() as editor:
            editor.alter_db_table(Event, "events_event", "events_gone")
        try:
            plane.once()
        finally:
            with connections["default"].schema_editor() as editor:
                editor.alter_db_table(Event, "events_gone", "events_event")
        plane.once()
        assert Event.objects.count() == 5000
        assert Event.objects.order_by("id").first().data["provider"] == "#100"

    def test_old_events_go_by_themselves(self):
        old = made(names.PUBLISHED, {})
        old.at = timezone.now() - dt.timedelta(days=8)
        emit_all([old, made(names.PUBLISHED, {"kept": True})])
        EventPlane(sample=0.0, days=7).once()
        assert Event.objects.get().data == {"kept": True}
