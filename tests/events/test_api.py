"""`GET /v1/events/recent`, who may ask, and what a stream refuses before it begins."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client, TestCase
from django.utils import timezone

from budgets import access, keys
from events import names
from events.emit import emit, emit_all, made
from gateway.api.authentication import Caller
from gateway.api.events import still_operator
from gateway.event_streams import Hub, Stream
from providers.models import ConfigVersion, Provider
from providers.publish import publish

pytestmark = pytest.mark.database

EVENTS, RECENT = "/v1/events", "/v1/events/recent"


class ApiCase(TestCase):
    databases = "__all__"

    @classmethod
    def setUpTestData(cls):
        pool = access.default_pool("test")
        agent = access.agent_named("red", "app", actor="test")
        cls.key, cls.text = keys.create_key(agent, pool, "plain", ("inference",), actor="test")
        cls.operator, cls.operator_text = keys.create_key(agent, pool, "ops", ("operator",), actor="test")

    def ask(self, path: str, key: str | None = None, **headers: str):
        key = self.operator_text if key is None else key
        sent = {"Authorization": f"Bearer {key}"} if key else {}
        return self.client.get(path, headers={**sent, **headers})

    def error(self, response, status: int, param: str | None = None) -> str:
        assert response.status_code == status, response.content
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["param"] == param, error
        return str(error["code"])


class RecentTests(ApiCase):
    def test_the_shape_clients_of_hoosh_know(self):
        emit(
            names.HEALTH,
            {"provider": "ollama", "base_url": "http://localhost:11434", "healthy": False, "detail": "gone"},
            level="warning",
        )
        reply = self.ask(RECENT).json()
        assert set(reply) == {"events"}
        (event,) = reply["events"]
        old = {name: event[name] for name in ("event", "provider", "base_url", "healthy")}
        assert old == {
            "event": "health_changed",
            "provider": "ollama",
            "base_url": "http://localhost:11434",
            "healthy": False,
        }
        assert (event["topic"], event["name"], event["level"]) == ("providers/health", names.HEALTH, "warning")
        assert event["data"]["detail"] == "gone"
        assert event["at"].endswith("Z")

    def test_the_newest_128_oldest_first_or_as_many_as_asked(self):
        emit_all([made("a.b", {"n": n}) for n in range(150)])
        assert [event["data"]["n"] for event in self.ask(RECENT).json()["events"]] == list(range(22, 150))
        assert [event["data"]["n"] for event in self.ask(f"{RECENT}?limit=2").json()["events"]] == [148, 149]
        assert len(self.ask(f"{RECENT}?limit=1000").json()["events"]) == 150

    def test_a_topic_is_found_behind_many_others(self):
        emit(names.PUBLISHED, {"version": 1})
        emit(names.PUBLISHED, {"version": 2})
        emit_all([made("a.b", {}) for _ in range(1200)])
        for topic in ("config/published", "config.*", "config/%23", "config.published", "nothing,config/*"):
            found = self.ask(f"{RECENT}?topic={topic}&limit=5").json()["events"]
            assert [event["data"]["version"] for event in found] == [1, 2], topic
        assert len(self.ask(f"{RECENT}?topic=a.b&topic=config/*&limit=1000").json()["events"]) == 1000

    def test_a_publication_is_an_event_of_its_transaction(self):
        publish("ada", "first")
        publish("ada", "the same again")
        (event,) = self.ask(f"{RECENT}?topic=config/published").json()["events"]
        assert ConfigVersion.objects.count() == 1
        number = ConfigVersion.objects.get().number
        assert (event["data"]["version"], event["data"]["author"], event["data"]["note"]) == (number, "ada", "first")

    def test_a_provider_that_goes_down_and_comes_back_is_two_events(self):
        from gateway import probes

        provider = Provider.objects.create(name="p", kind="openai", base_url="https://api.example", enabled=True)
        target = probes._target(provider)
        for ok in (True, False, False, False, False, True, True):
            probes._remember([(target, probes.Outcome(ok=ok, detail="" if ok else "gone", latency_ms=3.0))])
        found = self.ask(f"{RECENT}?topic=providers/health").json()["events"]
        assert [(event["healthy"], event["level"], event["data"]["detail"]) for event in found] == [
            (False, "warning", "gone"),
            (True, "info", ""),
        ]
        assert {event["base_url"] for event in found} == {"https://api.example"}

    def test_only_operators_may_read(self):
        for path in (RECENT, EVENTS):
            assert self.error(self.ask(path, ""), 401) == "invalid_api_key"
            assert self.error(self.ask(path, "hk-unknown"), 401) == "invalid_api_key"
            assert self.error(self.ask(path, self.text), 403) == "forbidden"
            assert self.error(self.client.post(path, headers={"x-api-key": self.operator_text}), 405)
        bob = get_user_model().objects.create_user("bob", "", "pw", is_staff=True)
        client = Client()
        client.force_login(bob)
        assert client.get(RECENT).status_code == 403
        bob.user_permissions.add(Permission.objects.get(codename="change_gatewaysettings"))
        assert client.get(RECENT).status_code == 200

    def test_parameters_that_cannot_be_read_name_themselves(self):
        for query, param in (
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=", "limit"),
            ("limit=1&limit=2", "limit"),
            ("limit=٣", "limit"),
            ("topic=a//b", "topic"),
            ("topic=" + ",".join("a" * 17), "topic"),
        ):
            self.error(self.ask(f"{RECENT}?{query}"), 400, param)
        for query in ("after=-1", "after=x", "after=1e3", "after=" + "9" * 19, "after=1&after=1"):
            self.error(self.ask(f"{EVENTS}?{query}"), 400, "after")
        self.error(self.ask(f"{EVENTS}?after=1", **{"Last-Event-ID": "x"}), 400, "Last-Event-ID")
        self.error(self.ask(f"{EVENTS}?topic=a//b"), 400, "topic")

    def test_the_description_of_the_api_names_both(self):
        paths = self.ask("/api/schema/").json()["paths"]
        assert "text/event-stream" in paths["/v1/events"]["get"]["responses"]["200"]["content"]
        assert "/v1/events/recent" in paths


class RightsTests(ApiCase):
    def test_a_stream_is_asked_again_whether_its_reader_is_still_an_operator(self):
        may = still_operator(Caller(key=self.operator))
        assert may()
        type(self.operator).objects.filter(pk=self.operator.pk).update(scopes="inference")
        assert not may()
        type(self.operator).objects.filter(pk=self.operator.pk).update(scopes="operator", expires_at=timezone.now())
        assert not may()
        type(self.operator).objects.filter(pk=self.operator.pk).update(expires_at=None)
        assert may()
        keys.revoke_key(self.operator, actor="test")
        assert not may()

    def test_a_disabled_team_or_person_may_not(self):
        may = still_operator(Caller(key=self.operator))
        team = self.operator.agent.team
        type(team).objects.filter(pk=team.pk).update(enabled=False)
        assert not may()
        ada = get_user_model().objects.create_superuser("ada", "", "pw")
        may = still_operator(Caller(user=ada))
        assert may()
        get_user_model().objects.filter(pk=ada.pk).update(is_active=False)
        assert not may()


def test_only_so_many_streams_are_open_and_one_that_nobody_reads_counts_no_more() -> None:
    hub = Hub(most=2)

    def opened() -> Stream | None:
        return hub.open(names.Wanted(), None, lambda: True)

    first, second = opened(), opened()
    assert first is not None
    assert second is not None
    assert opened() is None
    del second  # its answer was dropped before anything was sent
    assert opened() is not None
    hub.end_all(for_good=True)
    assert opened() is None
