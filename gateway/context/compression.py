"""White space that says nothing, out of prose. Pure; the same text gives the same result, and that gives itself.

Within a line runs of blanks and tabs become one blank, at its end they go, and three or more line ends become two. A
line keeps its indentation. Left to the byte as they are: fenced code (one that is not closed lasts to the end of the
text), code spans, lines indented like code and the empty lines between them, quotes, tables, patches, what stands
between tags that hold code or files, lines that look like JSON, and texts that are JSON or XML. In doubt a text is left
as it is: what looks like code at all is not prose.
"""

from __future__ import annotations

import re
from collections.abc import Generator

LINES = 256  # worked on between two yields: well under a millisecond
MARKUP = ("<?xml", "<!DOCTYPE", "<html")
PATCH = ("diff --git ", "--- a/", "@@ -", "*** Begin Patch")
TAGS_MAX = 16  # of different names, looked for in one line

_MARKERS = r"[ \t]*(?:(?:[-*+>]|\d{1,9}[.)])[ \t]*)*"
_FENCE = re.compile(_MARKERS + r"(`{3,}|~{3,})(.*)", re.DOTALL)
_INDENTED = re.compile(r" {0,3}\t| {4}")
_HEAD = re.compile(r"[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?")
_TICKS = re.compile(r"`+")
_HOLDER = re.compile(
    r"<((?:pre|samp|kbd|tt|listing|style|textarea|xmp)\b"
    r"|[a-z_-]*(?:code|file|diff|patch|source|snippet|script|content|output|document|json|yaml|xml|log)[a-z_-]*)",
    re.IGNORECASE,
)
_PROSE, _LEFT = 0, 1


def steps(text: str, *, whole: bool = True) -> Generator[None, None, str]:
    """The compressed text, as the value of a generator that yields between slices of the work.

    `whole` is false for a text that others are put behind: then one blank at its end stays.
    """
    if not is_worth_it(text):
        return text
    made = _Text(whole=whole)
    for number, line in enumerate(text.split("\n"), 1):
        made.add(line)
        if number % LINES == 0:
            yield
    return made.finish()


def compressed(text: str, *, whole: bool = True) -> str:
    """The compressed text, at once."""
    work = steps(text, whole=whole)
    while True:
        try:
            next(work)
        except StopIteration as done:
            return str(done.value)


def is_worth_it(text: str) -> bool:
    """Whether there is anything that could go: a quick look."""
    doubled = "  " in text or "\t" in text or "\n\n\n" in text or " \n" in text or " \r" in text
    if not doubled and "\r\n\r\n\r\n" not in text and text[-1:] != " ":
        return False
    start, end = text.lstrip(" \t\r\n")[:9], text.rstrip(" \t\r\n")[-1:]
    return bool(end) and not (start[0] in "{[" and end in "}]") and not start.startswith(MARKUP)


class _Text:
    """A text as it is read, line by line."""

    __slots__ = (
        "_before",
        "_blanks",
        "_fence",
        "_left",
        "_margin",
        "_out",
        "_paragraph",
        "_tag",
        "_was_code",
        "_whole",
        "_wild",
    )

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self._out: list[str] = []
        self._paragraph: list[tuple[int, str]] = []  # lines up to an empty one: how each is to be treated
        self._wild = False  # a code span of the paragraph may go over several lines
        self._blanks: list[str] = []
        self._was_code = False  # the line before the empty ones was indented like code
        self._fence = ""  # the one that is open; how far in, and behind what, its end may stand
        self._margin, self._before = 0, ""
        self._tag = ""  # what closes the tags that are open
        self._left = False  # all that follows is left as it is

    def add(self, line: str) -> None:
        """One line, without its end."""
        if self._left:
            self._out.append(line)
        elif self._fence:
            self._out.append(line)
            self._in_fence(line)
        elif self._tag:
            self._out.append(line)
            if self._tag in line.lower():
                self._tag = ""
        elif not line.strip(" \t\r"):
            self._end_paragraph()
            self._blanks.append(line)
        else:
            self._say(line)

    def finish(self) -> str:
        """The whole text."""
        if self._paragraph and not self._wild:
            kind, line = self._paragraph[-1]
            if kind == _PROSE and not self._whole and line[-1:] in " \t":
                # What comes behind shall not stick to it.
                self._paragraph[-1] = (_LEFT, f"{_spare(line)} ")
        self._end_paragraph()
        self._end_blanks(last=True)
        return "\n".join(self._out)

    def _say(self, line: str) -> None:
        """A line that says something, where no code is open."""
        is_code = _INDENTED.match(line) is not None
        if self._blanks:
            self._end_blanks(code=is_code)
        self._was_code = is_code
        if ("`" in line or "~" in line) and self._opens_fence(line):
            return
        if line.startswith(PATCH):
            self._leave(line)
            return
        holds = "<" in line and _HOLDER.search(line) is not None
        if holds and (tag := _holder(line)):
            self._end_paragraph()
            self._out.append(line)
            self._tag = tag
            return
        if "`" in line:
            spans = _spans(line)
            if spans is None:
                if "```" in line:  # code that begins or ends within a line: nobody knows where the rest of it is
                    self._leave(line)
                    return
                self._wild = True
        self._paragraph.append((_LEFT if is_code or holds or _looks_like_data(line) else _PROSE, line))

    def _opens_fence(self, line: str) -> bool:
        found = _FENCE.match(line)
        if found is None or (found[1][0] == "`" and "`" in found[2]):
            return False
        self._end_paragraph()
        self._out.append(line)
        place = found.start(1)
        self._fence, self._margin = found[1], 3 if place <= 3 else place + 3
        self._before = " \t>" if ">" in line[:place] else " \t"
        return True

    def _in_fence(self, line: str) -> None:
        """Whether a line of code closes it; one that only looks so leaves the rest of the text as it is."""
        if self._fence not in line:
            return
        found = _FENCE.match(line)
        if (
            found is not None
            and found[1].startswith(self._fence)
            and not found[2].strip(" \t\r")
            and not line[: found.start(1)].strip(self._before)
            and found.start(1) <= self._margin
        ):
            self._fence = ""
        else:
            self._left = True

    def _leave(self, line: str) -> None:
        self._wild = True
        self._end_paragraph()
        self._out.append(line)
        self._left = True

    def _end_paragraph(self) -> None:
        for kind, line in self._paragraph:
            self._out.append(line if kind == _LEFT or self._wild else _spare(line))
        self._paragraph = []
        self._wild = False

    def _end_blanks(self, *, code: bool = False, last: bool = False) -> None:
        """Empty lines: those between two lines of code belong to it, of the others one is enough."""
        blanks = self._blanks
        if code and self._was_code:
            self._out += blanks
        else:
            most = 1 + (not self._out) + last
            self._out += ["\r" if line.endswith("\r") else "" for line in blanks[:most]]
        self._blanks = []


def _looks_like_data(line: str) -> bool:
    return "|" in line or '":' in line or '{"' in line or line.lstrip(" ")[0] in ">{}[]"


def _holder(line: str) -> str:
    """What closes the first tag of a line that holds code or files and is not closed in it; "" = there is none."""
    lower, last = "", dict[str, int]()
    for found in _HOLDER.finditer(line):
        lower = lower or line.lower()
        closing = f"</{found[1].lower()}"
        if closing not in last:
            last[closing] = lower.rfind(closing)
        if last[closing] < found.end() or len(last) > TAGS_MAX:
            return closing
    return ""


def _spare(line: str) -> str:
    """A line of prose without what it can spare: its end, and runs of blanks but for its indentation and code spans."""
    end = "\r" if line[-1:] == "\r" else ""
    line = line.rstrip(" \t\r")
    head = _HEAD.match(line)
    start = head.end() if head is not None else 0
    if "`" not in line:
        return line[:start] + _single(line[start:]) + end
    pieces, at = [line[:start]], start
    for first, last in _spans(line) or ():
        pieces += (_single(line[at:first]), line[first:last])
        at = last
    return "".join(pieces) + _single(line[at:]) + end


def _single(text: str) -> str:
    """Runs of blanks and tabs as one blank. A single tab stays."""
    while True:
        shorter = text.replace("  ", " ")
        if "\t" in shorter:
            shorter = shorter.replace(" \t", " ").replace("\t ", " ").replace("\t\t", " ")
        if len(shorter) == len(text):
            return text
        text = shorter


def _spans(line: str) -> list[tuple[int, int]] | None:
    """The places of a line's code spans; None where one is not closed in it."""
    if "\\`" in line:
        return None
    runs = [found.span() for found in _TICKS.finditer(line)]
    following: list[int] = [0] * len(runs)  # the next run of the same length
    seen: dict[int, int] = {}
    for number in range(len(runs) - 1, -1, -1):
        length = runs[number][1] - runs[number][0]
        following[number] = seen.get(length, 0)
        seen[length] = number
    spans, number = [], 0
    while number < len(runs):
        other = following[number]
        if not other:
            return None
        spans.append((runs[number][0], runs[other][1]))
        number = other + 1
    return spans
