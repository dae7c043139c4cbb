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
from budgets.models import Agent, ApiKey, Pool, Price, Team

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
        self.assertEqual([pool.name for pool in pools], ["default"])
        self.assertEqual(access.changes_since(seq), (seq, [], []))
        keys.revoke_key(two, actor="a")
        later, found, pools = access.changes_since(seq)
        self.assertGreater(later, seq)
        self.assertEqual([(record.id, record.enabled) for record in found], [(two.pk, False)])
        self.assertEqual(pools, [])

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

    def test_capacities_are_those_of_all_pools(self) -> None:
        first = access.default_pool("a")
        second = access.save_pool(Pool(name="p", capacity_tokens=5, enabled=False), actor="a")
        self.assertEqual(access.pool_capacities(), [(first.pk, 10_000_000), (second.pk, 5)])


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
