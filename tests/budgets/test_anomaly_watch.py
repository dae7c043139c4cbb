"""Control's look at agents: what is found is stored, told, and held back; and it ends by itself or by a word."""

from __future__ import annotations

import datetime as dt

import pytest
from django.utils import timezone

from audit.models import OutboxEntry
from budgets import access, anomaly_watch, keys
from budgets.anomalies import LEAST, STRETCH_S
from budgets.anomaly_watch import AnomalyWatch
from budgets.models import Agent, Anomaly, Pool, SpendHistory, Usage
from events.models import Event
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database


class WatchCase(AdminTestCase):
    def setUp(self):
        super().setUp()
        self.agent = access.agent_named("web", "crawler", actor="test")
        self.key, _ = keys.create_key(self.agent, access.save_pool(Pool(name="p"), actor="test"), "k", actor="test")
        self.now = int(timezone.now().timestamp()) // STRETCH_S * STRETCH_S + 10.0
        self.watch = AnomalyWatch(clock=lambda: self.now, every_s=1.0)
        self.number = 0

    def spend(self, usd="0", tokens=100, agent=None):
        self.number += 1
        agent = agent or self.agent
        Usage.objects.create(
            rid=f"{self.number:032x}",
            at=timezone.now(),
            key_id=1,
            agent_id=agent.pk,
            team_id=agent.team_id,
            pool_id=1,
            endpoint="chat",
            model="m",
            status=200,
            tokens=tokens,
            cost_usd=usd,
        )

    def settings(self, **values):
        for name, value in values.items():
            setattr(self.agent, name, value)
        access.save_agent(self.agent, actor="test")

    def record(self):
        _, records, _ = access.changes_since(0)
        return records[0]

    def work(self, usd="1.0", stretches=LEAST):
        for _ in range(stretches):
            self.spend(usd)
            self.watch.look()
            self.now += STRETCH_S


class SpendingTest(WatchCase):
    def test_more_than_the_bound_is_an_anomaly_and_told_once(self):
        self.work()
        self.spend("1.9")
        self.watch.look()
        assert not Anomaly.objects.exists()
        self.spend("0.4")
        self.now += 2
        self.watch.look()
        found = Anomaly.objects.get()
        assert (found.agent, found.kind, found.unit, found.state) == (self.agent, "spend", "usd", "open")
        assert found.observed == pytest.approx(2.3)
        assert found.expected == pytest.approx(1.0)
        assert found.sigma == pytest.approx(0.25)
        event = Event.objects.get(name="agent.anomaly")
        assert (event.topic, event.level, event.data["agent"]) == ("agents/anomaly", "warning", "web / crawler")
        for _ in range(3):
            self.spend("5")
            self.now += STRETCH_S / 2
            self.watch.look()
        assert Anomaly.objects.count() == 1, "not again within a quarter of an hour"
        assert self.record().agent_limits == (0, 0, 0)

    def test_where_everything_is_free_tokens_are_judged(self):
        self.work(usd="0")
        self.spend(tokens=100_000)
        self.watch.look()
        assert Anomaly.objects.get().unit == "tokens"

    def test_histories_outlive_a_restart_of_control_and_nothing_is_learned_twice(self):
        self.work()
        self.watch.look()
        row = SpendHistory.objects.get()
        assert row.count == LEAST
        anomaly_watch.learn(row.stretch, {self.agent.pk: ("usd", 50.0), 999_999: ("usd", 1.0)})
        assert SpendHistory.objects.get().count == LEAST
        self.watch = AnomalyWatch(clock=lambda: self.now, every_s=1.0)
        self.watch.look()
        self.spend("100")
        self.now += 2
        self.watch.look()
        assert Anomaly.objects.count() == 1

    def test_an_agent_that_shall_not_be_looked_at_is_not(self):
        self.settings(anomaly_action="off", loop_limit=1)
        self.work()
        self.spend("100")
        self.watch.look()
        assert not Anomaly.objects.exists()
        assert self.record().loop_limit == 0

    def test_agents_that_are_gone_and_other_agents_do_not_matter(self):
        other = access.agent_named("shop", "x", actor="test")
        gone = Agent(pk=424242, team_id=1)
        for _ in range(LEAST):
            self.spend("1", agent=other)
            self.spend("1", agent=gone)
            self.watch.look()
            self.now += STRETCH_S
        self.spend("50", agent=other)
        self.spend("50", agent=gone)
        self.watch.look()
        assert [row.agent for row in Anomaly.objects.all()] == [other]


class HeldBackTest(WatchCase):
    def setUp(self):
        super().setUp()
        self.settings(anomaly_action="throttle", tokens_per_minute=500)
        self.work()
        self.spend("100")
        self.watch.look()
        self.agent.refresh_from_db()

    def test_the_agent_gets_a_limit_that_workers_are_told(self):
        assert Anomaly.objects.get().throttled
        assert self.record().agent_limits == (6, 500, 0)
        left = self.agent.throttled_until - timezone.now()
        assert dt.timedelta(minutes=14) < left <= dt.timedelta(minutes=15)
        assert OutboxEntry.objects.get(action="agent.throttled").actor == "anomalies"
        assert Event.objects.get(name="agent.anomaly").data["held_back_until"]

    def test_a_lower_limit_of_its_own_stays(self):
        self.settings(requests_per_minute=2)
        assert self.record().agent_limits == (2, 500, 0)

    def test_it_ends_by_itself(self):
        Agent.objects.update(throttled_until=timezone.now() - dt.timedelta(seconds=1))
        before = access.sequences()["access"]
        self.now += 2
        self.watch.look()
        assert self.record().agent_limits == (0, 500, 0)
        assert access.sequences()["access"] > before, "workers are told"

    def test_a_word_ends_it_at_once(self):
        found = Anomaly.objects.get()
        html = self.page("budgets_anomaly_changelist")
        assert "web / crawler" in html
        assert "until" in html
        page = self.page("budgets_anomaly_change", found.pk)
        assert "Acknowledge" in page
        assert "held back" in page
        self.post("budgets_anomaly_acknowledge", {}, found.pk)
        found.refresh_from_db()
        assert (found.state, found.acknowledged_by) == ("acknowledged", "ada")
        assert self.record().agent_limits == (0, 500, 0)
        assert OutboxEntry.objects.filter(action="anomaly.acknowledged", actor="ada").count() == 1
        self.post("budgets_anomaly_acknowledge", {}, found.pk)
        assert OutboxEntry.objects.filter(action="anomaly.acknowledged").count() == 1

    def test_only_who_may_can_acknowledge_and_nobody_can_change_a_row(self):
        found = Anomaly.objects.get()
        self.allow(self.bob, "view_anomaly")
        assert "acknowledge/" not in self.page("budgets_anomaly_change", found.pk)
        assert self.post("budgets_anomaly_acknowledge", {}, found.pk).status_code == 403
        self.act("budgets_anomaly_changelist", "acknowledge", [found])
        found.refresh_from_db()
        assert found.state == "open"
        self.allow(self.bob, "view_anomaly", "change_anomaly")
        self.act("budgets_anomaly_changelist", "acknowledge", [found])
        found.refresh_from_db()
        assert found.state == "acknowledged"


class LoopTest(WatchCase):
    def tell(self, count, worker=0, digest="aa", agent=None):
        minute = int(self.now) // 60 * 60
        self.watch.take(worker, [("loop", minute, agent or self.agent.pk, digest, count)])
        self.watch.look()

    def test_workers_counts_are_added_up(self):
        self.settings(loop_limit=10)
        assert self.record().loop_limit == 10
        self.tell(6, worker=0)
        self.tell(4, worker=1)
        assert not Anomaly.objects.exists()
        self.tell(5, worker=1)
        found = Anomaly.objects.get()
        assert (found.kind, found.observed, found.expected, found.prompt) == ("loop", 11.0, 10.0, "aa")
        assert "at most" in self.page("budgets_anomaly_change", found.pk)
        self.tell(9, worker=1)
        assert Anomaly.objects.count() == 1
        self.tell(11, digest="bb")
        assert Anomaly.objects.count() == 2

    def test_minutes_are_counted_apart_and_forgotten(self):
        self.settings(loop_limit=10)
        for _ in range(5):
            self.tell(6)
            self.now += 60
        assert not Anomaly.objects.exists()
        assert len(self.watch._prompts) <= 3

    def test_what_a_worker_tells_of_others_or_wrongly_is_left_out(self):
        self.tell(1000)
        self.settings(loop_limit=1)
        self.watch.take(0, [("loop", "x", None, 1, "y"), ("loop",), ("loop", 60, 999_999, "aa", 5)])
        self.watch.look()
        assert not Anomaly.objects.exists()

    def test_a_loop_can_hold_an_agent_back(self):
        self.settings(loop_limit=3, anomaly_action="throttle")
        self.tell(4)
        assert self.record().agent_limits[0] == 6
