"""Taking gzip and deflate bodies apart in bounded steps. Pure: bytes in, bytes out.

Requests ask for identity; an upstream that compresses all the same must not be able to make a small reply large in
memory. So at most the given room is produced per call, and a body that expands beyond `RATIO_MAX` is refused.
"""

from __future__ import annotations

import zlib

RATIO_MAX = 100  # bytes out per byte in, judged once RATIO_FREE_BYTES have come out
RATIO_FREE_BYTES = 1024 * 1024
_KNOWN = frozenset({b"gzip", b"x-gzip", b"deflate"})


class InflateError(Exception):
    """The body is not what its Content-Encoding says, ends early, or expands beyond reason."""


class Inflater:
    """One compressed body. `feed` until `pending` is False, then `finish` when the body has ended."""

    __slots__ = ("_deflate", "_engine", "_tail", "_taken", "_total")

    def __init__(self, encoding: bytes) -> None:
        """For a lower-case Content-Encoding value; raises `InflateError` for one that is not known."""
        if encoding not in _KNOWN:
            raise InflateError(f"content encoding {encoding[:40].decode('latin-1')!r} was not asked for")
        self._deflate = encoding == b"deflate"
        self._engine: zlib._Decompress | None = None
        self._tail = b""
        self._taken = 0  # compressed bytes consumed
        self._total = 0  # bytes produced

    @property
    def pending(self) -> bool:
        """Whether compressed bytes wait for a further `feed` with room."""
        return bool(self._tail)

    def feed(self, data: bytes, room: int) -> bytes:
        """Add compressed bytes, return at most `room` plain ones (b"" when nothing came out yet)."""
        data = self._tail + data if self._tail else data
        out: list[bytes] = []
        while data and room > 0:
            if self._engine is None or self._engine.eof:
                self._engine = self._start(data)
            try:
                piece = self._engine.decompress(data, room)
            except zlib.error as exc:
                raise InflateError(f"compressed body is damaged: {exc}") from exc
            rest = self._engine.unused_data if self._engine.eof else self._engine.unconsumed_tail
            self._taken += len(data) - len(rest)
            self._total += len(piece)
            room -= len(piece)
            data = rest
            if piece:
                out.append(piece)
            if self._total > RATIO_FREE_BYTES and self._total > RATIO_MAX * self._taken:
                raise InflateError(f"compressed body expands more than {RATIO_MAX} times")
        self._tail = data
        return out[0] if len(out) == 1 else b"".join(out)

    def finish(self) -> None:
        """Say that the body has ended; raises `InflateError` when the compressed data has not."""
        if self._engine is not None and not self._engine.eof:
            raise InflateError("compressed body ends early")

    def _start(self, data: bytes) -> zlib._Decompress:
        if not self._deflate:
            return zlib.decompressobj(31)
        # "deflate" means zlib-wrapped, but some servers send the bare format; the first byte tells them apart.
        return zlib.decompressobj(zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS)


def inflate_all(encoding: bytes, data: bytes, limit: int) -> bytes:
    """A whole body at once. Raises `InflateError`, also for more than `limit` bytes."""
    inflater = Inflater(encoding)
    plain = inflater.feed(data, limit + 1)
    if len(plain) > limit or inflater.pending:
        raise InflateError(f"compressed body is larger than {limit} bytes")
    inflater.finish()
    return plain
