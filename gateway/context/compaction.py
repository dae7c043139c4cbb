"""Which messages of a conversation may go so that the rest fits. Pure, over decoded canonical chat messages.

What is kept whatever happens: every instruction (system, developer), the first turn of the user, which says what it is
all about, the last one, and the last thing said. Of the rest the newest that fit. A tool call and its results are one
thing: they stay together or go together. Order is kept, nothing is put in the place of what went.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

INSTRUCTIONS = frozenset({"system", "developer"})
RESULTS = frozenset({"tool", "function"})
USER, ANSWER, TOOLS = "user", "answer", "tools"

Message = Mapping[str, Any]


class Unit:
    """Messages that stay or go together, by their places in the conversation, ascending."""

    __slots__ = ("kind", "places")

    def __init__(self, kind: str, place: int) -> None:
        self.kind, self.places = kind, [place]

    def __repr__(self) -> str:
        return f"<{self.kind} {self.places}>"

    def cost(self, costs: Sequence[int]) -> int:
        """Its tokens."""
        return sum([costs[place] for place in self.places])


def units_of(messages: Sequence[Message]) -> list[Unit]:
    """A conversation without its instructions, in units, by the place of their first message.

    A result belongs to the call it names, wherever that stands; one that names none, to the latest call.
    """
    units: list[Unit] = []
    by_call: dict[str, Unit] = {}
    latest: Unit | None = None
    for place, message in enumerate(messages):
        role = message.get("role")
        if role in INSTRUCTIONS:
            continue
        if role in RESULTS:
            id = message.get("tool_call_id")
            owner = by_call.get(id) if isinstance(id, str) else None
            owner = owner or latest or (units[-1] if units else None)
            if owner is not None:
                owner.places.append(place)
                continue
        unit = Unit(USER if role == "user" else ANSWER, place)
        units.append(unit)
        if role == "assistant" and _calls(message, unit, by_call):
            unit.kind, latest = TOOLS, unit
    return units


def _calls(message: Message, unit: Unit, by_call: dict[str, Unit]) -> bool:
    """Note the tool calls of a message; whether it has any."""
    calls = message.get("tool_calls")
    listed = calls if isinstance(calls, list) else []
    for call in listed:
        if isinstance(call, dict) and isinstance(id := call.get("id"), str):
            by_call[id] = unit
    return bool(listed) or message.get("function_call") is not None


def kept(messages: Sequence[Message], costs: Sequence[int], room: int) -> list[int] | None:
    """The places of the messages to keep so that their `costs` are at most `room`, ascending.

    None where all of them fit, and where even what must be kept does not: then nothing is dropped, and the provider may
    say what it thinks of it.
    """
    if sum(costs) <= room:
        return None
    units = units_of(messages)
    if not units:
        return None
    fixed = _fixed(units)
    room -= sum(costs[place] for place, message in enumerate(messages) if message.get("role") in INSTRUCTIONS)
    room -= sum(units[number].cost(costs) for number in fixed)
    if room < 0:
        return None
    chosen = set(fixed)
    for number in range(len(units) - 1, -1, -1):
        if number in fixed:
            continue
        cost = units[number].cost(costs)
        if cost > room:
            break
        room -= cost
        chosen.add(number)
    _alternate(units, costs, room, fixed, chosen)
    places = {place for number in chosen for place in units[number].places}
    return [place for place, message in enumerate(messages) if place in places or message.get("role") in INSTRUCTIONS]


def _fixed(units: Sequence[Unit]) -> frozenset[int]:
    """The units that are always kept: the first and the last turn of the user, and the end.

    Messages of the user in a row are one turn. Where that is the whole conversation, only its first and last are.
    """
    fixed = {max(range(len(units)), key=lambda number: units[number].places[-1])}
    users = [number for number, unit in enumerate(units) if unit.kind == USER]
    if users:
        first, last = users[0], users[-1]
        first_end, last_start = first, last
        while first_end + 1 < len(units) and units[first_end + 1].kind == USER:
            first_end += 1
        while last_start and units[last_start - 1].kind == USER:
            last_start -= 1
        if first_end >= last_start:  # one and the same
            first_end, last_start = first, last
        fixed.update(range(first, first_end + 1), range(last_start, last + 1))
    return frozenset(fixed)


def _alternate(
    units: Sequence[Unit], costs: Sequence[int], room: int, fixed: Collection[int], chosen: set[int]
) -> None:
    """Where what went leaves two turns of the user side by side, keep the first answer between them, or else drop the
    later one too if it may go: some models refuse two turns of one side."""
    first = next((number for number, unit in enumerate(units) if unit.kind == USER), None)
    if first is None:
        return
    while first + 1 < len(units) and units[first + 1].kind == USER and first + 1 in chosen:
        first += 1
    answer = first + 1
    if answer >= len(units) or answer in chosen:
        return
    behind = next((number for number in range(answer, len(units)) if number in chosen), None)
    if behind is None or units[behind].kind != USER:
        return
    if units[answer].kind == ANSWER and units[answer].cost(costs) <= room:
        chosen.add(answer)
        return
    dropped = []
    while behind < len(units) and units[behind].kind == USER and behind not in fixed:
        dropped.append(behind)
        behind += 1
    if behind < len(units) and units[behind].kind != USER:
        chosen.difference_update(dropped)
