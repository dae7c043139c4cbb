"""Daily sums: always what a scan of the usage rows would come to, whatever happens in which order."""

from __future__ import annotations

import datetime as dt
import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from django.conf import settings
from django.db import connections, transaction
from django.test import TestCase, TransactionTestCase
from django.test.utils import CaptureQueriesContext

from budgets import day_sums, reports, retention, rollups
from budgets.models import LedgerState, Usage, UsageDay, UsageRollup
from tests.budgets.ledger_rows import DAY_S, HOUR_S, NOON, add_usage, ledger_connection

pytestmark = pytest.mark.database

IDS = ("team", "agent", "key", "pool", "provider", "route")
TEXTS = ("endpoint", "model", "upstream_model")
MIDNIGHT = NOON // DAY_S * DAY_S
FIGURES = ("requests", "attempts", "errors", "unpriced", "input_tokens", "output_tokens", "tokens", "latency_us")


def covered() -> dict[str, int]:
    return day_sums.covered(ledger_connection())


def cover() -> None:
    while not rollups.cover(ledger_connection()):
        pass


class Scan:
    """Every usage row there ever was, and the period it was counted in."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, Any], int]] = []
        self._waiting: list[dict[str, Any]] = []

    def add(self, draw: random.Random, at_s: float) -> None:
        values: dict[str, Any] = {f"{name}_id": draw.randrange(1, 4) for name in IDS}
        values |= {name: draw.choice(("a", "b")) for name in TEXTS}
        values |= {"tokens": draw.randrange(0, 50), "price_id": draw.randrange(2), "attempt": draw.randrange(2)}
        values |= {"error": draw.choice(("", "", "upstream_error")), "cost_pico": draw.choice((7, 10**9 - 1, 10**18))}
        add_usage(at_s=at_s, **values)
        self._waiting.append({**values, "day": dt.datetime.fromtimestamp(at_s, dt.UTC).date()})

    def counted(self, period: int) -> None:
        self.rows += [(values, period) for values in self._waiting]
        self._waiting = []

    def totals(self, names: tuple[str, ...], filters: dict[str, int | str], current: int, **days: Any) -> Any:
        """As `budgets.reports.totals` tells them: by keys, cost and some of the figures."""
        found: dict[tuple[Any, ...], list[Any]] = defaultdict(lambda: [Decimal(0), *[0] * len(FIGURES)])
        for values, its_period in [*self.rows, *((values, current) for values in self._waiting)]:
            value = {name: values.get(f"{name}_id", values.get(name)) for name in (*IDS, *TEXTS, "day")}
            midnight = dt.datetime.combine(value["day"], dt.time(), dt.UTC).timestamp()
            if its_period != days.get("period", its_period) or any(value[name] != is_ for name, is_ in filters.items()):
                continue
            if not days.get("since", 0) <= midnight < days.get("until", 2**62):
                continue
            tokens = values["tokens"]
            unpriced = int(values["price_id"] == 0 and tokens > 0)
            row = (values["attempt"] == 0, 1, values["error"] != "", unpriced, 10, 5, tokens, 1_000)
            sums = found[tuple(value[name] for name in names)]
            sums[0] += Decimal(values["cost_pico"]).scaleb(-12)
            for place, figure in enumerate(row, 1):
                sums[place] += int(figure)
        return {key: tuple(sums) for key, sums in found.items()}


def told(totals: list[reports.Total], names: tuple[str, ...]) -> Any:
    return {
        tuple(total.keys[name] for name in names): (total.cost_usd, *(getattr(total, name) for name in FIGURES))
        for total in totals
    }


def questions(draw: random.Random) -> Iterator[tuple[tuple[str, ...], dict[str, int | str], dict[str, Any]]]:
    dimensions = (*IDS, *TEXTS, "day")
    groups = [(name,) for name in dimensions] + [draw.choice(list(itertools.permutations(dimensions, 2)))]
    for names in groups:
        name = draw.choice((*IDS, "model"))
        filters = {} if draw.random() < 0.4 else {name: "a" if name == "model" else 1}
        days: dict[str, Any] = {} if draw.random() < 0.4 else {"since": MIDNIGHT - draw.randrange(4) * DAY_S}
        if draw.random() < 0.3:
            days["until"] = MIDNIGHT + DAY_S
        if draw.random() < 0.3:
            days["period"] = draw.randrange(2)
        yield names, filters, days


class ScanTests(TestCase):
    databases = "__all__"

    def check(self, scan: Scan, draw: random.Random) -> None:
        period = rollups.state(ledger_connection(), rollups.REPORTING_PERIOD)
        for names, filters, days in questions(draw):
            wanted = scan.totals(names, filters, period, **days)
            chosen = {name: [value] for name, value in filters.items()}
            found = reports.totals(names, filters=chosen, **days)
            self.assertEqual(told(found, names), wanted, (names, filters, days, covered()))
            if names == ("day",) or len(names) > 1:
                continue
            first = reports.leading(names[0], top=2, filters=chosen, **days)
            self.assertEqual((first.first, first.groups), (found[:2], len(found)), (names, filters, days))
            self.assertEqual(told(first.days, ("day",)), scan.totals(("day",), filters, period, **days))

    def test_reports_come_to_what_a_scan_of_all_rows_comes_to(self) -> None:
        """Rows late and early, passes of any size, sums made in steps meanwhile, periods, folding and deleting."""
        self._live(random.Random(1))

    def test_so_they_do_in_another_order(self) -> None:
        self._live(random.Random(2))

    def test_and_in_another(self) -> None:
        self._live(random.Random(3))

    def _live(self, draw: random.Random) -> None:
        scan, connection, period, folded = Scan(), ledger_connection(), 0, 0
        for step in range(25):
            for _ in range(draw.randrange(8)):
                scan.add(draw, NOON + draw.uniform(-4, 1) * DAY_S)
            act = draw.randrange(6) if step < 24 else 0
            if act <= 2:
                while rollups.roll_up(connection, draw.randrange(1, 9)).more:
                    pass
                scan.counted(period)
            if act == 2:
                rollups.cover(connection)
            if act == 3 and rollups.start_period(connection, order=f"order:{step}") is not None:
                scan.counted(period)
                period += 1
            if act == 4:
                folded += rollups.fold(connection, since=0, before=MIDNIGHT - DAY_S, limit=20)[0]
            if act == 5:
                retention.delete_usage(connection, before_s=NOON - 2 * DAY_S, limit=5)
            if step % 4 == 0:
                self.check(scan, draw)
        cover()
        self.check(scan, draw)
        self.assertEqual(set(covered().values()), {0})


class CoverTests(TestCase):
    databases = "__all__"

    def test_a_new_ledger_is_covered_before_its_first_row(self) -> None:
        assert covered() == {}
        cover()
        assert covered() == dict.fromkeys(day_sums.CUTS, 0)

    def test_a_late_row_is_added_to_its_own_day(self) -> None:
        cover()
        add_usage(at_s=NOON)
        add_usage(at_s=NOON - 40 * DAY_S)
        rollups.roll_up(ledger_connection())
        days = UsageDay.objects.filter(cut=day_sums.CUTS["team"].number).order_by("start")
        assert list(days.values_list("start", "attempts")) == [(MIDNIGHT - 40 * DAY_S, 1), (MIDNIGHT, 1)]

    def test_sums_of_before_are_brought_in_newest_first_and_rows_meanwhile_are_counted_once(self) -> None:
        for hour in range(6):
            add_usage(2, at_s=NOON - hour * HOUR_S)
        rollups.roll_up(ledger_connection())
        assert not UsageDay.objects.exists()
        connection, steps = ledger_connection(), 0
        while not _one_step(connection):
            steps += 1
            add_usage(at_s=NOON - steps % 6 * HOUR_S)
            rollups.roll_up(connection)
        wanted = Usage.objects.count()
        assert steps > 5
        for cut in day_sums.CUTS.values():
            assert sum(UsageDay.objects.filter(cut=cut.number).values_list("attempts", flat=True)) == wanted

    def test_what_another_version_counted_is_not_missed(self) -> None:
        cover()
        add_usage(3)
        rollups.roll_up(ledger_connection())
        add_usage(2)
        last = Usage.objects.latest("id").pk
        UsageRollup.objects.update(attempts=5, requests=5)
        rollups.set_state(ledger_connection(), rollups.ROLLED_UP, last)  # it knew nothing of sums by day
        assert [total.attempts for total in reports.totals(("team",))] == [5]
        assert covered() == {}
        cover()
        assert set(UsageDay.objects.values_list("attempts", flat=True)) == {5}
        assert [total.attempts for total in reports.totals(("team",))] == [5]

    def test_folding_waits_while_a_day_is_half_in_the_sums(self) -> None:
        add_usage()
        rollups.roll_up(ledger_connection())
        cover()
        LedgerState.objects.filter(name="sums:key").update(value=NOON)
        assert rollups.fold(ledger_connection(), since=0, before=MIDNIGHT + DAY_S, limit=9) == (0, 0)
        LedgerState.objects.filter(name="sums:key").update(value=0)
        assert rollups.fold(ledger_connection(), since=0, before=MIDNIGHT + DAY_S, limit=9)[0] == 1

    def test_a_report_reads_a_cut_and_never_the_hourly_sums(self) -> None:
        cover()
        add_usage(3)
        rollups.roll_up(ledger_connection())
        alias, hourly = settings.HOOSH_LEDGER_DB, UsageRollup._meta.db_table
        for group in ("team", "agent", "key", "pool", "provider", "route", "model", "day"):
            for filters in ({}, {"team": [3]}):
                with CaptureQueriesContext(connections[alias]) as seen:
                    reports.totals((group,), filters=filters)
                    if group != "day":
                        reports.leading(group, top=5, filters=filters)
                assert not [query for query in seen.captured_queries if hourly in query["sql"]], (group, filters)


def _one_step(connection: Any) -> bool:
    """One hour of one cut: the time for a step is up at once."""
    with transaction.atomic(using=connection.alias):
        return not day_sums.cover(connection, step_s=0.0)


class CrashTests(TransactionTestCase):
    databases = "__all__"

    def test_a_pass_that_dies_leaves_neither_sum(self) -> None:
        cover()
        add_usage(2)
        connection = ledger_connection()
        with transaction.atomic(using=connection.alias):
            rollups._count_rows(connection, 100)
            assert UsageDay.objects.exists()
            transaction.set_rollback(True, using=connection.alias)
        assert not UsageDay.objects.exists()
        assert not UsageRollup.objects.exists()
        rollups.roll_up(connection)
        assert {row.attempts for row in UsageDay.objects.all()} == {2}
