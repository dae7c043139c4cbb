"""Our own configuration file: written from the rows, read back to the same configuration."""

from __future__ import annotations

import datetime as dt
import os
import tempfile
import tomllib
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import TestCase

from budgets import access, keys
from budgets.models import Agent, ApiKey, Pool, Price, Team
from budgets.validation import split
from hoosh_site import toml
from hoosh_site.exporting import export_text
from hoosh_site.importing import ImportFileError, Report, import_file
from providers import config, publish, services
from providers.models import GatewaySettings, ModelCard, Provider, Route, RoutingPolicy

SECRET = "sk-never-to-be-exported"


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": True, "c": -2.5, "d": 1e300, "e": 0.1},
        {"text": 'quote " back \\ tab \t nul \x00 del \x7f ü 模 😀'},
        {"text": "two\nlines\n", "other": 'with """ inside\n'},
        {"text": "\r\n", "empty": "", "newline": "\n"},
        {"a key with blanks": 1, "ключ": 2, "": 3},
        {"list": ["a", "b\n"], "none": []},
        {"table": {"x": 1, "inner": {"y": 2}}, "rows": [{"a": 1, "sub": [{"b": 2}, {"b": 3}]}, {"a": 2}]},
        {"at": dt.datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=dt.UTC)},
    ],
)
def test_what_is_written_is_read_back_the_same(value: dict[str, Any]) -> None:
    assert tomllib.loads(toml.dumps(value)) == value


def test_what_toml_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError):
        toml.dumps({"a": None})
    with pytest.raises(TypeError):
        toml.dumps({"a": dt.datetime(2026, 1, 1)})  # noqa: DTZ001
    with pytest.raises(ValueError, match="surrogate"):
        toml.dumps({"a": "\ud800"})


def without_ids(document: config.ConfigDocument) -> config.ConfigDocument:
    names = {provider.id: number for number, provider in enumerate(sorted(document.providers, key=lambda p: p.name))}
    replace = msgspec.structs.replace
    return replace(
        document,
        providers=tuple(
            replace(p, id=0, credentials=tuple(replace(c, id=0, revision=1) for c in p.credentials))
            for p in sorted(document.providers, key=lambda p: p.name)
        ),
        routes=tuple(
            replace(r, id=0, provider_id=names[r.provider_id]) for r in sorted(document.routes, key=lambda r: r.name)
        ),
        policies=tuple(replace(p, id=0) for p in document.policies),
    )


@pytest.mark.database
class RoundTripTests(TestCase):
    databases = "__all__"

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "ours.toml"

    def fill(self) -> None:
        """Rows with every field away from its default."""
        one = Provider(name="one", kind="vllm", base_url="http://127.0.0.1:8000/x", note='a "note"\nin two lines')
        one.requests_per_minute, one.tokens_per_minute, one.concurrent_requests = 11, 12, 13
        one = services.save_provider(one, actor="a")
        services.set_credential(one, "main", SECRET, actor="a")
        spare = services.set_credential(one, "spare", SECRET + "2", actor="a")
        spare.enabled = False
        services.save_credential(spare, actor="a")
        two = services.save_provider(Provider(name="demo", kind="demo", enabled=False), actor="a")
        services.save_route(
            Route(
                name="r 1",
                pattern="a*ü",
                provider=one,
                upstream_model="up",
                priority=-3,
                weight=7,
                tags="x,y",
                capabilities="chat,tools",
                connect_timeout_s=0.5,
                first_byte_timeout_s=2,
                gap_timeout_s=3.25,
                total_timeout_s=4,
                output_cap=99,
                **{"on_disconnect": "cap", "disconnect_cap": 77},
                duplicates_allowed=True,
                **{"requests_per_minute": 1, "tokens_per_minute": 10**9, "concurrent_requests": 2},
                cache_s=90,
                enabled=False,
            ),
            actor="a",
        )
        services.save_route(Route(name="r2", pattern="*", provider=two), actor="a")
        policy = RoutingPolicy(name="p", pattern="x*", strategy="round_robin", fallbacks="m1,m2", position=4)
        services.save_policy(policy, actor="a")
        services.save_card(ModelCard(pattern="m*", context_tokens=5, min_bytes_per_token=2.5, note="n"), actor="a")
        row = services.gateway_settings()
        row.strategy, row.max_attempts, row.cors_origins, row.hold_wait_s = "round_robin", 9, "", 0.25
        row.unknown_price, row.cache_mb = "observe", 33
        services.save_settings(row, actor="a")
        self.fill_budgets()

    def fill_budgets(self) -> None:
        """Pools, teams, agents and prices with every field away from its default."""
        access.save_pool(Pool(name="p", capacity_tokens=12, enabled=False, note="n"), actor="a")
        access.save_pool(
            Pool(
                name="project ü",
                capacity_tokens=None,
                capacity_usd=Decimal("12.500001"),
                window="month",
                time_zone="Europe/Berlin",
                mode="soft",
                carry_over=True,
                alert_percents="50, 90,100",
                shorten=True,
                team=access.save_team(Team(name="blue"), actor="a"),
            ),
            actor="a",
        )
        access.save_pool(Pool(name="counted", capacity_tokens=None, mode="observe", alert_percents=""), actor="a")
        access.save_pool(Pool(name="two", capacity_tokens=0, capacity_usd=Decimal(0)), actor="a")
        team = access.save_team(
            Team(name="red ü", enabled=False, note="n\nm", pool=Pool.objects.get(name="p"), tokens_per_minute=7),
            actor="a",
        )
        agent = Agent(team=team, name="one", pool=Pool.objects.get(name="two"))
        agent.requests_per_minute, agent.tokens_per_minute, agent.concurrent_requests = 3, 4, 5
        access.save_agent(agent, actor="a")
        access.save_agent(Agent(team=Team.objects.get(name="blue"), name="one", enabled=False, note="x"), actor="a")
        price = {"provider": "one", "pattern": "m", "valid_from": dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)}
        access.add_price(
            Price(**price, input_usd_per_mtok=Decimal("0.15"), reasoning_usd_per_mtok=Decimal(0)), actor="a"
        )
        access.add_price(
            Price(
                **price,
                route="r 1",
                from_tokens=200_000,
                input_audio_usd_per_mtok=Decimal("1.5"),
                output_audio_usd_per_mtok=Decimal(2),
                input_image_usd_per_mtok=Decimal("0.000001"),
            ),
            actor="a",
        )

    def wipe(self) -> None:
        for model in (Route, Provider, RoutingPolicy, ModelCard, GatewaySettings, Agent):
            model.objects.all().delete()
        Team.objects.update(pool=None)
        for model in (Pool, Price, Team):
            model.objects.all().delete()

    def document(self) -> config.ConfigDocument:
        publish.publish("t")
        found = publish.latest()
        assert found is not None
        return config.unpack(found[1])

    def load(self, text: str, **options: bool) -> Report:
        self.path.write_text(text, encoding="utf-8")
        variables = {"HOOSH_ONE_MAIN_SECRET": SECRET, "HOOSH_ONE_SPARE_SECRET": SECRET + "2"}
        with mock.patch.dict(os.environ, variables):
            return import_file(self.path, "t", **options)

    def others(self) -> list[object]:
        skipped = ("id", "seq", "created_at", "managed_by", "team_id", "alert_percents")
        rows = [
            {name: value for name, value in row.items() if name not in skipped}
            for model in (ModelCard, Price)
            for row in model.objects.order_by("id").values()
        ]
        pools = [
            {name: value for name, value in vars(pool).items() if name not in (*skipped, "_state")}
            | {"team": pool.team and pool.team.name, "alerts": split(pool.alert_percents)}
            for pool in Pool.objects.order_by("name")
        ]
        members = [
            (
                *(str(row), row.enabled, row.note, row.pool and row.pool.name),
                *(row.requests_per_minute, row.tokens_per_minute, row.concurrent_requests),
            )
            for model in (Team, Agent)
            for row in model.objects.order_by("name", "note")
        ]
        return [*rows, *pools, *members]

    def test_export_wipe_import_gives_the_same_configuration(self) -> None:
        self.fill()
        before, others, text = self.document(), self.others(), export_text()
        self.wipe()
        self.load(text)
        self.assertEqual(config.digest(without_ids(self.document())), config.digest(without_ids(before)))
        self.assertEqual(self.others(), others)
        self.assertEqual(export_text(), text)
        self.assertEqual(self.load(text).changes, [])

    def test_no_secret_and_no_key_is_exported(self) -> None:
        self.fill()
        agent = access.agent_named("t", "a", actor="a")
        _, key = keys.create_key(agent, access.default_pool("a"), "visible-name", actor="a")
        text = export_text()
        self.assertNotIn(SECRET, text)
        self.assertIn('secret = "$HOOSH_ONE_MAIN_SECRET"', text)
        for part in (key[:11], ApiKey.objects.get().digest, "visible-name"):
            self.assertNotIn(part, text)

    def test_rows_of_operators_are_left_unless_adopted(self) -> None:
        self.fill()
        text = export_text().replace("priority = -3", "priority = 5")
        report = self.load(text)
        self.assertEqual(Route.objects.get(name="r 1").priority, -3)
        self.assertTrue(any("made by an operator" in line for line in report.warnings))
        self.load(text, adopt=True)
        row = Route.objects.get(name="r 1")
        self.assertEqual((row.priority, row.managed_by), (5, "import"))

    def test_what_an_own_file_no_longer_names_is_removed(self) -> None:
        self.fill()
        text = export_text()
        self.wipe()
        self.load(text)
        report = self.load("hoosh_configuration = 1\n")
        for model in (Route, Provider, RoutingPolicy, ModelCard):
            self.assertEqual(model.objects.count(), 0, model)
        self.assertIn("route “r2” removed", report.changes)

    def test_mistakes_in_an_own_file_are_refused_by_place(self) -> None:
        provider = '[[provider]]\nname = "a"\nkind = "demo"\n'
        route = '[[route]]\nname = "r"\npattern = "*"\nprovider = "a"\n'
        for text, place in (
            ("hoosh_configuration = 2\n", "another version"),
            ("hoosh_configuration = 1\nnope = 1\n", "nope is not known"),
            (f"hoosh_configuration = 1\n{provider}colour = 1\n", "provider[1].colour"),
            ("hoosh_configuration = 1\n[[provider]]\nname = 'a'\n", "provider[1] needs kind"),
            (f"hoosh_configuration = 1\n{provider}[[route]]\nname = 'r'\npattern = '*'\n", "route[1].provider"),
            (f"hoosh_configuration = 1\n{provider}{route}priority = true\n", "route[1].priority"),
            (f"hoosh_configuration = 1\n{provider}{route}tags = 'x'\n", "route[1].tags"),
            (f"hoosh_configuration = 1\n{provider}{route}tags = ['No']\n", "tags"),
            (f"hoosh_configuration = 1\n{provider}[[provider.credential]]\nname = 'c'\n", "credential[1].secret"),
            ("hoosh_configuration = 1\n[settings]\nmax_attempts = 99\n", "max_attempts"),
            ("hoosh_configuration = 1\n[settings]\nmax_attempts = '3'\n", "settings.max_attempts"),
            ("hoosh_configuration = 1\n[settings]\nunknown_price = 'free'\n", "unknown_price"),
            ("hoosh_configuration = 1\n[[pool]]\nname = 'p'\n", "unlimited = true"),
            *(
                (f"hoosh_configuration = 1\n[[pool]]\nname = 'p'\ncapacity_tokens = 1\n{line}\n", place)
                for line, place in (
                    ("unlimited = true", "pool[1] needs"),
                    ("capacity_usd = 1.5", "pool[1].capacity_usd must be an amount in quotes"),
                    ("capacity_usd = '0.0000001'", "6 decimal places"),
                    ("capacity_usd = '-1'", "greater than or equal"),
                    ("window = 7", "pool[1].window"),
                    ("window = 'year'", "'year' is not a valid choice"),
                    ("time_zone = 'Mars/Olympus'", "no time zone"),
                    ("mode = 'lax'", "'lax' is not a valid choice"),
                    ("carry_over = 'yes'", "pool[1].carry_over"),
                    ("alert_percents = '80'", "pool[1].alert_percents"),
                    ("alert_percents = [true]", "pool[1].alert_percents"),
                    ("alert_percents = [0]", "whole numbers from 1"),
                    ("team = 3", "pool[1] needs a name"),
                    ('team = "a\\nb"', "no control characters"),
                    ("colour = 1", "pool[1].colour"),
                )
            ),
            ("hoosh_configuration = 1\n[[pool]]\nname = 'p'\ncapacity_tokens = '1'\n", "pool[1].capacity_tokens"),
            ("hoosh_configuration = 1\n[[price]]\npattern = 'p'\n", "price[1].valid_from"),
            (
                "hoosh_configuration = 1\n[[price]]\npattern = 'p'\nvalid_from = 2026-01-01T00:00:00Z\n"
                "from_tokens = -1\n",
                "price of * p",
            ),
            *(
                (f"hoosh_configuration = 1\n{text}\n", place)
                for text, place in (
                    ("[[team]]\nname = 't'\nbudget = 'none'", "team[1].budget: there is no pool named “none”"),
                    ("[[agent]]\nname = 'a'\nteam = 't'\nbudget = 'none'", "agent[1].budget: there is no pool"),
                    ("[[team]]\nenabled = true", "team[1].name"),
                    ("[[team]]\nname = 't'\nteam = 'x'", "team[1].team is not known"),
                    ("[[team]]\nname = 't'\nenabled = 1", "team[1].enabled"),
                    ("[[team]]\nname = 't '", "team[1]: A name has"),
                    ("[[agent]]\nname = 'a'", "agent[1].team"),
                    ("[[agent]]\nname = 'a'\nteam = 't '", "agent[1].team: A name has"),
                    ("[[agent]]\nname = 'a'\nteam = 't'\nnote = 1", "agent[1].note"),
                    ("[team]\nname = 't'", "team must be written as [[team]]"),
                )
            ),
            (
                "hoosh_configuration = 1\n[[price]]\npattern = 'p'\nvalid_from = 2026-01-01T00:00:00Z\n"
                "output_usd_per_mtok = '1000000.01'\n",
                "price of * p",
            ),
            (f"hoosh_configuration = 1\n{provider}{provider}", "name"),
        ):
            with self.assertRaises(ImportFileError) as caught:
                self.load(text)
            self.assertIn(place, str(caught.exception))
        self.assertEqual((Provider.objects.count(), Pool.objects.count(), Team.objects.count()), (0, 0, 0))

    def test_what_is_no_rate_limit_is_refused_by_place(self) -> None:
        for text, place in (
            ("[[team]]\nname = 't'\ntokens_per_minute = '5'\n", "team[1].tokens_per_minute"),
            ("[[agent]]\nname = 'a'\nteam = 't'\nconcurrent_requests = 0\n", "agent[1]: Ensure this value is greater"),
            ("[[provider]]\nname = 'a'\nkind = 'demo'\nrequests_per_minute = 1000000001\n", "requests_per_minute"),
            ("[[provider]]\nname = 'a'\nkind = 'demo'\ntokens_per_minute = 1.5\n", "provider[1].tokens_per_minute"),
        ):
            with self.assertRaises(ImportFileError) as caught:
                self.load(f"hoosh_configuration = 1\n{text}")
            self.assertIn(place, str(caught.exception))

    def test_a_pools_limits_are_the_files_and_its_window_goes_on_unless_the_file_changes_it(self) -> None:
        head = "hoosh_configuration = 1\n[[pool]]\nname = 'p'\n"
        report = self.load(head + "capacity_tokens = 5\ncapacity_usd = '2.50'\nwindow = 'day'\nteam = 'blue'\n")
        self.assertIn("team “blue” created", report.changes)
        self.assertIn("pool “p” created: 5 tokens and 2.5 USD every day", report.changes)
        self.assertEqual(Pool.objects.get().window_since, 0)
        report = self.load(head + "capacity_usd = '3'\nwindow = 'day'\n")
        self.assertEqual(report.changes, ["pool “p” changed: 3 USD every day"])
        pool = Pool.objects.get()
        self.assertEqual((pool.capacity_tokens, pool.team, pool.window_since), (None, None, 0))
        self.load(head + "unlimited = true\nwindow = 'week'\n")
        self.assertGreater(Pool.objects.get().window_since, 0)

    def test_a_pool_the_file_no_longer_names_goes_unless_something_draws_on_it(self) -> None:
        self.load("hoosh_configuration = 1\n[[pool]]\nname = 'p'\nunlimited = true\n")
        agent = access.agent_named("t", "a", actor="a")
        agent.pool = Pool.objects.get()
        access.save_agent(agent, actor="a")
        report = self.load("hoosh_configuration = 1\n")
        self.assertIn("pool “p” disabled, since it is drawn on", report.changes)
        self.assertFalse(Pool.objects.get().enabled)
        agent.pool = None
        access.save_agent(agent, actor="a")
        self.assertIn("pool “p” removed", self.load("hoosh_configuration = 1\n# again\n").changes)

    def test_teams_and_agents_follow_the_file_and_stay_when_it_names_them_no_longer(self) -> None:
        head = "hoosh_configuration = 1\n[[pool]]\nname = 'p'\nunlimited = true\n"
        agent = "[[agent]]\nname = 'a'\nteam = 't'\nbudget = 'p'\n"
        report = self.load(f"{head}{agent}[[team]]\nname = 't'\nbudget = 'p'\n")
        self.assertEqual(report.changes[1:], ["team “t” created", "agent “a” of the team “t” created"])
        team, row = Team.objects.get(), Agent.objects.get()
        self.assertEqual((team.pool, row.pool, row.team), (Pool.objects.get(), Pool.objects.get(), team))
        report = self.load(f"{head}[[team]]\nname = 't'\nenabled = false\n")
        self.assertEqual(report.changes, ["team “t” changed"])
        team.refresh_from_db()
        self.assertEqual((team.pool, team.enabled), (None, False))
        self.assertEqual(Agent.objects.get().pool, Pool.objects.get())
        report = self.load("hoosh_configuration = 1\n[[agent]]\nname = 'a'\nteam = 't'\n")
        self.assertEqual(report.changes, ["agent “a” of the team “t” changed", "pool “p” removed"])
        self.assertEqual((Team.objects.count(), Agent.objects.count(), Pool.objects.count()), (1, 1, 0))

    def test_an_operators_team_is_left_unless_adopted(self) -> None:
        access.save_team(Team(name="t"), actor="a")
        same, other = ("hoosh_configuration = 1\n[[team]]\nname = 't'\n" + more for more in ("", "enabled = false\n"))
        self.assertFalse([line for line in self.load(same).warnings if "operator" in line])
        self.assertIn("The team “t” was made by an operator; it is left as it is.", self.load(other).warnings)
        self.assertTrue(Team.objects.get().enabled)
        self.assertEqual(self.load(other, adopt=True).changes, ["team “t” changed"])
        self.assertEqual((Team.objects.get().enabled, Team.objects.get().managed_by), (False, "import"))

    def test_the_commands_work_together(self) -> None:
        self.fill()
        out = StringIO()
        call_command("export_config", stdout=out)
        call_command("export_config", str(self.path))
        self.assertEqual(self.path.read_text(), out.getvalue())
        report = StringIO()
        call_command("import_config", str(self.path), "--check", "--json", stdout=report)
        self.assertIn('"changes": []', report.getvalue())
        with self.assertRaises(CommandError):
            call_command("import_config", str(self.path.parent / "missing"))
        with self.assertRaises(CommandError):
            call_command("export_config", str(self.path.parent / "no" / "such"))
