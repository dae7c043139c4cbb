"""`/v1/tokens/*` over a real ledger's writer: shapes, refusals, whose pools, what counts as available."""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
import threading
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connections
from django.test import Client, TransactionTestCase
from django.test.utils import CaptureQueriesContext

from budgets import access, keys
from budgets.grants import RECALL_PAUSE_S
from budgets.models import Pool, PoolWindow, Reservation, Usage
from budgets.records import PRICE_NONE, Unit
from budgets.reservations import OPEN_MAX, ReservationExpiry
from budgets.settle import Writer
from budgets.windows import WindowSpec
from gateway import plane

pytestmark = pytest.mark.database

USD = 10**12


class Plane:
    """A control plane with a real writer and workers that idle as told."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.idle: list[list[int]] = []
        self.recalled: list[tuple[int, int, int]] = []

    def wake(self, *, reimport: bool = False) -> None:
        pass

    def workers(self) -> list[dict[str, Any]]:
        return [{"owner": "w", "status": {"idle": self.idle}}, {"owner": "starting", "status": {}}]

    def recall(self, *purse: int) -> None:
        self.recalled.append(purse)


class TokensCase(TransactionTestCase):
    databases = "__all__"

    def setUp(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="hj-"))
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        self.writer = Writer(directory, period_s=0.02)
        self.writer.start()
        self.addCleanup(self.writer.stop)
        self.plane = Plane(self.writer)
        before, plane.current = plane.current, self.plane
        self.addCleanup(setattr, plane, "current", before)
        self.agent = access.agent_named("team", "agent", actor="test")
        self.pool = self.make_pool("default", 10_000)
        self.key, self.text = keys.create_key(self.agent, self.pool, "app", actor="test")

    def make_pool(
        self, name: str, tokens: int | None, *, pico: int | None = None, start: int = 0, end: int = 0, **more: Any
    ) -> Pool:
        pool = access.save_pool(Pool(name=name, capacity_tokens=tokens, **more), actor="test")
        limits = {Unit.TOKENS: tokens, Unit.PICO_USD: pico}
        specs = [WindowSpec(pool.pk, unit, start, end, limit) for unit, limit in limits.items()]
        self.writer.sync_windows(specs).result(10)
        return pool

    def other_key(self, team: str = "other", scopes: tuple[str, ...] = ("inference",), pool: Pool | None = None) -> str:
        agent = access.agent_named(team, "agent", actor="test")
        return keys.create_key(agent, pool or self.pool, "k", scopes, actor="test")[1]

    def post(self, what: str, body: Any, *, key: str = "", headers: dict[str, str] | None = None) -> Any:
        headers = {"Authorization": f"Bearer {key or self.text}", **(headers or {})}
        return self.client.post(f"/v1/tokens/{what}", body, content_type="application/json", headers=headers)

    def ok(self, what: str, body: Any, **more: Any) -> dict[str, Any]:
        response = self.post(what, body, **more)
        assert response.status_code == 200, response.content
        return dict(response.json())

    def error(self, response: Any, status: int, code: str, param: str | None = None) -> dict[str, Any]:
        assert response.status_code == status, response.content
        told = response.json()["error"]
        assert (told["code"], told["param"]) == (code, param), told
        return dict(told)

    def pools(self, key: str = "") -> list[dict[str, Any]]:
        response = self.client.get("/v1/tokens/pools", headers={"Authorization": f"Bearer {key or self.text}"})
        assert response.status_code == 200, response.content
        return list(response.json()["pools"])


class HooshTest(TokensCase):
    """The exchanges of existing clients, in their order."""

    def test_check_reserve_report_pools(self) -> None:
        pool = {"pool": "default"}
        assert self.ok("check", {**pool, "tokens": 500}) == {"allowed": True, "available": 10_000}
        reserved = self.ok("reserve", {**pool, "tokens": 500})
        assert (reserved["reserved"], reserved["available"]) == (True, 9_500)
        assert self.ok("check", {**pool, "tokens": 9_501}) == {"allowed": False, "available": 9_500}
        (listed,) = self.pools()
        shown = {name: listed[name] for name in ("name", "capacity", "used", "available", "reserved")}
        assert shown == {"name": "default", "capacity": 10_000, "used": 0, "available": 9_500, "reserved": 500}
        report = {**pool, "reserved": 500, "actual": 320}
        assert self.ok("report", report) == {"used": 320, "available": 9_680, "id": reserved["id"]}

    def test_a_reservation_that_does_not_fit_is_told_with_200(self) -> None:
        answer = self.ok("reserve", {"tokens": 10_001})
        assert answer == {"reserved": False, "available": 10_000, "id": None, "expires_at": None, "state": None}

    def test_a_refusal_tells_what_could_have_been_had_in_the_least_of_the_pools(self) -> None:
        team = self.agent.team
        team.pool = self.make_pool("team's", 700)
        access.save_team(team, actor="test")
        self.ok("reserve", {"tokens": 200})
        assert self.ok("reserve", {"tokens": 501})["available"] == 500
        assert self.ok("reserve", {"tokens": 10_001})["available"] == 500

    def test_more_used_than_there_was_is_written_down(self) -> None:
        self.ok("reserve", {"tokens": 100})
        answer = self.ok("report", {"actual": 10_500})
        assert (answer["used"], answer["available"]) == (10_500, 0)

    def test_an_unknown_pool_is_404(self) -> None:
        for what, fields in (("check", {"tokens": 1}), ("reserve", {"tokens": 1}), ("report", {"actual": 1})):
            self.error(self.post(what, {"pool": "typo", **fields}), 404, "unknown_pool", "pool")
        access.save_pool(Pool(name="off", enabled=False, team=self.agent.team), actor="test")
        self.error(self.post("check", {"pool": "off", "tokens": 1}), 404, "unknown_pool", "pool")

    def test_nothing_open_to_report_is_404(self) -> None:
        self.error(self.post("report", {"actual": 1}), 404, "reservation_not_found", "id")
        self.error(self.post("report", {"actual": 1, "id": "0" * 32}), 404, "reservation_not_found", "id")
        self.error(self.post("report", {"actual": 1, "id": "nonsense"}), 404, "reservation_not_found", "id")


class ValidationTest(TokensCase):
    def test_numbers_are_taken_literally(self) -> None:
        bad = (-1, 10**12 + 1, 1.0, 1.5, "1", True, None, [1], {})
        for what, name in (("check", "tokens"), ("reserve", "tokens"), ("report", "actual")):
            for value in (*bad, *((0,) if what == "reserve" else ())):
                with self.subTest(what, value=value):
                    self.error(self.post(what, {name: value}), 400, "invalid_request", name)
            self.error(self.post(what, {}), 400, "invalid_request", name)
        for value in (0, 86_401, "60", 1.0):
            self.error(self.post("reserve", {"tokens": 1, "ttl_s": value}), 400, "invalid_request", "ttl_s")
        self.error(self.post("report", {"actual": 1, "reserved": -1}), 400, "invalid_request", "reserved")
        assert not Reservation.objects.exists()

    def test_a_huge_exponent_or_a_body_that_is_no_object_is_400(self) -> None:
        bad = ('{"tokens":1e3}', '{"tokens":1e999}', "[]", "3", "null", '"x"', "{", "")
        worse = ('{"tokens":1,"pool":"\\ud800"}', '{"tokens":%s}' % ("9" * 5_000), "[" * 100_000, '{"a":' * 50_000)
        for what in ("check", "reserve", "report"):
            for body in (*bad, *worse):
                with self.subTest(what, body=body[:30]):
                    response = self.post(what, body)
                    told = self.error(response, 400, "invalid_request", response.json()["error"]["param"])
                    assert "set_int" not in told["message"]

    def test_a_pools_name_is_a_text(self) -> None:
        for value in (5, "", "x" * 101, None, ["default"], "\0", "a\0b"):
            with self.subTest(value=value):
                self.error(self.post("check", {"pool": value, "tokens": 1}), 400, "invalid_request", "pool")

    def test_the_largest_numbers_are_taken(self) -> None:
        self.ok("check", {"tokens": 10**12})
        assert self.ok("reserve", {"tokens": 10**12, "ttl_s": 86_400})["reserved"] is False
        self.ok("reserve", {"tokens": 1})
        assert self.ok("report", {"actual": 10**12})["used"] == 10**12

    def test_the_order_of_the_fields_and_unknown_ones_do_not_matter(self) -> None:
        assert self.ok("check", '{"tokens": 1, "note": {"pool": "typo"}, "pool": "default"}')["allowed"] is True

    def test_other_methods_are_405(self) -> None:
        headers = {"Authorization": f"Bearer {self.text}"}
        for path, method in (("check", "get"), ("reserve", "get"), ("report", "put"), ("pools", "post")):
            response = getattr(self.client, method)(f"/v1/tokens/{path}", headers=headers)
            self.error(response, 405, "method_not_allowed")

    def test_without_a_key_it_is_401(self) -> None:
        for what in ("check", "reserve", "report"):
            response = self.client.post(f"/v1/tokens/{what}", {"tokens": 1}, content_type="application/json")
            self.error(response, 401, "invalid_api_key")
        assert self.client.get("/v1/tokens/pools").status_code == 401


class OpenTest(TokensCase):
    def test_a_key_has_a_limited_number_of_open_reservations(self) -> None:
        first = self.ok("reserve", {"tokens": 1}, headers={"Idempotency-Key": "first"})
        for _ in range(OPEN_MAX - 1):
            self.ok("reserve", {"tokens": 1})
        response = self.post("reserve", {"tokens": 1})
        self.error(response, 429, "too_many_reservations")
        assert response["Retry-After"] == "1"
        assert self.ok("reserve", {"tokens": 1}, headers={"Idempotency-Key": "first"})["id"] == first["id"]
        assert self.ok("reserve", {"tokens": 1}, key=self.other_key("team"))["reserved"] is True
        self.ok("report", {"actual": 1})
        assert self.ok("reserve", {"tokens": 1})["reserved"] is True

    def test_what_is_reported_is_no_missing_price(self) -> None:
        made = self.ok("reserve", {"tokens": 100})
        self.ok("report", {"id": made["id"], "actual": 60})
        assert Usage.objects.get().price_id == PRICE_NONE
        assert self.client.get("/v1/costs", headers={"x-api-key": self.text}).json()["unpriced_count"] == 0


class OwnershipTest(TokensCase):
    def setUp(self) -> None:
        super().setUp()
        self.foreign = self.make_pool("foreign", 500)

    def test_a_key_may_name_its_own_pools_its_teams_projects_and_what_is_allowed_to_it(self) -> None:
        self.error(self.post("check", {"pool": "foreign", "tokens": 1}), 403, "pool_not_allowed", "pool")
        self.error(self.post("reserve", {"pool": "foreign", "tokens": 1}), 403, "pool_not_allowed", "pool")
        self.error(self.post("report", {"pool": "foreign", "actual": 1}), 403, "pool_not_allowed", "pool")
        self.make_pool("project", 300, team=self.agent.team)
        self.make_pool("lab-1", 400)
        self.key.pools_allowed = "lab-*"
        access.write(self.key, what="key", actor="test")
        assert [pool["name"] for pool in self.pools()] == ["default", "lab-1", "project"]
        for name, available in (("project", 300), ("lab-1", 400)):
            assert self.ok("check", {"pool": name, "tokens": 1})["available"] == available

    def test_the_budgets_of_team_agent_and_key_are_drawn_on_as_well(self) -> None:
        team, agent = self.agent.team, self.agent
        team.pool, agent.pool = self.make_pool("team", 900), self.make_pool("agent", 800)
        self.key.own_pool = self.make_pool("own", 700)
        access.save_team(team, actor="test")
        access.save_agent(agent, actor="test")
        access.write(self.key, what="key", actor="test")
        for pool in (None, "default", "team", "own"):
            asked = {"tokens": 701} | ({"pool": pool} if pool else {})
            assert self.ok("check", asked) == {"allowed": False, "available": 700}
        made = self.ok("reserve", {"tokens": 100, "pool": "team"})
        used = {row["name"]: row["reserved"] for row in self.pools()}
        assert used == {"agent": 100, "default": 100, "own": 100, "team": 100}
        assert self.ok("report", {"actual": 60, "id": made["id"]}) == {"used": 60, "available": 840, "id": made["id"]}
        assert {row["used"] for row in self.pools()} == {60}

    def test_a_disabled_pool_above_refuses(self) -> None:
        team = self.agent.team
        team.pool = self.make_pool("team", 900)
        access.save_team(team, actor="test")
        team.pool.enabled = False
        access.save_pool(team.pool, actor="test")
        for what in ("check", "reserve"):
            self.error(self.post(what, {"tokens": 1}), 403, "pool_disabled", "pool")

    def test_only_the_owning_teams_keys_report(self) -> None:
        made = self.ok("reserve", {"tokens": 100})
        stranger = self.other_key()
        report = {"id": made["id"], "actual": 10}
        self.error(self.post("report", report, key=stranger), 403, "reservation_not_yours", "id")
        self.error(self.post("report", {"actual": 10}, key=stranger), 404, "reservation_not_found", "id")
        colleague = self.other_key(team="team")
        assert self.ok("report", report, key=colleague)["used"] == 10
        assert Usage.objects.get().key_id == self.key.pk, "whoever reserved it pays"

    def test_an_operator_sees_every_pool_and_spends_from_its_own_only(self) -> None:
        operator = self.other_key(scopes=("inference", "operator"))
        assert [pool["name"] for pool in self.pools(operator)] == ["default", "foreign"]
        assert self.ok("check", {"pool": "foreign", "tokens": 1}, key=operator)["available"] == 500
        reserve = {"pool": "foreign", "tokens": 1}
        self.error(self.post("reserve", reserve, key=operator), 403, "pool_not_allowed", "pool")
        unable = self.other_key(scopes=("operator",))
        self.error(self.post("reserve", {"tokens": 1}, key=unable), 403, "forbidden")

    def test_people_who_are_signed_in_see_but_do_not_spend(self) -> None:
        person = get_user_model().objects.create_user("op", password="x", is_staff=True)
        client = Client()
        client.force_login(person)
        assert client.get("/v1/tokens/pools").status_code == 403
        person.user_permissions.add(Permission.objects.get(codename="change_gatewaysettings"))
        names = [pool["name"] for pool in client.get("/v1/tokens/pools").json()["pools"]]
        assert names == ["default", "foreign"]

        def post(what: str, body: dict[str, Any]) -> Any:
            return client.post(f"/v1/tokens/{what}", body, content_type="application/json")

        assert post("check", {"pool": "foreign", "tokens": 1}).json() == {"allowed": True, "available": 500}
        self.error(post("check", {"tokens": 1}), 400, "invalid_request", "pool")
        self.error(post("reserve", {"tokens": 1}), 403, "forbidden")


class ModesTest(TokensCase):
    def test_idle_tokens_of_workers_count_as_available(self) -> None:
        total: list[int] = []
        self.writer.grant("w", self.pool.pk, 0, 0, 0, 4_000, lambda *told: total.append(told[0]), 4_000)
        self.writer.settle_now().result(10)
        assert self.pools()[0]["available"] == 6_000
        self.plane.idle = [[self.pool.pk, 0, 0, 3_000], [self.pool.pk, 1, 0, 5], [999, 0, 0, 5]]
        (shown,) = self.pools()
        assert (shown["available"], shown["reserved"], shown["used"]) == (9_000, 1_000, 0)
        assert self.ok("check", {"tokens": 9_000}) == {"allowed": True, "available": 9_000}
        self.plane.idle = [[self.pool.pk, 0, 0, 999_999]]  # told a moment too late
        assert self.pools()[0]["available"] == 10_000

    def test_idle_tokens_are_called_back_for_a_reservation(self) -> None:
        purse = (self.pool.pk, 0, 0)
        self.writer.grant("w", *purse, 0, 9_000, lambda *told: None, 9_000)
        self.plane.recall = lambda *recalled: self.writer.give_back("w", *recalled, 9_000)
        assert self.ok("reserve", {"tokens": 5_000})["reserved"] is True

    def test_requests_that_wait_share_their_call_backs(self) -> None:
        purse, begin = (self.pool.pk, 0, 0), time.monotonic()
        granted = threading.Event()
        self.writer.grant("w", *purse, 0, 9_000, lambda *told: granted.set(), 9_000)
        assert granted.wait(10)
        threads = [threading.Thread(target=self.reserve_and_close, args=(9_500,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert 1 <= len(self.plane.recalled) <= (time.monotonic() - begin) / RECALL_PAUSE_S + 1

    def reserve_and_close(self, tokens: int) -> None:
        try:
            headers = {"Authorization": f"Bearer {self.text}"}
            Client().post("/v1/tokens/reserve", {"tokens": tokens}, content_type="application/json", headers=headers)
        finally:
            connections.close_all()

    def test_what_each_mode_and_missing_limit_means(self) -> None:
        team = self.agent.team
        soft = self.make_pool("soft", 50, mode="soft", team=team)
        self.make_pool("observed", 50, mode="observe", team=team)
        self.make_pool("unlimited", None, team=team)
        assert self.ok("check", {"pool": "soft", "tokens": 5_000}) == {"allowed": True, "available": 50}
        for name in ("observed", "unlimited"):
            assert self.ok("check", {"pool": name, "tokens": 5_000}) == {"allowed": True, "available": None}
            answer = self.ok("reserve", {"pool": name, "tokens": 5_000})
            assert (answer["reserved"], answer["available"]) == (True, None)
        made = self.ok("reserve", {"pool": "soft", "tokens": 5_000})
        assert (made["reserved"], made["available"]) == (True, 49)
        self.ok("report", {"id": made["id"], "actual": 5_000})
        assert self.ok("check", {"pool": "soft", "tokens": 1}) == {"allowed": False, "available": 0}
        assert self.ok("check", {"pool": "soft", "tokens": 0})["allowed"] is True
        assert self.ok("reserve", {"pool": "soft", "tokens": 1})["reserved"] is False
        assert PoolWindow.objects.get(pool_id=soft.pk, unit=0).overrun == 4_950

    def test_money_and_windows_are_shown(self) -> None:
        start = int(time.time()) // 86_400 * 86_400
        self.make_pool(
            *("daily", None),
            pico=5 * USD,
            start=start,
            end=start + 86_400,
            window="day",
            team=self.agent.team,
            mode="soft",
        )
        PoolWindow.objects.filter(window_start=start, unit=1).update(committed=USD // 4, leased=USD)
        shown = next(pool for pool in self.pools() if pool["name"] == "daily")
        assert shown == {
            "name": "daily",
            "capacity": None,
            "used": 0,
            "available": None,
            "reserved": 0,
            "capacity_usd": "5",
            "used_usd": "0.25",
            "available_usd": "3.75",
            "window": "day",
            "window_start": f"{dt.datetime.fromtimestamp(start, dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
            "window_end": f"{dt.datetime.fromtimestamp(start + 86_400, dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
            "mode": "soft",
        }

    def test_a_pool_made_a_moment_ago_is_shown_before_the_ledger_knows_it(self) -> None:
        row = Pool(name="new", capacity_tokens=5, capacity_usd=Decimal("2.5"), team=self.agent.team)
        access.save_pool(row, actor="test")
        shown = next(pool for pool in self.pools() if pool["name"] == "new")
        assert (shown["available"], shown["capacity_usd"], shown["available_usd"]) == (5, "2.5", "2.5")
        self.error(self.post("reserve", {"pool": "new", "tokens": 1}), 503, "ledger_unavailable")

    def test_the_list_asks_once_for_all_balances(self) -> None:
        self.pools()
        with CaptureQueriesContext(connections[settings.HOOSH_LEDGER_DB]) as few:
            self.pools()
        for number in range(12):
            self.make_pool(f"p{number}", 5, team=self.agent.team)
        with CaptureQueriesContext(connections[settings.HOOSH_LEDGER_DB]) as many:
            assert len(self.pools()) == 13
        assert len(many) == len(few)


class RepeatTest(TokensCase):
    def test_the_same_idempotency_key_gives_the_same_reservation(self) -> None:
        headers = {"Idempotency-Key": "job 7"}
        first = self.ok("reserve", {"tokens": 100, "ttl_s": 60}, headers=headers)
        again = self.ok("reserve", {"tokens": 100, "ttl_s": 60}, headers=headers)
        assert again == first
        response = self.post("reserve", {"tokens": 101, "ttl_s": 60}, headers=headers)
        self.error(response, 422, "idempotency_mismatch", "idempotency-key")
        expires_at = dt.datetime.fromisoformat(first["expires_at"])
        assert abs(expires_at - dt.datetime.now(dt.UTC) - dt.timedelta(seconds=60)) < dt.timedelta(seconds=20)
        assert self.pools()[0]["reserved"] == 100

    def test_a_repeated_call_tells_what_became_of_its_reservation(self) -> None:
        body = {"tokens": 100, "ttl_s": 1}
        first = self.ok("reserve", body, headers={"Idempotency-Key": "short"})
        assert (first["reserved"], first["state"]) == (True, "open")
        time.sleep(1.1)
        self.writer.submit(ReservationExpiry().run).result(10)
        again = self.ok("reserve", body, headers={"Idempotency-Key": "short"})
        assert (again["id"], again["reserved"], again["state"]) == (first["id"], False, "expired")
        self.ok("report", {"id": first["id"], "actual": 30})
        again = self.ok("reserve", body, headers={"Idempotency-Key": "short"})
        assert (again["id"], again["reserved"], again["state"]) == (first["id"], False, "reported")

    def test_a_key_that_is_none_is_400(self) -> None:
        for value in ("", "x" * 256, "é"):
            response = self.post("reserve", {"tokens": 1}, headers={"Idempotency-Key": value})
            self.error(response, 400, "invalid_idempotency_key", "idempotency-key")

    def test_a_repeated_report_gives_the_same_answer_and_another_number_is_409(self) -> None:
        made = self.ok("reserve", {"tokens": 100})
        report = {"id": made["id"], "actual": 40}
        assert self.ok("report", report) == self.ok("report", report)
        self.error(self.post("report", {**report, "actual": 41}), 409, "reservation_reported", "id")

    def test_without_a_ledger_it_is_503(self) -> None:
        self.writer.stop()
        response = self.post("reserve", {"tokens": 1})
        self.error(response, 503, "ledger_unavailable")
        assert response["Retry-After"] == "1"
        plane.current = None
        self.error(self.post("reserve", {"tokens": 1}), 503, "no_control_plane")
        assert self.ok("check", {"tokens": 1})["allowed"] is True
