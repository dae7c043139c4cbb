"""The ledger in admin: read only for everybody, names for numbers, orders instead of edits."""

from __future__ import annotations

import re

import pytest
from django.contrib import admin
from django.core.cache import cache
from django.utils import timezone

from audit.models import OutboxEntry
from budgets import access
from budgets.models import Lease, LedgerEntry, LedgerOrder, Pool, PoolAlert, PoolWindow, Reservation
from budgets.records import Unit
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database

USD = 10**12
LISTS = ("poolwindow", "lease", "ledgerentry", "poolalert", "reservation", "ledgerorder")


class LedgerCase(AdminTestCase):
    def setUp(self):
        super().setUp()
        cache.clear()  # it remembers the forms other tests sent
        self.pool = access.save_pool(Pool(name="research", capacity_tokens=1000), actor="test")
        self.other = access.save_pool(Pool(name="spare", capacity_tokens=1000), actor="test")
        self.window = PoolWindow.objects.create(pool_id=self.pool.pk, capacity=1000, committed=100, leased=70)
        self.money = PoolWindow.objects.create(
            pool_id=self.pool.pk, unit=Unit.PICO_USD, capacity=2 * USD, committed=1_234_567_890_123
        )
        self.lease = Lease.objects.create(
            owner="w-dead", window=self.window, granted=100, returned=0, remaining=70, state="quarantined"
        )

    def make_rows(self):
        """One row of everything, by the name of its page."""
        now = timezone.now()
        ids = {"team_id": 1, "agent_id": 1, "key_id": 1}
        return {
            "poolwindow": self.window,
            "lease": self.lease,
            "ledgerentry": LedgerEntry.objects.create(kind="correction", pool_id=self.pool.pk, amount=-5, note="<i>n"),
            "poolalert": PoolAlert.objects.create(pool_id=self.pool.pk, percent=80, committed=800, capacity=1000),
            "reservation": Reservation.objects.create(
                id="0" * 32, pool_id=self.pool.pk, tokens=9, draws="1@0", created_at=now, expires_at=now, **ids
            ),
            "ledgerorder": LedgerOrder.objects.create(kind="period", payload={}, actor="ada", note="<i>n"),
        }


class ReadOnlyTest(LedgerCase):
    def test_every_page_opens_and_nobody_adds_changes_or_deletes(self):
        for name, row in self.make_rows().items():
            self.page(f"budgets_{name}_changelist")
            self.page(f"budgets_{name}_change", row.pk)
            assert self.post(f"budgets_{name}_add", {}).status_code == 403, name
            assert self.post(f"budgets_{name}_change", {"amount": 1, "committed": 1}, row.pk).status_code == 403, name
            assert self.post(f"budgets_{name}_delete", {"post": "yes"}, row.pk).status_code == 403, name
            self.act(f"budgets_{name}_changelist", "delete_selected", [row], post="yes")
            before = {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}
            row.refresh_from_db()
            assert {name: getattr(row, name) for name in before} == before, name

    def test_without_the_permission_there_is_no_page(self):
        rows = self.make_rows()
        self.allow(self.bob, "view_pool")
        for name in LISTS:
            assert self.client.get(self.url(f"budgets_{name}_changelist")).status_code == 403, name
            assert self.client.get(self.url(f"budgets_{name}_change", rows[name].pk)).status_code == 403, name

    def test_amounts_are_shown_short_and_exact(self):
        html = self.page("budgets_poolwindow_changelist")
        assert 'title="$1.234567890123">$1.234567<' in html
        assert 'title="1,000 tokens">1,000<' in html
        html = self.page("budgets_poolwindow_change", self.window.pk)
        assert "w-dead" in html
        assert "quarantined" in html

    def test_hostile_text_is_shown_as_text(self):
        rows = self.make_rows()
        for name in ("ledgerentry", "ledgerorder"):
            assert "<i>n" not in self.page(f"budgets_{name}_changelist")
            assert "&lt;i&gt;n" in self.page(f"budgets_{name}_change", rows[name].pk)

    def test_rows_of_a_pool_that_was_deleted_are_still_shown(self):
        PoolWindow.objects.create(pool_id=987, window_start=10**9, window_end=10**9 + 3600)
        PoolAlert.objects.create(pool_id=987, percent=80, committed=8, capacity=10)
        assert "#987" in self.page("budgets_poolwindow_changelist")
        assert "#987" in self.page("budgets_poolalert_change", PoolAlert.objects.get().pk)


class ListTest(LedgerCase):
    def entries(self, count, **fields):
        LedgerEntry.objects.bulk_create(
            LedgerEntry(**{"kind": "carry", "pool_id": self.pool.pk, "window_start": number, "amount": 1} | fields)
            for number in range(count)
        )

    def test_entries_are_read_page_by_page_without_counting(self):
        self.entries(120)
        seen, query = [], ""
        for _ in range(3):
            html = self.page("budgets_ledgerentry_changelist", query=query)
            seen += [int(found) for found in re.findall(r"/budgets/ledgerentry/(\d+)/change/", html)]
            older = re.search(r'href="(\?[^"]*before=[^"]*)" rel="next"', html)
            query = older.group(1).replace("&amp;", "&") if older else ""
        assert seen == list(LedgerEntry.objects.order_by("-id").values_list("pk", flat=True))
        assert not query
        with self.queries(4):
            self.page("budgets_ledgerentry_changelist")

    def test_each_list_asks_a_fixed_number_of_questions(self):
        self.make_rows()
        for name in LISTS:
            self.page(f"budgets_{name}_changelist")
            with self.queries(3 if name == "ledgerorder" else 4):
                self.page(f"budgets_{name}_changelist")

    def test_reservations_are_continued_by_their_text_ids(self):
        now = timezone.now()
        Reservation.objects.bulk_create(
            Reservation(
                id=f"{number:032x}",
                pool_id=1,
                tokens=1,
                team_id=1,
                agent_id=1,
                key_id=1,
                created_at=now,
                expires_at=now,
            )
            for number in range(250, 330)
        )
        first = self.page("budgets_reservation_changelist")
        older = re.search(r'href="(\?[^"]*before=[^"]*)" rel="next"', first).group(1)
        second = self.page("budgets_reservation_changelist", query=older)
        pattern = r"/budgets/reservation/([0-9a-f]{32})/change/"
        seen = re.findall(pattern, first) + re.findall(pattern, second)
        assert seen == [f"{number:032x}" for number in range(329, 249, -1)]

    def test_rows_are_found_by_pool_unit_kind_and_state(self):
        self.entries(1)
        self.entries(1, pool_id=self.other.pk, unit=Unit.PICO_USD)
        for query, pools in (("?q=sear", ["research"]), ("?q=nobody", []), ("?counts=usd", ["spare"]), ("?kind=x", [])):
            html = self.page("budgets_ledgerentry_changelist", query=query)
            assert re.findall(r">(research|spare)</a>", html) == pools, query
        assert "w-dead" in self.page("budgets_lease_changelist", query="?state__exact=quarantined&q=research")
        assert "w-dead" not in self.page("budgets_lease_changelist", query="?state__exact=active")
        assert "w-dead" not in self.page("budgets_lease_changelist", query="?counts=usd")

    def test_odd_query_strings_fail_no_page(self):
        for name in (*LISTS, "usage", "price", "apikey", "pool", "team"):
            for query in ("?before=x", "?before=", "?before=9-9-9", "?q=%C2%B2", "?counts=x", "?pool_id=x", "?o=99"):
                assert self.client.get(self.url(f"budgets_{name}_changelist") + query).status_code in (200, 302), query

    def test_years_no_calendar_has_are_refused(self):
        for name, field in (("usage", "at"), ("ledgerentry", "at"), ("apikey", "created_at"), ("price", "valid_from")):
            for query, status in (("year=99999", 400), ("year=0", 400), ("year__gt=99999", 400), ("iso_year=-1", 400)):
                found = self.client.get(self.url(f"budgets_{name}_changelist") + f"?{field}__{query}").status_code
                assert found == status, (name, query)
            assert self.client.get(self.url(f"budgets_{name}_changelist") + f"?{field}__year=2026").status_code == 200

    def test_what_no_list_offers_cannot_be_asked(self):
        """PostgreSQL fails on a regular expression that is none."""
        pages = [
            (self.url(f"{model._meta.app_label}_{model._meta.model_name}_changelist"), model._meta.fields)
            for model in admin.site._registry
        ]
        assert len(pages) > 15
        for page, fields in pages:
            for comparison in ("regex", "iregex", "contains", "range"):
                asked = f"{page}?{fields[1].name}__{comparison}=("
                assert self.client.get(asked).status_code == 400, asked
        assert self.client.get(self.url("budgets_usage_changelist") + "?at__year__regex=(").status_code == 400
        assert self.client.get(self.url("budgets_apikey_changelist") + "?agent__team__name__regex=(").status_code == 400


class OrderTest(LedgerCase):
    def correct(self, **more):
        form = {"unit": "0", "amount": "-40", "window": "0", "note": "charged twice", "submission": "s"} | more
        return self.post("budgets_pool_correct", form, self.pool.pk)

    def test_a_correction_is_ordered_and_its_page_shows_what_came_of_it(self):
        assert "1,000 tokens" in self.page("budgets_pool_correct", self.pool.pk)
        response = self.correct()
        order = LedgerOrder.objects.get()
        assert response["location"] == self.url("budgets_ledgerorder_change", order.pk)
        assert order.payload == {"pool_id": self.pool.pk, "unit": 0, "window_start": 0, "amount": -40}
        assert (order.kind, order.actor, order.note, order.state) == ("correction", "ada", "charged twice", "open")
        assert OutboxEntry.objects.filter(action="ledger.correction", actor="ada").count() == 1
        html = self.page("budgets_ledgerorder_change", order.pk)
        assert "data-hoosh-again" in html
        assert "-40 tokens" in html
        LedgerOrder.objects.update(state="refused", result="Only 3 <tokens> were charged.", done_at=timezone.now())
        html = self.page("budgets_ledgerorder_change", order.pk)
        assert "data-hoosh-again" not in html
        assert "Only 3 &lt;tokens&gt; were charged." in html

    def test_money_is_ordered_to_the_last_pico_dollar(self):
        self.correct(unit="1", amount="0.000000000001")
        assert LedgerOrder.objects.get().payload["amount"] == 1

    def test_a_correction_may_be_for_an_earlier_window(self):
        pool = access.save_pool(Pool(name="hourly", window="hour"), actor="test")
        hour = int(timezone.now().timestamp()) // 3600 * 3600
        for start in (hour, hour - 3600):
            PoolWindow.objects.create(pool_id=pool.pk, window_start=start, window_end=start + 3600, capacity=9)
        form = {"unit": "0", "amount": "4", "window": str(hour - 3600), "note": "n"}
        self.post("budgets_pool_correct", form, pool.pk)
        assert LedgerOrder.objects.get().payload["window_start"] == hour - 3600
        shown = self.errors(self.post("budgets_pool_correct", form | {"window": str(hour - 7200)}, pool.pk))
        assert "valid choice" in shown

    def test_bad_orders_are_refused_in_words(self):
        for change, words in (
            ({"amount": ""}, "required"),
            ({"amount": "0"}, "Nothing would change"),
            ({"amount": "1.5"}, "whole numbers"),
            ({"amount": "1e400"}, "digits"),
            ({"amount": "NaN"}, "number"),
            ({"amount": "9" * 17}, "more than any limit"),
            ({"unit": "1", "amount": "0.0000000000001"}, "decimal places"),
            ({"unit": "2"}, "valid choice"),
            ({"note": ""}, "required"),
            ({"note": "x" * 501}, "500"),
        ):
            shown = self.errors(self.correct(**change))
            assert words in shown, (change, shown)
        assert not LedgerOrder.objects.exists()

    def test_a_form_sent_twice_places_one_order(self):
        assert self.correct().status_code == 302
        assert "sent before" in self.errors(self.correct())
        assert self.correct(submission="t").status_code == 302
        assert LedgerOrder.objects.count() == 2

    def test_a_transfer_is_ordered(self):
        self.page("budgets_pool_transfer", self.pool.pk)
        form = {"unit": "0", "amount": "300", "to_pool": self.other.pk, "note": "more for them"}
        assert self.post("budgets_pool_transfer", form, self.pool.pk).status_code == 302
        order = LedgerOrder.objects.get()
        expected = {"from_pool": self.pool.pk, "to_pool": self.other.pk, "unit": 0, "amount": 300}
        assert (order.kind, order.payload) == ("transfer", expected)
        html = self.page("budgets_ledgerorder_change", order.pk)
        assert "From pool" in html
        assert "spare" in html
        for change, words in (({"to_pool": self.pool.pk}, "valid choice"), ({"amount": "-1"}, "above zero")):
            assert words in self.errors(self.post("budgets_pool_transfer", form | change, self.pool.pk))

    def test_only_who_may_correct_the_ledger_gets_these_pages(self):
        self.allow(self.bob, "view_pool", "change_pool", "view_lease")
        pages = [("budgets_pool_correct", self.pool.pk), ("budgets_pool_transfer", self.pool.pk)]
        pages += [("budgets_lease_resolve", "w-dead", kind) for kind in ("write_off", "release", "replay")]
        for name, *args in pages:
            assert self.client.get(self.url(name, *args)).status_code == 403, name
            assert self.post(name, {"note": "n", "amount": "1", "unit": "0", "window": "0"}, *args).status_code == 403
        assert "Write off as spent<" not in self.page("budgets_lease_change", self.lease.pk)
        assert not LedgerOrder.objects.exists()
        self.allow(self.bob, "view_pool", "change_poolwindow")
        assert self.correct().status_code == 302
        self.page("budgets_ledgerorder_change", LedgerOrder.objects.get().pk)
        for name in ("budgets_pool_correct", "budgets_pool_transfer"):
            assert self.client.get(self.url(name, 98765)).status_code == 404

    def test_quarantined_leases_are_resolved_after_a_question(self):
        html = self.page("budgets_lease_change", self.lease.pk)
        assert "Write off as spent" in html
        assert "w-dead ended with a damaged journal" in self.page("index")
        for kind in ("replay", "write_off", "release"):
            assert self.url("budgets_lease_resolve", "w-dead", kind) in html
        for kind in ("replay", "write_off", "release"):
            html = self.page("budgets_lease_resolve", "w-dead", kind)
            assert "research" in html
            assert not LedgerOrder.objects.filter(kind=kind).exists(), "a question changes nothing"
            assert "required" in self.errors(self.post("budgets_lease_resolve", {}, "w-dead", kind))
            response = self.post("budgets_lease_resolve", {"note": "disk died"}, "w-dead", kind)
            order = LedgerOrder.objects.get(kind=kind)
            assert response["location"] == self.url("budgets_ledgerorder_change", order.pk)
            assert order.payload == {"owner": "w-dead"}
        for owner, kind in (("nobody", "release"), ("w-dead", "burn")):
            assert self.client.get(self.url("budgets_lease_resolve", owner, kind)).status_code == 404

    def test_long_names_of_owners_are_cut_in_the_list_and_whole_on_their_page(self):
        owner = "reservation:000660bf9dfea61ac8ddba44a7aec6b1"
        lease = Lease.objects.create(owner=owner, window=self.money, granted=5, remaining=5)
        html = self.page("budgets_lease_changelist")
        assert f'<span title="{owner}">reservation:…aec6b1</span>' in html
        assert ">w-dead<" in html
        assert f">{owner}<" in self.page("budgets_lease_change", lease.pk)

    def test_active_leases_have_no_buttons(self):
        lease = Lease.objects.create(owner="w-alive", window=self.money, granted=5, remaining=5)
        assert "Write off as spent" not in self.page("budgets_lease_change", lease.pk)
        assert self.client.get(self.url("budgets_lease_resolve", "w-alive", "release")).status_code == 404
