"""Answers to questions that were put in other words: vectors of what users asked, pointing at kept answers.

A vector lives in a bucket of requests that are alike in everything but the words of the question: tenant, model, system
prompt, every parameter. It points at the key of an exact entry and is gone with it. The closest vector counts, from the
cosine that is asked for on. Vectors are float32, of unit length and compared within their own dimension only.

Words can be close in meaning and far apart in what they ask for. So only single questions of moderate length are looked
at, without tools, media or a wanted form of answer, and questions with different numbers in them never meet.

numpy is imported with the first vector: a worker that does not use this does not carry it.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.cache.key import IGNORED, is_bound, is_open, tag_of
from providers.canonical import Call

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

BUCKET_MAX = 1_000  # vectors of one bucket: as many are compared with a question
MAX_BYTES = 16 * 1024 * 1024
OVERHEAD_BYTES = 512  # a vector's entries in the tables
ROUNDING = 1e-6  # by which the cosine of a vector with itself may be below 1
DIMENSION_MAX = 8_192
QUESTION_MAX = 2_000  # characters: the longer a text, the less its vector says about what is asked at its end
BODY_MAX = 64 * 1024
_ROWS_SPARE = 4  # free rows that a bucket may have, beside half of those in use, before it is made smaller

# Parameters with which an answer has a form, or comes with something, that other words may not call for.
_FORBIDDEN = frozenset(
    {
        "tools",
        "functions",
        "tool_choice",
        "function_call",
        "response_format",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "grammar",
        "json_schema",
        "format",
        "prediction",
        "logprobs",
        "top_logprobs",
        "logit_bias",
    }
)
_EMPTY: tuple[Any, ...] = (None, [], {}, False, 0, "none", "auto", {"type": "text"})
_SYSTEM = ("system", "developer")
# A sign, an operator, a currency: words that are hardly words say things that vectors do not hear.
_telling = re.compile(r"[\d+\-*/=<>%$€£¥#^&|@~]").search
_ENDS = ".,;:!?\"'()[]{}"

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="deterministic").encode
_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


class Question(NamedTuple):
    """`bucket`: everything about a request but its words; `text`: these."""

    bucket: bytes
    text: str


def question_of(call: Call, tenant: bytes, scope: bytes = b"") -> Question | None:
    """What a call asks, if its answer may be given to the same question in other words; else None.

    That is a chat of one user message, in text, maybe behind system messages, which asks for one answer in text.
    `tenant` and `scope` as for `gateway.cache.key.key_of`.
    """
    if (
        call.endpoint != "chat"
        or call.n > 1
        or call.images + call.audios + call.files + call.others
        or call.dropped
        or len(call.body) > BODY_MAX
        or is_bound(call)
    ):
        return None
    try:
        doc = _decode(call.body)
    except _ERRORS:
        return None
    if type(doc) is not dict or is_open(doc) or any(doc.get(name) not in _EMPTY for name in _FORBIDDEN & doc.keys()):
        return None
    asked = _split(doc.pop("messages", None))
    if asked is None:
        return None
    system, text = asked
    for name in IGNORED | _FORBIDDEN:
        doc.pop(name, None)
    numbers = " ".join(word.strip(_ENDS) for word in text.split() if _telling(word))
    told = [call.dialect, call.model, scope, call.native_headers, tenant, numbers, system, doc]
    return Question(tag_of(tenant) + hashlib.sha256(_encode(told)).digest(), text)


def size_of(dimension: int) -> int:
    """The bytes a vector counts as: its numbers twice, since tables have rows to spare, and its entries."""
    return 2 * 4 * dimension + OVERHEAD_BYTES


class SemanticIndex:
    """Vectors by bucket, at most `max_bytes` of them; the oldest goes first, from its bucket and from all of them."""

    __slots__ = ("_buckets", "_of_key", "_order", "bucket_max", "bytes", "evicted", "max_bytes")

    def __init__(self, *, bucket_max: int = BUCKET_MAX, max_bytes: int = MAX_BYTES) -> None:
        self.bucket_max, self.max_bytes = bucket_max, max_bytes
        self.bytes = 0  # what the vectors count as, by `size_of`
        self.evicted = 0
        self._buckets: dict[tuple[bytes, int], _Bucket] = {}
        self._of_key: dict[bytes, tuple[bytes, int]] = {}  # where each key's vector is
        self._order: OrderedDict[bytes, None] = OrderedDict()  # keys, the oldest first

    def __len__(self) -> int:
        return len(self._of_key)

    def __contains__(self, key: bytes) -> bool:
        return key in self._of_key

    @property
    def nbytes(self) -> int:
        """The memory of all tables; looks at every bucket."""
        return sum(held.nbytes for held in self._buckets.values())

    def add(self, bucket: bytes, key: bytes, vector: Sequence[float] | Matrix) -> bool:
        """Let a vector point at a key, which had none or gets this one instead; False for what is no direction."""
        unit = unit_of(vector)
        if unit is None:
            return False
        self.forget(key)
        place = (bucket, len(unit))
        held = self._buckets.get(place)
        if held is None:
            held = self._buckets[place] = _Bucket(len(unit))
        elif len(held) >= self.bucket_max:
            self._evict(held.oldest())
            held = self._buckets.setdefault(place, held)  # the one that went may have been its only one
        held.add(key, unit)
        self._of_key[key] = place
        self._order[key] = None
        self.bytes += size_of(len(unit))
        self._make_room()
        return True

    def find(self, bucket: bytes, vector: Sequence[float] | Matrix, threshold: float) -> tuple[bytes, float] | None:
        """The key whose vector is closest, and the cosine, if that is at least `threshold`. Counts nothing: only who
        has the answer knows."""
        unit = unit_of(vector)
        held = None if unit is None else self._buckets.get((bucket, len(unit)))
        if held is None or unit is None:
            return None
        key, cosine = held.closest(unit)
        return (key, min(cosine, 1.0)) if cosine >= threshold - ROUNDING else None

    def resize(self, max_bytes: int) -> None:
        """Set another bound; what does not fit any more is evicted."""
        self.max_bytes = max_bytes
        self._make_room()

    def forget(self, key: bytes) -> None:
        """Its answer is gone: so is the vector."""
        place = self._of_key.pop(key, None)
        if place is None:
            return
        del self._order[key]
        self.bytes -= size_of(place[1])
        held = self._buckets[place]
        held.remove(key)
        if not held:
            del self._buckets[place]

    def _make_room(self) -> None:
        while self.bytes > self.max_bytes and self._order:
            self._evict(next(iter(self._order)))

    def _evict(self, key: bytes) -> None:
        self.evicted += 1
        self.forget(key)


class _Bucket:
    """Rows of one matrix, which grows by half. The row of a key that is gone is all zeros: close to nothing."""

    __slots__ = ("_free", "_keys", "_matrix", "_rows", "_used")

    def __init__(self, dimension: int) -> None:
        self._matrix: Matrix = numpy_module().zeros((1, dimension), "float32")
        self._keys: list[bytes] = []  # by row
        self._rows: OrderedDict[bytes, int] = OrderedDict()  # by key, the oldest first
        self._free: list[int] = []
        self._used = 0  # rows that were ever filled

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """The memory of the matrix."""
        return self._matrix.nbytes

    def oldest(self) -> bytes:
        """The key that was added first."""
        return next(iter(self._rows))

    def add(self, key: bytes, unit: Matrix) -> None:
        """Add a row; the key has none."""
        if self._free:
            row = self._free.pop()
            self._keys[row] = key
        else:
            row = self._used
            self._used += 1
            self._keys.append(key)
            if row == len(self._matrix):
                spare = numpy_module().zeros_like(self._matrix[: row // 2 + 1])
                self._matrix = numpy_module().concatenate((self._matrix, spare))
        self._matrix[row] = unit
        self._rows[key] = row

    def remove(self, key: bytes) -> None:
        """Take a key's row out."""
        row = self._rows.pop(key)
        self._matrix[row] = 0
        self._free.append(row)
        if len(self._free) > _ROWS_SPARE + len(self._rows) // 2:
            self._matrix = self._matrix[list(self._rows.values()) or [0]]
            self._keys = list(self._rows)
            self._rows = OrderedDict((key, row) for row, key in enumerate(self._keys))
            self._free, self._used = [], len(self._keys)

    def closest(self, unit: Matrix) -> tuple[bytes, float]:
        """The key whose row is closest, and the cosine."""
        cosines = self._matrix[: self._used] @ unit
        row = int(cosines.argmax())
        return self._keys[row], float(cosines[row])


def unit_of(vector: Sequence[float] | Matrix) -> Matrix | None:
    """A vector at unit length, float32; None when it has no direction, is not finite or has too many dimensions."""
    np = numpy_module()
    try:
        told: Matrix = np.asarray(vector, dtype="float32")
    except (TypeError, ValueError, OverflowError):
        return None
    if told.ndim != 1 or not 0 < len(told) <= DIMENSION_MAX:
        return None
    length = math.sqrt(float(np.dot(told, told)))
    if not math.isfinite(length) or length < 1e-12:
        return None
    unit: Matrix = told / np.float32(length)
    return unit


def _split(messages: Any) -> tuple[list[Any], str] | None:
    """System messages and the text of the one user message behind them."""
    if not isinstance(messages, list) or not messages or not all(isinstance(item, Mapping) for item in messages):
        return None
    *system, user = messages
    if user.get("role") != "user" or any(message.get("role") not in _SYSTEM for message in system):
        return None
    if not user.keys() <= {"role", "content"}:  # a name, or what providers read of their own
        return None
    text = _text(user.get("content"))
    return (system, text) if text and len(text) <= QUESTION_MAX and not text.isspace() else None


def _text(content: Any) -> str:
    """Text, or parts of nothing but text; "" for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part["text"] for part in content if part.keys() == {"type", "text"} and part["type"] == "text"]
    return "\n".join(texts) if len(texts) == len(content) else ""


def numpy_module() -> Any:
    """numpy, imported when it is first needed."""
    global _np
    if _np is None:
        # Its linear algebra would start a thread per core, with buffers for each, when it is loaded.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        import numpy

        _np = numpy
    return _np


_np: Any = None
