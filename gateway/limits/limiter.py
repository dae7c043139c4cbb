"""Whether a request may go on: requests and tokens per minute and requests at once, of everything it belongs to.

    subjects = group(("key", 12, Limits(requests_per_minute=60)), ("provider", 3, Limits(), True))   # with a snapshot
    ticket = limiter.admit(subjects, tokens=1_500)
    if isinstance(ticket, Refusal): ...
    try: ...; ticket.settle(812)
    finally: ticket.leave()

All of a request's subjects are looked at first, under the locks of their stripes, and taken from only when all allow
it, so that a refusal leaves no trace and needs no rollback. Without a subject nothing is done at all.

Tokens are counted by an estimate when the request is admitted and corrected by `leave` (`gcra.settled` says how this
stays exact). Until `leave` the request also counts as in flight. A worker that is killed leaves both behind: others
free the count (`Slots.bury_dead`, also when a limit of requests at once refuses somebody), and the estimate is charged.
"""

from __future__ import annotations

from collections.abc import Iterator
from fcntl import F_OFD_SETLKW, fcntl
from typing import Final, Literal, NamedTuple

from gateway.limits import gcra
from gateway.limits.gcra import AHEAD_NS, MINUTE_NS
from gateway.limits.slot_file import ROW_WORDS, ROWS, STRIPE_LOCKS, STRIPES_UNLOCK
from gateway.limits.slots import (
    COUNT_BITS,
    COUNT_MASK,
    HELD,
    MARK,
    NO_ROW,
    PER_MINUTE,
    REQUESTS,
    SEEN,
    TOKENS,
    USED,
    Slots,
    key_of,
    stripe_of,
)

LIMIT_MAX: Final = 10**9  # what a reservation may be, so that no sum of them leaves its word
BUSY_RETRY_S = 1.0  # told where requests at once are limited: nobody knows when one of them ends
_BURY_AGAIN_NS = 50 * 10**6
_SECOND_NS = 10**9
_OF_REQUESTS: Final = (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests")
_OF_TOKENS: Final = (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens")

Headers = list[tuple[bytes, bytes]]
Reason = Literal["requests", "tokens", "concurrent", "larger_than_limit"]


class Limits(NamedTuple):
    """What one subject may do; None = no limit. Each at least 1 and at most `LIMIT_MAX`."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


class Subject:
    """Something with limits (a key, an agent, a team, a provider, a route), ready for the request path."""

    __slots__ = (
        *("burst", "concurrent", "counts", "id", "interval", "key", "kind", "limits", "mark", "name"),
        "tokens",
    )

    def __init__(self, kind: str, id: int, limits: Limits, counted: bool = False) -> None:
        """`counted`: requests in flight are counted also without a limit on them, for `Slots.in_flight`.

        Raises ValueError for a limit that is out of range.
        """
        if any(limit is not None and not 1 <= limit <= LIMIT_MAX for limit in limits):
            raise ValueError(f"A limit of {kind} {id} is not between 1 and {LIMIT_MAX}: {limits}.")
        self.kind, self.id, self.limits = kind, id, limits
        self.name = name_of(kind, id)
        self.key = key_of(self.name)
        rate = limits.requests_per_minute or 0
        self.interval = gcra.cost_ns(1, rate) if rate else 0  # ns; 0 = no limit, as in the next two
        self.burst = gcra.burst_ns(rate) if rate else 0
        self.tokens = limits.tokens_per_minute or 0
        self.concurrent = limits.concurrent or 0
        self.counts = bool(self.tokens or self.concurrent or counted)
        self.mark = hash(tuple(limit or 0 for limit in limits))

    @property
    def active(self) -> bool:
        """Whether there is anything to do for it."""
        return bool(self.interval or self.counts)


class Subjects:
    """The subjects of one request, with the locks they need in the one order everybody takes locks in."""

    __slots__ = ("counts", "locks", "members")

    def __init__(self, *members: Subject) -> None:
        """Raises ValueError where one stands twice. Those with nothing to do are left out."""
        self.members = tuple(member for member in members if member.active)
        if len({member.key for member in self.members}) < len(self.members):
            raise ValueError("A subject is named twice.")
        self.counts = any(member.counts for member in self.members)
        self.locks = tuple(STRIPE_LOCKS[stripe] for stripe in sorted({stripe_of(m.key) for m in self.members}))

    def __iter__(self) -> Iterator[Subject]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


def name_of(kind: str, id: int) -> bytes:
    """The name of a subject's row."""
    return b"%s:%d" % (kind.encode(), id)


def group(*subjects: tuple[str, int, Limits] | tuple[str, int, Limits, bool]) -> Subjects:
    """`Subjects` of `(kind, id, limits)` or `(kind, id, limits, counted)`."""
    return Subjects(*(Subject(*subject) for subject in subjects))


class Refusal(NamedTuple):
    """Why a request may not go on, and what to tell the client: the limit that takes longest to allow it.

    `reason` is "larger_than_limit" where the estimate alone is more than the tokens of a minute, so that waiting never
    helps: then `retry_after_s` is None.
    """

    kind: str
    id: int
    reason: Reason
    limit: int
    remaining: int
    reset_after_s: float  # until nothing is taken any more; 0 where nobody knows
    retry_after_s: float | None

    def headers(self) -> Headers:
        """The `x-ratelimit-*` headers of this limit; none where requests at once are limited."""
        if self.reason == "concurrent":
            return []
        names = _OF_REQUESTS if self.reason == "requests" else _OF_TOKENS
        return _headers(names, self.limit, self.remaining, int(self.reset_after_s * _SECOND_NS))


# What a ticket took of one subject, plain because it is made for each request: the subject; its row and its cell in
# this owner's column (words); the states with this request of the buckets of requests and tokens; the cost of the
# estimate (all ns); what is held, as packed in HELD (0 = nothing to give back).
Taken = tuple[Subject, int, int, int, int, int, int]


class Ticket:
    """The leave to go on. `leave` must be called once, however the request ends; again is harmless."""

    __slots__ = ("_generation", "_limiter", "_subjects", "_used", "since", "taken")

    def __init__(self, limiter: Limiter | None, subjects: Subjects, taken: list[Taken], since: int) -> None:
        """Made by `Limiter.admit`; without a limiter there is nothing to give back."""
        self._limiter = limiter
        self._generation = limiter.slots.generation if limiter is not None else 0
        self._subjects = subjects
        self._used: int | None = None
        self.taken = taken
        self.since = since

    def settle(self, tokens_used: int) -> None:
        """What the request came to in the end, or what is known of it so far; the last word counts, at `leave`."""
        self._used = tokens_used

    def leave(self) -> Subjects | None:
        """The request is over: no longer in flight, and its tokens are those settled, or the estimate without.

        Returns the subjects something was given back to; None where there was nothing to give back any more.
        """
        limiter, self._limiter = self._limiter, None
        if limiter is None or self._generation != limiter.slots.generation:
            return None
        limiter.leave(self._subjects, self.taken, self.since, self._used)
        return self._subjects

    def headers(self) -> Headers:
        """OpenAI's `x-ratelimit-*` headers as of the admission, each of the subject that has least left."""
        headers: Headers = []
        now = self.since
        least_requests = least_tokens = LIMIT_MAX + 1
        of_requests: Subject | None = None
        of_tokens: Subject | None = None
        reset_requests = reset_tokens = 0
        for subject, _, _, requests_at, tokens_at, _, _ in self.taken:
            if subject.interval:
                left = (subject.burst - (requests_at - now)) // subject.interval
                if left < least_requests:
                    least_requests, of_requests, reset_requests = left, subject, requests_at - now
            if subject.tokens:
                left = gcra.room(tokens_at, now, subject.tokens)
                if left < least_tokens:
                    least_tokens, of_tokens, reset_tokens = left, subject, tokens_at - now
        if of_requests is not None:
            limit = of_requests.limits.requests_per_minute or 0
            headers += _headers(_OF_REQUESTS, limit, least_requests, reset_requests)
        if of_tokens is not None:
            headers += _headers(_OF_TOKENS, of_tokens.tokens, least_tokens, reset_tokens)
        return headers


_FREE: Final = Ticket(None, Subjects(), [], 0)


class Limiter:
    """The limits of this host, as one worker asks for them."""

    def __init__(self, slots: Slots) -> None:
        """`slots`: this process's view of the host's table."""
        self.slots = slots
        self._buried_ns = 0

    def admit(self, subjects: Subjects, tokens: int = 0) -> Ticket | Refusal:
        """Take one request and `tokens` (the estimate, at least 0) from every subject, or from none of them."""
        if not subjects.members:
            return _FREE
        answer = self._try(subjects, tokens)
        if isinstance(answer, Refusal) and answer.reason == "concurrent" and self._bury():
            return self._try(subjects, tokens)
        return answer

    def _bury(self) -> bool:
        now = self.slots.clock()
        if now - self._buried_ns < _BURY_AGAIN_NS:
            return False
        self._buried_ns = now
        return self.slots.bury_dead() > 0

    def _try(self, subjects: Subjects, tokens: int) -> Ticket | Refusal:
        slots = self.slots
        fd, words, rows, column = slots.fd, slots.words, slots.rows, slots.column
        taken: list[Taken] = []
        try:
            for lock in subjects.locks:
                fcntl(fd, F_OFD_SETLKW, lock)
            now = slots.clock()
            horizon = now + AHEAD_NS
            for subject in subjects.members:
                key = subject.key
                row = rows.get(key, ROWS)
                if words[row] != key:
                    row = slots.find(key, subject.name, now)
                    if row == NO_ROW:
                        continue
                words[row + SEEN] = now  # so that looking for the next one's row does not take this one
                requests = full_at = cost = 0
                if subject.interval:
                    requests = words[row + REQUESTS]
                    if not now < requests <= horizon:
                        requests = now
                    requests += subject.interval
                    if requests - now > subject.burst:
                        return self._refusal(subjects, tokens, now)
                if subject.tokens:
                    full_at = words[row + TOKENS]
                    if not now < full_at <= horizon:
                        full_at = now
                    cost = -(-tokens * MINUTE_NS // subject.tokens)
                    full_at += cost
                    if full_at - now > MINUTE_NS:
                        return self._refusal(subjects, tokens, now)
                if subject.concurrent and words[row + HELD] & COUNT_MASK >= subject.concurrent:
                    return self._refusal(subjects, tokens, now)
                held = (tokens << COUNT_BITS) + 1 if subject.tokens else int(subject.counts)
                taken.append((subject, row, column + (row - ROWS) // ROW_WORDS, requests, full_at, cost, held))
            self._take(taken, now)
            return Ticket(self if subjects.counts else None, subjects, taken, now)
        finally:
            fcntl(fd, F_OFD_SETLKW, STRIPES_UNLOCK)

    def _take(self, taken: list[Taken], now: int) -> None:
        words = self.slots.words
        for subject, row, cell, requests, full_at, _, held in taken:
            if words[row + MARK] != subject.mark:
                words[row + PER_MINUTE] = subject.limits.requests_per_minute or 0
                words[row + PER_MINUTE + 1] = subject.tokens
                words[row + PER_MINUTE + 2] = subject.concurrent
                words[row + MARK] = subject.mark
            if requests:
                words[row + REQUESTS] = requests
            if full_at:
                words[row + TOKENS] = full_at
            if held:  # the cell first: see `slots`
                words[cell] += held
                words[row + HELD] += held

    def leave(self, subjects: Subjects, taken: list[Taken], since: int, used: int | None) -> None:
        """Give back what a ticket holds. For `Ticket.leave`."""
        slots = self.slots
        fd, words = slots.fd, slots.words
        try:
            for lock in subjects.locks:
                fcntl(fd, F_OFD_SETLKW, lock)
            now = slots.clock()
            for subject, row, cell, _, counted, cost, held in taken:
                if not held:
                    continue
                after = words[row + HELD] - held
                if subject.tokens:
                    counted, words[row + USED] = gcra.settled(
                        words[row + TOKENS],
                        words[row + USED],
                        gcra.cost_ns(after >> COUNT_BITS, subject.tokens),
                        since,
                        now,
                        cost,
                        cost if used is None else gcra.cost_ns(used, subject.tokens),
                    )
                words[row + HELD] = after  # before the cell: see `slots`
                words[cell] -= held
                if subject.tokens:
                    words[row + TOKENS] = counted
        finally:
            fcntl(fd, F_OFD_SETLKW, STRIPES_UNLOCK)

    def _refusal(self, subjects: Subjects, tokens: int, now: int) -> Refusal:
        worst: tuple[float, Refusal] | None = None
        for subject in subjects.members:
            row = self.slots.find(subject.key, subject.name, now)
            if row == NO_ROW:
                continue
            for refusal in self._refusals(subject, row, tokens, now):
                wait = float("inf") if refusal.retry_after_s is None else refusal.retry_after_s
                if worst is None or wait > worst[0]:
                    worst = (wait, refusal)
        assert worst is not None, "asked for the reason of an admission"
        return worst[1]

    def _refusals(self, subject: Subject, row: int, tokens: int, now: int) -> Iterator[Refusal]:
        words, kind, id = self.slots.words, subject.kind, subject.id
        if subject.interval:
            ahead = gcra.started(words[row + REQUESTS], now) - now
            wait = ahead + subject.interval - subject.burst
            if wait > 0:
                limit = subject.limits.requests_per_minute or 0
                yield Refusal(kind, id, "requests", limit, 0, ahead / _SECOND_NS, wait / _SECOND_NS)
        if subject.tokens:
            full_at = gcra.started(words[row + TOKENS], now)
            wait = full_at - now + gcra.cost_ns(tokens, subject.tokens) - MINUTE_NS
            if wait > 0:
                reason: Reason = "larger_than_limit" if tokens > subject.tokens else "tokens"
                left, reset_after_s = gcra.room(full_at, now, subject.tokens), (full_at - now) / _SECOND_NS
                retry_after_s = None if tokens > subject.tokens else wait / _SECOND_NS
                yield Refusal(kind, id, reason, subject.tokens, left, reset_after_s, retry_after_s)
        if subject.concurrent and words[row + HELD] & COUNT_MASK >= subject.concurrent:
            yield Refusal(kind, id, "concurrent", subject.concurrent, 0, 0.0, BUSY_RETRY_S)


def duration(ns: int) -> bytes:
    """A time as OpenAI's headers have it, rounded up to milliseconds: `0s`, `4ms`, `1s`, `8.64s`, `6m0s`, `1h0m0s`."""
    ms = -(-ns // 1_000_000) if ns > 0 else 0
    if 0 < ms < 1000:
        return b"%dms" % ms
    minutes, ms = divmod(ms, 60_000)
    seconds = f"{ms // 1000}.{ms % 1000:03d}".rstrip("0").rstrip(".").encode() + b"s"
    if not minutes:
        return seconds
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%s" % (hours, minutes, seconds) if hours else b"%dm%s" % (minutes, seconds)


def _headers(names: tuple[bytes, bytes, bytes], limit: int, remaining: int, reset_ns: int) -> Headers:
    name, name_of_remaining, name_of_reset = names
    return [(name, b"%d" % limit), (name_of_remaining, b"%d" % remaining), (name_of_reset, duration(reset_ns))]
