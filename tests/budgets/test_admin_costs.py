"""The page of costs: sums that are those of the usage rows, every grouping, CSV, prices that are missing, periods."""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
from decimal import Decimal

import pytest
from django.core.cache import cache
from django.db import connections
from django.db.models import Sum
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from budgets import access, keys
from budgets.models import ApiKey, LedgerOrder, LedgerState, Pool, Price, Usage, UsageRollup
from budgets.records import PRICE_FREE, PRICE_NONE, PRICE_UNKNOWN
from providers.models import Provider, Route
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database

GROUPS = ("team", "agent", "key", "provider", "model", "route", "pool", "day")


class CostsCase(AdminTestCase):
    def setUp(self):
        super().setUp()
        cache.clear()
        self.agent = access.agent_named("Research", "notebook", actor="test")
        self.pool = access.save_pool(Pool(name="research"), actor="test")
        self.key, _ = keys.create_key(self.agent, self.pool, "laptop", actor="test")
        self.provider = Provider.objects.create(name="workshop", kind="openai", base_url="http://127.0.0.1:1")
        self.route = Route.objects.create(name="fast", pattern="*", provider=self.provider)

    def use(self, cost="0.1", **fields):
        values = {"rid": f"{Usage.objects.count():032x}", "at": timezone.now(), "key_id": self.key.pk}
        values |= {"agent_id": self.agent.pk, "team_id": self.agent.team_id, "pool_id": self.pool.pk}
        values |= {"provider_id": self.provider.pk, "route_id": self.route.pk, "endpoint": "chat", "model": "m"}
        values |= {"status": 200, "input_tokens": 60, "output_tokens": 40, "tokens": 100, "price_id": 1}
        return Usage.objects.create(**values | {"cost_usd": Decimal(cost)} | fields)

    def report(self, query=""):
        return self.page("costs", query=query)

    def table(self, query):
        """The CSV's rows."""
        response = self.client.get(self.url("costs") + query)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/csv; charset=utf-8"
        assert "attachment" in response.headers["content-disposition"]
        return list(csv.DictReader(io.StringIO(response.content.decode())))


class SumsTest(CostsCase):
    def test_every_grouping_has_the_sum_of_the_usage_rows_to_the_last_pico_dollar(self):
        for number in range(30):
            self.use(
                f"0.00000000000{number % 7}", model=f"m{number % 4}", at=timezone.now() - dt.timedelta(days=number % 3)
            )
        self.use("1234.000000000001", team_id=77, agent_id=78, key_id=79, pool_id=80, provider_id=0, route_id=0)
        whole = Usage.objects.aggregate(cost=Sum("cost_usd"), tokens=Sum("tokens"))
        for group in GROUPS:
            rows = self.table(f"?group={group}&format=csv")
            assert sum(Decimal(row["cost_usd"]) for row in rows) == whole["cost"], group
            assert sum(int(row["tokens"]) for row in rows) == whole["tokens"], group
            html = self.report(f"?group={group}")
            assert f'title="${whole["cost"]:,.12f}"' in html, group

    def test_rows_have_names_and_numbers_where_nobody_knows_one(self):
        self.use()
        self.use(team_id=77, key_id=79, provider_id=0, route_id=999, pool_id=80)
        for group, names in (
            ("team", ("Research", "#77")),
            ("agent", ("Research / notebook",)),
            ("key", ("laptop (hk-", "#79")),
            ("provider", ("workshop", "(none)")),
            ("route", ("fast", "#999")),
            ("pool", ("research", "#80")),
            ("day", (f"{timezone.now():%Y-%m-%d}",)),
        ):
            html = self.report(f"?group={group}")
            for name in names:
                assert name in html, (group, name)

    def test_sums_of_before_and_rows_not_counted_yet_are_one(self):
        self.use("0.5")
        LedgerState.objects.create(name="rolled_up", value=Usage.objects.get().pk)
        names = ("team_id", "agent_id", "key_id", "pool_id", "provider_id", "route_id", "endpoint", "model")
        row = Usage.objects.get()
        start = int(row.at.timestamp()) // 3600 * 3600
        UsageRollup.objects.create(
            start=start,
            cost_usd=Decimal("0.5"),
            requests=1,
            attempts=1,
            tokens=100,
            **{n: getattr(row, n) for n in names},
        )
        self.use("0.25")
        (line,) = self.table("?group=team&format=csv")
        assert (line["cost_usd"], line["attempts"], line["tokens"]) == ("0.750000000000", "2", "200")


class QuestionTest(CostsCase):
    def test_dates_filters_and_periods_choose_what_is_counted(self):
        now = timezone.now()
        self.use("1", model="old", at=now - dt.timedelta(days=10))
        self.use("2", model="new")
        self.use("4", model="new", team_id=77)
        today, then = f"{now:%Y-%m-%d}", f"{now - dt.timedelta(days=10):%Y-%m-%d}"
        for query, cost in (
            ("", "7"),
            (f"&since={today}", "6"),
            (f"&until={then}", "1"),
            (f"&since={then}&until={then}", "1"),
            ("&team=77", "4"),
            ("&model=old", "1"),
            ("&model=old&team=77", "0"),
            ("&period=all", "7"),
            ("&period=5", "0"),
        ):
            rows = self.table(f"?group=model&format=csv{query}")
            assert sum(Decimal(row["cost_usd"]) for row in rows) == Decimal(cost), query
            self.report(f"?group=team{query}")

    def test_what_makes_no_sense_is_left_out_and_told(self):
        self.use("3")
        for odd, told in (
            ("group=x", "There is no grouping “x”"),
            ("since=x", "“x” is no day"),
            ("since=2026-13-01", "“2026-13-01” is no day"),
            ("until=99999-01-01", "“99999-01-01” is no day"),
            ("since=0001-01-01", "0001-01-01 is out of range"),
            ("since=2026-03-02&until=2026-03-01", "The first day, 2026-03-02, is after the last, 2026-03-01"),
            ("team=x", "“x” is not the number of a team"),
            ("period=x", "There is no reporting period “x”"),
            ("period=²", "There is no reporting period “²”"),
        ):
            html = self.report(f"?{odd}")
            assert "$3.00" in html, odd
            assert told in html
            response = self.client.get(self.url("costs") + f"?{odd}&format=csv")
            assert (response.status_code, told in response.content.decode()) == (400, True), odd
        assert 'role="alert"' not in self.report("?since=&until=&group=team&period=all&team=")
        assert "Nothing was used" in self.report("?period=" + "9" * 18)
        assert self.client.get(self.url("costs") + "?model=%00").status_code == 400

    def test_a_filter_is_shown_and_can_be_taken_out(self):
        self.use()
        html = self.report(f"?group=model&team={self.agent.team_id}&model=<b>")
        assert "Team: Research" in html
        assert "<b>" not in html
        assert 'href="?group=model&amp;model=%3Cb%3E"' in html

    def test_the_chart_has_a_bar_for_every_day(self):
        now = timezone.now()
        self.use("2")
        assert self.report().count('<rect class="bar"') == 14, "two weeks at least"
        self.use("1", at=now - dt.timedelta(days=20))
        html = self.report()
        assert html.count('<rect class="bar"') == 21
        assert 'height="50.00"' in html
        assert 'height="100.00"' in html
        assert "Cost by day" in html
        self.use("9", at=now - dt.timedelta(days=300))
        assert self.report().count('<rect class="bar"') == 21, "only the last days where nothing is asked for"
        for query in ("?period=current", "?period=all"):
            assert self.report(query).count('<rect class="bar"') == 92, "three months at most"
        Usage.objects.update(cost_usd=0, price_id=PRICE_FREE)
        assert "Tokens by day" in self.report()

    def test_cells_that_a_spreadsheet_would_compute_are_texts(self):
        self.use(model='=cmd|"/c calc"!A1')
        (row,) = self.table("?group=model&format=csv")
        assert row["model"].startswith("'=")

    def test_the_page_asks_a_fixed_number_of_questions(self):
        self.use()
        self.report("?group=key")
        with self.queries(6):
            self.report("?group=key")
        for number in range(40):
            key, _ = keys.create_key(self.agent, self.pool, f"k{number}", actor="test")
            self.use(key_id=key.pk)
        with self.queries(6):
            self.report("?group=key")

    def test_no_more_keys_are_looked_up_than_are_shown(self):
        made = [
            ApiKey(agent=self.agent, pool=self.pool, name=f"k{n}", prefix=f"p{n}", digest=f"{n:064x}")
            for n in range(203)
        ]
        for key in ApiKey.objects.bulk_create(made):
            self.use(str(key.pk), key_id=key.pk)
        with CaptureQueriesContext(connections["default"]) as seen:
            html = self.report("?group=key")
        assert "3 more rows are in the CSV" in html
        assert html.count(" (p") == 200
        (names,) = [each["sql"] for each in seen.captured_queries if 'FROM "budgets_apikey"' in each["sql"]]
        assert names.count(",") < 210
        whole = sum(key.pk for key in made)
        assert f"{whole:,}.00" in html
        assert "k202" in html
        assert "k0 (" not in html

    def test_without_a_question_it_is_the_last_days(self):
        self.use("1", at=timezone.now() - dt.timedelta(days=29))
        self.use("2", at=timezone.now() - dt.timedelta(days=32))
        assert "the last 31 days" in self.report()
        for query, cost in (("?", "1"), ("?period=current&", "3"), ("?period=all&", "3"), ("?since=2000-01-01&", "3")):
            (row,) = self.table(f"{query}format=csv")
            assert Decimal(row["cost_usd"]) == Decimal(cost), query
            html = self.report(query)
            assert f'title="${Decimal(cost):.12f}"' in html, query
            assert re.search(r'href="(\?[^"]*format=csv[^"]*)"', html), query


class UnpricedTest(CostsCase):
    def test_what_has_no_price_is_named_with_a_link_to_add_one(self):
        self.use()
        assert "no price is known" not in self.report()
        self.use("0", price_id=PRICE_UNKNOWN, upstream_model="mystery 70b")
        self.use("0", price_id=PRICE_FREE, upstream_model="local")
        html = self.report()
        assert "1 attempt used tokens no price is known for" in html
        link = re.search(r'href="(/admin/budgets/price/add/\?[^"]+)"', html).group(1).replace("&amp;", "&")
        form = self.client.get(link).content.decode()
        assert 'value="mystery 70b"' in form
        assert 'value="workshop"' in form
        assert "No price is known for 1 of the last 3 requests" in self.page("index")

    def test_a_usage_row_says_why_it_cost_nothing(self):
        rows = {
            "no price known": self.use("0", price_id=PRICE_UNKNOWN),
            "free (local)": self.use("0", price_id=PRICE_FREE),
        }
        listed = self.page("budgets_usage_changelist")
        for words, row in rows.items():
            assert words in listed
            assert words in self.page("budgets_usage_change", row.pk)
        kept = self.use("0.003200", price_id=PRICE_NONE, tokens=0, attempts=0)
        for html in (self.page("budgets_usage_changelist"), self.page("budgets_usage_change", kept.pk)):
            assert "kept answer" in html
            assert "$0.0032" in html
            assert "not priced" not in html
        refused = self.use("0", price_id=PRICE_UNKNOWN, tokens=0, status=429)
        assert "nothing was used" in self.page("budgets_usage_change", refused.pk)

    def test_a_usage_row_names_every_pool_it_was_charged_to_and_every_class(self):
        other = access.save_pool(Pool(name="team budget", window="month", time_zone="Europe/Berlin"), actor="test")
        price = access.add_price(
            Price(provider="*", pattern="m", input_usd_per_mtok=1, output_usd_per_mtok=1, valid_from=timezone.now()),
            actor="test",
        )
        start = int(dt.datetime(2026, 11, 1, tzinfo=dt.UTC).timestamp()) - 3600
        row = self.use(
            "0.000042000001",
            price_id=price.pk,
            pools=f"{self.pool.pk}@0 {other.pk}@{start} 98",
            input_audio_tokens=7,
            input_image_tokens=8,
            output_audio_tokens=9,
            basis=1,
        )
        html = self.page("budgets_usage_change", row.pk)
        for text in (
            "research</a>",
            "team budget</a>",
            "since 2026-11-01 00:00",
            "7 audio",
            "8 images",
            "9 audio",
            "estimated from the bytes",
            'title="$0.000042000001"',
            "$0.000042<",
            str(price),
        ):
            assert text in html, text


class PeriodTest(CostsCase):
    def test_a_new_period_is_ordered_after_a_question(self):
        self.page("costs_period")
        assert "required" in self.errors(self.post("costs_period", {}))
        response = self.post("costs_period", {"note": "October is billed"})
        order = LedgerOrder.objects.get()
        assert (order.kind, order.payload) == ("period", {})
        assert response["location"] == self.url("budgets_ledgerorder_change", order.pk)

    def test_earlier_periods_can_be_chosen(self):
        LedgerState.objects.create(name="period", value=2)
        LedgerState.objects.create(name="period_since", value=1_790_000_000)
        html = self.report("?period=1")
        assert re.findall(r'<option value="(\d|all|current|)"( selected)?>', html)[-5:] == [
            ("", ""),
            ("current", ""),
            ("1", " selected"),
            ("0", ""),
            ("all", ""),
        ]
        assert "it began 2026-09-21" in self.report()
        assert "since 2026-09-21" in self.report("?period=current")

    def test_permissions(self):
        self.allow(self.bob, "view_pool")
        assert self.client.get(self.url("costs")).status_code == 403
        assert ">Costs</a>" not in self.page("index")
        self.allow(self.bob, "view_usage")
        assert "Start a new reporting period" not in self.report()
        assert ">Costs</a>" in self.page("index")
        assert self.client.get(self.url("costs_period")).status_code == 403
        assert self.post("costs_period", {"note": "n"}).status_code == 403
        self.client.force_login(self.carl)
        assert "/login/" in self.client.get(self.url("costs"))["location"]
        assert not LedgerOrder.objects.exists()
