"""What a worker tells control, once a second, beside its books: circuits that opened or closed, requests it refused.

Everything is bounded and may be lost: it is for events, which are told to people and programs, never for money. Pure:
no clock of its own, no I/O; the line to control is the callable `send`.

Items are small tuples, the kind first, times in Unix seconds:

    ("circuit", at, provider id, "open" | "half-open" | "closed", what failed last)
    ("refused", at, "auth" | "limit" | "budget" | "privacy", code, status, key id, key prefix, model, request id, 0)
    ("refused", minute, kind, code, status, key id, key prefix, "", "", how many more there were in that minute)
    ("loop", minute, agent id, digest of the prompt, how often it came in that minute so far)
    ("rate_limited", at, provider id, 0), and at the minute's end with how many more there were
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from gateway.errors import (
    BudgetExceededError,
    ForbiddenError,
    GatewayError,
    LimitError,
    PriceUnknownError,
    UnauthorizedError,
)

Item = tuple[Any, ...]

BUFFER = 1000  # items not told yet; the oldest go first
COUNTED = 4096  # different refusals counted per minute; further ones are counted together
OTHERS = -1  # the key id of those
MODEL_CHARS = 256
_CODE_CHARS = 64


class Circuit(Protocol):
    """What is looked at of `providers.health.Circuit`."""

    open_until: float
    last_error: str


def kind_of(error: GatewayError) -> str:
    """Which kind of refusal an error is: "auth", "limit", "budget" or "privacy"; "" for what is none."""
    if (error.code or "").startswith("privacy"):
        return "privacy"
    if isinstance(error, BudgetExceededError | PriceUnknownError):
        return "budget"
    if isinstance(error, LimitError):
        return "limit"
    if isinstance(error, UnauthorizedError | ForbiddenError):
        return "auth"
    return ""


class _Count:
    __slots__ = ("item", "more")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.more = 0


class Happenings:
    """Collects what happens in one worker. Every method belongs to the worker's loop and returns at once."""

    def __init__(self, *, buffer: int = BUFFER, counted: int = COUNTED) -> None:
        self.send: Callable[[list[Item]], bool] | None = None  # False: there is no line just now
        self.dropped = 0
        self._items: deque[Item] = deque(maxlen=buffer)
        self._most = counted
        self._minute = 0
        self._counts: dict[tuple[Any, ...], _Count] = {}
        self._circuits: dict[int, str] = {}

    def refused(
        self, error: GatewayError, now: float, *, key_id: int = 0, key: str = "", model: str = "", request_id: str = ""
    ) -> None:
        """A request was answered with `error`. The first of its kind, key and minute is told; more are counted.

        `key` is the start of the key that may be shown; `now` Unix seconds.
        """
        kind = kind_of(error)
        if not kind:
            return
        code = (error.code or error.type)[:_CODE_CHARS]
        name: tuple[Any, ...] = ("refused", kind, code, key_id)
        item = ("refused", now, kind, code, error.status, key_id, key, model[:MODEL_CHARS], request_id, 0)
        others = ("refused", now, kind, code, error.status, OTHERS, "", "", "", 0)
        self._count(name, item, ("refused", kind, code, OTHERS), others, now)

    def rate_limited(self, provider_id: int, now: float) -> None:
        """A provider answered that it gets too many requests."""
        name = ("rate_limited", provider_id)
        item = ("rate_limited", now, provider_id, 0)
        self._count(name, item, name, item, now)

    def tell(self, item: Item) -> None:
        """Anything else, as it is."""
        self._tell(item)

    def circuit(self, number: int, provider_id: int, state: str, error: str, now: float) -> None:
        """A circuit is in this state; told when that is news. `number` names the circuit in this worker."""
        before = self._circuits.get(number, "closed")
        if state == before:
            return
        if state == "closed":
            self._circuits.pop(number, None)
        else:
            self._circuits[number] = state
        self._tell(("circuit", now, provider_id, state, error[:_CODE_CHARS]))

    def watch(self, circuits: Iterable[tuple[int, Circuit]], clock: float, now: float) -> None:
        """Look at every (provider id, circuit); `clock` is the circuits' monotonic clock, `now` Unix seconds.

        A circuit that opens and closes between two looks is not told.
        """
        seen = set()
        for provider_id, circuit in circuits:
            open_until = circuit.open_until
            state = "closed" if not open_until else "open" if clock < open_until else "half-open"
            self.circuit(id(circuit), provider_id, state, circuit.last_error, now)
            seen.add(id(circuit))
        for number in self._circuits.keys() - seen:  # its provider is gone
            del self._circuits[number]

    def flush(self, now: float) -> None:
        """Send what has come together; what cannot be sent is kept. Call it once a second."""
        self._turn(now)
        if not self._items or self.send is None:
            return
        items = list(self._items)
        if self.send(items):
            self._items.clear()

    def _count(self, name: tuple[Any, ...], item: Item, other_name: tuple[Any, ...], other: Item, now: float) -> None:
        self._turn(now)
        known = self._counts.get(name)
        if known is None and len(self._counts) >= self._most:
            name, item = other_name, other
            known = self._counts.get(name)
        if known is not None:
            known.more += 1
            return
        self._counts[name] = _Count(item)
        self._tell(item)

    def _turn(self, now: float) -> None:
        minute = int(now // 60)
        if minute == self._minute:
            return
        ended, self._minute = self._minute * 60, minute
        counts, self._counts = self._counts, {}
        for count in counts.values():
            if count.more:
                self._tell(_summed(count, ended))

    def _tell(self, item: Item) -> None:
        if len(self._items) == self._items.maxlen:
            self.dropped += 1
        self._items.append(item)


def _summed(count: _Count, minute: int) -> Item:
    """What is told of the further ones of a minute."""
    item = count.item
    if item[0] == "refused":
        return (item[0], minute, *item[2:7], "", "", count.more)
    return (item[0], minute, *item[2:-1], count.more)
