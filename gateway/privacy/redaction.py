"""Taking private values out of a request and putting them back into its answer.

Each value becomes a placeholder such as `[EMAIL_1]`, the same one wherever it occurs. What stands for what is known
only to the `Redactor` of the request: it is never written anywhere and shown by no representation.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import msgspec

from gateway.privacy.channels import Channel, ChunkRewriter, fields, message_parts
from gateway.privacy.splicing import rewrite
from gateway.privacy.texts import Text
from providers.answers import loaded
from providers.privacy.scanner import Match

NAME_MAX = 40  # characters of a pattern's name in a placeholder
_PLACEHOLDER = re.compile(r"\[[A-Z][A-Z0-9_]*_[0-9]+\]")
_PLACEHOLDER_BYTES = re.compile(rb"\[[A-Z][A-Z0-9_]*_[0-9]+\]")
_OTHER = re.compile(r"[^A-Z0-9]+")

_encode = msgspec.json.Encoder().encode


def label(pattern: str) -> str:
    """A pattern's name as placeholders show it: capital letters, digits and underscores."""
    made = _OTHER.sub("_", pattern.upper()).strip("_")[:NAME_MAX]
    return made if made[:1].isalpha() else f"X{made}"


class Redactor:
    """What was taken out of one request. `bodies` are all that the request says, in bytes: a placeholder that already
    stands in them is not used."""

    __slots__ = ("_counts", "_longest", "_placeholders", "_reserved", "_values")

    def __init__(self, bodies: Iterable[bytes]) -> None:
        self._reserved = {found.decode() for body in bodies for found in _PLACEHOLDER_BYTES.findall(body)}
        self._placeholders: dict[str, str] = {}  # by value
        self._values: dict[str, str] = {}  # by placeholder
        self._counts: dict[str, int] = {}
        self._longest = 0

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._values)} values>"

    def __bool__(self) -> bool:
        """Whether anything was taken out."""
        return bool(self._values)

    def redact(self, texts: list[Text], matches: Iterable[Match], names: Collection[str] | None = None) -> int:
        """Replace what these patterns (None = all) matched in the texts of one scan; how many texts changed."""
        return rewrite(texts, matches, self.placeholder, names)

    def placeholder(self, pattern: str, value: str) -> str:
        """What stands for a value."""
        known = self._placeholders.get(value)
        if known is not None:
            return known
        name = label(pattern)
        while True:
            number = self._counts[name] = self._counts.get(name, 0) + 1
            made = f"[{name}_{number}]"
            if made not in self._reserved:
                break
        self._placeholders[value], self._values[made] = made, value
        self._longest = max(self._longest, len(made))
        return made

    def restore(self, text: str) -> str:
        """The text with the values back in it."""
        if "[" not in text:
            return text
        return _PLACEHOLDER.sub(lambda found: self._values.get(found[0], found[0]), text)

    def restore_json(self, text: str) -> str:
        """The same for JSON text: values are escaped as strings have to be."""
        if "[" not in text:
            return text
        return _PLACEHOLDER.sub(lambda found: self._escaped(found[0]), text)

    def _escaped(self, placeholder: str) -> str:
        value = self._values.get(placeholder)
        return placeholder if value is None else _encode(value).decode()[1:-1]

    def restore_answer(self, body: bytes, *, json_content: bool = False) -> bytes:
        """A whole canonical answer. `json_content`: what it says was asked to be JSON. Unchanged bytes where nothing is
        to be restored."""
        if not self._values or b"[" not in body:
            return body
        told = loaded(body)
        changed = False
        for part in message_parts(told):
            for channel, holder, key in fields(part):
                text = holder[key]
                inside = channel[0] in _JSON_CHANNELS or (json_content and channel[0] == "content")
                restored = self.restore_json(text) if inside else self.restore(text)
                if restored != text:
                    holder[key], changed = restored, True
        return _encode(told) if changed else body

    def held_from(self, text: str) -> int:
        """Where a placeholder that may still be completed begins in the end of `text`; its length when none does."""
        place = text.rfind("[", max(0, len(text) - self._longest + 1))
        if place < 0:
            return len(text)
        tail = text[place:]
        return place if any(known.startswith(tail) for known in self._values) else len(text)


_JSON_CHANNELS = frozenset(["tool", "function"])


class _Restoring(Channel):
    """One text of a streamed answer: at most an unfinished placeholder of it is held."""

    __slots__ = ("_json", "_redactor")

    def __init__(self, redactor: Redactor, json: bool) -> None:
        super().__init__()
        self._redactor, self._json = redactor, json

    def feed(self, text: str) -> str:
        """What can be handed out, values in it."""
        text = self.held + text
        place = self._redactor.held_from(text)
        self.held = text[place:]
        return self._restored(text[:place])

    def finish(self) -> str:
        """The rest: what was held is no placeholder."""
        text, self.held = self.held, ""
        return self._restored(text)

    def _restored(self, text: str) -> str:
        return self._redactor.restore_json(text) if self._json else self._redactor.restore(text)


class StreamRestorer(ChunkRewriter):
    """Puts values back into a canonical stream. `json_content`: what it says was asked to be JSON."""

    def __init__(self, redactor: Redactor, *, json_content: bool = False) -> None:
        def make(channel: tuple[object, ...]) -> Channel:
            inside = channel[0] in _JSON_CHANNELS or (json_content and channel[0] == "content")
            return _Restoring(redactor, inside)

        super().__init__(make)
