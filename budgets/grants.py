"""Answering workers that ask for more, and finding it for those who found none. Runs in the writer's thread.

An ask that cannot be met while other workers still have some is remembered: the others are told to return what is idle
(`on_recall`), and the ask is answered again as soon as something came back. Rests of windows that ended are carried
over here as well, because they come back in the same ways.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from budgets.ledger import Answer, Ledger, sources_of
from budgets.ledger_books import Key
from budgets.stats import WriterStats
from budgets.windows import WindowSpec

log = logging.getLogger("hoosh.ledger")

RECALL_PAUSE_S = 0.05  # between two recalls of one purse
HUNGRY_S = 5.0  # so long an unmet ask is remembered; a worker that still waits asks again before
_REMEMBERED = 4096  # recalls and dead owners: windows and workers come and go

GrantReply = Callable[[int, bool, bool, int], object]  # total, more, spent_out, available
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

    @property
    def key(self) -> Key:
        """The purse it asks for."""
        return self.pool_id, self.unit, self.window_start


class Grants:
    """The asks of all workers of this host, and what is carried over from window to window."""

    def __init__(self, on_recall: OnRecall | None, stats: WriterStats) -> None:
        self._on_recall = on_recall
        self._stats = stats
        self._hungry: dict[Key, dict[str, tuple[float, GrantRequest]]] = {}
        self._recalled_at: dict[Key, float] = {}
        self._sources: dict[Key, Key] = {}  # purses that get the rest of an earlier window, and that one
        self._ended: dict[str, None] = {}  # owners that are dead, oldest first

    def serve(self, ledger: Ledger, request: GrantRequest) -> None:
        """Answer an ask. Nothing is said when its purse does not exist (yet): the worker asks again.

        What a worker asked for just before it died may come after its end; nobody would ever give that lease back.
        """
        if request.owner in self._ended:
            return
        answer = self._grant(ledger, request)
        if answer is None:
            return
        hungry = self._hungry.setdefault(request.key, {})
        hungry.pop(request.owner, None)
        if request.need and not (answer.granted or answer.repeated or answer.spent_out):
            hungry[request.owner] = (time.monotonic(), request)
            self._recall(request.key)
        if not hungry:
            del self._hungry[request.key]
        self._reply(request, answer)

    def give_back(self, ledger: Ledger, owner: str, key: Key, returned_total: int) -> None:
        """Take in what was returned and offer it to those who lack some."""
        if owner in self._ended:
            return
        # What this owner had asked for, it asked while it still had what it returns now; it asks anew.
        self._hungry.get(key, {}).pop(owner, None)
        if ledger.give_back(owner, *key, returned_total):
            if key in self._sources.values():
                self.carry_rests(ledger)
            self._offer(ledger, key)

    def sync_windows(self, ledger: Ledger, specs: Sequence[WindowSpec]) -> None:
        """Make windows or change their limits. Raised, waiting asks are met; lowered, idle amounts are called back."""
        changes = ledger.sync_windows(specs)
        for spec in specs:
            self._sources.pop((spec.pool_id, spec.unit, spec.window_start), None)
        self._sources.update({**ledger.late_sources(specs), **sources_of(specs)})
        for key, change in changes.items():
            if change > 0:
                self._offer(ledger, key)
            elif change < 0:
                self._recall(key)

    def carry_rests(self, ledger: Ledger) -> None:
        """Carry over what became free in earlier windows; those from which nothing more can come are forgotten."""
        if not self._sources:
            return
        rests = ledger.rests(self._sources.values())
        pairs = {source: target for target, source in self._sources.items() if rests.get(source, (0, 0))[0] > 0}
        for key in ledger.carry(pairs) if pairs else ():
            self._offer(ledger, key)
        for target, source in list(self._sources.items()):
            free, leased = rests.get(source, (0, 0))
            if free <= 0 and not leased and source not in self._sources:  # else a rest may come to it yet
                del self._sources[target]

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
        for key in list(self._hungry):
            self._offer(ledger, key)

    def _grant(self, ledger: Ledger, request: GrantRequest) -> Answer | None:
        return ledger.grant(
            request.owner, *request.key, seen_total=request.seen_total, want=request.want, need=request.need
        )

    def _offer(self, ledger: Ledger, key: Key) -> None:
        hungry = self._hungry.get(key, {})
        for owner, (since, request) in list(hungry.items()):
            answer = self._grant(ledger, request) if time.monotonic() - since < HUNGRY_S else None
            if answer is None or answer.granted or answer.repeated:
                del hungry[owner]
            if answer is not None and answer.granted:
                self._reply(request, answer)
        if not hungry:
            self._hungry.pop(key, None)

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
            request.reply(answer.total, answer.more, answer.spent_out, answer.available)
        except Exception:
            log.exception("grant_reply_failed", extra={"owner": request.owner})
