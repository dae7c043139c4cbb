"""Asks and returns served as one group: the same as one by one, in one transaction and in few statements."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
from django.conf import settings
from django.db import OperationalError, connections
from django.test import TransactionTestCase

from budgets.grants import GrantRequest, Grants, Move, Return
from budgets.ledger import Ledger
from budgets.ledger_books import NO_WORKER, Key
from budgets.models import Lease, PoolWindow
from budgets.records import Draw
from budgets.settle import Writer
from budgets.stats import WriterStats
from tests.budgets.ledger_case import MONEY, TOKENS, LedgerCase, spec
from tests.budgets.records import new_rid, usage_record

pytestmark = pytest.mark.database

OWNERS = ("a", "b", "c", "d", f"reservation{NO_WORKER}1")
PURSES: tuple[Key, ...] = ((1, 0, 0), (1, 1, 0), (2, 0, 0), (2, 0, 1_000), (3, 0, 0), (9, 0, 0))
CAPACITIES = {PURSES[0]: 20_000, PURSES[1]: 3 * 10**10, PURSES[2]: 1_000, PURSES[3]: 60_000, PURSES[4]: None}


def ledger() -> Ledger:
    return Ledger(connections[settings.HOOSH_LEDGER_DB])


class Told(NamedTuple):
    """An answer somebody was given."""

    owner: str
    key: Key
    answer: tuple[int, bool, bool, int]


class Side:
    """One way of serving, over purses of its own."""

    def __init__(self, shift: int) -> None:
        self.told: list[Told] = []
        self.grants = Grants(None, WriterStats())
        self._shift = shift
        self.ledger = ledger()
        self.ledger.sync_windows([spec(self.key(key), capacity=amount) for key, amount in CAPACITIES.items()])

    def key(self, key: Key) -> Key:
        return key[0] + self._shift, *key[1:]

    def ask(self, owner: str, key: Key, seen: int, want: int, need: int) -> GrantRequest:
        def reply(*answer: Any) -> None:
            self.told.append(Told(owner, key, answer))

        return GrantRequest(owner, *self.key(key), seen, want, need, reply)

    def charge(self, owner: str, key: Key, amount: int) -> None:
        record = usage_record(new_rid(), amount, cost_pico=amount, draws=(Draw(*self.key(key), 1),))
        self.ledger.settle(owner, [record], {}, None)

    def rows(self) -> list[Any]:
        purses = PoolWindow.objects.filter(pool_id__gt=self._shift, pool_id__lte=self._shift + 9)
        leases = Lease.objects.filter(window__in=purses).order_by("owner", "window__pool_id", "window_id")
        fields = ("granted", "returned", "remaining")
        return [
            [(row.pool_id - self._shift, row.committed, row.leased, row.overrun) for row in purses.order_by("id")],
            [
                (row.owner, row.window.pool_id - self._shift, row.window.unit, *(getattr(row, name) for name in fields))
                for row in leases.select_related("window")
            ],
        ]


class GroupTests(TransactionTestCase):
    databases = "__all__"

    def test_a_group_comes_to_the_same_as_its_moves_one_by_one_returns_first(self) -> None:
        for seed in range(6):
            with self.subTest(seed=seed):
                self._compare(random.Random(seed), seed * 100)

    def _compare(self, chance: random.Random, shift: int) -> None:
        together, apart = Side(shift), Side(shift + 50)
        seen: dict[tuple[str, Key], int] = {}
        returned: dict[tuple[str, Key], int] = {}
        for _ in range(25):
            moves: list[tuple[Any, ...]] = []
            pairs = [(owner, key) for owner in OWNERS for key in PURSES]
            for owner, key in chance.sample(pairs, chance.randrange(1, 12)):
                pair, scale = (owner, key), 10**7 if key[1] else 1
                known = seen.get(pair, 0)
                if chance.random() < 0.4:
                    returned[pair] = returned.get(pair, 0) + chance.randrange(2_000) * scale
                    moves.append((owner, key, returned[pair]))
                    continue
                need = chance.choice((0, 0, chance.randrange(3_000) * scale))
                known = chance.choice((known, known, known, known // 2, known + 50))
                moves.append((owner, key, known, chance.randrange(4_000) * scale, need))
            self._serve(together, [moves])
            self._serve(apart, [[move] for move in sorted(moves, key=len)])
            for told in apart.told:
                seen[told.owner, told.key] = max(seen.get((told.owner, told.key), 0), told.answer[0])
            owner, key = chance.choice(OWNERS), chance.choice(PURSES[:5])
            for side in (together, apart):
                side.charge(owner, key, 1 + key[0] * 50)
            assert together.told == apart.told
            assert together.rows() == apart.rows()
        assert len(together.told) > 50

    def _serve(self, side: Side, groups: Sequence[Sequence[tuple[Any, ...]]]) -> None:
        for group in groups:
            moves: list[Move] = []
            for move in group:
                if len(move) == 3:
                    moves.append(Return(move[0], side.key(move[1]), move[2]))
                else:
                    moves.append(side.ask(*move))
            side.grants.serve(side.ledger, moves)

    def test_an_ask_that_its_owner_overtook_with_a_return_is_answered_and_not_remembered(self) -> None:
        side = Side(0)
        key = PURSES[2]
        side.grants.serve(side.ledger, [side.ask("idle", key, 0, 1_000, 900), side.ask("a", key, 0, 1, 1_000)])
        side.grants.serve(side.ledger, [side.ask("a", key, 0, 1, 1_000), Return("a", key, 0)])
        told = len(side.told)
        side.grants.serve(side.ledger, [Return("idle", key, 1_000)])
        assert len(side.told) == told == 3

    def test_moves_no_database_can_take_cost_the_others_nothing(self) -> None:
        side = Side(0)
        stats = WriterStats()
        side.grants = Grants(None, stats)
        group: list[Move] = [
            side.ask("a", PURSES[0], 0, 10, 10),
            side.ask("b", PURSES[0], 2**63, 10, 10),
            side.ask("b", (2**63, 0, 0), 0, 10, 10),
            Return("c", (1, 0, 2**70), 5),
            side.ask("d", PURSES[3], 0, 10, 10),
        ]
        side.grants.serve(side.ledger, group)
        assert [told.owner for told in side.told] == ["a", "d"]
        assert 1 <= stats.errors <= 3
        assert sum(row[2] for row in side.rows()[0]) == sum(told.answer[0] for told in side.told)

    def test_a_crash_between_the_commit_and_the_answers_grants_nothing_twice(self) -> None:
        class Crash(BaseException):
            pass

        def crash(*_answer: Any) -> None:
            raise Crash

        side = Side(0)
        asks = [side.ask(owner, key, 0, 10, 10) for owner in "abcd" for key in PURSES[:2]]
        with pytest.raises(Crash):
            side.grants.serve(side.ledger, [asks[0]._replace(reply=crash), *asks[1:]])
        rows = side.rows()
        assert sum(row[2] for row in rows[0]) > 0
        again = Grants(None, WriterStats())
        again.serve(ledger(), asks)
        assert side.rows() == rows
        granted = {(owner, pool, unit): granted for owner, pool, unit, granted, *_rest in rows[1]}
        assert [told.answer[0] for told in side.told] == [granted[told.owner, *told.key[:2]] for told in side.told]
        assert len(side.told) == len(asks)

    def test_an_outage_before_the_commit_tells_nobody_anything(self) -> None:
        side = Side(0)
        connection = connections[settings.HOOSH_LEDGER_DB]

        def away(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if sql.startswith("INSERT") and Lease._meta.db_table in sql:
                raise OperationalError("the server closed the connection")
            return execute(sql, params, many, context)

        with connection.execute_wrapper(away), pytest.raises(OperationalError):
            side.grants.serve(side.ledger, [side.ask(owner, PURSES[0], 0, 10, 10) for owner in "abc"])
        assert not side.told
        assert not Lease.objects.exists()


class QueueTests(LedgerCase):
    def test_what_waits_is_one_transaction_and_as_many_statements_as_for_one(self) -> None:
        writer = self.start_writer(capacity=10**6, period_s=60)
        self.sync(writer, spec(MONEY, capacity=10**15))
        counts = [self._statements(writer, number) for number in (1, 40)]
        assert counts[0] == counts[1] <= 6
        assert writer.stats()["grants"] == 82
        assert self.figures()[1] == sum(Lease.objects.filter(window__unit=0).values_list("granted", flat=True))

    def _statements(self, writer: Writer, owners: int) -> int:
        """How many statements that many asks for two purses took that had to wait, the answers included."""
        statements: list[str] = []

        def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            statements.append(sql)
            return execute(sql, params, many, context)

        go_on = threading.Event()

        def hold_up(connection: Any) -> None:
            connection.execute_wrappers.append(note)
            go_on.wait(10)

        writer.submit(hold_up)
        answers = [
            self.ask(writer, f"{owners}-{number}", need=10, key=key)
            for number in range(owners)
            for key in (TOKENS, MONEY)
        ]
        done = writer.submit(lambda connection: connection.execute_wrappers.remove(note))
        go_on.set()
        done.result(10)
        for answer in answers:
            assert answer.next()[0] >= 10
        return len(statements)

    def test_work_keeps_its_place_between_asks(self) -> None:
        writer = self.start_writer(capacity=None, period_s=60)
        go_on = threading.Event()
        writer.submit(lambda _connection: go_on.wait(10))
        unknown = self.ask(writer, need=10)
        writer.sync_windows([spec(capacity=1_000)])
        known = self.ask(writer, need=10)
        writer.give_back("w", *TOKENS, 400)
        seen = writer.submit(lambda _connection: self.figures())
        go_on.set()
        total = known.next()[0]
        assert seen.result(10) == (0, total, 0), "a return goes first: there was nothing yet to take back"
        assert unknown.none_within(0)

    def _is_charged(self, amount: int) -> bool:
        return self.window().committed == amount

    def test_a_flood_of_asks_does_not_hold_up_settling(self) -> None:
        writer = self.start_writer(capacity=10**9)
        worker = self.open_journal()
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                for _ in range(50):
                    writer.grant("flood", *TOKENS, 0, 1, lambda *answer: None)
                time.sleep(0.001)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for number in range(1, 4):
                worker.complete(usage_record(new_rid(), 10))
                self.eventually(partial(self._is_charged, 10 * number))
        finally:
            stop.set()
            thread.join(10)
        assert self.ask(writer, need=10).next()[0] >= 10
