"""The pages of teams, agents, keys, pools, prices, usage and the audit log: they work, and they refuse in words."""

from __future__ import annotations

import datetime as dt
import json
import re
from decimal import Decimal

import pytest
from django.core.cache import cache
from django.utils import timezone

from audit.models import OutboxEntry
from budgets import access, keys
from budgets.models import Agent, ApiKey, DecisionShape, Pool, PoolWindow, Price, Team, Usage
from providers.models import Provider
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database

KEY = re.compile(r"hk-[A-Za-z0-9_-]{43}")


def key_form(agent, pool, **more):
    """The fields a browser sends for a new key."""
    form = {"name": "laptop", "agent": agent.pk, "pool": pool.pk, "scopes": ["inference"], "submission": "s1"}
    return form | {"models_allowed": "", "expires_at_0": "", "expires_at_1": ""} | more


def price_form(**more):
    """The fields a browser sends for a new price."""
    form = {"provider": "openai", "pattern": "gpt-4o", "input_usd_per_mtok": "2.5", "output_usd_per_mtok": "10"}
    form |= {"request_usd": "0", "valid_from_0": "2026-01-01", "valid_from_1": "00:00:00", "source": "operator"}
    return form | more


class BudgetCase(AdminTestCase):
    def setUp(self):
        super().setUp()
        cache.clear()  # it remembers the forms other tests sent
        self.agent = access.agent_named("Research", "notebook", actor="test")
        self.pool = access.save_pool(Pool(name="research", capacity_tokens=1000), actor="test")


class KeyPagesTest(BudgetCase):
    def add(self, **form):
        return self.post("budgets_apikey_add", key_form(self.agent, self.pool, **form))

    def test_a_new_key_is_shown_exactly_once(self):
        response = self.add()
        html = self.clean_html(response)
        (text,) = set(KEY.findall(html))
        key = ApiKey.objects.get()
        assert key.digest == keys.digest_of(text)
        assert "no-store" in response.headers["cache-control"]
        pages = [
            self.page("budgets_apikey_change", key.pk),
            self.page("budgets_apikey_history", key.pk),
            self.page("budgets_apikey_changelist"),
            self.page("budgets_apikey_add"),
            self.page("index"),
            *(self.page("audit_outboxentry_change", entry.pk) for entry in OutboxEntry.objects.all()),
        ]
        for page in pages:
            assert not KEY.search(page)
            assert text[11:] not in page
            assert key.digest not in page
        assert key.prefix in pages[0]
        entry = OutboxEntry.objects.get(action="key.created")
        assert entry.actor == "ada"
        assert text not in json.dumps(entry.data)
        assert key.digest not in json.dumps(entry.data)
        assert text not in str(self.client.session.items())

    def test_a_form_sent_twice_makes_one_key(self):
        assert self.add(submission="twice").status_code == 200
        response = self.add(submission="twice")
        assert response.status_code == 302
        assert "sent before" in self.messages(response)
        assert ApiKey.objects.count() == 1
        self.add(submission="another")
        assert ApiKey.objects.count() == 2

    def test_each_showing_of_the_form_has_a_number_of_its_own(self):
        numbers = [re.search(r'name="submission" value="(\w+)"', self.page("budgets_apikey_add")) for _ in range(2)]
        assert numbers[0].group(1) != numbers[1].group(1)

    def test_scopes_models_and_expiry_are_stored(self):
        self.add(
            scopes=["inference", "operator"],
            models_allowed="gpt-*, llama*",
            expires_at_0="2099-01-02",
            expires_at_1="03:04:05",
        )
        key = ApiKey.objects.get()
        record = access.key_record(key)
        assert (record.scopes, record.models) == (("inference", "operator"), ("gpt-*", "llama*"))
        assert key.expires_at == dt.datetime(2099, 1, 2, 3, 4, 5, tzinfo=dt.UTC)

    def test_each_bad_value_is_refused_in_words(self):
        for form, words in (
            ({"name": ""}, "required"),
            ({"name": "a\x07"}, "control"),
            ({"scopes": []}, "at least one scope"),
            ({"scopes": ["root"]}, "valid choice"),
            ({"agent": 999}, "valid choice"),
            ({"pool": ""}, "required"),
            ({"models_allowed": "a\x07b"}, "control"),
            ({"expires_at_0": "2020-01-01", "expires_at_1": "00:00"}, "already be expired"),
            ({"expires_at_0": "soon", "expires_at_1": "00:00"}, "valid date"),
        ):
            shown = self.errors(self.post("budgets_apikey_add", key_form(self.agent, self.pool) | form))
            assert words in shown, (form, shown)
        assert not ApiKey.objects.exists()

    def test_a_key_is_changed_but_neither_its_text_nor_its_revocation(self):
        self.add()
        key = ApiKey.objects.get()
        form = key_form(
            self.agent, self.pool, name="desk", scopes=["operator"], digest="0" * 64, revoked_at_0="2020-01-01"
        )
        assert self.post("budgets_apikey_change", form | {"prefix": "hk-forged"}, key.pk).status_code == 302
        changed = ApiKey.objects.get()
        assert (changed.name, changed.scopes, changed.revoked_at) == ("desk", "operator", None)
        assert (changed.digest, changed.prefix) == (key.digest, key.prefix)
        assert changed.seq > key.seq
        html = self.page("budgets_apikey_change", key.pk)
        assert re.search(r'value="operator"[^>]*checked', html)
        assert not re.search(r'value="inference"[^>]*checked', html)

    def test_keys_are_revoked_by_button_and_by_action_and_never_deleted(self):
        for number in range(3):
            self.add(submission=str(number), name=f"k{number}")
        first, *others = ApiKey.objects.order_by("name")
        asked = self.page("budgets_apikey_revoke", first.pk)
        assert "for good" in asked
        assert first.prefix in asked
        html = self.clean_html(self.act("budgets_apikey_changelist", "revoke", others))
        assert "Revoke 2 key(s)?" in html
        assert not ApiKey.objects.filter(revoked_at__isnull=False).exists(), "a question changes nothing"
        assert self.post("budgets_apikey_revoke", {}, first.pk).status_code == 302
        self.act("budgets_apikey_changelist", "revoke", others, post="yes")
        assert not ApiKey.objects.filter(revoked_at__isnull=True).exists()
        assert OutboxEntry.objects.filter(action="key.revoked", actor="ada").count() == 3
        assert self.post("budgets_apikey_delete", {"post": "yes"}, first.pk).status_code == 403
        self.act("budgets_apikey_changelist", "delete_selected", others, post="yes")
        assert ApiKey.objects.count() == 3
        html = self.page("budgets_apikey_change", first.pk)
        assert ">Revoke<" not in html
        assert "revoked" in html

    def test_a_rotated_key_is_shown_once_and_the_old_one_ends_tomorrow(self):
        self.add(models_allowed="gpt-*")
        old = ApiKey.objects.get()
        response = self.post("budgets_apikey_rotate", {"submission": "r1"}, old.pk)
        (text,) = set(KEY.findall(self.clean_html(response)))
        new = ApiKey.objects.get(digest=keys.digest_of(text))
        assert (new.models_allowed, new.pool_id) == ("gpt-*", old.pool_id)
        old.refresh_from_db()
        assert timezone.now() < old.expires_at < timezone.now() + dt.timedelta(days=1, minutes=1)
        assert self.post("budgets_apikey_rotate", {"submission": "r1"}, old.pk).status_code == 302
        keys.revoke_key(old, actor="test")
        response = self.post("budgets_apikey_rotate", {"submission": "r2"}, old.pk)
        assert "not rotated" in self.messages(response)
        assert ApiKey.objects.count() == 2

    def test_the_overlap_of_a_rotation_is_chosen(self):
        self.add()
        old = ApiKey.objects.get()
        assert "7 days" in self.page("budgets_apikey_rotate", old.pk)
        response = self.post("budgets_apikey_rotate", {"submission": "r0", "overlap_s": "5"}, old.pk)
        assert "Select a valid choice" in self.errors(response)
        assert ApiKey.objects.count() == 1
        html = self.clean_html(self.post("budgets_apikey_rotate", {"submission": "r1", "overlap_s": "604800"}, old.pk))
        old.refresh_from_db()
        assert dt.timedelta(days=6, hours=23) < old.expires_at - timezone.now() <= dt.timedelta(days=7)
        assert f"{old.expires_at:%Y-%m-%d %H:%M} UTC" in html
        new = ApiKey.objects.get(rotated_from=old)
        assert f"{new.prefix}…</a> replaces it; this one works until {old.expires_at:%Y-%m-%d %H:%M} UTC" in self.page(
            "budgets_apikey_change", old.pk
        )
        keys.revoke_key(old, actor="test")
        assert "which was revoked" in self.page("budgets_apikey_change", new.pk)

    def test_the_page_of_a_new_key_says_how_to_use_it(self):
        html = self.clean_html(self.add(models_allowed="gpt-*, gpt-4o"))
        assert '<dd><code class="hoosh-mono">http://testserver/v1</code></dd>' in html
        assert html.count("gpt-4o&quot;") + html.count('"gpt-4o"') == 2

    def test_the_only_pool_is_chosen_already(self):
        chosen = f'<option value="{self.pool.pk}" selected>'
        assert chosen in self.page("budgets_apikey_add")
        other = access.save_pool(Pool(name="another"), actor="test")
        assert chosen not in self.page("budgets_apikey_add")
        assert f'<option value="{other.pk}" selected>' in self.page("budgets_apikey_add", query=f"?pool={other.pk}")

    def test_filters_find_keys_by_state_and_the_digest_is_no_filter(self):
        for number, state in enumerate(("alive", "gone", "late")):
            self.add(submission=str(number), name=state)
        keys.revoke_key(ApiKey.objects.get(name="gone"), actor="test")
        ApiKey.objects.filter(name="late").update(expires_at=timezone.now() - dt.timedelta(days=1))
        for state, name in (("active", "alive"), ("revoked", "gone"), ("expired", "late")):
            html = self.page("budgets_apikey_changelist", query=f"?state={state}")
            assert re.findall(r">(alive|gone|late)</a>", html) == [name]
        key = ApiKey.objects.get(name="alive")
        response = self.client.get(self.url("budgets_apikey_changelist"), {"digest__startswith": key.digest[:1]})
        assert response.status_code == 400

    def test_agents_and_pools_are_found_while_typing(self):
        access.agent_named("Platform", "bot", actor="test")
        for field, typed, found in (("agent", "note", "Research / notebook"), ("pool", "res", "research")):
            query = {"app_label": "budgets", "model_name": "apikey", "field_name": field, "term": typed}
            results = self.client.get(self.url("autocomplete"), query).json()["results"]
            assert [row["text"] for row in results] == [found]

    def test_only_who_may_give_the_scope_operator_does(self):
        self.add(scopes=["inference", "operator"])
        old = ApiKey.objects.get()
        mine = ["view_apikey", "add_apikey", "change_apikey", "view_agent", "view_pool"]
        self.allow(self.bob, *mine)
        for response in (
            self.add(scopes=["operator"], submission="s2"),
            self.post("budgets_apikey_change", key_form(self.agent, self.pool, scopes=["operator"]), old.pk),
        ):
            assert "may not give a key the scope “operator”" in self.errors(response)
        for had in ("operator", "admin", "inference,admin"):
            ApiKey.objects.filter(pk=old.pk).update(scopes=had)
            response = self.post("budgets_apikey_change", key_form(self.agent, self.pool, scopes=["inference"]), old.pk)
            assert "nor change one that has it" in self.errors(response), "not by taking the scope away either"
            old.refresh_from_db()
            assert old.scopes == had
        ApiKey.objects.filter(pk=old.pk).update(scopes="inference,operator")
        assert ">Rotate<" not in self.page("budgets_apikey_change", old.pk)
        assert self.post("budgets_apikey_rotate", {"submission": "r1"}, old.pk).status_code == 403
        assert ApiKey.objects.count() == 1
        assert KEY.search(self.clean_html(self.add(submission="s3")))
        self.allow(self.bob, *mine, "give_operator_scope")
        assert KEY.search(self.clean_html(self.add(scopes=["operator"], submission="s4")))
        assert ">Rotate<" in self.page("budgets_apikey_change", old.pk)
        assert KEY.search(self.clean_html(self.post("budgets_apikey_rotate", {"submission": "r2"}, old.pk)))

    def test_a_link_to_the_form_fills_in_what_can_be_a_value_and_nothing_else(self):
        html = self.page("budgets_apikey_add", query=f"?agent={self.agent.pk}&expires_at=2099-01-02&models_allowed=x*")
        for value in (f'value="{self.agent.pk}" selected', 'value="2099-01-02"', 'value="x*"'):
            assert value in html
        for odd in ("agent=zz", f"agent={'9' * 30}", "expires_at=zz", "pool=²", "usage=1", "scopes=²"):
            self.page("budgets_apikey_add", query=f"?{odd}")

    def test_strangers_and_staff_without_permission_get_no_key(self):
        self.allow(self.bob, "view_apikey", "view_pool", "view_agent")
        assert self.client.get(self.url("budgets_apikey_add")).status_code == 403
        assert self.add().status_code == 403
        self.client.force_login(self.carl)
        assert "/login/" in self.add()["location"]
        assert not ApiKey.objects.exists()

    def test_viewers_neither_revoke_nor_rotate_and_to_look_at_the_question_does_neither(self):
        self.add()
        key = ApiKey.objects.get()
        assert "Rotate" in self.page("budgets_apikey_rotate", key.pk)
        assert ApiKey.objects.get().expires_at is None
        for button in ("revoke", "rotate"):
            assert self.post(f"budgets_apikey_{button}", {}, 999).status_code == 404
        self.allow(self.bob, "view_apikey")
        html = self.page("budgets_apikey_change", key.pk)
        assert ">Revoke<" not in html
        assert ">Rotate<" not in html
        for button in ("revoke", "rotate"):
            assert self.post(f"budgets_apikey_{button}", {}, key.pk).status_code == 403
        assert self.client.get(self.url("budgets_apikey_revoke", key.pk)).status_code == 403
        self.allow(self.bob, "view_apikey", "change_apikey")
        assert self.post("budgets_apikey_rotate", {}, key.pk).status_code == 403
        assert ApiKey.objects.get().revoked_at is None


class TeamAndPoolPagesTest(BudgetCase):
    def test_teams_and_agents_are_made_and_refuse_doubles(self):
        assert self.post("budgets_team_add", {"name": "Platform", "enabled": "on"}).status_code == 302
        assert "already exists" in self.errors(self.post("budgets_team_add", {"name": "Platform"}))
        team = Team.objects.get(name="Platform")
        form = {"team": team.pk, "name": "bot", "enabled": "on"}
        assert self.post("budgets_agent_add", form).status_code == 302
        assert "already exists" in self.errors(self.post("budgets_agent_add", form))
        assert Agent.objects.get(name="bot").team == team
        self.page("budgets_team_changelist")
        self.page("budgets_agent_changelist")

    def test_budgets_are_given_to_teams_agents_and_keys(self):
        team = self.agent.team
        assert self.post("budgets_team_change", {"name": team.name, "pool": self.pool.pk}, team.pk).status_code == 302
        form = {"team": team.pk, "name": "notebook", "enabled": "on", "pool": self.pool.pk}
        assert self.post("budgets_agent_change", form, self.agent.pk).status_code == 302
        other = access.save_pool(Pool(name="other"), actor="test")
        form = key_form(self.agent, self.pool, own_pool=other.pk, pools_allowed="apollo*, b")
        assert self.post("budgets_apikey_add", form).status_code == 200
        key = ApiKey.objects.get()
        assert (key.own_pool, key.pools_allowed) == (other, "apollo*,b")
        assert access.key_record(key).budget_ids == (self.pool.pk, other.pk)
        assert self.post("budgets_apikey_change", form | {"own_pool": ""}, key.pk).status_code == 302
        assert ApiKey.objects.get().own_pool is None
        for name in ("team", "agent"):
            assert f"/budgets/pool/{self.pool.pk}/change/" in self.page(f"budgets_{name}_changelist")

    def test_lists_ask_a_fixed_number_of_questions(self):
        expected = {"team": 5, "agent": 6, "apikey": 7}
        for name, count in expected.items():
            self.page(f"budgets_{name}_changelist")
            with self.queries(count):
                self.page(f"budgets_{name}_changelist")
        for number in range(9):
            agent = access.agent_named("Research", f"a{number}", actor="test")
            keys.create_key(agent, self.pool, f"k{number}", actor="test", own_pool=self.pool)
        for name, count in expected.items():
            with self.queries(count):
                self.page(f"budgets_{name}_changelist")

    def test_disabling_a_team_in_the_list_moves_the_sequence_so_that_workers_learn_it(self):
        keys.create_key(self.agent, self.pool, "k", actor="test")
        seen, _, _ = access.changes_since(0)
        team = Team.objects.get()
        form = {"form-TOTAL_FORMS": 1, "form-INITIAL_FORMS": 1, "form-0-id": team.pk, "_save": "Save"}
        assert self.post("budgets_team_changelist", form).status_code == 302
        _, changed, _ = access.changes_since(seen)
        assert [record.enabled for record in changed] == [False]

    def test_an_address_that_names_no_pool_leads_to_the_first_page(self):
        for odd in ("²", "9" * 19, "9" * 5000, "-1", "x"):
            assert self.client.get(self.url("budgets_pool_change", odd)).status_code == 302, odd

    def test_chosen_rows_that_are_no_numbers_are_refused(self):
        for name in ("budgets_pool_changelist", "auth_user_changelist"):
            for odd in ("²", "x", "9" * 30, ""):
                form = {"action": "delete_selected", "_selected_action": [odd]}
                assert self.post(name, form).status_code == 400, (name, odd)

    def test_a_list_sent_back_with_rows_nobody_has_changes_nothing(self):
        for odd, status in (("99999", 200), ("²", 400), ("9" * 30, 400), ("x", 400)):
            form = {"_save": "Save", "form-TOTAL_FORMS": 1, "form-INITIAL_FORMS": 1, "form-0-id": odd}
            assert self.post("budgets_team_changelist", form).status_code == status, odd
        assert self.post("budgets_team_changelist", {"_save": "Save", "form-TOTAL_FORMS": "x"}).status_code == 200

    def test_rows_in_use_are_not_deleted(self):
        keys.create_key(self.agent, self.pool, "k", actor="test")
        for name, row in (("pool", self.pool), ("agent", self.agent), ("team", self.agent.team)):
            self.post(f"budgets_{name}_delete", {"post": "yes"}, row.pk)
            assert type(row).objects.filter(pk=row.pk).exists(), name
        spare = access.save_pool(Pool(name="spare"), actor="test")
        self.post("budgets_pool_delete", {"post": "yes"}, spare.pk)
        assert not Pool.objects.filter(pk=spare.pk).exists()


class PricePagesTest(BudgetCase):
    def test_prices_are_added_never_changed_and_never_deleted(self):
        assert self.post("budgets_price_add", price_form()).status_code == 302
        price = Price.objects.get()
        assert (price.input_usd_per_mtok, price.cached_read_usd_per_mtok) == (Decimal("2.5"), None)
        assert self.post("budgets_price_change", price_form(input_usd_per_mtok="1"), price.pk).status_code == 403
        assert self.post("budgets_price_delete", {"post": "yes"}, price.pk).status_code == 403
        self.act("budgets_price_changelist", "delete_selected", [price], post="yes")
        assert Price.objects.get().input_usd_per_mtok == Decimal("2.5")
        assert access.sequences()["prices"] == 1

    def test_a_new_price_starts_from_an_old_one_and_takes_over(self):
        self.post("budgets_price_add", price_form())
        old = Price.objects.get()
        html = self.page("budgets_price_add", query=f"?from={old.pk}")
        assert 'value="2.5"' in html
        assert 'value="gpt-4o"' in html
        assert "0E-9" not in html
        for odd in ("x", "999", "9" * 40, "", "²"):
            self.page("budgets_price_add", query=f"?from={odd}")
        self.post("budgets_price_add", price_form(input_usd_per_mtok="2", valid_from_0="2026-02-01"))
        self.post("budgets_price_add", price_form(input_usd_per_mtok="1", valid_from_0="2099-02-01"))
        html = self.page("budgets_price_changelist")
        states = re.findall(r'field-state"><span class="hoosh-badge ?\w*">([\w ]+)<', html)
        assert sorted(states) == ["in force", "later", "past"]

    def test_a_price_for_a_route_and_a_tier_stands_beside_the_others(self):
        for change in ({}, {"route": "fast"}, {"from_tokens": "200000"}, {"input_audio_usd_per_mtok": "7"}):
            assert self.post("budgets_price_add", price_form(**change)).status_code == 302, change
        html = self.page("budgets_price_changelist")
        assert "route fast" in html
        assert "from 200,000 input tokens" in html
        states = re.findall(r'field-state"><span class="hoosh-badge ?\w*">([\w ]+)<', html)
        assert sorted(states) == ["in force", "in force", "in force", "past"]

    def test_imported_prices_yield_to_an_operators_own_and_are_told_apart(self):
        now = timezone.now()
        row = {"provider": "openai", "pattern": "gpt-4o", "input_usd_per_mtok": 1, "output_usd_per_mtok": 1}
        access.add_price(Price(**row, valid_from=now - dt.timedelta(days=2), source="genai-prices 1"), actor="t")
        access.add_price(Price(**row, valid_from=now - dt.timedelta(days=1), source="genai-prices 2"), actor="t")

        def states(query=""):
            html = self.page("budgets_price_changelist", query=query)
            return sorted(re.findall(r'field-state"><span class="hoosh-badge ?\w*">([\w ]+)<', html))

        assert states() == ["in force", "past"]
        self.post("budgets_price_add", price_form())
        assert states() == ["in force", "overridden", "past"]
        for state, found in (("now", "in force"), ("past", "past"), ("overridden", "overridden")):
            assert states(f"?state={state}") == [found]
        assert states("?from_source=operator") == ["in force"]
        assert states("?from_source=genai-prices 1") == ["past"]

    def test_the_list_of_prices_asks_a_fixed_number_of_questions(self):
        self.post("budgets_price_add", price_form())
        self.page("budgets_price_changelist")
        for _ in range(2):
            with self.queries(7):
                self.page("budgets_price_changelist")
            for number in range(30):
                self.post("budgets_price_add", price_form(pattern=f"m{number}"))

    def test_prices_refuse_bad_values(self):
        for change, words in (
            ({"pattern": ""}, "required"),
            ({"input_usd_per_mtok": "-1"}, "greater than or equal"),
            ({"input_usd_per_mtok": "free"}, "number"),
            ({"output_usd_per_mtok": "NaN"}, "number"),
            ({"valid_from_0": ""}, "required"),
            ({"from_tokens": "-1"}, "greater than or equal"),
            ({"input_image_usd_per_mtok": "x"}, "number"),
            ({"source": "genai-prices"}, "importer"),
            ({"input_usd_per_mtok": "9999999999.999999"}, "less than or equal"),
            ({"request_usd": "1000000.000000001"}, "less than or equal"),
        ):
            shown = self.errors(self.post("budgets_price_add", price_form(**change)))
            assert words in shown, (change, shown)
        assert not Price.objects.exists()

    def test_a_row_that_cannot_be_read_leaves_the_list_open(self):
        self.post("budgets_price_add", price_form())
        Price.stored.bulk_create(
            [Price(pattern="huge", input_usd_per_mtok=Decimal("9999999999.999999"), valid_from=timezone.now())]
        )
        html = self.page("budgets_price_changelist")
        assert "1 price row(s) have amounts too large to be read" in html
        assert "field-pattern_shown" in html
        assert "huge" not in html
        self.page("budgets_price_add")

    def test_the_form_drops_what_its_fields_refuse(self):
        for query in ("?capacity_usd=1e9999999", "?capacity_usd=NaN", "?window=decennium", "?name=" + "n" * 101):
            response = self.client.get(self.url("budgets_pool_add") + query)
            assert response.status_code == 200, query
            assert len(response.content) < 200_000
            assert query.split("=")[1][:50] not in response.content.decode().split('id="content"')[1], query
        assert 'value="2.5"' in self.page("budgets_pool_add", query="?capacity_usd=2.5")
        assert 'value="m*"' in self.page("budgets_price_add", query="?pattern=m*")

    def test_a_nul_in_an_address_is_refused(self):
        for path in ("budgets/lease/resolve/%00/release/", "budgets/reservation/%00/change/", "%00"):
            assert self.client.get(f"/admin/{path}").status_code == 400, path


class UsagePagesTest(BudgetCase):
    def make(self, count=1, **values):
        now = timezone.now()
        made = []
        start = Usage.objects.count()
        for number in range(start, start + count):
            fields = {
                "rid": f"{number:032x}",
                "at": now - dt.timedelta(seconds=number),
                "key_id": 1,
                "agent_id": self.agent.pk,
                "team_id": self.agent.team_id,
                "pool_id": self.pool.pk,
                "endpoint": "chat",
                "model": "llama3",
                "status": 200,
                "tokens": 1234,
                "cost_usd": Decimal("0.000042"),
            }
            made.append(Usage(**fields | values))
        return Usage.objects.bulk_create(made)

    def rows(self, query=""):
        html = self.page("budgets_usage_changelist", query=query)
        return [int(found) for found in re.findall(r"/budgets/usage/(\d+)/change/", html)], html

    def test_usage_is_read_newest_first_page_by_page_without_counting(self):
        made = self.make(120)
        newest_first = [row.pk for row in made]
        seen, query = [], ""
        for _ in range(3):
            found, html = self.rows(query)
            seen += found
            older = re.search(r'href="(\?[^"]*before=[^"]*)" rel="next"', html)
            query = older.group(1).replace("&amp;", "&") if older else ""
        assert seen == newest_first
        assert not query
        self.page("budgets_usage_changelist")
        with self.queries(6):
            self.page("budgets_usage_changelist")

    def test_rows_of_the_same_moment_are_neither_lost_nor_doubled_between_pages(self):
        at = timezone.now()
        made = self.make(80, at=at)
        first, html = self.rows()
        query = re.search(r'href="(\?[^"]*before=[^"]*)" rel="next"', html).group(1).replace("&amp;", "&")
        second, _ = self.rows(query)
        assert sorted(first + second) == sorted(row.pk for row in made)

    def test_filters_by_status_provider_and_time(self):
        provider = Provider.objects.create(name="local", kind="ollama", base_url="http://127.0.0.1:1")
        (ok,) = self.make(provider_id=provider.pk)
        (limited,) = self.make(status=429, error="insufficient_quota")
        (left,) = self.make(status=499)
        (failed,) = self.make(status=502, error="upstream")
        (old,) = self.make(at=timezone.now() - dt.timedelta(days=5))
        assert self.rows("?result=ok")[0] == [ok.pk]
        assert self.rows("?result=client")[0] == [limited.pk]
        assert self.rows("?result=left")[0] == [left.pk]
        assert self.rows("?result=server")[0] == [failed.pk]
        found, html = self.rows(f"?provider={provider.pk}")
        assert found == [ok.pk]
        assert "local" in html
        assert old.pk not in self.rows()[0]
        assert old.pk in self.rows("?day=week")[0]
        assert self.rows(f"?q={failed.rid}")[0] == [failed.pk]
        for odd in (
            "?provider=x",
            "?result=x",
            "?day=x",
            "?before=1",
            "?provider=²",
            "?before=1-x",
            "?before=²-1",
            "?before=253402300799999999-1",
        ):
            assert self.client.get(self.url("budgets_usage_changelist") + odd).status_code in (200, 302)

    def test_a_row_shows_its_numbers_and_the_decision_behind_it(self):
        shape = {
            "strategy": "priority",
            "policy": "p1",
            "candidates": [{"route": "r1", "provider": "local", "model": "llama3", "reason": "priority 10"}],
            "rejected": [{"route": "r2", "reason": "<b>circuit open</b>"}],
        }
        DecisionShape.objects.create(digest="a" * 32, payload=json.dumps(shape))
        (row,) = self.make(shape="a" * 32, latency_us=1_234_567, ttft_us=4_200, input_tokens=1000)
        html = self.page("budgets_usage_change", row.pk)
        for text in (row.rid, "1,234", "1,234 ms", "4.2 ms", "r1", "priority 10", "&lt;b&gt;circuit open"):
            assert text in html, text
        assert f'href="{self.url("audit_proof")}?of={row.rid}"' in html
        (bare,) = self.make(shape="b" * 32)
        assert "No decision is stored" in self.page("budgets_usage_change", bare.pk)
        DecisionShape.objects.create(digest="c" * 32, payload="[not json")
        (torn,) = self.make(shape="c" * 32)
        assert "No decision is stored" in self.page("budgets_usage_change", torn.pk)

    def test_usage_and_audit_are_never_added_changed_or_deleted_here(self):
        (row,) = self.make()
        entry = OutboxEntry.objects.first()
        for name, pk in (("budgets_usage", row.pk), ("audit_outboxentry", entry.pk)):
            self.page(f"{name}_change", pk)
            assert self.post(f"{name}_add", {}).status_code == 403
            assert self.post(f"{name}_delete", {"post": "yes"}, pk).status_code == 403
            assert self.post(f"{name}_change", {"tokens": 0, "action": "forged"}, pk).status_code == 403
            self.post(f"{name}_changelist", {"action": "delete_selected", "_selected_action": [pk], "post": "yes"})
        row.refresh_from_db()
        entry.refresh_from_db()
        assert row.tokens == 1234
        assert entry.action != "forged"

    def test_hostile_text_in_rows_is_shown_as_text(self):
        evil = "<script>alert(1)</script>"
        (row,) = self.make(model=evil, error="<img src=x>", status=502, client_request_id=evil)
        for html in (self.page("budgets_usage_change", row.pk), self.rows()[1], self.page("index")):
            assert evil not in html
            assert "<img src=x>" not in html


class AuditPagesTest(BudgetCase):
    def test_entries_are_filtered_searched_and_shown_with_their_data(self):
        OutboxEntry.objects.create(action="a.one", target="<b>t</b>", level="error", data={"k": ["<i>", "ü"]})
        html = self.page("audit_outboxentry_changelist", query="?level=error")
        assert "a.one" in html
        assert "pool.created" not in html
        assert "<b>t</b>" not in html
        assert "a.one" not in self.page("audit_outboxentry_changelist", query="?q=pool.created")
        entry = OutboxEntry.objects.get(action="a.one")
        assert "&lt;i&gt;" in self.page("audit_outboxentry_change", entry.pk)


class FirstPageTest(AdminTestCase):
    def test_an_empty_gateway_says_what_to_do_first(self):
        html = self.page("index")
        assert "First steps" in html
        assert self.url("providers_provider_add") in html
        assert "Ask a model, from the app or here" in html

    def test_an_empty_list_says_what_to_do_and_an_empty_search_what_to_undo(self):
        html = self.page("providers_provider_changelist")
        assert "Servers that answer" in html
        assert "Add one: choose its kind" in html
        html = self.page("providers_provider_changelist", query="?q=nothing-like-it")
        assert "Nothing matches" in html
        assert "Add one: choose its kind" not in html

    def test_the_first_page_asks_a_fixed_number_of_questions(self):
        agent = access.agent_named("t", "a", actor="test")
        for number in range(12):
            pool = access.save_pool(Pool(name=f"p{number}"), actor="test")
            keys.create_key(agent, pool, f"k{number}", actor="test")
            PoolWindow.objects.create(pool_id=pool.pk, capacity=100, committed=number)
            Provider.objects.create(name=f"x{number}", kind="ollama", base_url="http://127.0.0.1:1")
        self.page("index")
        with self.queries(22):
            html = self.page("index")
        assert "p11" in html, "the fullest pools are shown"
        assert "p0<" not in html
        assert "12 not checked" in html
