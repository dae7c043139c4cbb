"""What an operator types to find usage rows, as a condition: `agent:crawler status:5xx min:500ms`.

Words are `field:value` pairs that all must hold; a value with blanks stands in double quotes, a `*` at the end of a
name stands for any rest. A word without a field is a request id, ours or the client's own. Names are looked up here
(their rows may live in another database), and what is unknown or misspelt is told in `problems`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.models import BooleanField, Q
from django.db.models.expressions import RawSQL

from budgets.keys import KEY_PREFIX
from budgets.models import Agent, ApiKey, Team, Usage

FIELDS = ("key", "agent", "team", "model", "route", "provider", "status", "error", "min")
SHOWN = ("key", "agent", "team", "model", "route", "error")  # of them, those with a box beside the list
_WORD = re.compile(r'(?:([A-Za-z]+):)?(?:"([^"]*)"|(\S+))')
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(us|ms|s|m)?")
_UNITS_US = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, None: 1_000}
_LAST = "\U0010ffff"  # behind every text that begins alike
_NAMES = 200  # rows that one name with a * may mean
_KEY_CHARS = 40
# Said as they stand in the partial indexes: as parameters SQLite would not see that an index fits.
_FAILED = "status >= 400"
_HAS_ERROR = "NOT (error = '')"

Word = tuple[str, str]
Names = Callable[[], Mapping[int, str]]


@dataclass(slots=True)
class Search:
    """A condition in two parts: `along` has an index that is read newest first; of those rows, `rest` must hold too.

    `groups` are the same in terms of the hourly sums (column -> values): an hour without such a sum has no such row.
    """

    along: list[Any] = field(default_factory=list)
    rest: list[Any] = field(default_factory=list)
    groups: dict[str, Any] = field(default_factory=dict)
    tests: list[Callable[[Usage], bool]] = field(default_factory=list)  # the same for one row that was read already
    problems: list[str] = field(default_factory=list)
    is_empty: bool = False  # nothing can match

    def matches(self, row: Usage) -> bool:
        """Whether all of it holds for a row."""
        return not self.is_empty and all(test(row) for test in self.tests)

    @property
    def is_along_one(self) -> bool:
        """Whether one index finds exactly the rows that match."""
        return not self.rest and not self.groups


def words_of(text: str) -> list[Word]:
    """The pairs in a text; the field is "" for a word that names none."""
    found = []
    for match in _WORD.finditer(text):
        name, quoted, plain = match.groups()
        found.append(((name or "").lower(), quoted if quoted is not None else plain))
    return found


def request_id(words: Iterable[Word]) -> str:
    """The request id that is looked for; "" when none is."""
    return next((value for name, value in words if not name), "")


def compiled(words: Collection[Word], *, providers: Names, routes: Names) -> Search:
    """The condition of these words. `providers` and `routes` give the names there are, by id, where one is needed."""
    search = Search()
    for name, value in words:
        value = value.strip()
        if name == "" and value.startswith(KEY_PREFIX):
            search.problems.append("Write key: before a key's first characters or its name; never the whole key.")
            search.is_empty = True
        elif name == "":
            _by_id(search, value)
        elif name == "model":
            _by_model(search, value)
        elif name == "status":
            _by_status(search, value.lower())
        elif name == "error":
            _by_error(search, value)
        elif name == "min":
            _by_latency(search, value.lower())
        elif name in ("provider", "route"):
            _by_ids(search, name, value, _matching((providers if name == "provider" else routes)(), value))
        elif name == "key" and len(value) > _KEY_CHARS:
            search.problems.append("Write a key's name or its first characters, never the whole key.")
            search.is_empty = True
        elif name in ("key", "agent", "team"):
            _by_ids(search, name, value, _people(name, value))
        else:
            search.problems.append(f"There is no “{name}:”. Use {', '.join(FIELDS)}, or a request id.")
    return search


def _by_id(search: Search, value: str) -> None:
    search.tests.append(lambda row: value in (row.rid, row.client_request_id))
    search.along.append(Q(rid=value) | (Q(client_request_id=value) & _raw("NOT (client_request_id = '')")))


def _by_model(search: Search, value: str) -> None:
    search.tests.append(_text_test("model", value))
    if value.endswith("*"):
        search.rest.append(Q(**_starting("model", value[:-1])))
        search.groups |= _starting("model", value[:-1])
    else:
        search.rest.append(Q(model=value))
        search.groups["model"] = value


def _by_status(search: Search, value: str) -> None:
    if value == "ok":
        search.rest.append(Q(status__gte=200, status__lt=400, error=""))
        search.tests.append(lambda row: 200 <= row.status < 400 and not row.error)
    elif re.fullmatch(r"[1-5]xx", value):
        first = int(value[0]) * 100
        end = 499 if first == 400 else first + 100  # 499 is no answer: the client left
        search.rest.append(Q(status__gte=first, status__lt=end))
        search.tests.append(lambda row: first <= row.status < end)
        if first >= 400:
            search.along.append(_raw(_FAILED))
    elif re.fullmatch(r"[0-9]{1,3}", value):
        search.rest.append(Q(status=int(value)))
        search.tests.append(lambda row: row.status == int(value))
        if int(value) >= 400:
            search.along.append(_raw(_FAILED))
    else:
        search.problems.append("A status is a number, a class such as 5xx, or ok.")


def _by_error(search: Search, value: str) -> None:
    search.along.append(_raw(_HAS_ERROR))
    search.tests.append(_text_test("error", value))
    if value.endswith("*"):
        search.rest.append(Q(**_starting("error", value[:-1])))
    else:
        search.along.append(Q(error=value))


def _by_latency(search: Search, value: str) -> None:
    found = _DURATION.fullmatch(value)
    if found is None:
        search.problems.append("A least latency is written as 500ms or 1.5s.")
    else:
        least = int(float(found[1]) * _UNITS_US[found[2]])
        search.rest.append(Q(latency_us__gte=least))
        search.tests.append(lambda row: row.latency_us >= least)


def _by_ids(search: Search, name: str, value: str, ids: Collection[int]) -> None:
    column, wanted = f"{name}_id", frozenset(ids)
    search.tests.append(lambda row: getattr(row, column) in wanted)
    if not ids:
        search.problems.append(f"There is no {name} “{value}”.")
        search.is_empty = True
    elif len(ids) == 1 and name in ("key", "agent") and not search.along:
        search.along.append(Q(**{column: next(iter(ids))}))
    else:
        search.rest.append(Q(**{f"{column}__in": list(ids)}))
        search.groups[f"{column}__in"] = list(ids)


def _matching(names: Mapping[int, str], value: str) -> list[int]:
    if value.startswith("#") and value[1:].isdecimal():  # of a row that was deleted
        return [int(value[1:19])]
    if value.endswith("*"):
        return [number for number, name in names.items() if name.startswith(value[:-1])][:_NAMES]
    return [number for number, name in names.items() if name == value]


def _people(kind: str, value: str) -> list[int]:
    if value.startswith("#") and value[1:].isdecimal():
        return [int(value[1:19])]
    if kind == "key":
        starts = ApiKey.objects.order_by().filter(prefix__startswith=value.rstrip("*")).values_list("pk", flat=True)
        return _named(ApiKey.objects.all(), value) or list(starts[:_NAMES])
    if kind == "team":
        return _named(Team.objects.all(), value)
    team, slash, name = value.partition("/")
    if slash:
        found = _named(Agent.objects.filter(team__name=team.strip()), name.strip())
        if found:
            return found
    return _named(Agent.objects.all(), value)


def _named(rows: Any, value: str) -> list[int]:
    condition = Q(name__startswith=value[:-1]) if value.endswith("*") else Q(name=value)
    return list(rows.order_by().filter(condition).values_list("pk", flat=True)[:_NAMES])


def _starting(column: str, start: str) -> dict[str, str]:
    """A column of the ledger that begins so: on SQLite as a range, since its LIKE is slow and ignores case."""
    if connections[settings.HOOSH_LEDGER_DB].vendor == "sqlite":
        return {f"{column}__gte": start, f"{column}__lt": start + _LAST}
    return {f"{column}__startswith": start}


def _text_test(column: str, value: str) -> Callable[[Usage], bool]:
    if value.endswith("*"):
        return lambda row: str(getattr(row, column)).startswith(value[:-1])
    return lambda row: getattr(row, column) == value


def _raw(sql: str) -> RawSQL:
    return RawSQL(sql, (), output_field=BooleanField())  # noqa: S611 - one of this module's constants
