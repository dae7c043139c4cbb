"""Answering workers that ask for more, and finding it for those who found none. Runs in the writer's thread.

Whatever asks and returns wait are one group, served in one transaction: returns first, each offered to those who were
left without before, then the asks in the order of their arrival. Nobody is told anything before it is committed.

An ask that cannot be met while other workers still have some is remembered: the others are told to return what is idle
(`on_recall`), and the ask is answered again as soon as something came back. Rests of windows that ended are carried
over here as well, because they come back in the same ways.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from django.db import DatabaseError, DataError, IntegrityError, InterfaceError

from budgets.leasing import Answer, Leasing
from budgets.ledger import Ledger
from budgets.ledger_books import Key
from budgets.stats import WriterStats
from budgets.windows import WindowSpec

log = logging.getLogger("hoosh.ledger")

RECALL_PAUSE_S = 0.05  # between two recalls of one purse
HUNGRY_S = 5.0  # so long an unmet ask is remembered; a worker that still waits asks again before
_REMEMBERED = 4096  # recalls and dead owners: windows and workers come and go

GrantReply = Callable[[int, bool, bool, int, int], object]  # total, more, spent_out, available, others
OnRecall = Callable[[int, int, int], object]  # pool id, unit, start of the window


class GrantRequest(NamedTuple):
    """One ask of one worker; amounts in the purse's unit."""

    owner: str
    pool_id: int
    unit: int
    window_start: int
    seen_total: int
    want: int
    need: int
    reply: GrantReply
    asked_at: float = 0.0  # monotonic clock; 0 = not measured

    @property
    def key(self) -> Key:
        """The purse it asks for."""
        return self.pool_id, self.unit, self.window_start


class Return(NamedTuple):
    """What one worker says to have returned, absolute and in the purse's unit."""

    owner: str
    key: Key
    total: int


Move = GrantRequest | Return
_Answered = list[tuple[GrantRequest, Answer | None]]


class _Moved(NamedTuple):
    """What a group came to."""

    back: set[Key]  # purses to which something was returned
    offered: _Answered  # to those who had asked before
    answered: _Answered


class Grants:
    """The asks of all workers of this host, and what is carried over from window to window."""

    def __init__(self, on_recall: OnRecall | None, stats: WriterStats) -> None:
        self._on_recall = on_recall
        self._stats = stats
        self._hungry: dict[Key, dict[str, tuple[float, GrantRequest]]] = {}
        self._recalled_at: dict[Key, float] = {}
        self._carried: dict[Key, Key] = {}  # purses of earlier windows, and those that get what becomes free there
        self._ended: dict[str, None] = {}  # owners that are dead, oldest first

    def serve(self, ledger: Ledger, group: Sequence[Move]) -> None:
        """Take in what was returned and answer the asks, in one transaction; one by one if that cannot be done.

        Nothing is said when a purse does not exist (yet): the worker asks again. What a worker said just before it
        died may come after its end; nobody would ever give that lease back.
        """
        group = [move for move in group if move.owner not in self._ended]
        if not group:
            return
        try:
            moved = self._move(ledger, group)
        except Exception as exc:
            if _is_outage(exc):
                raise
            if len(group) == 1:
                self._stats.errors += 1
                log.exception("grant_refused", extra={"owner": group[0].owner})
            else:
                log.warning("grants_one_by_one", extra={"reason": f"{type(exc).__name__}: {exc}"})
                for move in group:
                    self.serve(ledger, [move])
            return
        self._tell_offered(moved.offered)
        self._tell_answered(moved.answered, _overtaken(group))
        if late := moved.back & self._carried.keys():
            self._offer(ledger, [*ledger.carry({source: self._carried[source] for source in late}), *late])

    def sync_windows(self, ledger: Ledger, specs: Sequence[WindowSpec]) -> None:
        """Make windows or change their limits. Raised, waiting asks are met; lowered, idle amounts are called back."""
        changes, sources = ledger.sync_windows(specs)
        newest = {source: target for target, source in sources.items()}
        for source, target in list(self._carried.items()):
            self._carried[source] = newest.get(target, target)  # past the window between, which takes nothing any more
        self._carried.update({**ledger.late_sources(sources), **newest})
        self._offer(ledger, [key for key, change in changes.items() if change > 0])
        for key, change in changes.items():
            if change < 0:
                self._recall(key)

    def carry_rests(self, ledger: Ledger) -> None:
        """Carry over what became free in earlier windows; those from which nothing more can come are forgotten."""
        if not self._carried:
            return
        rests = ledger.rests(self._carried)
        pairs = {source: self._carried[source] for source, (free, _leased) in rests.items() if free > 0}
        self._offer(ledger, ledger.carry(pairs) if pairs else ())
        for source in list(self._carried):
            free, leased = rests.get(source, (0, 0))
            if free <= 0 and not leased:
                del self._carried[source]

    def owner_ended(self, ledger: Ledger, owner: str) -> None:
        """A worker's leases went back: forget its asks, also those still to come, and offer what it had to others."""
        if len(self._ended) >= _REMEMBERED:
            del self._ended[next(iter(self._ended))]
        self._ended[owner] = None
        for hungry in self._hungry.values():
            hungry.pop(owner, None)
        self.carry_rests(ledger)
        self.offer_all(ledger)

    def offer_all(self, ledger: Ledger) -> None:
        """Answer again whoever waits, where there is something now."""
        self._offer(ledger, list(self._hungry))

    # --- one group --------------------------------------------------------------------------------------------------

    def _move(self, ledger: Ledger, group: Sequence[Move]) -> _Moved:
        """The transaction of a group."""
        returns = [move for move in group if isinstance(move, Return)]
        asks = [move for move in group if isinstance(move, GrantRequest)]
        # What comes back to a window that ended goes to the next one before it is offered to anybody.
        offerable = dict.fromkeys(move.key for move in returns if move.key not in self._carried)
        waiting = {key: self._waiting([key]) for key in offerable}
        wanted: list[Move] = [*returns, *chain.from_iterable(waiting.values()), *asks]
        moved = _Moved(set(), [], [])
        with ledger.leasing([(move.owner, move.key) for move in wanted]) as leasing:
            for move in returns:
                # What this owner had asked for, it asked while it still had what it returns now; it asks anew.
                left = [ask for ask in waiting.get(move.key, ()) if ask.owner != move.owner]
                if leasing.give_back(move.owner, move.key, move.total):
                    moved.back.add(move.key)
                    offered = _granted(leasing, left)
                    moved.offered.extend(offered)
                    left = [ask for ask, answer in offered if not _was_helped(answer)]
                waiting[move.key] = left
            moved.answered.extend(_granted(leasing, asks))
        for move in returns:
            self._forget(move)
        return moved

    def _offer(self, ledger: Ledger, keys: Iterable[Key]) -> None:
        """Answer those who wait for these purses."""
        waiting = self._waiting(keys)
        if not waiting:
            return
        with ledger.leasing([(ask.owner, ask.key) for ask in waiting]) as leasing:
            offered = _granted(leasing, waiting)
        self._tell_offered(offered)

    def _waiting(self, keys: Iterable[Key]) -> list[GrantRequest]:
        """Who waits for these purses and did not ask too long ago, by purse in the order of arrival."""
        begin = time.monotonic() - HUNGRY_S
        waiting: list[GrantRequest] = []
        for key in keys:
            hungry = self._hungry.get(key, {})
            for owner in [owner for owner, (since, _ask) in hungry.items() if since <= begin]:
                del hungry[owner]
            if not hungry:
                self._hungry.pop(key, None)
            waiting += [ask for _since, ask in hungry.values()]
        return waiting

    def _tell_offered(self, offered: _Answered) -> None:
        """Those who could be helped are told so and wait no more, those who could not wait on."""
        for ask, answer in offered:
            if _was_helped(answer):
                self._forget(ask)
            if answer is not None and answer.granted:
                self._reply(ask, answer)

    def _tell_answered(self, answered: _Answered, overtaken: set[tuple[str, Key]]) -> None:
        for ask, answer in answered:
            if ask.asked_at:
                self._stats.grant(time.monotonic() - ask.asked_at)
            if answer is None:
                continue
            self._forget(ask)
            if ask.need and not (answer.granted or answer.repeated or answer.spent_out):
                if (ask.owner, ask.key) not in overtaken:
                    self._hungry.setdefault(ask.key, {})[ask.owner] = (time.monotonic(), ask)
                self._recall(ask.key)
            self._reply(ask, answer)

    def _forget(self, move: Move) -> None:
        hungry = self._hungry.get(move.key)
        if hungry is not None:
            hungry.pop(move.owner, None)
            if not hungry:
                del self._hungry[move.key]

    def _recall(self, key: Key) -> None:
        now = time.monotonic()
        if self._on_recall is None or now - self._recalled_at.get(key, -RECALL_PAUSE_S) < RECALL_PAUSE_S:
            return
        if len(self._recalled_at) > _REMEMBERED:
            self._recalled_at.clear()
        self._recalled_at[key] = now
        self._stats.recalls += 1
        try:
            self._on_recall(*key)
        except Exception:
            log.exception("recall_failed")

    def _reply(self, request: GrantRequest, answer: Answer) -> None:
        try:
            request.reply(answer.total, answer.more, answer.spent_out, answer.available, answer.others)
        except Exception:
            log.exception("grant_reply_failed", extra={"owner": request.owner})


def _granted(leasing: Leasing, asks: Iterable[GrantRequest]) -> _Answered:
    return [
        (ask, leasing.grant(ask.owner, ask.key, seen_total=ask.seen_total, want=ask.want, need=ask.need))
        for ask in asks
    ]


def _was_helped(answer: Answer | None) -> bool:
    """Whether somebody who waited need wait no more."""
    return answer is None or bool(answer.granted or answer.repeated)


def _overtaken(group: Iterable[Move]) -> set[tuple[str, Key]]:
    """Whose last word on a purse was a return after an ask: that ask is answered and not remembered."""
    last: dict[tuple[str, Key], bool] = {}
    for move in group:
        last[move.owner, move.key] = isinstance(move, Return)
    return {moved for moved, was_return in last.items() if was_return}


def _is_outage(exc: Exception) -> bool:
    """Whether the database is to blame, rather than what it was given."""
    return isinstance(exc, DatabaseError | InterfaceError) and not isinstance(exc, DataError | IntegrityError)
