"""Embedding replies: usage read, and the vectors' encoding changed where the provider ignored what was asked for."""

from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec

from providers.adapters import problems
from providers.canonical import Answer, Call, UsageWire, parse_usage, usage_of


class _Item(msgspec.Struct, gc=False):
    embedding: msgspec.Raw


class _Reply(msgspec.Struct, gc=False):
    data: list[_Item]
    usage: UsageWire | None = None


_decode = msgspec.json.Decoder(_Reply).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def read(call: Call, body: bytes) -> Answer:
    """Read a whole 2xx reply; its bytes pass unless the encoding has to change."""
    try:
        reply = _decode(body)
        usage = None if reply.usage is None else usage_of(reply.usage, generates=False)
        first = bytes(reply.data[0].embedding)[:1] if reply.data else b""
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _read_odd(body)
    if first == (b"[" if call.encoding == "base64" else b'"'):
        try:
            body = _converted(body, to_base64=call.encoding == "base64")
        except (ValueError, TypeError, KeyError, struct.error, OverflowError):
            return Answer(b"", problem=problems.problem("protocol"))
    return Answer(body, usage)


def packed(vector: list[float]) -> str:
    """Base64 of little-endian float32, the API's second encoding. Raises on what is no number a float32 holds."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def unpacked(text: str) -> list[float]:
    """Inverse of `packed`. Raises `ValueError` or `struct.error` on anything else."""
    raw = base64.b64decode(text, validate=True)
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


def _converted(body: bytes, *, to_base64: bool) -> bytes:
    told = _decode_any(body)
    for item in told["data"]:
        item["embedding"] = packed(item["embedding"]) if to_base64 else unpacked(item["embedding"])
    return _encode(told)


def _read_odd(body: bytes) -> Answer:
    """A reply that does not fit: an error under a good status, nonsense, or usage of unexpected types."""
    try:
        told: Any = _decode_any(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        told = None
    if not isinstance(told, dict) or not isinstance(told.get("data"), list):
        return Answer(b"", problem=problems.from_success(body))
    usage = told.get("usage")
    return Answer(body, parse_usage(usage, generates=False) if isinstance(usage, dict) else None)
