"""Reasoning of any provider inside the one opaque field that clients of the Responses API send back. Pure.

Signatures of other providers (`reasoning_details`, thought signatures of tool calls and texts) have no field in that
API, but each of its clients returns `encrypted_content` unchanged. They travel there, in a form only this gateway
reads; it is no secret and no proof of anything: what comes back is as good as what a client says itself.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

PREFIX = "hoosh1."
ID_PREFIX = "rs_hoosh_"  # of reasoning items made here: their ids mean nothing to any provider

_encode = msgspec.json.Encoder().encode


class Sealed(msgspec.Struct, omit_defaults=True):
    """What one item carries: `reasoning_details` entries, the `extra_content` of tool calls by id, and of the text."""

    details: list[dict[str, Any]] = []
    calls: dict[str, dict[str, Any]] = {}
    text: dict[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.details or self.calls or self.text)


_decode = msgspec.json.Decoder(Sealed).decode


def seal(sealed: Sealed) -> str:
    """The `encrypted_content` that carries this."""
    return PREFIX + base64.urlsafe_b64encode(_encode(sealed)).decode()


def unseal(content: Any) -> Sealed | None:
    """What a client sent back; None when it was not made by `seal`. Entries of unknown kinds are left out."""
    if not isinstance(content, str) or not content.startswith(PREFIX):
        return None
    try:
        sealed = _decode(base64.urlsafe_b64decode(content[len(PREFIX) :].encode("ascii")))
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError):
        return None
    sealed.details = [detail for detail in sealed.details if str(detail.get("type")).startswith("reasoning.")]
    return sealed


def is_foreign(item: dict[str, Any]) -> bool:
    """Whether an input item is reasoning that was not made by a provider of this API: none of them can read it."""
    if item.get("type") != "reasoning":
        return False
    content, id = item.get("encrypted_content"), item.get("id")
    if isinstance(content, str) and content:
        return content.startswith(PREFIX)
    return id.startswith(ID_PREFIX) if isinstance(id, str) else not item.get("content")


def worth_keeping(detail: Any) -> bool:
    """Whether a `reasoning_details` entry says more than its text: a signature, or something encrypted."""
    return isinstance(detail, dict) and any(isinstance(detail.get(key), str) for key in ("signature", "data"))


def merged(details: list[dict[str, Any]], more: Any) -> list[dict[str, Any]]:
    """Entries joined by further ones of a stream. Some providers send them in pieces, which share an `index`."""
    for detail in more if isinstance(more, list) else ():
        if not isinstance(detail, dict):
            continue
        last = details[-1] if details else None
        index = detail.get("index")
        if last is None or index is None or last.get("index") != index or last.get("type") != detail.get("type"):
            details.append(dict(detail))
            continue
        for key, value in detail.items():
            old = last.get(key)
            both = key in ("text", "summary", "data") and isinstance(old, str) and isinstance(value, str)
            if value is not None:
                last[key] = old + value if both and isinstance(old, str) else value
    return details
