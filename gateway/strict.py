"""Strict reading of JSON request bodies: what the gateway understands is what every upstream must understand.

Refused: anything that is not UTF-8 JSON with one object in it, NaN and Infinity, numbers no double can hold, integers
beyond Python's digit limit, lone surrogates, absurd nesting, and a key given twice in one object at any depth, in
whatever spelling. JSON parsers disagree on which of two equal keys counts, so a body like that could be priced by one
and executed by the other. Parsers written in Go also match keys without regard to case; a top-level key that differs
from a guarded one only in case is refused for the same reason.

Every other body is accepted and sent byte for byte, with one exception: where ASCII letters, digits or `_` are spelled
as `\\u00XX` the body is encoded anew, so that keys appear literally in what is sent.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from gateway.errors import BadRequestError

Document = dict[str, Any]

# Fields that decide what is priced, where it goes, how it is answered and whether it may be shortened.
GUARDED = frozenset(
    [
        "model",
        "messages",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "best_of",
        "pool",
        "input",
        "prompt",
        "suffix",
        "tools",
        "functions",
        "response_format",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "json_schema",
        "grammar",
        "format",
        "service_tier",
        "web_search_options",
        "encoding_format",
        "dimensions",
        "models",
        "n_predict",
        "n_cmpl",
    ]
)
# Ordinary fields, only so that the common body needs no look at each of its keys.
_KNOWN = GUARDED | frozenset(
    [
        "audio",
        "echo",
        "frequency_penalty",
        "function_call",
        "logit_bias",
        "logprobs",
        "metadata",
        "min_p",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning",
        "reasoning_effort",
        "repetition_penalty",
        "safety_identifier",
        "seed",
        "stop",
        "store",
        "temperature",
        "tool_choice",
        "top_k",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
    ]
)

_LARGE_BYTES = 1 << 20
_CONTAINERS_MAX = 1_000_000  # arrays and objects in one large body: each costs some 70 bytes once decoded

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_ESCAPED_QUOTE_OR_COLON = re.compile(rb"\\u00(?:22|3[aA])")
_ESCAPED_KEY_CHARACTER = re.compile(rb"\\u00(?:3[0-9]|[46][1-9a-fA-F]|[57][0-9aA]|5[fF])")


def check(body: bytes) -> bytes:
    """The body to send on: `body` itself or, where a spelling was in doubt, its re-encoding.

    Raises `BadRequestError`.
    """
    return load(body)[1]


def load(body: bytes) -> tuple[Document, bytes]:
    """The decoded body and the bytes to send on. Raises `BadRequestError`."""
    if len(body) > _LARGE_BYTES and body.count(b"{") + body.count(b"[") > _CONTAINERS_MAX:
        raise BadRequestError("The body holds too many arrays and objects. Send a smaller one.")
    try:
        # A full decode: skipping unread fields would skip their UTF-8, number and surrogate checks as well.
        doc = _decode(body)
        canonical = _encode(doc)
    except RecursionError as exc:
        raise BadRequestError("The JSON body is nested too deeply. Flatten it.") from exc
    except (UnicodeError, msgspec.MsgspecError, ValueError, OverflowError) as exc:
        raise _malformed(body, exc) from exc
    if type(doc) is not dict:
        raise BadRequestError("The body must be a JSON object.")
    if not _KNOWN.issuperset(doc):
        _refuse_lookalikes(doc)
    if canonical == body:
        return doc, body
    return doc, _settle_doubt(body, canonical)


def _settle_doubt(body: bytes, canonical: bytes) -> bytes:
    """What to send of a body that is not in canonical form; refuses it when a key was dropped by decoding it."""
    flat = msgspec.json.format(body, indent=-1)
    if flat == canonical:
        return body
    # What can still differ is the spelling of strings and numbers, and a key given twice: that one is in `flat` and
    # was dropped from `canonical`. Each key leaves one `":`; inside strings there are as many in both, unless one
    # of the two characters is spelled as an escape.
    escapes = b"\\u00" in flat
    if (escapes and _ESCAPED_QUOTE_OR_COLON.search(flat)) or flat.count(b'":') != canonical.count(b'":'):
        _refuse_duplicates(body)
    if escapes and _ESCAPED_KEY_CHARACTER.search(flat):
        return canonical
    return body


def _refuse_duplicates(body: bytes) -> None:
    try:
        json.loads(body, object_pairs_hook=_unique)
    except RecursionError as exc:
        raise BadRequestError("The JSON body is nested too deeply. Flatten it.") from exc
    except ValueError as exc:
        raise _malformed(body, exc) from exc


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            shown = key[:64]
            raise BadRequestError(f"The key '{shown}' is given twice in one object. Give it once.", param=shown)
        seen.add(key)


def _refuse_lookalikes(doc: Document) -> None:
    for key in doc:
        if key not in _KNOWN and (folded := key.casefold()) in GUARDED:
            raise BadRequestError(f"The field '{key[:64]}' is not known. Write '{folded}'.", param=key[:64])


def _malformed(body: bytes, exc: Exception) -> BadRequestError:
    if not body.strip():
        return BadRequestError("The body is empty. Send a JSON object.")
    if body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return BadRequestError("The body starts with a byte order mark. Send UTF-8 without one.")
    if isinstance(exc, UnicodeError):
        return BadRequestError("The body is not valid UTF-8. Encode it as UTF-8.")
    if b"\x00" in body:
        return BadRequestError("The body holds NUL bytes. Send JSON in UTF-8.")
    reason = str(exc).removeprefix("JSON is malformed: ").partition(" - at ")[0][:120]
    return BadRequestError(f"The body is not valid JSON: {reason}. Correct it and send it again.")
