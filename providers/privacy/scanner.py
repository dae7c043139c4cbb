"""Finding patterns in texts, in time linear in their length.

A `Scanner` is compiled once per configuration. One pass of a set of automata over all texts tells which patterns occur;
only those are searched for by themselves, and their checks have the last word. What is found is told by name, level and
place. Nothing here keeps, shows or logs the text that matched.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import re2

from providers.privacy.patterns import LEVELS, RANK, Level, Pattern, options

LARGE_BYTES = 128 * 1024  # texts above this, taken together, are looked at slice by slice
SLICE_BYTES = 64 * 1024  # what is looked at between two pauses
OVERLAP_BYTES = 4096  # a match this long is found wherever it lies; longer ones of an operator's pattern may be missed
MATCHES_MAX = 4096  # of one pattern in one scan
_TRIES_PER_MATCH = 64  # spans a check may refuse, for each match that may be reported: 262,144, in about 1.5 s
_PAUSE_EVERY = 256  # spans looked at between two pauses
_BETWEEN = b"\n\x00\n"  # between two texts: no built-in pattern matches across it
_SET_BYTES = 32 << 20


class Match(msgspec.Struct, frozen=True, gc=False):
    """One place: bytes `start` to `end` of the UTF-8 form of the text number `text`."""

    pattern: str
    level: Level
    text: int
    start: int
    end: int


class Findings(msgspec.Struct, frozen=True):
    """What a scan found, by text and start. `level` is the highest of the matches, public without any.

    `overflow`: a pattern occurred more often than a scan reports, or so much looked like it that the scan gave up, so
    that there is more than `matches` tells; a pattern that was given up is among them.
    """

    matches: tuple[Match, ...] = ()
    level: Level = "public"
    overflow: bool = False

    def counts(self) -> tuple[tuple[str, int], ...]:
        """How many matches each pattern has, by name. This is what may be stored and logged."""
        counted: dict[str, int] = {}
        for match in self.matches:
            counted[match.pattern] = counted.get(match.pattern, 0) + 1
        return tuple(sorted(counted.items()))


NOTHING = Findings()

Span = tuple[int, int, str]


def merged(matches: Iterable[Match]) -> list[Span]:
    """Start, end and pattern of the matches of one text: those that overlap are one, named for the gravest."""
    spans: list[Span] = []
    best = (0, 0)
    for match in sorted(matches, key=lambda match: (match.start, -match.end)):
        grave = (RANK[match.level], match.end - match.start)
        if spans and match.start < spans[-1][1]:
            start, end, name = spans[-1]
            if grave > best:
                best, name = grave, match.pattern
            spans[-1] = (start, max(end, match.end), name)
        else:
            best = grave
            spans.append((match.start, match.end, match.pattern))
    return spans


class _Group:
    """Patterns of one encoding: their set, and each by itself."""

    __slots__ = ("_set", "patterns", "regexes")

    def __init__(self, patterns: Sequence[Pattern], *, custom: bool) -> None:
        made = options(custom=custom)
        self.patterns = tuple(patterns)
        self.regexes = [re2.compile(pattern.source, made) for pattern in self.patterns]
        self._set = re2.Set.SearchSet(options(custom=custom, max_mem=_SET_BYTES))
        self._set.Add(b"")  # always there: a set that ran out of memory tells nothing at all
        for pattern in self.patterns:
            self._set.Add(pattern.in_set)
        self._set.Compile()

    def occurring(self, data: bytes) -> Sequence[int]:
        """The numbers of the patterns that occur in `data`; all of them where the set cannot tell."""
        told: list[int] | None = self._set.Match(data)
        if told is None:
            return range(len(self.patterns))
        return () if len(told) == 1 else sorted(number - 1 for number in told if number)


class _Search:
    """One scan on its way: what was found in the buffers so far. The iterators yield where a pause may be made."""

    __slots__ = ("_at", "_found", "_max", "_tried", "found", "overflow")

    def __init__(self, matches_max: int) -> None:
        self._max = matches_max
        self._at: dict[str, int] = {}  # where the search for a pattern goes on, in the buffer at hand
        self._tried: dict[str, int] = {}
        self._found: dict[str, int] = {}
        self.found: list[tuple[Pattern, int, int, int]] = []  # pattern, number of the buffer, start, end
        self.overflow = False

    def whole(self, group: _Group, data: bytes, number: int) -> Iterator[None]:
        """Search one buffer for the patterns that occur in it."""
        self._at.clear()
        for place in group.occurring(data):
            yield from self._pattern(group.patterns[place], group.regexes[place], data, 0, len(data), number)

    def slices(self, group: _Group, data: bytes, number: int) -> Iterator[None]:
        """Search one buffer slice by slice."""
        self._at.clear()
        size = len(data)
        for begin in range(0, size, SLICE_BYTES):
            end = min(begin + SLICE_BYTES, size)
            first = max(0, begin - OVERLAP_BYTES)
            for place in group.occurring(data[first:end]):
                yield from self._pattern(group.patterns[place], group.regexes[place], data, first, end, number)
            yield

    def _pattern(
        self, pattern: Pattern, regex: re2._Regexp, data: bytes, first: int, end: int, number: int
    ) -> Iterator[None]:
        name, check, size = pattern.name, pattern.check, len(data)
        at = max(first, self._at.get(name, 0))
        tried, found = self._tried.get(name, 0), self._found.get(name, 0)
        while (hit := regex.search(data, at, end)) is not None:
            start, stop = _span(hit)
            if end < size and stop + OVERLAP_BYTES > end:
                end = min(size, end + SLICE_BYTES)  # what lies behind the slice may belong to it
                yield
                continue
            tried += 1
            if found >= self._max:
                self.overflow = True
                break
            if tried > _TRIES_PER_MATCH * self._max:
                # Nobody knows what stands behind it: the pattern counts as found.
                self.overflow, found = True, self._max
                self.found.append((pattern, number, start, stop))
                break
            good = stop if check is None else check(data, start, stop)
            if good:
                found += 1
                self.found.append((pattern, number, start, good))
            at = max(start + 1, (good or (start + 1 if pattern.retry else stop)))
            if tried % _PAUSE_EVERY == 0:
                yield
        self._at[name], self._tried[name], self._found[name] = at, tried, found


def _span(hit: re2._Match) -> tuple[int, int]:
    """The span of the last group that took part, or of all."""
    start: int
    end: int
    for group in range(hit.re.groups, -1, -1):
        start, end = hit.span(group)
        if start >= 0:
            break
    return start, end


class Scanner:
    """Patterns, compiled. Safe to share: a scan leaves nothing behind in it."""

    __slots__ = ("_custom", "_max", "_own", "patterns")

    def __init__(self, patterns: Iterable[Pattern], *, matches_max: int = MATCHES_MAX) -> None:
        """Raises `re2.error` for a pattern that does not compile; `patterns.compile_error` tells beforehand."""
        self.patterns = tuple(patterns)
        self._max = matches_max
        own = [pattern for pattern in self.patterns if not pattern.custom]
        custom = [pattern for pattern in self.patterns if pattern.custom]
        self._own = _Group(own, custom=False) if own else None
        self._custom = _Group(custom, custom=True) if custom else None

    def __repr__(self) -> str:
        return f"<Scanner of {len(self.patterns)} patterns>"

    def scan(self, texts: Sequence[str | bytes]) -> Findings:
        """Everything in these texts, at once. Bytes are taken to be UTF-8. For `LARGE_BYTES` and less."""
        parts = [_bytes(text) for text in texts]
        search = _Search(self._max)
        for _ in self._small(search, parts):
            pass
        return _findings(search, parts)

    async def scan_in_turns(self, texts: Sequence[str | bytes]) -> Findings:
        """The same for texts of any size: other requests get their turn while a large one, or one with very many places
        that look like a match, is looked at."""
        parts = [_bytes(text) for text in texts]
        search = _Search(self._max)
        steps = self._large if sum(map(len, parts)) > LARGE_BYTES else self._small
        for _ in steps(search, parts):
            await asyncio.sleep(0)
        return _findings(search, parts)

    def _small(self, search: _Search, parts: Sequence[bytes]) -> Iterator[None]:
        if self._own is not None:
            yield from search.whole(self._own, _joined(parts), -1)
        if self._custom is not None:
            # Each text by itself: anchors mean its own ends, and nothing matches across two texts.
            for number, part in enumerate(parts):
                yield from search.whole(self._custom, part, number)

    def _large(self, search: _Search, parts: Sequence[bytes]) -> Iterator[None]:
        if self._own is not None:
            yield from search.slices(self._own, _joined(parts), -1)
        if self._custom is not None:
            seen = 0
            for number, part in enumerate(parts):
                for _ in search.slices(self._custom, part, number):
                    seen += min(len(part), SLICE_BYTES)
                    if seen >= SLICE_BYTES:
                        seen = 0
                        yield


def _joined(parts: Sequence[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else _BETWEEN.join(parts)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def _findings(search: _Search, parts: Sequence[bytes]) -> Findings:
    """The matches in order, each in its own text, less the weak ones that lie over others."""
    if not search.found:
        return Findings(overflow=True) if search.overflow else NOTHING
    starts, at = [], 0
    for part in parts:
        starts.append(at)
        at += len(part) + len(_BETWEEN)
    found: list[tuple[int, int, int, Pattern]] = []
    for pattern, number, start, end in search.found:
        if number < 0:
            number = bisect_right(starts, start) - 1
            start, end = start - starts[number], end - starts[number]
        found.append((number, start, end, pattern))
    found.sort(key=lambda one: one[:3])
    matches = tuple(
        Match(pattern.name, pattern.level, number, start, end)
        for number, start, end, pattern in _without_covered(found)
    )
    rank = max(RANK[match.level] for match in matches)
    return Findings(matches, LEVELS[rank], search.overflow)


def _without_covered(found: list[tuple[int, int, int, Pattern]]) -> Iterator[tuple[int, int, int, Pattern]]:
    strong: dict[int, tuple[list[int], list[int]]] = {}  # by text: the starts, and the furthest end up to each
    for number, start, end, pattern in found:
        if not pattern.weak:
            begins, ends = strong.setdefault(number, ([], []))
            begins.append(start)
            ends.append(max(end, ends[-1]) if ends else end)
    for number, start, end, pattern in found:
        if pattern.weak and number in strong:
            begins, ends = strong[number]
            before = bisect_right(begins, end - 1) - 1
            if before >= 0 and ends[before] > start:
                continue
        yield number, start, end, pattern
