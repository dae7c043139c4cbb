"""Server-sent events over bytes, without I/O: cutting a stream into events and reading one event's fields.

Lines end at CR, LF or CRLF and nowhere else (U+2028 stays inside data); an empty line ends an event. Events keep
their original bytes, terminator included, so that joining them gives the stream back. One departure from the
standard, which lets a line feed behind `CR CR` belong to the second CR: here it opens the next event as an empty line,
so that an event of a CR-only stream can be handed out as soon as it is complete.
"""

from __future__ import annotations

import re

EVENT_LIMIT_BYTES = 1 << 20

# The end of an event: a line end and an empty line. A CR at the very end may be half of a CRLF; feed() waits then.
_END = re.compile(rb"\n\n|\r\n\r\n|\r\r|\n\r\n?|\r\n\n|\r\n\r")
_LINE = re.compile(rb"\r\n|\n|\r")
# The form in which servers send nearly all of their events: at most a type, and one line of data.
_USUAL = re.compile(rb"(?:event: ([^\r\n]*)\r?\n)?data: (.*)(?:\n\n|\r\n\r\n)").fullmatch
_BOM = b"\xef\xbb\xbf"


class EventTooLargeError(Exception):
    """An event passed the limit; nothing more can be read from this stream."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"an event is larger than {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class Splitter:
    """Cuts a byte stream into raw events. The same stream gives the same events however it is cut into chunks.

    Time is linear in the bytes fed and at most `limit_bytes` of an unfinished event are held.
    """

    __slots__ = ("_held", "_limit", "_scanned")

    def __init__(self, limit_bytes: int = EVENT_LIMIT_BYTES) -> None:
        self._held = bytearray()
        self._limit = limit_bytes
        self._scanned = 0  # bytes of _held in which no event can end any more

    @property
    def empty(self) -> bool:
        """True between two events: no part of one is held."""
        return not self._held

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes. Raises `EventTooLargeError`."""
        if not self._held and len(data) <= self._limit and _is_one_event(data):
            return [data]
        if not self._held and b"\r" not in data:
            *complete, rest = data.split(b"\n\n")
            if len(rest) > self._limit or (complete and len(max(complete, key=len)) + 2 > self._limit):
                raise EventTooLargeError(self._limit)
            self._held += rest
            self._scanned = max(0, len(rest) - 3)
            return [event + b"\n\n" for event in complete]
        self._held += data
        return self._cut()

    def rest(self) -> bytes:
        """What is held of an event that was not completed; the splitter is empty afterwards."""
        rest = bytes(self._held)
        self._held.clear()
        self._scanned = 0
        return rest

    def _cut(self) -> list[bytes]:
        held, events, start, scan = self._held, [], 0, self._scanned
        while match := _END.search(held, scan):
            end = match.end()
            if end == len(held) and held.endswith(b"\n\r"):
                break
            if end - start > self._limit:
                raise EventTooLargeError(self._limit)
            events.append(bytes(held[start:end]))
            start = scan = end
        if len(held) - start > self._limit:
            raise EventTooLargeError(self._limit)
        del held[:start]
        self._scanned = max(0, len(held) - 3)
        return events


def _is_one_event(data: bytes) -> bool:
    """Whether `data` is one whole event of one line, or of two that end at LF, and nothing else, as most reads are.

    `find` of one byte is by far the quickest way to look for anything.
    """
    size, first, cr = len(data), data.find(b"\n"), data.find(b"\r")
    if cr >= 0:
        return cr == size - 4 and first == size - 3 and data.endswith(b"\r\n\r\n")
    second = data.find(b"\n", first + 1)
    return (first == size - 2 and second == size - 1) or (first + 1 < second == size - 2 and data.endswith(b"\n\n"))


def fields(event: bytes) -> tuple[bytes, bytes | None]:
    """The event's type and its data, as `name_of` and `data_of` tell them: the quickest way to both."""
    if event[:6] == b"data: " and event.find(b"\n") == len(event) - 2 and event.find(b"\r") < 0:
        return b"", event[6:-2]
    usual = _USUAL(event)
    if usual is not None:
        name, data = usual.groups(b"")
        if data.find(b"\r") < 0:
            return name, data
    return name_of(event), data_of(event)


def data_of(event: bytes) -> bytes | None:
    """The event's data: its `data` lines joined by LF. None when it has none (comments, keep-alives)."""
    return _field(event, b"data")


def name_of(event: bytes) -> bytes:
    """The event's type, b"" when it names none."""
    return (_field(event, b"event") or b"").rpartition(b"\n")[2]


def without_comments(event: bytes) -> bytes:
    """The event less its comment lines, all other bytes as they were."""
    kept, start = [], 0
    for match in _LINE.finditer(event):
        if event[start : start + 1] != b":":
            kept.append(event[start : match.end()])
        start = match.end()
    return b"".join(kept) + event[start:]


def _field(event: bytes, name: bytes) -> bytes | None:
    values = []
    for line in _LINE.split(event.removeprefix(_BOM)):
        field, colon, value = line.partition(b":")
        if field == name:
            values.append(value[1:] if colon and value[:1] == b" " else value)
    return b"\n".join(values) if values else None
