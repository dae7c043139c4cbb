"""Answering workers that ask for tokens, and finding tokens for those who found none. Runs in the writer's thread.

An ask that cannot be met while other workers still have tokens is remembered: the others are told to return what is
idle (`on_recall`), and the ask is answered again as soon as something came back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from budgets.ledger import Answer, Ledger
from budgets.stats import WriterStats

log = logging.getLogger("hoosh.ledger")

RECALL_PAUSE_S = 0.05  # between two recalls of one window
HUNGRY_S = 5.0  # so long an unmet ask is remembered; a worker that still waits asks again before

GrantReply = Callable[[int, bool, bool, int], object]  # total, more, spent_out, available


class GrantRequest(NamedTuple):
    """One ask of one worker; amounts in tokens."""

    owner: str
    pool_id: int
    window_start: int
    seen_total: int
    want: int
    need: int
    reply: GrantReply


class Grants:
    """The asks of all workers of this host."""

    def __init__(self, on_recall: Callable[[int, int], None] | None, stats: WriterStats) -> None:
        self._on_recall = on_recall
        self._stats = stats
        self._hungry: dict[tuple[int, int], dict[str, tuple[float, GrantRequest]]] = {}
        self._recalled_at: dict[tuple[int, int], float] = {}

    def serve(self, ledger: Ledger, request: GrantRequest) -> None:
        """Answer an ask. Nothing is said when its window does not exist (yet): the worker asks again."""
        answer = self._grant(ledger, request)
        if answer is None:
            return
        window = (request.pool_id, request.window_start)
        hungry = self._hungry.setdefault(window, {})
        hungry.pop(request.owner, None)
        if request.need and not (answer.granted or answer.repeated or answer.spent_out):
            hungry[request.owner] = (time.monotonic(), request)
            self._recall(window)
        if not hungry:
            del self._hungry[window]
        self._reply(request, answer)

    def give_back(self, ledger: Ledger, owner: str, pool_id: int, window_start: int, returned_total: int) -> None:
        """Take returned tokens in and offer them to those who lack some."""
        window = (pool_id, window_start)
        # What this owner had asked for, it asked while it still had what it returns now; it asks anew.
        self._hungry.get(window, {}).pop(owner, None)
        if ledger.give_back(owner, pool_id, window_start, returned_total):
            self._offer(ledger, window)

    def set_capacity(self, ledger: Ledger, pool_id: int, window_start: int, capacity: int) -> None:
        """Change a window's capacity. Raised, waiting asks are met; lowered, idle tokens are called back."""
        change = ledger.set_capacity(pool_id, window_start, capacity)
        if change > 0:
            self._offer(ledger, (pool_id, window_start))
        elif change < 0:
            self._recall((pool_id, window_start))

    def owner_ended(self, ledger: Ledger, owner: str) -> None:
        """A worker's leases went back: forget its asks, offer its tokens to others."""
        for window in list(self._hungry):
            self._hungry[window].pop(owner, None)
            self._offer(ledger, window)

    def _grant(self, ledger: Ledger, request: GrantRequest) -> Answer | None:
        return ledger.grant(
            request.owner,
            request.pool_id,
            request.window_start,
            seen_total=request.seen_total,
            want=request.want,
            need=request.need,
        )

    def _offer(self, ledger: Ledger, window: tuple[int, int]) -> None:
        hungry = self._hungry.get(window, {})
        for owner, (since, request) in list(hungry.items()):
            answer = self._grant(ledger, request) if time.monotonic() - since < HUNGRY_S else None
            if answer is None or answer.granted or answer.repeated:
                del hungry[owner]
            if answer is not None and answer.granted:
                self._reply(request, answer)
        if not hungry:
            self._hungry.pop(window, None)

    def _recall(self, window: tuple[int, int]) -> None:
        now = time.monotonic()
        if self._on_recall is None or now - self._recalled_at.get(window, -RECALL_PAUSE_S) < RECALL_PAUSE_S:
            return
        self._recalled_at[window] = now
        self._stats.recalls += 1
        try:
            self._on_recall(*window)
        except Exception:
            log.exception("recall_failed")

    def _reply(self, request: GrantRequest, answer: Answer) -> None:
        try:
            request.reply(answer.total, answer.more, answer.spent_out, answer.available)
        except Exception:
            log.exception("grant_reply_failed", extra={"owner": request.owner})
