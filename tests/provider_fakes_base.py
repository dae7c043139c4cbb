"""What the faked provider APIs share: what a request comes to, what is said to it, and how a request is found wrong.

A faked API (`Api`) reads requests strictly by its documentation into a `Talk`, and tells the same answer to the same
talk. The words of the prompt choose what happens; see `tests.provider_fakes`.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

Json = dict[str, Any]

HELLO = ("Hel", "lo the", "re.")
SUNNY = ("It is sunny", " in Paris.")
LOOK = ("Let me look.",)
THOUGHT = ("Let me ", "think.")
TOOL, CITIES = "get_weather", ("Paris", "Rome")
ARGUMENTS = {"city": CITIES[0]}
LEAKED = "4111 1111 1111 1111"  # the number of a test card
WEATHER = "Sunny, 21 degrees."  # what the tests answer the tool call with

INPUT, CACHED, OUTPUT, REASONING = 11, 4, 7, 3  # tokens of every answer; reasoning only where there was some
COUNTED = 23  # what token counters say
RETRY_AFTER_S = 7
REFUSAL = "The prompt holds a forbidden word."

# What only the provider that made it takes back.
SIGNATURES = {"anthropic": "RXNWQmFudGhyb3BpYw==", "google": "Q3Zjd2dvb2dsZQ==", "openai": "gAAAAABresponses"}
FAULTS = ("FAIL429", "FAIL500", "FAILAUTH", "FAILBAD", "CUT", "SHORT", "MIDERR", "SLOW")


class InvalidError(Exception):
    """The request is not what the API documents. `param` names the place."""

    def __init__(self, message: str, param: str = "") -> None:
        super().__init__(message)
        self.message, self.param = message, param


def names(words: str) -> frozenset[str]:
    """The names in a text."""
    return frozenset(words.split())


def invalid(message: str, param: str = "") -> NoReturn:
    """Refuse a request."""
    raise InvalidError(message, param)


def known(told: Json, fields: frozenset[str] | set[str], where: str) -> None:
    """Refuse an object with fields the API does not have."""
    for name in told:
        if name not in fields:
            invalid(f"Unknown parameter: '{where}{name}'.", f"{where}{name}")


@dataclass
class Talk:
    """What a request of any API comes to.

    `prompt`: all of the user's words. `tools`: a tool is offered that may be called. `result`: the last turn is a
    tool's result. `reasons`: reasoning is to be told. `signed`: what the provider signed or encrypted in an earlier
    answer came back. `limit`: the output limit in tokens. `schema`: of the JSON that is wanted. `sampling`:
    temperature, top_p and stop. `forced`: a tool must be called.
    """

    model: str = ""
    prompt: str = ""
    stream: bool = False
    tools: bool = False
    result: bool = False
    reasons: bool = False
    signed: bool = False
    limit: int = 0
    usage_wanted: bool = True
    system: str = ""
    images: int = 0
    schema: Json | None = None
    sampling: Json = field(default_factory=dict)
    forced: bool = False
    more: Json = field(default_factory=dict)

    @property
    def fault(self) -> str:
        """What is to go wrong, "" for nothing."""
        return next((word for word in FAULTS if word in self.prompt or word in self.model), "")

    @property
    def thinks(self) -> bool:
        """Whether the answer begins with reasoning."""
        return "THINK" in self.prompt

    @property
    def calls(self) -> bool:
        """Whether the answer ends with a tool call."""
        return self.tools and not self.result

    @property
    def arguments(self) -> list[Json]:
        """The arguments of each call the answer ends with."""
        if not self.calls:
            return []
        if "ECHO" in self.prompt or "LEAK" in self.prompt:
            return [{"city": self.prompt if "ECHO" in self.prompt else LEAKED}]
        return [{"city": city} for city in (CITIES if "BOTH" in self.prompt else CITIES[:1])]

    @property
    def finish(self) -> str:
        """How the answer ends: "tool", "length", "filter" or "stop"."""
        if self.calls:
            return "tool"
        return "length" if "LENGTH" in self.prompt else "filter" if "FILTER" in self.prompt else "stop"

    @property
    def pieces(self) -> tuple[str, ...]:
        """The text of the answer, as it is streamed."""
        told = LOOK if self.calls else SUNNY if self.result else HELLO
        if ("ECHO" in self.prompt or "LEAK" in self.prompt) and told is HELLO:
            said = self.prompt if "ECHO" in self.prompt else f"So: {LEAKED}. " + "And more. " * 60
            return tuple(said[at : at + 5] for at in range(0, len(said), 5))
        return told

    @property
    def text(self) -> str:
        """The text of the answer."""
        return "".join(self.pieces)

    @property
    def served(self) -> str:
        """The name of the model in the answer."""
        return f"{self.model}-served"

    @property
    def reasoning_tokens(self) -> int:
        """How many of the answer's tokens were reasoning."""
        return REASONING if self.thinks else 0


@dataclass
class Error:
    """An error reply."""

    status: int
    body: Json
    headers: dict[str, str] = field(default_factory=dict)


class Api(Protocol):
    """One faked API."""

    stream_type: str

    def read(self, path: str, query: str, headers: dict[str, str], doc: Json) -> Talk:
        """What the request comes to. Raises `InvalidError`."""
        ...

    def whole(self, talk: Talk) -> Json:
        """The whole answer."""
        ...

    def events(self, talk: Talk) -> list[bytes]:
        """The streamed answer, event by event."""
        ...

    def broken(self, talk: Talk) -> list[bytes]:
        """What a stream says in band when it fails."""
        ...

    def error(self, status: int, message: str, param: str = "") -> Error:
        """An error of this status (400, 401, 404, 429, 500)."""
        ...


def data(told: Json, name: str = "", *, end: bytes = b"\n") -> bytes:
    """A server-sent event."""
    head = b"event: " + name.encode() + end if name else b""
    return head + b"data: " + json.dumps(told).encode() + end + end


def sampled(told: Json, *fields: str) -> Json:
    """Temperature, top_p and stop out of these fields of a request."""
    found = zip(("temperature", "top_p", "stop"), map(told.get, fields), strict=True)
    return {name: value for name, value in found if value is not None}


def sequence(roles: list[str], first: str) -> None:
    """Refuse turns that do not take turns."""
    if not roles or roles[0] != first:
        invalid(f"first turn must use the '{first}' role", "messages.0.role")
    for place, (one, two) in enumerate(itertools.pairwise(roles)):
        if one == two:
            invalid(f"roles must alternate, but found two '{one}' in a row", f"messages.{place + 1}.role")


def text(value: Any, where: str, *, empty: bool = False) -> str:
    """A field that must be a text."""
    if not isinstance(value, str) or not (value or empty):
        invalid(f"{where}: must be a string that is not empty", where)
    return value


def a_list(value: Any, where: str) -> list[Any]:
    """A field that must be a list with something in it."""
    if not isinstance(value, list) or not value:
        invalid(f"{where}: must be an array that is not empty", where)
    return value


def an_object(value: Any, where: str) -> Json:
    """A field that must be an object."""
    if not isinstance(value, dict):
        invalid(f"{where}: must be an object", where)
    return value


def a_count(value: Any, where: str, least: int = 1) -> int:
    """A field that must be a whole number."""
    if type(value) is not int or value < least:
        invalid(f"{where}: must be an integer of at least {least}", where)
    return value
