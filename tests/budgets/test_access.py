"""Teams, agents, pools, prices: writing and feeding."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest
from django.core.exceptions import ValidationError
from django.test import TestCase
from django.utils import timezone

from audit.models import OutboxEntry
from budgets import access, keys
from budgets.limits import PoolLimits
from budgets.models import Agent, ApiKey, Pool, Price, Team
from budgets.records import PoolRecord

pytestmark = pytest.mark.database


def key(name: str = "k") -> ApiKey:
    agent = access.agent_named("team", "agent", actor="a")
    return keys.create_key(agent, access.default_pool("a"), name, actor="a")[0]


class FeedTests(TestCase):
    databases = "__all__"

    def test_an_empty_database_feeds_nothing(self) -> None:
        self.assertEqual(access.changes_since(0), (0, [], []))
        self.assertEqual(access.sequences(), {"access": 0, "prices": 0})
        self.assertEqual(access.prices(), [])

    def test_everything_comes_first_and_then_only_what_changed(self) -> None:
        one, two = key("one"), key("two")
        seq, found, pools = access.changes_since(0)
        self.assertEqual([record.id for record in found], [one.pk, two.pk])
        self.assertEqual([pool.record.name for pool in pools], ["default"])
        self.assertEqual(access.changes_since(seq), (seq, [], []))
        keys.revoke_key(two, actor="a")
        later, found, pools = access.changes_since(seq)
        self.assertGreater(later, seq)
        self.assertEqual([(record.id, record.enabled) for record in found], [(two.pk, False)])
        self.assertEqual([pool.record.name for pool in pools], ["default"])  # always all of them

    def test_nothing_new_costs_one_query(self) -> None:
        key()
        seq = access.changes_since(0)[0]
        with self.assertNumQueries(1):
            access.changes_since(seq)

    def test_a_disabled_team_or_agent_disables_its_keys(self) -> None:
        made = key()
        for row, save in ((made.agent, access.save_agent), (made.agent.team, access.save_team)):
            seq = access.sequences()["access"]
            row.enabled = False
            save(row, actor="a")
            self.assertEqual([(k.id, k.enabled) for k in access.changes_since(seq)[1]], [(made.pk, False)])
            row.enabled = True
            save(row, actor="a")
            self.assertEqual([(k.id, k.enabled) for k in access.changes_since(seq)[1]], [(made.pk, True)])

    def test_a_key_record_says_all_that_workers_need(self) -> None:
        agent = access.agent_named("team", "agent", actor="a")
        pool = access.default_pool("a")
        until = timezone.now() + dt.timedelta(days=1)
        made, text = keys.create_key(
            agent, pool, "k", ("inference", "operator"), actor="a", models_allowed=("gpt-*", "m"), expires_at=until
        )
        record = access.changes_since(0)[1][0]
        self.assertEqual(record.digest.hex(), keys.digest_of(text))
        self.assertEqual(record.scopes, ("inference", "operator"))
        self.assertEqual(record.models, ("gpt-*", "m"))
        self.assertEqual((record.agent_id, record.team_id, record.pool_id), (agent.pk, agent.team_id, pool.pk))
        self.assertAlmostEqual(record.expires_at, until.timestamp())
        self.assertEqual((record.id, record.prefix, record.enabled), (made.pk, text[:11], True))

    def test_prices_are_exact_integers(self) -> None:
        access.add_price(
            Price(
                provider="openai",
                pattern="gpt-*",
                input_usd_per_mtok=Decimal("2.5"),
                cached_read_usd_per_mtok=Decimal("0.000001"),
                output_usd_per_mtok=Decimal(10),
                request_usd=Decimal("0.000000001"),
                valid_from=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            ),
            actor="a",
        )
        record = access.prices()[0]
        self.assertEqual((record.input, record.cached_read, record.cache_write), (2_500_000, 1, None))
        self.assertEqual((record.output, record.reasoning, record.request), (10_000_000, None, 1_000))
        self.assertEqual(record.valid_from, 1_767_225_600.0)
        self.assertEqual(access.sequences()["prices"], 1)

    def test_a_price_that_cannot_be_read_is_logged_and_the_others_are_fed(self) -> None:
        good = {"input_usd_per_mtok": Decimal(10) ** 6, "request_usd": Decimal(10) ** 6}
        added = access.add_price(Price(pattern="good", valid_from=timezone.now(), **good), actor="a")
        for name, amount in (("input_usd_per_mtok", "9999999999.999999"), ("request_usd", "9999999.999999999")):
            Price.stored.bulk_create([Price(pattern="bad", valid_from=timezone.now(), **{name: Decimal(amount)})])
        with self.assertLogs("hoosh.prices", "ERROR") as logs:
            found = access.prices()
        self.assertEqual([(row.id, row.input, row.request) for row in found], [(added.pk, 10**12, 10**18)])
        self.assertEqual([record.price_id for record in logs.records], access.unreadable_prices())
        self.assertEqual(len(logs.records), 2)

    def test_every_price_that_was_ever_accepted_and_is_readable_is_still_read(self) -> None:
        amounts = {"input_usd_per_mtok": Decimal("9999999999.99998"), "request_usd": Decimal("9999999.99999998")}
        Price.stored.bulk_create([Price(pattern="dear", valid_from=timezone.now(), **amounts)])
        self.assertEqual(Price.objects.get().input_usd_per_mtok, amounts["input_usd_per_mtok"])
        self.assertEqual(len(access.prices()), 1)

    def test_a_price_row_carries_its_route_its_tier_and_its_media(self) -> None:
        row = Price(
            pattern="m",
            route="r 1",
            from_tokens=200_000,
            input_audio_usd_per_mtok=Decimal(100),
            output_audio_usd_per_mtok=Decimal("0.5"),
            valid_from=timezone.now(),
        )
        access.add_price(row, actor="a")
        record = access.prices()[0]
        self.assertEqual((record.route, record.from_tokens), ("r 1", 200_000))
        self.assertEqual((record.input_audio, record.output_audio, record.input_image), (100_000_000, 500_000, None))

    def test_a_pool_is_fed_with_all_that_its_windows_come_from(self) -> None:
        team = access.save_team(Team(name="t"), actor="a")
        pool = Pool(
            name="p",
            capacity_tokens=5,
            capacity_usd=Decimal("0.000001"),
            window="week",
            time_zone="Asia/Kathmandu",
            mode="soft",
            carry_over=True,
            alert_percents=" 100, 050,80",
            shorten=True,
            team=team,
            enabled=False,
        )
        access.save_pool(pool, actor="a")
        record = PoolRecord(pool.pk, "p", "soft", False, 0, 0, (0, 1), True, team.pk)
        wanted = PoolLimits(record, "week", "Asia/Kathmandu", 0, (5, 1_000_000), "50,80,100", True)
        self.assertEqual(access.pool_limits(), [wanted])

    def test_a_unit_without_a_limit_is_none_of_the_pools_units(self) -> None:
        for tokens, usd, units in (
            (1, None, (0,)),
            (None, Decimal(0), (1,)),
            (None, None, ()),
            (0, Decimal(2), (0, 1)),
        ):
            pool = access.save_pool(Pool(name=f"p {units}", capacity_tokens=tokens, capacity_usd=usd), actor="a")
            limits = next(each for each in access.pool_limits() if each.record.id == pool.pk)
            self.assertEqual(limits.record.units, units)
            self.assertEqual(limits.capacities, (tokens, None if usd is None else int(usd * 10**12)))

    def test_a_key_draws_on_the_budgets_above_it_each_once_and_in_order(self) -> None:
        made = key()
        pools = [access.save_pool(Pool(name=f"p{number}"), actor="a") for number in range(3)]
        made.own_pool, made.pools_allowed = pools[0], "lab-*, p1"
        keys.update_key(made, actor="a")
        agent, team = made.agent, made.agent.team
        agent.pool, team.pool = pools[2], pools[0]
        for row, save, wanted in (
            (agent, access.save_agent, (pools[0].pk, pools[2].pk)),
            (team, access.save_team, (pools[0].pk, pools[2].pk)),
        ):
            seq = access.sequences()["access"]
            save(row, actor="a")
            (record,) = access.changes_since(seq)[1]
            self.assertEqual(record.budget_ids, wanted)
            self.assertEqual((record.pool_id, record.pools_allowed), (made.pool_id, ("lab-*", "p1")))
        pools[2].enabled = False  # workers refuse: a budget is not left out for being disabled
        access.save_pool(pools[2], actor="a")
        self.assertEqual(access.changes_since(0)[1][0].budget_ids, (pools[0].pk, pools[2].pk))


class WriteTests(TestCase):
    databases = "__all__"

    def test_saving_without_a_change_moves_and_records_nothing(self) -> None:
        pool = access.save_pool(Pool(name="p"), actor="a")
        before = access.sequences(), OutboxEntry.objects.count()
        access.save_pool(Pool.objects.get(pk=pool.pk), actor="a")
        self.assertEqual((access.sequences(), OutboxEntry.objects.count()), before)

    def test_changes_are_recorded_with_old_and_new(self) -> None:
        pool = access.save_pool(Pool(name="p", capacity_tokens=1), actor="a")
        pool.capacity_tokens = 2
        access.save_pool(pool, actor="bob")
        entry = OutboxEntry.objects.get(action="pool.changed")
        self.assertEqual((entry.actor, entry.data["fields"]), ("bob", {"capacity_tokens": ["1", "2"]}))

    def test_values_out_of_range_are_refused_by_field(self) -> None:
        for fields in ({"capacity_tokens": -1}, {"capacity_tokens": 10**16}, {"name": ""}, {"name": "a\nb"}):
            with self.assertRaises(ValidationError) as caught:
                access.save_pool(Pool(**{"name": "p", **fields}), actor="a")
            self.assertEqual(list(caught.exception.message_dict), list(fields))
        with self.assertRaises(ValidationError):
            access.add_price(Price(pattern="*", output_usd_per_mtok=-1, valid_from=timezone.now()), actor="a")

    def test_names_are_unique_within_a_team_only(self) -> None:
        one = access.save_team(Team(name="one"), actor="a")
        two = access.save_team(Team(name="two"), actor="a")
        access.save_agent(Agent(team=one, name="x"), actor="a")
        access.save_agent(Agent(team=two, name="x"), actor="a")
        with self.assertRaises(ValidationError):
            access.save_agent(Agent(team=one, name="x"), actor="a")

    def test_money_and_zones_out_of_range_are_refused_by_field(self) -> None:
        for fields in (
            {"capacity_usd": Decimal("0.0000001")},
            {"capacity_usd": Decimal(4_000_001)},
            {"capacity_usd": Decimal(-1)},
            {"capacity_usd": Decimal("NaN")},
            {"time_zone": "Mars/Olympus"},
            {"time_zone": "../etc/passwd"},
            {"window": "year"},
            {"mode": "lax"},
            {"alert_percents": "80,0"},
            {"alert_percents": "80;100"},
        ):
            with self.assertRaises(ValidationError) as caught:
                access.save_pool(Pool(**{"name": "p", **fields}), actor="a")
            self.assertEqual(list(caught.exception.message_dict), list(fields), fields)

    def test_a_hard_pool_without_any_limit_only_counts(self) -> None:
        pool = access.save_pool(Pool(name="p", capacity_tokens=None), actor="a")
        self.assertEqual((pool.mode, access.pool_record(pool).units), ("hard", ()))

    def test_another_kind_of_window_or_other_days_begin_a_window_now(self) -> None:
        pool = access.save_pool(Pool(name="p"), actor="a")
        for changes, begins in (
            ({"time_zone": "Asia/Tokyo"}, False),  # a lifetime has no days
            ({"window": "day"}, True),
            ({"capacity_tokens": 3, "mode": "soft", "name": "q", "carry_over": True}, False),
            ({"time_zone": "Europe/Berlin"}, True),
            ({"window": "lifetime"}, True),
        ):
            Pool.objects.update(window_since=7)
            pool = Pool.objects.get()
            for name, value in changes.items():
                setattr(pool, name, value)
            now = int(timezone.now().timestamp())
            access.save_pool(pool, actor="a")
            since = Pool.objects.get().window_since
            self.assertEqual(since if not begins else now <= since <= now + 5, True if begins else 7, changes)

    def test_a_row_that_was_read_before_a_change_does_not_undo_when_its_window_began(self) -> None:
        pool = access.save_pool(Pool(name="p"), actor="a")
        stale = Pool.objects.get()
        pool.window = "day"
        access.save_pool(pool, actor="a")
        stale.window, stale.note = "day", "n"
        access.save_pool(stale, actor="b")
        self.assertEqual(Pool.objects.get().window_since, pool.window_since)
        self.assertGreater(pool.window_since, 0)

    def test_what_keys_depend_on_is_not_deleted(self) -> None:
        made = key()
        for delete, row in (
            (access.delete_pool, made.pool),
            (access.delete_agent, made.agent),
            (access.delete_team, made.agent.team),
        ):
            with self.assertRaises(ValidationError):
                delete(row, actor="a")
        unused = access.save_pool(Pool(name="unused"), actor="a")
        access.delete_pool(unused, actor="bob")
        self.assertFalse(Pool.objects.filter(name="unused").exists())
        self.assertTrue(OutboxEntry.objects.filter(action="pool.deleted", actor="bob").exists())

    def test_a_pool_is_not_deleted_while_a_team_an_agent_or_a_key_has_it_as_budget(self) -> None:
        made = key()
        pool = access.save_pool(Pool(name="budget"), actor="a")
        for row, attribute, save in (
            (made, "own_pool", keys.update_key),
            (made.agent, "pool", access.save_agent),
            (made.agent.team, "pool", access.save_team),
        ):
            setattr(row, attribute, pool)
            save(row, actor="a")
            self.assertEqual(len(access.pool_users(pool)), 1)
            with self.assertRaisesMessage(ValidationError, "drawn on"):
                access.delete_pool(pool, actor="a")
            setattr(row, attribute, None)
            save(row, actor="a")
        access.delete_pool(pool, actor="a")

    def test_a_team_with_projects_is_not_deleted(self) -> None:
        team = access.save_team(Team(name="t"), actor="a")
        pool = access.save_pool(Pool(name="p", team=team), actor="a")
        with self.assertRaisesMessage(ValidationError, "projects"):
            access.delete_team(team, actor="a")
        pool.team = None
        access.save_pool(pool, actor="a")
        access.delete_team(team, actor="a")

    def test_a_price_is_never_changed(self) -> None:
        price = access.add_price(Price(pattern="*", valid_from=timezone.now()), actor="a")
        price.input_usd_per_mtok = 3
        with self.assertRaises(ValidationError):
            access.add_price(price, actor="a")

    def test_the_first_runs_pool_becomes_the_operators_by_its_first_change(self) -> None:
        pool = access.default_pool("init")
        self.assertEqual((pool.managed_by, access.default_pool("init").pk), ("init", pool.pk))
        pool.capacity_tokens = 7
        access.save_pool(pool, actor="bob")
        self.assertEqual(Pool.objects.get().managed_by, "")
