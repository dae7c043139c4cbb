"""Whether the log still is what was signed: looked at all the time, told at once.

Two walks over the entries rebuild the tree and hold it against every checkpoint. The front walk follows the newest
checkpoint, so what was appended is verified within a second. The round walk begins at the first entry again and again,
slowly, and finds what somebody changed later. A fault stays until a whole round, begun after it, went by without one.

`Checker` is a job of the ledger's writer. `look` answers for a page or an API reply: it takes the walks as they are
stored and verifies what came since, without writing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from audit.models import AuditState, Checkpoint
from audit.walking import Fault, Walk, head

log = logging.getLogger("hoosh.audit")

STATE = "checking"
PERIOD_S = 0.5
ROUND_ENTRIES = 500  # in one period: about 10 ms of work
FRONT_ENTRIES = 2000
LOOK_ENTRIES = 2000  # verified for one reply; what is further behind the job has not reached is told as `behind`
STORE_S = 30.0  # between two writes of the round's place
ROUND_PAUSE_S = (5.0, 60.0)  # behind a round, as long as it took, within these
RETRY_S = 30.0  # before a walk that met a fault is tried again


class Busy:
    """Whether more than so many things were done since it was last asked, by a counter of them."""

    def __init__(self, most: int = 200) -> None:
        self._most, self._counted = most, 0

    def __call__(self, counter: int) -> bool:
        """Ask with the counter as it is now."""
        before, self._counted = self._counted, counter
        return counter - before > self._most


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known about the log just now. `valid` is False exactly when `fault` is not None."""

    fault: Fault | None
    fault_at: str  # when it was found, "" without one
    verified: int  # entries verified since they were written, from the first on
    behind: int  # entries under the last checkpoint that were not looked at yet
    round_at: str  # when the last whole round was finished; "" before
    round_entries: int  # how many it verified
    round_next: int  # where the one under way stands
    checkpoint: Checkpoint | None

    @property
    def valid(self) -> bool:
        """Whether no fault is known."""
        return self.fault is None

    def as_dict(self) -> dict[str, Any]:
        """For the API."""
        last = self.checkpoint
        return {
            "entries": self.verified,
            "behind": self.behind,
            "checkpoint": None if last is None else {"log": last.note.split("\n", 1)[0], "size": last.size},
            "last_full_pass": self.round_at or None,
            "last_full_pass_entries": self.round_entries,
            "fault": None if self.fault is None else {**self.fault.as_dict(), "found": self.fault_at},
        }


class Checker:
    """The job. `on_fault` is called once for each new fault, in the writer's thread; `busy` puts the round off."""

    def __init__(
        self,
        *,
        on_fault: Callable[[Fault], None] | None = None,
        busy: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        round_entries: int = ROUND_ENTRIES,
        round_pause_s: tuple[float, float] = ROUND_PAUSE_S,
    ) -> None:
        self.period_s = PERIOD_S
        self._on_fault, self._busy, self._clock = on_fault, busy, clock
        self._round_entries, self._round_pause_s = round_entries, round_pause_s
        self._state: _State | None = None
        self._stored = ""
        self._round_from = self._front_from = self._store_from = self._round_since = 0.0

    def run(self, connection: BaseDatabaseWrapper) -> None:
        """A step of both walks."""
        if self._state is None:
            self._state = load()
            self._stored = self._state.text()
        state, now = self._state, self._clock()
        try:
            if now >= self._front_from:
                self._front(state, now)
            if now >= self._round_from and not self._busy():
                self._round(state, now)
        finally:
            self._store(state, now)

    def owner_ended(self, connection: BaseDatabaseWrapper, owner: str) -> None:
        """Nothing depends on workers."""

    def _front(self, state: _State, now: float) -> None:
        walk = state.front.copy()
        fault = walk.step(FRONT_ENTRIES)
        if fault is not None:
            self._found(state, fault)
            self._front_from = now + RETRY_S  # it stands where it stood: what was signed did not come back
        else:
            state.front = walk

    def _round(self, state: _State, now: float) -> None:
        if not state.round_began:
            state.round, state.round_began, self._round_since = Walk(), _now(), now
        fault = state.round.step(self._round_entries)
        if fault is not None:
            self._found(state, fault)
            state.round_began = ""
            self._round_from = now + RETRY_S
        elif state.round.reached(state.front):
            self._round_ended(state)
            least, most = self._round_pause_s
            self._round_from = now + min(most, max(least, now - self._round_since))

    def _round_ended(self, state: _State) -> None:
        if state.fault is not None and state.round_began > state.fault_at and self._front_from <= self._clock():
            log.warning("audit_log_valid_again", extra={"fault": state.fault.what})
            state.fault, state.fault_at = None, ""
        state.round_at, state.round_entries, state.round_began = _now(), state.round.seq, ""

    def _found(self, state: _State, fault: Fault) -> None:
        known, state.fault, state.fault_at = state.fault, fault, _now()
        if known is not None and known.seq == fault.seq:
            return
        log.critical("audit_log_broken", extra={"seq": fault.seq, "reason": fault.what})
        if self._on_fault is not None:
            try:
                self._on_fault(fault)
            except Exception:
                log.exception("audit_fault_not_told")

    def _store(self, state: _State, now: float) -> None:
        text = state.text()
        if text != self._stored and (now >= self._store_from or state.differs(self._stored)):
            AuditState.objects.update_or_create(name=STATE, defaults={"value": text})
            self._stored, self._store_from = text, now + STORE_S


class _State:
    """Both walks and what they found, as stored."""

    def __init__(self, stored: dict[str, Any]) -> None:
        self.front = Walk.from_dict(stored.get("front"))
        self.round = Walk.from_dict(stored.get("round"))
        self.round_began = str(stored.get("round_began", ""))
        self.round_at = str(stored.get("round_at", ""))
        self.round_entries = int(stored.get("round_entries", 0))
        self.fault_at = str(stored.get("fault_at", ""))
        self.fault = Fault.from_dict(stored.get("fault"))

    def text(self) -> str:
        return json.dumps(
            {
                "front": self.front.as_dict(),
                "round": self.round.as_dict(),
                "round_began": self.round_began,
                "round_at": self.round_at,
                "round_entries": self.round_entries,
                "fault": None if self.fault is None else self.fault.as_dict(),
                "fault_at": self.fault_at,
            },
            sort_keys=True,
        )

    def differs(self, stored: str) -> bool:
        """Whether more than the place of the walks is new, so that it must be stored at once."""
        before = json.loads(stored)
        return bool(before["fault_at"] != self.fault_at)


def load() -> _State:
    """The walks as stored; from the beginning where nothing readable is."""
    return _read(AuditState.objects.filter(name=STATE).values_list("value", flat=True).first())


def _read(text: str | None) -> _State:
    try:
        found = json.loads(text) if text else {}
        return _State(found if isinstance(found, dict) else {})
    except (ValueError, TypeError, KeyError):
        return _State({})


def look(entries: int = LOOK_ENTRIES) -> Verdict:
    """What is known now. Verifies, from where the job stands, up to so many entries up to the newest checkpoint."""
    state = load()
    fault, fault_at = state.fault, state.fault_at
    walk = state.front
    if fault is None:
        fault = walk.step(entries)
        fault_at = _now() if fault is not None else ""
    last = head()
    size = 0 if last is None else last.log_first_seq + last.row.size
    return Verdict(
        fault=fault,
        fault_at=fault_at,
        verified=walk.seq,
        behind=max(0, size - walk.seq),
        round_at=state.round_at,
        round_entries=state.round_entries,
        round_next=state.round.seq,
        checkpoint=None if last is None else last.row,
    )


def trouble() -> str:
    """What an operator should know of the log, as stored: a fault, or why nothing is appended; "" when all is well."""
    texts = dict(AuditState.objects.filter(name__in=(STATE, "keeper")).values_list("name", "value"))
    state = _read(texts.get(STATE))
    if state.fault is not None:
        return f"It is not what was signed. {state.fault.what}"
    keeper = json.loads(texts["keeper"]) if "keeper" in texts else {}
    return f"Nothing is being logged. {keeper['detail']}" if keeper.get("state", "ok") != "ok" else ""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
