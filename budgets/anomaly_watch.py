"""Control's look at what agents do unlike themselves: reads usage as it is settled, and what workers tell of prompts.

Nothing here is on the path of a request, and nothing of money depends on it. What is found is an `Anomaly`, an event
for webhooks and, where the agent's row says so, a limit of requests that ends by itself. `budgets.anomalies` has the
formulas.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from django.conf import settings
from django.db import connections, transaction
from django.utils import timezone

from audit.record import record
from budgets import access, anomalies
from budgets.models import Agent, Anomaly, SpendHistory, Usage
from budgets.models.access import AnomalyAction
from budgets.models.fields import PLACES
from events import names
from events.emit import emit

log = logging.getLogger("hoosh.anomalies")

ACTOR = "anomalies"  # the author of what is done here
HELD_BACK_S = QUIET_S = 900  # a limit lasts so long; an anomaly is not told again before
SPENDING_S = 10.0  # between two looks at what was spent
ROWS, PASSES = 20_000, 10  # usage rows in one statement, statements in one look
WAITING = 5_000  # items of workers not looked at yet; the oldest go first
_BATCH = 400


class AnomalyWatch:
    """`look` is called once a second by one thread; `take` from any."""

    def __init__(self, *, clock: Callable[[], float] = time.time, every_s: float = SPENDING_S) -> None:
        """`clock` gives Unix seconds; what was spent is looked at `every_s`."""
        self._clock, self._every_s = clock, every_s
        self._waiting: deque[tuple[int, Sequence[Any]]] = deque(maxlen=WAITING)
        self._prompts: dict[tuple[int, int, str], dict[int, int]] = {}  # minute, agent, digest -> worker -> count
        self._next = 0.0
        self._cursor: int | None = None  # the last usage row read
        self._stretch = 0
        self._spent: dict[int, list[float]] = {}  # agent -> USD, tokens of this stretch
        self._bounds: dict[tuple[int, str], anomalies.Bound] = {}  # of this stretch
        self._told: set[int] = set()  # agents of this stretch

    def take(self, worker: int, items: Iterable[Sequence[Any]]) -> None:
        """What a worker told of prompts (`gateway.loops`)."""
        self._waiting.extend((worker, item) for item in items)

    def look(self) -> None:
        """Everything that is due."""
        now = self._clock()
        self._loops(now)
        if now >= self._next:
            self._next = now + self._every_s
            release_due()
            self._spending(now)

    # --- prompts ------------------------------------------------------------------------------------------------------

    def _loops(self, now: float) -> None:
        seen = set()
        while self._waiting:
            worker, item = self._waiting.popleft()
            try:
                _, minute, agent_id, digest, count = item
                name = int(minute), int(agent_id), str(digest)[:32]
                counts = self._prompts.setdefault(name, {})
                counts[worker] = max(int(count), counts.get(worker, 0))
            except (ValueError, TypeError):
                log.warning("loop_skipped", extra={"worker": worker})
                continue
            seen.add(name)
        if not seen:
            return
        agents = Agent.objects.filter(pk__in={name[1] for name in seen}, loop_limit__isnull=False)
        by_id = {agent.pk: agent for agent in agents.exclude(anomaly_action=AnomalyAction.OFF)}
        for name in seen:
            agent, total = by_id.get(name[1]), sum(self._prompts[name].values())
            if agent is not None and agent.loop_limit is not None and total > agent.loop_limit:
                found = anomalies.Bound(agent.loop_limit, 0.0, is_known=True)
                raised(agent, Anomaly.Kind.LOOP, name[0], "requests", total, found, prompt=name[2])
        for old in [name for name in self._prompts if name[0] < now - 120]:
            del self._prompts[old]

    # --- spending -----------------------------------------------------------------------------------------------------

    def _spending(self, now: float) -> None:
        stretch = int(now) // anomalies.STRETCH_S * anomalies.STRETCH_S
        changed = self._read(stretch)
        if stretch != self._stretch:
            if self._stretch:
                learn(self._stretch, {agent: _unit_of(*spent) for agent, spent in self._spent.items()})
            self._stretch = stretch
            self._spent, self._bounds, self._told = {}, {}, set()
        for agent_id, usd, tokens in changed:
            spent = self._spent.setdefault(agent_id, [0.0, 0.0])
            spent[0] += usd
            spent[1] += tokens
        self._judge({agent_id for agent_id, _, _ in changed} - self._told)

    def _read(self, stretch: int) -> list[tuple[int, float, float]]:
        """(agent, USD, tokens) of the rows settled since the last look, each agent once or more often."""
        newest = Usage.objects.order_by("-id").values_list("id", flat=True).first() or 0
        if self._cursor is None:
            begin = dt.datetime.fromtimestamp(stretch, dt.UTC)
            first = Usage.objects.filter(at__gte=begin).order_by("at", "id").values_list("id", flat=True).first()
            self._cursor = newest if first is None else first - 1
        if newest - self._cursor > ROWS * PASSES:  # nothing was read for long: what is past alarms nobody any more
            self._cursor = newest
        found: list[tuple[int, float, float]] = []
        while self._cursor < newest:
            upper = min(newest, self._cursor + ROWS)
            with connections[settings.HOOSH_LEDGER_DB].cursor() as cursor:
                cursor.execute(_SPENT, (self._cursor, upper))
                found += [
                    (int(agent), float(pico) / 10**PLACES, float(tokens)) for agent, pico, tokens in cursor.fetchall()
                ]
            self._cursor = upper
        return found

    def _judge(self, agent_ids: set[int]) -> None:
        wanted = {agent_id: _unit_of(*self._spent[agent_id]) for agent_id in agent_ids}
        missing = [agent_id for agent_id, (unit, _) in wanted.items() if (agent_id, unit) not in self._bounds]
        for start in range(0, len(missing), _BATCH):
            for row in SpendHistory.objects.filter(agent_id__in=missing[start : start + _BATCH]):
                history = anomalies.History(row.mean, row.variance, row.count)
                self._bounds[row.agent_id, row.unit] = anomalies.bound(history, row.unit)
        for agent_id, (unit, spent) in wanted.items():
            found = self._bounds.get((agent_id, unit))
            if found is None or not found.is_broken_by(spent):
                continue
            self._told.add(agent_id)
            agent = Agent.objects.filter(pk=agent_id).exclude(anomaly_action=AnomalyAction.OFF).first()
            if agent is not None:
                raised(agent, Anomaly.Kind.SPEND, self._stretch, unit, spent, found)


def _unit_of(usd: float, tokens: float) -> tuple[str, float]:
    """In which unit an agent is judged: money, or tokens where all it uses is free."""
    return ("usd", usd) if usd > 0 else ("tokens", tokens)


def learn(stretch: int, spent: dict[int, tuple[str, float]]) -> None:
    """Add a stretch that is over to the histories; what another host added already is left alone."""
    ids = list(spent)
    for start in range(0, len(ids), _BATCH):
        with transaction.atomic():
            chunk = set(Agent.objects.filter(pk__in=ids[start : start + _BATCH]).values_list("pk", flat=True))
            rows = {(row.agent_id, row.unit): row for row in SpendHistory.objects.filter(agent_id__in=chunk)}
            changed = []
            for agent_id in chunk:
                unit, amount = spent[agent_id]
                row = rows.get((agent_id, unit)) or SpendHistory(agent_id=agent_id, unit=unit)
                if row.stretch >= stretch or amount <= 0:
                    continue
                history = anomalies.History(row.mean, row.variance, row.count)
                anomalies.learn(history, amount, unit)
                row.mean, row.variance, row.count, row.stretch = history.mean, history.variance, history.count, stretch
                changed.append(row)
            SpendHistory.objects.bulk_create(
                changed,
                update_conflicts=True,
                unique_fields=("agent", "unit"),
                update_fields=("mean", "variance", "count", "stretch"),
            ) if changed else None


def raised(
    agent: Agent, kind: Anomaly.Kind, stretch: int, unit: str, observed: float, bound: anomalies.Bound, prompt: str = ""
) -> Anomaly | None:
    """Store an anomaly, tell it, and hold the agent back where its row says so. None when it was told not long ago."""
    recent = timezone.now() - dt.timedelta(seconds=QUIET_S)
    with transaction.atomic():
        if Anomaly.objects.filter(agent=agent, kind=kind, prompt=prompt, at__gte=recent).exists():
            return None
        throttled = agent.anomaly_action == AnomalyAction.THROTTLE
        figures = {"unit": unit, "observed": observed, "expected": bound.expected, "sigma": bound.sigma}
        row, is_new = Anomaly.objects.get_or_create(
            agent=agent, kind=kind, stretch=stretch, prompt=prompt, defaults={**figures, "throttled": throttled}
        )
        if not is_new:
            return None
        until = timezone.now() + dt.timedelta(seconds=HELD_BACK_S) if throttled else None
        if until is not None:
            access.throttle_agent(agent, until, actor=ACTOR)
        data = {
            "anomaly": row.pk,
            "kind": str(kind),
            "agent": str(agent),
            "agent_id": agent.pk,
            "prompt": prompt,
            **figures,
        }
        emit(names.ANOMALY, {**data, "held_back_until": f"{until:%Y-%m-%dT%H:%M:%SZ}" if until else None})
    return row


def acknowledge(anomaly: Anomaly, *, actor: str) -> None:
    """Somebody has seen it; an agent that is held back for it goes on. Again is harmless."""
    with transaction.atomic():
        seen = {"state": Anomaly.State.ACKNOWLEDGED, "acknowledged_by": actor[:150], "acknowledged_at": timezone.now()}
        if not Anomaly.objects.filter(pk=anomaly.pk, state=Anomaly.State.OPEN).update(**seen):
            return
        record("anomaly.acknowledged", actor=actor, target=str(anomaly)[:200], data={"anomaly": anomaly.pk})
        held = Anomaly.objects.filter(agent=anomaly.agent, state=Anomaly.State.OPEN, throttled=True)
        still = held.filter(at__gte=timezone.now() - dt.timedelta(seconds=HELD_BACK_S)).exists()
        if anomaly.throttled and not still and Agent.objects.filter(pk=anomaly.agent_id, throttled_until__isnull=False):
            access.throttle_agent(anomaly.agent, None, actor=actor)


def release_due() -> None:
    """Let those agents go whose time is over."""
    for agent in Agent.objects.filter(throttled_until__lte=timezone.now()):
        access.throttle_agent(agent, None, actor=ACTOR)


_SPENT = (
    f"SELECT agent_id, SUM(cost_pico * 1.0), SUM(tokens) FROM {Usage._meta.db_table} "  # noqa: S608
    "WHERE id > %s AND id <= %s GROUP BY agent_id"
)
