"""Reading the log's entries: pages of them with filters, single ones, and what is sealed in them opened.

Every question costs the same however many entries there are: a page is read newest first along one index, further
conditions are looked at row by row, and after so many rows the page ends where the search stands. Trees and proofs are
in `audit.proving`.
"""

from __future__ import annotations

import datetime as dt
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connections
from django.db.models import BooleanField, QuerySet
from django.db.models.expressions import RawSQL

from audit import subjects
from audit.models import AuditEntry, Log, Subject

SEARCHED = 20_000  # entries looked at for one page; the page then says where it stopped
LATE = dt.timedelta(days=1)  # entries are logged at most so long after what they tell of, for a search by time
KINDS_MAX = 500  # actions looked at
ERASED = "erased"
_CHUNK, _SMALL_CHUNK = 500, 100  # rows read at once along one index, along each of several
_LEVELS_FREQUENT = ("", "info")
_RARE_SOURCES = frozenset({"log", "ledger", "site"})
# The index has only these entries. SQLite uses it where a condition says so in the same words, without a bound value.
_HAS_OBJECT = RawSQL("NOT (object = '')", (), output_field=BooleanField())
_COLUMNS = ("seq", "at", "source", "action", "actor", "target", "level", "object")

# Neither database has a quick way to ask for the distinct values of an indexed column. Only "greater" is used, so that
# it does not matter by which language's rules the database sorts.
_ACTIONS = """
WITH RECURSIVE found(action) AS (
    SELECT MIN(action) FROM audit_entry
    UNION ALL
    SELECT (SELECT MIN(action) FROM audit_entry WHERE action > found.action) FROM found WHERE found.action IS NOT NULL
)
SELECT action FROM found WHERE action IS NOT NULL LIMIT 1000"""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked for. Empty parts ask for everything; `before` continues behind that sequence number.

    `action` is exact, or with a dot at its end everything that begins with it. `actor` and `target` are names of people
    or subject ids, or for targets whatever an entry is about; `name` is either of the two. `object` is a stored row as
    `audit.changes.object_of` names it.
    """

    action: str = ""
    actor: str = ""
    target: str = ""
    name: str = ""
    object: str = ""
    level: str = ""
    source: str = ""
    since: dt.datetime | None = None  # inclusive
    until: dt.datetime | None = None  # exclusive
    before: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Entries, newest first, and the `before` of the next page; None when there are no older ones.

    A page may be shorter than asked for, even empty, and still have a next one: then the search ended there.
    """

    entries: Sequence[AuditEntry]
    next: int | None


@dataclass(frozen=True, slots=True)
class Readable:
    """An entry for people. `actor` and `target` are names, `personal` is what was sealed beside them; the name of
    somebody who was erased is "erased". `index` is the entry's leaf in its log."""

    entry: AuditEntry
    index: int
    actor: str
    target: str
    data: Mapping[str, Any]
    personal: Mapping[str, Any]
    is_erased: bool

    @property
    def message(self) -> str:
        """One line: who did what to what."""
        what = f"{self.entry.action} {self.target}".rstrip()
        return f"{self.actor}: {what}" if self.actor else what


def page(asked: Question, limit: int) -> Page:
    """Entries that answer the question."""
    keep = _Keep(asked)
    if asked.actor and not keep.actors:
        return Page((), None)
    floor, ceiling = _bounds(asked)
    rows = AuditEntry.objects.filter(seq__gt=floor) if floor >= 0 else AuditEntry.objects.all()
    found: list[int] = []
    looked, last = 0, None
    for row in _rows(rows, asked, keep, ceiling):
        if row[0] == last:  # who did something to himself is found along both ways
            continue
        if looked == SEARCHED or len(found) > limit:
            break
        looked, last = looked + 1, int(row[0])
        if keep.has(row):
            found.append(last)
    else:
        return _page_of(found, limit, None)
    return _page_of(found, limit, last)


def _page_of(found: list[int], limit: int, last: int | None) -> Page:
    shown = found[:limit]
    rows = AuditEntry.objects.in_bulk(shown)
    following = shown[-1] if len(found) > limit else last
    return Page([rows[seq] for seq in shown if seq in rows], following)


def entry(seq: int) -> AuditEntry | None:
    """The entry with this sequence number."""
    return AuditEntry.objects.filter(pk=seq).first()


def last_seq() -> int:
    """The sequence number of the newest entry; -1 where there is none."""
    found = AuditEntry.objects.order_by("-seq").values_list("seq", flat=True).first()
    return -1 if found is None else found


def actions(prefix: str = "") -> list[str]:
    """The actions that occur and begin with the prefix: one look into the index for each that there is."""
    with connections[AuditEntry.objects.db].cursor() as cursor:
        cursor.execute(_ACTIONS)
        return [action for (action,) in cursor.fetchall() if action.startswith(prefix)][:KINDS_MAX]


def kinds() -> list[str]:
    """The first parts of the actions that occur, by alphabet."""
    return sorted({action.partition(".")[0] for action in actions()})


def is_action(text: str) -> bool:
    """Whether an entry has this action."""
    return AuditEntry.objects.filter(action=text).exists()


def readable(entries: Iterable[AuditEntry]) -> list[Readable]:
    """The entries for people, in their order. Two queries for the people in all of them and for their logs."""
    rows = list(entries)
    known = Subject.objects.in_bulk({name for row in rows for name in (row.actor, row.target) if is_subject(name)})
    logs = dict(Log.objects.filter(pk__in={row.log for row in rows}).values_list("pk", "first_seq")) if rows else {}
    return [_readable(row, row.seq - logs.get(row.log, 0), known) for row in rows]


def is_subject(text: str) -> bool:
    """Whether a text is a person's id."""
    return text.startswith("s-") and len(text) == 34


def body_of(row: AuditEntry) -> dict[str, Any]:
    """What the entry commits to; {} when somebody made something else of it."""
    try:
        found = json.loads(row.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


# --- parts ------------------------------------------------------------------------------------------------------------


def _ids(name: str) -> list[str]:
    """The subject ids a name stands for."""
    if not name:
        return []
    return [name] if is_subject(name) else subjects.ids_of(name)


def _bounds(asked: Question) -> tuple[int, int]:
    """Sequence numbers between which (exclusively) every entry of the time asked for is: whatever tells of a time
    before it by more than `LATE` was logged before all of them, whatever tells of one so far behind it later."""
    floor, ceiling = -1, 2**62 if asked.before is None else asked.before
    if asked.since is not None:
        earlier = AuditEntry.objects.filter(at__lt=asked.since - LATE).order_by("-at").values_list("seq", flat=True)
        floor = next(iter(earlier[:1]), floor)
    if asked.until is not None:
        later = AuditEntry.objects.filter(at__gte=asked.until + LATE).order_by("at").values_list("seq", flat=True)
        ceiling = min(ceiling, next(iter(later[:1]), ceiling))
    return floor, ceiling


def _ways(rows: QuerySet[AuditEntry], asked: Question, keep: _Keep) -> list[QuerySet[AuditEntry]]:
    """The index to read along, by what is usually rarest: one for each value that is looked for."""
    if asked.object:
        return [rows.filter(_HAS_OBJECT, object=asked.object)]
    if keep.targets:
        return [rows.filter(target=target) for target in sorted(keep.targets)]
    if keep.names:
        actors = [rows.filter(actor=name) for name in sorted(keep.names) if is_subject(name)]
        return [*actors, *(rows.filter(target=name) for name in sorted(keep.names))]
    if keep.actors:
        return [rows.filter(actor=actor) for actor in sorted(keep.actors)]
    if asked.action:
        wanted = actions(asked.action) if asked.action.endswith(".") else [asked.action]
        return [rows.filter(action=action) for action in wanted]
    return [rows if asked.level in _LEVELS_FREQUENT else rows.filter(level=asked.level)]


def _rows(rows: QuerySet[AuditEntry], asked: Question, keep: _Keep, ceiling: int) -> Iterator[tuple[Any, ...]]:
    ways = _ways(rows, asked, keep)
    if asked.source in _RARE_SOURCES and not (asked.action or asked.level or keep.has_names or asked.object):
        return _of_source(rows.filter(source=asked.source), ceiling)
    return _merged(ways, ceiling)


def _of_source(rows: QuerySet[AuditEntry], ceiling: int) -> Iterator[tuple[Any, ...]]:
    """Entries of one source along their numbers, which grow with the sequence."""
    first = rows.filter(seq__lt=ceiling).order_by("-number").values_list("number", flat=True).first()
    if first is None:
        return
    number = first + 1
    while chunk := list(
        rows.filter(number__lt=number).order_by("-number").values_list(*_COLUMNS, "number")[:_SMALL_CHUNK]
    ):
        yield from (row[:-1] for row in chunk)
        number = chunk[-1][-1]


def _merged(ways: Sequence[QuerySet[AuditEntry]], ceiling: int) -> Iterator[tuple[Any, ...]]:
    if len(ways) == 1:
        return _descending(ways[0], ceiling, _CHUNK)
    rows = (_descending(way, ceiling, _SMALL_CHUNK) for way in ways)
    return heapq.merge(*rows, key=lambda row: int(row[0]), reverse=True)


def _descending(rows: QuerySet[AuditEntry], ceiling: int, chunk_rows: int) -> Iterator[tuple[Any, ...]]:
    """The columns that conditions look at, newest first, in chunks along the index."""
    while True:
        chunk = list(rows.filter(seq__lt=ceiling).order_by("-seq").values_list(*_COLUMNS)[:chunk_rows])
        yield from chunk
        if len(chunk) < chunk_rows:
            return
        ceiling = int(chunk[-1][0])


class _Keep:
    """Whether a row is asked for."""

    def __init__(self, asked: Question) -> None:
        self._asked = asked
        self.actors = frozenset(_ids(asked.actor))
        self.targets = frozenset((*_ids(asked.target), asked.target)) - {""}
        self.names = frozenset((*_ids(asked.name), asked.name)) - {""}

    @property
    def has_names(self) -> bool:
        """Whether people or things are asked for."""
        return bool(self.actors or self.targets or self.names)

    def has(self, row: tuple[Any, ...]) -> bool:
        _seq, at, source, action, actor, target, level, about = row
        asked = self._asked
        if asked.action and not (
            action.startswith(asked.action) if asked.action[-1] == "." else action == asked.action
        ):
            return False
        if (self.actors and actor not in self.actors) or (self.targets and target not in self.targets):
            return False
        if self.names and actor not in self.names and target not in self.names:
            return False
        if asked.object and about != asked.object:
            return False
        if (asked.level and level != asked.level) or (asked.source and source != asked.source):
            return False
        return (asked.since is None or at >= asked.since) and (asked.until is None or at < asked.until)


def _readable(row: AuditEntry, index: int, known: Mapping[str, Subject]) -> Readable:
    body = body_of(row)
    opened, lost = subjects.opened(body, known)
    data = body.get("data")
    return Readable(
        entry=row,
        index=index,
        actor=opened.pop("actor", ERASED if is_subject(row.actor) else row.actor),
        target=opened.pop("target", ERASED if is_subject(row.target) else row.target),
        data=data if isinstance(data, dict) else {},
        personal=opened,
        is_erased=lost,
    )
