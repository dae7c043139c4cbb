"""Sums of usage rows: exact, once, in the right bucket and period."""

from __future__ import annotations

import random
import threading
from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction
from django.db.models import Sum
from django.test import TestCase, TransactionTestCase

from budgets import reports, rollups
from budgets.ledger_sql import ROLLUP_LOCK
from budgets.models import LedgerState, Usage, UsageRollup
from tests.budgets.ledger_rows import DAY_S, HOUR_S, NOON, add_usage, ledger_connection

pytestmark = pytest.mark.database

SUMMED = (
    *("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"),
    *("tokens", "latency_us"),
)


def sums(model: Any) -> dict[str, Any]:
    found = model.objects.aggregate(**{f"{name}_sum": Sum(name) for name in SUMMED})
    return {**found, "cost": sum(row.cost_usd for row in model.objects.all())}


def roll_up(limit: int = 1_000) -> rollups.Pass:
    return rollups.roll_up(ledger_connection(), limit)


class RollupTests(TestCase):
    databases = "__all__"

    def test_rows_of_one_kind_and_hour_become_one_row(self) -> None:
        add_usage(3, at_s=NOON)
        add_usage(2, at_s=NOON + HOUR_S - 0.000001)
        assert roll_up() == (5, False)
        row = UsageRollup.objects.get()
        assert (row.start, row.seconds, row.period) == (NOON, HOUR_S, 0)
        assert (row.requests, row.attempts, row.errors, row.unpriced) == (5, 5, 0, 0)
        assert (row.input_tokens, row.cached_tokens, row.output_tokens, row.tokens) == (50, 10, 25, 75)
        assert (row.cost_usd, row.latency_us) == (Decimal("0.000000000035"), 5_000)

    def test_the_rows_own_time_decides_the_hour(self) -> None:
        for at_s in (NOON - 0.000001, NOON, NOON + HOUR_S, NOON - 40 * DAY_S):
            add_usage(at_s=at_s)
        roll_up()
        starts = UsageRollup.objects.order_by("start").values_list("start", flat=True)
        assert list(starts) == [NOON - 40 * DAY_S, NOON - HOUR_S, NOON, NOON + HOUR_S]

    def test_every_difference_makes_a_row_of_its_own(self) -> None:
        add_usage()
        names = ("team_id", "agent_id", "key_id", "pool_id", "provider_id", "route_id")
        for name in names:
            add_usage(**{name: 99})
        for name in ("endpoint", "model", "upstream_model"):
            add_usage(**{name: "other"})
        roll_up()
        assert UsageRollup.objects.count() == len(names) + 4

    def test_attempts_errors_and_missing_prices_are_counted(self) -> None:
        add_usage(2)
        add_usage(attempt=1, error="upstream_error", status=502)
        add_usage(price_id=0)
        add_usage(price_id=0, tokens=0)  # nothing was used: no price was needed
        add_usage(price_id=-1)
        roll_up()
        row = UsageRollup.objects.get()
        assert (row.requests, row.attempts, row.errors, row.unpriced) == (5, 6, 1, 1)

    def test_a_row_is_counted_once_and_later_rows_are_added(self) -> None:
        add_usage(2)
        roll_up()
        assert roll_up() == (0, False)
        add_usage(3)
        roll_up()
        assert UsageRollup.objects.get().attempts == 5

    def test_a_pass_is_bounded_and_says_that_more_is_left(self) -> None:
        add_usage(5)
        assert roll_up(2) == (2, True)
        assert roll_up(2) == (2, True)
        assert roll_up(2) == (1, False)
        assert UsageRollup.objects.get().attempts == 5

    def test_the_job_comes_back_soon_while_there_is_more(self) -> None:
        while not rollups.cover(ledger_connection()):
            pass
        add_usage(3)
        job = rollups.Rollups(pass_rows=2)
        job.run(ledger_connection())
        assert job.period_s == rollups.AGAIN_S
        job.run(ledger_connection())
        assert job.period_s == rollups.PERIOD_S

    def test_random_rows_sum_to_the_last_pico_dollar(self) -> None:
        draw = random.Random(5)
        for _ in range(400):
            add_usage(
                at_s=NOON + draw.random() * 5 * HOUR_S,
                cost_pico=draw.randrange(10**15),
                tokens=draw.randrange(10**9),
                key_id=draw.randrange(3),
                model=draw.choice("abc"),
                attempt=draw.randrange(2),
            )
        while roll_up(draw.randrange(1, 60)).rows:
            pass
        assert sums(UsageRollup) == sums(Usage)
        assert UsageRollup.objects.aggregate(rows=Sum("attempts"))["rows"] == 400

    def test_rows_of_a_million_dollars_each_are_summed_within_and_across_passes_and_days(self) -> None:
        """Ten of them are more pico-USD than 64 bits hold."""
        for _ in range(3):
            add_usage(30, cost_pico=10**18)
            add_usage(1, at_s=NOON + HOUR_S, cost_pico=10**18 + 123)
            roll_up()
        wanted = Decimal(93_000_000) + Decimal(3 * 123).scaleb(-12)
        assert sum(row.cost_usd for row in UsageRollup.objects.all()) == wanted
        assert reports.totals(("model",))[0].cost_usd == wanted
        rollups.fold(ledger_connection(), since=0, before=NOON + DAY_S, limit=100)
        row = UsageRollup.objects.get()
        assert (row.seconds, row.attempts, row.cost_usd) == (DAY_S, 93, wanted)
        assert reports.totals(("model",))[0].cost_usd == wanted

    def test_the_last_row_that_names_a_shape_is_noted(self) -> None:
        add_usage(shape="a" * 32)
        last = add_usage(shape="a" * 32)[0]
        add_usage(shape="")
        roll_up()
        last_id = Usage.objects.get(rid=last.rid).pk
        assert LedgerState.objects.get(name="a" * 32).value == last_id
        assert not LedgerState.objects.filter(name="").exists()


class PeriodTests(TestCase):
    databases = "__all__"

    def test_rows_settled_before_the_period_belong_to_the_one_before(self) -> None:
        add_usage(3)
        assert rollups.start_period(ledger_connection(), order="order:1") == 1
        add_usage(2)
        roll_up()
        assert dict(UsageRollup.objects.values_list("period", "attempts")) == {0: 3, 1: 2}
        assert rollups.state(ledger_connection(), rollups.PERIOD_SINCE) > NOON

    def test_a_repeated_order_starts_nothing(self) -> None:
        for _ in range(2):
            assert rollups.start_period(ledger_connection(), order="order:1") == 1
        assert rollups.start_period(ledger_connection(), order="order:2") == 2
        assert rollups.start_period(ledger_connection(), order="order:1") == 1
        assert rollups.state(ledger_connection(), rollups.REPORTING_PERIOD) == 2

    def test_a_backlog_is_counted_in_bounded_steps_first(self) -> None:
        add_usage(5)
        answers = [rollups.start_period(ledger_connection(), order="order:1", limit=2) for _ in range(3)]
        assert answers == [None, None, 1]
        assert list(UsageRollup.objects.values_list("period", "attempts")) == [(0, 5)]


class FoldTests(TestCase):
    databases = "__all__"

    def test_sums_stay_the_same_when_hours_become_days(self) -> None:
        draw = random.Random(9)
        for day in range(3):
            for hour in range(0, 24, 3):
                add_usage(
                    draw.randrange(1, 4),
                    at_s=NOON - 12 * HOUR_S + day * DAY_S + hour * HOUR_S,
                    cost_pico=draw.randrange(10**12),
                    key_id=draw.randrange(2),
                )
        roll_up()
        before = sums(UsageRollup)
        rows, since, end = UsageRollup.objects.count(), 0, NOON + 12 * HOUR_S + DAY_S
        folded = 0
        while True:
            done, since = rollups.fold(ledger_connection(), since=since, before=end, limit=5)
            if not done:
                break
            folded += done
            assert sums(UsageRollup) == before
        assert 0 < folded < rows
        days = UsageRollup.objects.filter(seconds=DAY_S)
        assert {row.start for row in days} == {NOON - 12 * HOUR_S, NOON + 12 * HOUR_S}
        assert days.count() <= 4
        assert not UsageRollup.objects.filter(seconds=HOUR_S, start__lt=end).exists()
        assert UsageRollup.objects.filter(seconds=HOUR_S, start__gte=end).exists()

    def test_periods_are_kept_apart(self) -> None:
        add_usage()
        rollups.start_period(ledger_connection(), order="order:1")
        add_usage()
        roll_up()
        rollups.fold(ledger_connection(), since=0, before=NOON + DAY_S, limit=100)
        assert sorted(UsageRollup.objects.values_list("period", "seconds", "attempts")) == [
            (0, DAY_S, 1),
            (1, DAY_S, 1),
        ]


class LockTests(TransactionTestCase):
    databases = "__all__"

    def test_nothing_is_counted_while_another_host_settles(self) -> None:
        """Its rows may have lower ids and appear later."""
        connection = ledger_connection()
        if connection.vendor != "postgresql":
            self.skipTest("SQLite has one writer")
        add_usage()
        other = connection.copy()
        try:
            with transaction.atomic(using=connection.alias):
                other.set_autocommit(False)
                with other.cursor() as cursor:
                    cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", (ROLLUP_LOCK,))
            assert roll_up() == (0, True)
            other.commit()
            assert roll_up() == (1, False)
        finally:
            other.close()

    def test_two_hosts_that_make_hours_into_days_at_once_add_them_once(self) -> None:
        for number in range(200):
            add_usage(at_s=NOON - number % 24 * HOUR_S, team_id=number)
        roll_up()
        start, failures = threading.Barrier(4), []

        def host() -> None:
            connection = ledger_connection()
            try:
                connection.ensure_connection()
                start.wait(10)
                rollups.fold(connection, since=0, before=NOON + DAY_S, limit=500)
            except Exception as exc:
                failures.append(exc)
            finally:
                connection.close()

        hosts = [threading.Thread(target=host) for _ in range(4)]
        for thread in hosts:
            thread.start()
        for thread in hosts:
            thread.join(30)
        assert failures == []
        assert sum(UsageRollup.objects.values_list("attempts", flat=True)) == 200
        assert set(UsageRollup.objects.values_list("seconds", flat=True)) == {DAY_S}

    def test_a_failure_in_between_leaves_neither_sums_nor_the_mark(self) -> None:
        add_usage(cost_pico=1)
        roll_up()
        add_usage(latency_us=2**63 - 1)  # with the first row's it passes 64 bits
        add_usage(latency_us=2**63 - 1)
        with pytest.raises(Exception, match=r"overflow|out of range"):
            roll_up()
        assert UsageRollup.objects.get().attempts == 1
        assert rollups.state(ledger_connection(), rollups.ROLLED_UP) == Usage.objects.order_by("id")[0].pk
