"""Writing events, the order they are read in while others write, and forgetting them."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.test import TestCase, TransactionTestCase
from django.utils import timezone

from budgets.models import Pool, PoolAlert, Usage
from budgets.records import Unit
from events import names, order, retention
from events.emit import DATA_BYTES, emit, emit_all, made
from events.models import Cursor, Event
from events.wake import listen
from gateway import event_sources
from providers.models import Provider

pytestmark = pytest.mark.database


def emit_and_fail(name: str) -> None:
    """Emit inside a transaction that is rolled back."""
    with transaction.atomic():
        emit(name, {})
        transaction.set_rollback(True)


class EmitTests(TestCase):
    databases = "__all__"

    def test_topic_and_level_follow_from_the_name(self):
        emit(names.HEALTH, {"provider": "p"}, level="warning")
        emit(names.THRESHOLD, {})
        emit("thing.of.others", {})
        found = list(Event.objects.order_by("id").values_list("topic", "name", "level"))
        assert found == [
            ("providers/health", "provider.health_changed", "warning"),
            ("budgets/threshold", "budget.threshold", "warning"),
            ("thing/of/others", "thing.of.others", "info"),
        ]

    def test_what_is_too_large_or_no_json_is_refused(self):
        with pytest.raises(ValueError, match="larger"):
            emit("a.b", {"x": "y" * DATA_BYTES})
        with pytest.raises(TypeError):
            emit("a.b", {"x": object()})
        assert not Event.objects.exists()

    def test_an_event_is_gone_with_the_transaction_it_tells_of_and_wakes_nobody_before_the_commit(self):
        woken: list[int] = []
        end = listen(lambda: woken.append(1))
        try:
            emit_and_fail("a.b")
            with self.captureOnCommitCallbacks() as callbacks:
                emit("a.c", {})
            assert woken == []
            callbacks[0]()
            assert woken == [1]
        finally:
            end()
        assert list(Event.objects.values_list("name", flat=True)) == ["a.c"]


def patiently(call: Callable[..., Any], *arguments: Any) -> Any:
    """Connections of the tests' database in memory share a cache, whose locks wait for nobody; those of files do."""
    while True:
        try:
            return call(*arguments)
        except OperationalError as exc:
            if "locked" not in str(exc):
                raise


class OrderTests(TransactionTestCase):
    databases = "__all__"

    def in_thread(self, work) -> None:
        def run() -> None:
            try:
                work()
            finally:
                connections.close_all()

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()

    def test_events_are_read_in_order_and_in_chunks(self):
        emit_all([made("a.b", {"n": n}) for n in range(5)])
        first, waits = order.after(0, 3)
        assert ([row.data["n"] for row in first], waits) == ([0, 1, 2], False)
        rest, waits = order.after(first[-1].pk, 3)
        assert ([row.data["n"] for row in rest], waits) == ([3, 4], False)
        assert order.newest() == rest[-1].pk
        assert order.after(order.newest(), 3) == ([], False)
        assert [row.data["n"] for row in order.between(first[0].pk, rest[-1].pk, 9)] == [1, 2, 3]

    def test_what_commits_later_with_a_smaller_id_is_waited_for(self):
        if connection.vendor != "postgresql":
            self.skipTest("on SQLite one transaction writes at a time")
        emit("a.first", {})
        start = order.newest()
        written, go_on = threading.Event(), threading.Event()

        def slow() -> None:
            with transaction.atomic():
                emit("a.slow", {})
                written.set()
                go_on.wait(20)
            connections.close_all()

        thread = threading.Thread(target=slow)
        thread.start()
        assert written.wait(20)
        self.in_thread(lambda: emit("a.quick", {}))
        assert [row.name for row in Event.objects.filter(id__gt=start)] == ["a.quick"]
        assert order.after(start, 10) == ([], True)  # a reader that took it now would never see a.slow
        go_on.set()
        thread.join(20)
        rows, waits = order.after(start, 10)
        assert ([row.name for row in rows], waits) == (["a.slow", "a.quick"], False)

    def test_the_gap_of_a_transaction_that_failed_is_not_waited_for(self):
        emit("a.first", {})
        start = order.newest()

        self.in_thread(lambda: emit_and_fail("a.never"))
        emit("a.last", {})
        rows, waits = order.after(start, 10)
        assert ([row.name for row in rows], waits) == (["a.last"], False)

    def test_readers_that_follow_see_each_event_of_many_writers_once_and_in_order(self):
        writers, each = 4, 30
        seen: list[int] = []
        done = threading.Event()

        def write(writer: int) -> None:
            for number in range(each):
                patiently(atomically, "a.b", {"writer": writer, "number": number})
            connections.close_all()

        def atomically(topic: str, data: dict[str, Any]) -> None:
            with transaction.atomic():
                emit(topic, data)

        def read() -> None:
            cursor, finished = 0, False
            while True:
                rows, _ = patiently(order.after, cursor, 7)
                seen.extend(row.pk for row in rows)
                if rows:
                    cursor = rows[-1].pk
                elif finished:
                    break
                else:
                    finished = done.is_set()
            connections.close_all()

        reader = threading.Thread(target=read)
        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
        for thread in [reader, *threads]:
            thread.start()
        for thread in threads:
            thread.join(60)
        done.set()
        reader.join(60)
        assert seen == sorted(Event.objects.values_list("id", flat=True))
        assert len(seen) == writers * each


class RetentionTests(TestCase):
    databases = "__all__"

    def test_old_events_go_in_chunks_and_young_ones_stay(self):
        old = timezone.now() - dt.timedelta(days=31)
        for number in range(7):
            event = made("a.b", {"n": number})
            event.at = old if number < 5 else timezone.now()
            emit_all([event])
        assert retention.count(30) == 5
        assert retention.delete_chunk(30, rows=2) == 2
        pauses: list[float] = []
        assert retention.delete_all(30, pause=pauses.append) == 3
        assert pauses == [retention.PAUSE_S]
        assert [row.data["n"] for row in Event.objects.order_by("id")] == [5, 6]
        assert retention.delete_all(30) == 0


class SourceTests(TestCase):
    databases = "__all__"

    def names(self) -> list[tuple[str, dict]]:
        return list(Event.objects.order_by("id").values_list("name", "data"))

    def test_an_alert_of_a_pool_becomes_one_event(self):
        pool = Pool.objects.create(name="team")
        PoolAlert.objects.create(pool_id=pool.pk, percent=50, committed=50, capacity=100)
        event_sources.from_alerts()
        assert self.names() == []  # it was there before anybody looked
        PoolAlert.objects.create(pool_id=pool.pk, percent=80, committed=81, capacity=100, window_start=1_800_000_000)
        PoolAlert.objects.create(
            pool_id=999, percent=100, committed=2 * 10**12, capacity=15 * 10**11, unit=Unit.PICO_USD.value
        )
        for _ in range(3):
            event_sources.from_alerts()
        (first, second) = Event.objects.order_by("id")
        assert (first.level, first.data) == (
            "warning",
            {
                "pool": "team",
                "pool_id": pool.pk,
                "unit": "tokens",
                "percent": 80,
                "used": 81,
                "limit": 100,
                "window_start": "2027-01-15T08:00:00Z",
            },
        )
        assert (second.level, second.data["pool"], second.data["used"], second.data["limit"]) == (
            "error",
            "#999",
            "2.000000000000",
            "1.500000000000",
        )

    def usage(self, number: int, **changes):
        values = {"status": 200, "provider_id": self.provider.pk, "tokens": 12, "latency_us": 812_400, **changes}
        return Usage.objects.create(
            rid=f"{number:032x}", at=timezone.now(), key_id=1, agent_id=1, team_id=1, pool_id=1, model="m", **values
        )

    def test_finished_calls_become_events_only_where_they_are_asked_for(self):
        self.provider = Provider.objects.create(name="cloud", kind="openai", base_url="https://api.example")
        self.usage(1)
        assert not event_sources.from_usage(0.0)
        event_sources.from_usage(1.0)
        assert self.names() == []
        self.usage(2)
        self.usage(3, status=502, error="upstream_cut", provider_id=0)
        for _ in range(2):
            event_sources.from_usage(1.0)
        (name, good), (failed, bad) = self.names()
        assert (name, failed) == (names.COMPLETED, names.FAILED)
        assert (good["provider"], good["model"], good["latency_ms"], good["tokens"]) == ("cloud", "m", 812, 12)
        assert (bad["provider"], bad["error"], bad["status"]) == ("", "upstream_cut", 502)
        event_sources.from_usage(0.0)
        assert not Cursor.objects.filter(name="usage").exists()

    def test_a_share_of_finished_calls_is_a_share(self):
        self.provider = Provider.objects.create(name="cloud", kind="openai", base_url="https://api.example")
        event_sources.from_usage(0.25)
        for number in range(400):
            self.usage(number)
        while event_sources.from_usage(0.25):
            pass
        assert 60 < Event.objects.count() < 140

    def test_what_workers_tell_becomes_events_and_nonsense_is_left_out(self):
        provider = Provider.objects.create(name="cloud", kind="openai", base_url="https://api.example")
        event_sources.from_workers(
            [
                (0, ["circuit", 1_800_000_000.5, provider.pk, "open", "connect"]),
                (0, ["unheard", 1, 2]),
                (0, []),
                (0, ["circuit", "yesterday", provider.pk, "open", ""]),
                (0, ["circuit", 1e40, provider.pk, "open", ""]),
                (1, ["refused", 1_800_000_001, "auth", "invalid_api_key", 401, 0, "", "a\0\ud800b", "0a", 0]),
                (1, ["refused", 1_800_000_000, "limit", "rate_limit_exceeded", 429, 3, "hk-a", "", "", 4]),
                (1, ["refused", 1_800_000_000, "limit", "rate_limit_exceeded", 429, -1, "", "", "", 0]),
                (1, ["rate_limited", 1_800_000_002, 999, 0]),
            ]
        )
        assert self.names() == [
            (names.CIRCUIT, {"provider": "cloud", "state": "open", "error": "connect", "worker": 0}),
            (
                names.REFUSED,
                {
                    "kind": "auth",
                    "code": "invalid_api_key",
                    "status": 401,
                    "worker": 1,
                    "model": "a�?b",
                    "request_id": "0a",
                },
            ),
            (
                names.REFUSED,
                {
                    "kind": "limit",
                    "code": "rate_limit_exceeded",
                    "status": 429,
                    "worker": 1,
                    "key_id": 3,
                    "key": "hk-a",
                    "more": 4,
                    "minute": "2027-01-15T08:00:00Z",
                },
            ),
            (
                names.REFUSED,
                {
                    "kind": "limit",
                    "code": "rate_limit_exceeded",
                    "status": 429,
                    "worker": 1,
                    "key_id": None,
                    "key": "",
                    "model": "",
                    "request_id": "",
                },
            ),
            (names.RATE_LIMITED, {"provider": "#999", "worker": 1}),
        ]
        assert Event.objects.order_by("id").first().at == dt.datetime(2027, 1, 15, 8, 0, 0, 500_000, tzinfo=dt.UTC)
