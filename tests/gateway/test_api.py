"""The control API: who may ask what, and in which shape it answers."""

from __future__ import annotations

import datetime as dt
import logging
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.exceptions import ValidationError
from django.db import OperationalError, ProgrammingError
from django.db.utils import ConnectionHandler
from django.test import Client, SimpleTestCase, TestCase, override_settings
from django.utils import timezone

from budgets import access, keys
from budgets.models import DecisionShape, Usage
from gateway import plane
from gateway.api import errors as api_errors
from gateway.api.views import is_loopback
from providers import services
from providers.models import GatewaySettings, Provider, ProviderProbe, Route

pytestmark = pytest.mark.database

RID = "0198c0ffee00" + "0" * 20


class FakeLink:
    """Stands where the running control plane stands; remembers what it was asked."""

    def __init__(self, *versions: int, error: str = "") -> None:
        self.versions, self.error, self.woken = versions, error, 0

    writer = None

    def wake(self, *, reimport: bool = False) -> None:
        self.woken += 1

    def workers(self) -> list[dict[str, Any]]:
        return [
            {
                "index": index,
                "owner": f"w{index}",
                "pid": 1,
                "version": "0",
                "status": {"config_version": version, "build_error": self.error},
                "status_age_s": 0.1,
            }
            for index, version in enumerate(self.versions)
        ]


@contextmanager
def control(link: FakeLink | None):
    before, plane.current = plane.current, link
    try:
        yield link
    finally:
        plane.current = before


class AwayTest(SimpleTestCase):
    """Real connections that cannot be made, and what an exception of a view becomes."""

    databases = "__all__"

    def test_a_database_that_is_away_is_a_503(self) -> None:
        server = {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": "1", "NAME": "x", "USER": "x"}
        file = {"ENGINE": "django.db.backends.sqlite3", "NAME": "/nowhere/at/all.sqlite3"}
        for away in (server, file):
            with self.subTest(away["ENGINE"]):
                with pytest.raises(OperationalError) as caught:
                    ConnectionHandler({"default": away})["default"].ensure_connection()
                response = api_errors.exception_handler(caught.value, {"view": None})
                assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
                assert response.data["error"]["code"] == "database_unavailable"

    def test_a_statement_that_is_wrong_is_a_500(self) -> None:
        response = api_errors.exception_handler(ProgrammingError("no such column"), {"view": None})
        assert (response.status_code, response.data["error"]["code"]) == (500, "internal_error")


class ApiCase(TestCase):
    databases = "__all__"

    @classmethod
    def setUpTestData(cls):
        cls.agent = access.agent_named("team", "agent", actor="test")
        cls.pool = access.default_pool("test")
        cls.key, cls.text = keys.create_key(cls.agent, cls.pool, "app", actor="test")
        cls.other, cls.other_text = keys.create_key(cls.agent, cls.pool, "other", actor="test")
        cls.operator, cls.operator_text = keys.create_key(
            cls.agent, cls.pool, "ops", ("inference", "operator"), actor="test"
        )

    def ask(self, path: str, key: str = "", *, method: str = "get", client: Client | None = None, **headers: str):
        if key:
            headers["Authorization"] = f"Bearer {key}"
        more = {"content_type": "application/json"} if method in ("post", "patch") else {}
        return getattr(client or self.client, method)(path, headers=headers, **more)

    def error(self, response, status: int) -> dict[str, Any]:
        assert response.status_code == status, response.content
        assert response["Content-Type"] == "application/json"
        told = response.json()["error"]
        assert set(told) == {"message", "type", "param", "code"}
        return told


class AuthenticationTest(ApiCase):
    path = "/v1/health/providers"

    def test_each_of_the_four_headers_carries_a_key(self):
        for headers in (
            {"Authorization": f"Bearer {self.text}"},
            {"Authorization": f"bearer  {self.text}"},
            {"x-api-key": self.text},
            {"api-key": self.text},
            {"x-goog-api-key": self.text},
            {"x-api-key": self.text, "Authorization": f"Bearer {self.text}"},
        ):
            assert self.ask(self.path, **headers).status_code == 200, headers

    def test_two_different_keys_are_a_400(self):
        response = self.ask(self.path, self.text, **{"x-api-key": self.other_text})
        assert "two different" in self.error(response, 400)["message"]

    def test_no_key_is_a_401_that_says_how_to_send_one(self):
        response = self.ask(self.path)
        assert self.error(response, 401)["code"] == "invalid_api_key"
        assert response["WWW-Authenticate"].startswith("Bearer")

    def test_what_is_not_a_live_key_is_refused(self):
        expired, expired_text = keys.create_key(
            self.agent, self.pool, "old", actor="test", expires_at=timezone.now() + dt.timedelta(hours=1)
        )
        type(expired).objects.filter(pk=expired.pk).update(expires_at=timezone.now() - dt.timedelta(seconds=1))
        revoked, revoked_text = keys.create_key(self.agent, self.pool, "gone", actor="test")
        keys.revoke_key(revoked, actor="test")
        for text in (
            "hk-wrong",
            self.text[:-1],
            self.text + "x",
            expired_text,
            revoked_text,
            "x" * 4000,
            "é",
            "' OR 1=1",
        ):
            self.error(self.ask(self.path, **{"x-api-key": text}), 401)

    def test_another_scheme_or_an_empty_header_is_refused(self):
        for value in ("Basic dXNlcjpwYXNz", "Bearer", "Bearer ", self.text):
            self.error(self.ask(self.path, Authorization=value), 401)

    def test_a_disabled_agent_or_team_stops_its_keys(self):
        self.agent.enabled = False
        access.save_agent(self.agent, actor="test")
        self.error(self.ask(self.path, self.text), 401)
        self.agent.enabled = True
        access.save_agent(self.agent, actor="test")
        self.agent.team.enabled = False
        access.save_team(self.agent.team, actor="test")
        self.error(self.ask(self.path, self.text), 401)

    def test_the_key_never_reaches_the_answer_or_the_log(self):
        with self.assertNoLogs("gateway", logging.INFO):
            response = self.ask(self.path, "hk-" + "Z" * 43)
        assert b"ZZZZ" not in response.content

    def test_a_signed_in_member_of_staff_may_look_and_others_may_not(self):
        users = get_user_model().objects
        self.client.force_login(users.create_user("visitor"))
        self.error(self.ask(self.path), 401)
        self.client.force_login(users.create_user("staff", is_staff=True))
        assert self.ask(self.path).status_code == 200

    def test_a_session_changes_something_only_with_its_csrf_token(self):
        admin = get_user_model().objects.create_superuser("root")
        careful = Client(enforce_csrf_checks=True)
        careful.force_login(admin)
        with control(FakeLink(10**9)) as link:
            self.error(self.ask("/v1/admin/reload", method="post", client=careful), 403)
            assert link.woken == 0
            careful.cookies[settings.CSRF_COOKIE_NAME] = "a" * 32
            response = self.ask("/v1/admin/reload", method="post", client=careful, **{"X-CSRFToken": "a" * 32})
            assert response.status_code == 200, response.content

    def test_a_staff_member_is_an_operator_only_with_the_permission(self):
        user = get_user_model().objects.create_user("staff", is_staff=True)
        self.client.force_login(user)
        with control(FakeLink(10**9)):
            self.error(self.ask("/v1/admin/reload", method="post"), 403)
            user.user_permissions.add(Permission.objects.get(codename="change_gatewaysettings"))
            assert self.ask("/v1/admin/reload", method="post").status_code == 200


class ProvidersHealthTest(ApiCase):
    @classmethod
    def setUpTestData(cls):
        super().setUpTestData()
        for name in ("up", "down", "new", "off"):
            row = Provider(name=name, kind="custom", base_url="http://127.0.0.1:9999", enabled=name != "off")
            services.save_provider(row, actor="test")
        now = timezone.now()
        probe = ProviderProbe.objects.create
        probe(provider=Provider.objects.get(name="up"), ok=True, checked_at=now, models=["m1"], latency_ms=3.5)
        down = Provider.objects.get(name="down")
        probe(provider=down, ok=False, checked_at=now, consecutive_failures=4, detail="No connection.")

    def states(self, key: str) -> dict[str, dict[str, Any]]:
        reply = self.ask("/v1/health/providers", key)
        assert reply.status_code == 200
        assert reply.json()["check_interval_secs"] == 30.0
        return {entry["provider"]: entry for entry in reply.json()["providers"]}

    def test_any_key_sees_names_and_states_but_no_addresses(self):
        states = self.states(self.text)
        assert {name: entry["status"] for name, entry in states.items()} == {
            "up": "healthy",
            "down": "unhealthy",
            "new": "unknown",
            "off": "disabled",
        }
        assert (states["up"]["healthy"], states["new"]["healthy"]) == (True, None)
        assert states["down"]["consecutive_failures"] == 4
        assert states["up"]["last_check_ms"] > 1_600_000_000_000
        assert "base_url" not in states["up"]
        assert "workers" not in self.ask("/v1/health/providers", self.text).json()

    def test_an_operator_also_sees_addresses_details_models_and_workers(self):
        states = self.states(self.operator_text)
        assert states["down"]["base_url"] == "http://127.0.0.1:9999"
        assert states["down"]["detail"] == "No connection."
        assert states["up"]["models"] == ["m1"]
        with control(FakeLink(3)):
            workers = self.ask("/v1/health/providers", self.operator_text).json()["workers"]
        assert workers[0]["status"]["config_version"] == 3


class HeartbeatTest(ApiCase):
    path = "/v1/health/heartbeat"

    def look(self, name: str, ago_s: float | None, *, enabled: bool = True) -> None:
        row = Provider(name=name, kind="custom", base_url="http://127.0.0.1:9999", enabled=enabled)
        services.save_provider(row, actor="test")
        if ago_s is not None:
            seen = timezone.now() - dt.timedelta(seconds=ago_s)
            ProviderProbe.objects.create(provider=row, ok=True, checked_at=timezone.now(), answered_at=seen)

    def test_each_provider_is_online_suspect_or_offline_by_its_last_beat(self):
        for name, ago_s in (("fresh", 1), ("late", 60), ("gone", 200), ("new", None)):
            self.look(name, ago_s)
        self.look("off", 1, enabled=False)
        never = Provider(name="never", kind="custom", base_url="http://127.0.0.1:9999")
        services.save_provider(never, actor="test")
        ProviderProbe.objects.create(provider=never, ok=False, checked_at=timezone.now(), consecutive_failures=1)
        told = self.ask(self.path, self.text).json()
        states = {node["provider"]: node["status"] for node in told["nodes"]}
        assert states == {
            "fresh": "online",
            "late": "suspect",
            "gone": "offline",
            "new": "unknown",
            "never": "suspect",
        }
        assert (told["total_nodes"], told["online"], told["suspect"], told["offline"], told["unknown"]) == (
            5,
            1,
            2,
            1,
            1,
        )
        assert {node["id"] for node in told["nodes"]} >= {"custom:fresh"}
        assert b"127.0.0.1" not in self.ask(self.path, self.text).content
        assert b"custom:http://127.0.0.1:9999" in self.ask(self.path, self.operator_text).content
        assert told["total_gpus"] >= 0

    def test_a_slow_rhythm_of_probes_makes_no_suspects(self):
        self.look("slow", 100)
        GatewaySettings.objects.update_or_create(pk=1, defaults={"probe_interval_s": 120})
        assert self.ask(self.path, self.text).json()["nodes"][0]["status"] == "online"
        GatewaySettings.objects.update(probe_interval_s=0)
        assert self.ask(self.path, self.text).json()["nodes"][0]["status"] == "unknown"

    def test_it_wants_a_key(self):
        self.error(self.ask(self.path), 401)


class ReloadTest(ApiCase):
    path = "/v1/admin/reload"

    def reload(self, link: FakeLink | None, key: str = ""):
        with control(link):
            return self.ask(self.path, key or self.operator_text, method="post")

    def test_an_operator_is_told_the_version_every_worker_runs(self):
        link = FakeLink(10**9, 10**9)
        response = self.reload(link)
        assert response.status_code == 200
        assert response.json()["status"] == "reloaded"
        assert response.json()["version"] >= 1
        assert link.woken

    def test_a_key_without_the_operator_scope_is_refused(self):
        link = FakeLink(10**9)
        assert self.error(self.reload(link, self.text), 403)["code"] == "forbidden"
        assert link.woken == 0

    def test_get_is_refused_with_the_allowed_method(self):
        response = self.ask(self.path, self.operator_text)
        self.error(response, 405)
        assert response["Allow"] == "POST"

    def test_without_workers_it_is_not_reloaded(self):
        from gateway.api import reload

        with control(FakeLink()), pytest.raises(Exception, match="No worker is connected"):
            reload.reload_configuration("test", wait_s=0)

    def test_a_worker_that_does_not_follow_is_named_with_its_reason(self):
        from gateway.api import reload

        with (
            control(FakeLink(10**9, 0, error="bad route")),
            pytest.raises(Exception, match=r"worker 1 .*bad route") as hit,
        ):
            reload.reload_configuration("test", wait_s=0.1)
        assert hit.value.status == 503

    def test_outside_of_control_it_says_so(self):
        assert self.error(self.reload(None), 503)["code"] == "no_control_plane"

    def test_rows_that_cannot_run_are_told_and_nothing_is_called_reloaded(self):
        provider = services.save_provider(Provider(name="p", kind="demo"), actor="test")
        services.save_route(Route(name="r", pattern="m", provider=provider), actor="test")
        Provider.objects.filter(pk=provider.pk).update(kind="no-such-kind")  # as another version's rows might be
        told = self.error(self.reload(FakeLink(10**9)), 409)
        assert told["code"] == "reload_failed"
        assert "no-such-kind" in told["message"]

    def test_a_configuration_file_that_cannot_be_imported_is_told(self):
        with override_settings(HOOSH_CONFIG="/nowhere/hoosh.toml"), self.assertLogs("gateway.api.reload"):
            told = self.error(self.reload(FakeLink(10**9)), 409)
        assert "HOOSH_CONFIG" in told["message"]
        assert "/nowhere/hoosh.toml" in told["message"]

    def test_a_changed_configuration_file_is_imported_before_the_answer(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "hoosh.toml"
            file.write_text('[[providers]]\ntype = "ollama"\nbase_url = "http://127.0.0.1:11434"\nmodels = ["m*"]\n')
            with override_settings(HOOSH_CONFIG=str(file)):
                version = self.reload(FakeLink(10**9)).json()["version"]
                assert Route.objects.filter(pattern="m*").exists()
                assert self.reload(FakeLink(10**9)).json()["version"] == version
                file.write_text("nonsense = [")
                with self.assertLogs("gateway.api.reload"):
                    self.error(self.reload(FakeLink(10**9)), 409)


class BadBodyTest(ApiCase):
    paths = (
        *("/v1/tokens/check", "/v1/tokens/reserve", "/v1/tokens/report", "/v1/cost/estimate", "/v1/cost/recommend"),
        *("/v1/admin/reload", "/v1/costs/reset", "/v1/nothing"),
    )

    def test_no_body_is_an_internal_error(self):
        headers = {"Authorization": f"Bearer {self.operator_text}"}
        for path in self.paths:
            for body in (
                b"[" * 100_000,
                b'{"a":' * 50_000,
                b'{"pool":"\\ud800","model":"\\ud800"}',
                b"\xff\xfe",
                b"\0",
            ):
                with self.subTest(path, body=body[:12]), control(None):
                    response = self.client.post(path, body, content_type="application/json", headers=headers)
                    assert response.status_code in (400, 404, 503), response.content
                    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
                    assert response.json()["error"]["code"] != "internal_error"


class RequestTest(ApiCase):
    @classmethod
    def setUpTestData(cls):
        super().setUpTestData()
        cls.provider = services.save_provider(Provider(name="p", kind="demo"), actor="test")
        cls.route = services.save_route(Route(name="r", pattern="m", provider=cls.provider), actor="test")
        DecisionShape.objects.create(digest="ab" * 16, payload='{"strategy": "priority"}')
        for attempt, status in enumerate((502, 200)):
            Usage.objects.create(
                rid=RID,
                attempt=attempt,
                at=timezone.now(),
                key_id=cls.key.pk,
                agent_id=cls.agent.pk,
                team_id=cls.agent.team_id,
                pool_id=cls.pool.pk,
                provider_id=cls.provider.pk,
                route_id=cls.route.pk if attempt else 999_999,
                endpoint="chat",
                model="m",
                upstream_model="m",
                status=status,
                error="upstream_error" if status != 200 else "",
                tokens=12,
                output_tokens=5,
                cost_usd="0.000450",
                latency_us=1500,
                shape="ab" * 16,
                client_request_id="mine",
            )

    def test_a_key_reads_its_own_request_with_attempts_costs_and_decision(self):
        told = self.ask(f"/v1/requests/{RID}", self.text).json()
        assert (told["id"], told["client_request_id"], told["status"], told["model"]) == (RID, "mine", 200, "m")
        assert told["tokens"] == 24
        assert told["cost_usd"].startswith("0.0009")
        assert [attempt["status"] for attempt in told["attempts"]] == [502, 200]
        assert [attempt["route"] for attempt in told["attempts"]] == [None, "r"]
        assert told["attempts"][1]["latency_ms"] == 1.5
        assert told["attempts"][1]["basis"] == "reported"
        assert told["decision"] == {"strategy": "priority"}

    def test_an_id_written_with_dashes_is_the_same_request(self):
        dashed = f"{RID[:8]}-{RID[8:12]}-{RID[12:16]}-{RID[16:20]}-{RID[20:]}".upper()
        assert self.ask(f"/v1/requests/{dashed}", self.text).json()["id"] == RID

    def test_somebody_elses_request_looks_like_one_that_never_was(self):
        foreign = self.error(self.ask(f"/v1/requests/{RID}", self.other_text), 404)
        unknown = self.error(self.ask(f"/v1/requests/{'f' * 32}", self.other_text), 404)
        assert foreign == unknown

    def test_an_operator_reads_every_request(self):
        assert self.ask(f"/v1/requests/{RID}", self.operator_text).status_code == 200

    def test_nonsense_ids_are_a_404(self):
        for rid in ("x", "0" * 31, "0" * 33, "%00", "..%2f..", "' OR 1=1 --"):
            self.error(self.ask(f"/v1/requests/{rid}", self.text), 404)


class MetricsTest(ApiCase):
    def test_this_host_may_scrape_without_a_key_whatever_it_accepts(self):
        headers = {"Host": "127.0.0.1:8088", "Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
        response = self.ask("/metrics", **headers)
        assert response.status_code == 200
        assert response["Content-Type"].startswith("text/plain")
        assert b"# HELP" in response.content

    def test_the_ledgers_figures_are_read_when_scraped(self):
        class Writer:
            def stats(self):
                return {"rows": 3, "lag_max_s": 0.75}

        link = FakeLink(1)
        link.writer = Writer()
        with control(link):
            text = self.ask("/metrics", Host="localhost").content.decode()
        assert "hoosh_settle_lag_seconds 0.75" in text

    def test_another_host_needs_an_operators_key(self):
        def scrape(key: str = ""):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            return self.client.get("/metrics", headers={"Host": "localhost", **headers}, REMOTE_ADDR="10.0.0.9")

        self.error(scrape(), 401)
        self.error(scrape(self.text), 403)
        assert scrape(self.operator_text).status_code == 200

    @override_settings(ALLOWED_HOSTS=["gw.example"])
    def test_a_public_name_that_leads_to_this_host_opens_nothing(self):
        self.error(self.ask("/metrics", Host="gw.example"), 401)

    def test_what_counts_as_loopback(self):
        for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "localhost"):
            assert is_loopback(host), host
        for host in ("", "10.0.0.1", "::ffff:10.0.0.1", "localhost.evil", "0.0.0.0", "127.0.0.1.evil"):
            assert not is_loopback(host), host


class OtherPathsTest(ApiCase):
    def test_unknown_paths_below_v1_are_a_json_404_for_every_method(self):
        for path in ("/v1", "/v1/", "/v1/nope", "/v1/health/providers/", "/v1/requests/", "/v1/costs/../x"):
            for method in ("get", "post", "delete", "options", "patch"):
                assert self.error(self.ask(path, method=method), 404)["code"] == "not_found"

    def test_outside_of_v1_and_admin_a_404_is_json_too(self):
        for path in ("/nowhere", "/api/nope", "/chat/completions"):
            self.error(self.ask(path), 404)
        assert self.client.get("/admin/nowhere/").status_code in (302, 404)

    def test_a_host_name_that_is_not_allowed_is_told_in_the_same_shape(self):
        told = self.error(self.ask("/v1/health/providers", self.text, Host="evil.example"), 400)
        assert "HOOSH_ALLOWED_HOSTS" in told["message"]

    def test_options_is_not_answered_here(self):
        response = self.ask("/v1/health/providers", self.text, method="options")
        self.error(response, 405)
        assert response["Allow"] == "GET, HEAD"

    def test_answers_are_not_kept_by_caches(self):
        assert self.ask("/v1/health/providers", self.text)["Cache-Control"] == "no-store"

    def test_the_schema_describes_the_api_and_needs_a_key(self):
        self.error(self.ask("/api/schema/"), 401)
        schema = self.ask("/api/schema/", self.text).json()
        paths = {"/v1/admin/reload", "/v1/health/providers", "/v1/health/heartbeat", "/v1/requests/{request_id}"}
        paths |= {f"/v1/tokens/{name}" for name in ("check", "reserve", "report", "pools")}
        paths |= {"/v1/costs", "/v1/costs/reset", "/v1/cost/estimate", "/v1/cost/recommend"}
        paths |= {"/v1/models/pull", "/v1/models/delete", "/v1/training/status", "/v1/catalog/sync"}
        paths |= {"/v1/events", "/v1/events/recent", "/v1/cache/stats", "/v1/cache/purge", "/v1/queue/status"}
        paths |= {f"/v1/audit{name}" for name in ("", "/checkpoint", "/proof/inclusion", "/proof/consistency")}
        assert set(schema["paths"]) - {"/api/schema/"} == paths
        assert "apiKey" in schema["components"]["securitySchemes"]

    def test_an_unexpected_failure_is_logged_and_told_without_detail(self):
        class Broken(FakeLink):
            def wake(self, *, reimport: bool = False) -> None:
                raise RuntimeError("secret detail")

        with control(Broken(1)), self.assertLogs("gateway.api.errors", logging.ERROR) as logged:
            response = self.ask("/v1/admin/reload", self.operator_text, method="post")
        told = self.error(response, 500)
        assert "secret detail" not in told["message"]
        assert "secret detail" in logged.output[0]


def test_validation_errors_name_the_field():
    from rest_framework.exceptions import ValidationError as Invalid

    from gateway.api.errors import exception_handler

    told = exception_handler(Invalid({"pool": ["Unknown pool."]}), {}).data["error"]
    assert (told["param"], told["message"]) == ("pool", "Unknown pool.")
    assert isinstance(ValidationError("x"), Exception)
