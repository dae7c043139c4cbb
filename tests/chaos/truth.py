"""What clients and upstream saw, written by themselves with plain `write()`, one file per process and party.

Nothing of the gateway takes part: these files are the evidence its books are laid beside.

    OWNER.client      a whole answer was delivered: request id, tokens, pico-USD
    OWNER.parts       a part of a streamed answer was delivered: request id, tokens so far
    OWNER.upstream    the upstream was called, or refused and did nothing
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

WHOLE = struct.Struct("<16sQQ")
PART = struct.Struct("<16sQ")
CALL = struct.Struct("<16sB")
CALLED, REFUSED = 1, 2
_FLAGS = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC


class Witness:
    """The pens of one process. Every method is one `write()`, which survives the process."""

    def __init__(self, directory: Path, owner: str) -> None:
        self._client = os.open(directory / f"{owner}.client", _FLAGS, 0o600)
        self._parts = os.open(directory / f"{owner}.parts", _FLAGS, 0o600)
        self._upstream = os.open(directory / f"{owner}.upstream", _FLAGS, 0o600)

    def called(self, rid: bytes) -> None:
        """The upstream got the request."""
        os.write(self._upstream, CALL.pack(rid, CALLED))

    def refused(self, rid: bytes) -> None:
        """The upstream got the request and did nothing for it."""
        os.write(self._upstream, CALL.pack(rid, REFUSED))

    def part(self, rid: bytes, tokens: int) -> None:
        """The client has so many tokens of the answer, all in all."""
        os.write(self._parts, PART.pack(rid, tokens))

    def whole(self, rid: bytes, tokens: int, pico: int) -> None:
        """The client has the whole answer, and was told what it used."""
        os.write(self._client, WHOLE.pack(rid, tokens, pico))


@dataclass
class Truth:
    """All files of a run, by request id."""

    whole: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    parts: dict[bytes, int] = field(default_factory=dict)
    called: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)


def count_whole(directory: Path) -> int:
    """How many whole answers were delivered so far; cheap."""
    with os.scandir(directory) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.name.endswith(".client")) // WHOLE.size


def read(directory: Path) -> Truth:
    """Everything the witnesses wrote."""
    truth = Truth()
    for rid, tokens, pico in _records(directory, "client", WHOLE):
        truth.whole[rid] = (tokens, pico)
    for rid, tokens in _records(directory, "parts", PART):
        truth.parts[rid] = max(tokens, truth.parts.get(rid, 0))
    for rid, what in _records(directory, "upstream", CALL):
        (truth.called if what == CALLED else truth.refused).add(rid)
    return truth


def _records(directory: Path, kind: str, form: struct.Struct) -> Iterator[tuple]:
    for path in sorted(directory.glob(f"*.{kind}")):
        data = path.read_bytes()
        yield from form.iter_unpack(data[: len(data) // form.size * form.size])
