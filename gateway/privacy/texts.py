r"""The texts of a request that may hold something private, and their places.

What is walked is a decoded JSON document: the canonical body, or the one the client sent in its own API. Every string
is a text but for names that decide where a request goes and how it is read, the schemas of tools and answers, and
media: base64 where base64 belongs. So a field that is not known here is looked at, not passed over.

Arguments of tools are JSON inside of JSON. They are looked at as JSON text in its plainest spelling, with the escapes
for line ends, tabs and quotes blanked: neither `\u0041KIA…` nor `\nAKIA…` hides anything then. Places in the blanked
text are places in the spelling that is written back.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import msgspec

MEDIA_CHARACTERS = 1024  # a shorter string is looked at wherever it stands
_OPAQUE_CHARACTERS = 64
_SAMPLE = 1024

# Names of models, kinds of things and ids that tie parts of a request together.
_NAMES = frozenset(
    ["model", "models", "type", "role", "object", "id", "tool_call_id", "call_id", "tool_use_id", "media_type"]
)
_SCHEMAS = frozenset(
    [
        "schema",
        "parameters",
        "input_schema",
        "inputSchema",
        "output_schema",
        "parametersJsonSchema",
        "parameters_json_schema",
        "responseSchema",
        "response_schema",
        "responseJsonSchema",
        "response_json_schema",
        "guided_json",
        "format",
    ]
)
_MAYBE_PASSED_OVER = _NAMES | _SCHEMAS
_MEDIA = frozenset(["data", "file_data", "image_url", "url", "bytes", "b64_json", "images", "image", "result"])
_OPAQUE = frozenset(["signature", "thought_signature", "thoughtSignature", "encrypted_content"])
_SPOKEN = frozenset(["text", "content", "arguments", "input", "prompt"])
_RESULT_HOLDERS = frozenset(["functionResponse", "function_response"])
_BEGINS = frozenset('{["')  # of a text that may be JSON
# Base64 as it is written: one run of characters, or lines of 60 and more, of which a sample may cut the first and last.
_BASE64 = re.compile(r"[0-9A-Za-z+/_-]*(?:\r?\n[0-9A-Za-z+/_-]{60,})*(?:\r?\n[0-9A-Za-z+/_-]*)?={0,2}\s*")
_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{4}|.)", re.DOTALL)
_BLANKS = {rb"\\": rb"\\", rb"\"": b' "', rb"\n": b" \n", rb"\r": b" \r", rb"\t": b" \t"}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_DECODE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


class Text:
    """One text and its place. What it says is shown by none of its representations.

    `scanned` is what to look at. `json`: it is JSON text in which places mean the same as in `base`, what a new text is
    made from. `result`: it came from a tool.
    """

    __slots__ = ("_as_value", "_holder", "_key", "base", "json", "result", "scanned")

    def __init__(
        self, holder: Any, key: Any, value: Any, *, json: bool = False, as_value: bool = False, result: bool = False
    ) -> None:
        self._holder, self._key, self._as_value, self.result = holder, key, as_value, result
        self.json = json
        self.scanned: str | bytes = value
        self.base: str | bytes = value
        if as_value:
            self.base = _encode(value)
            self.scanned = blanked(self.base)
        elif json and "\\" in value:
            try:
                self.base = _encode(_decode(value))
                self.scanned = blanked(self.base)
            except _DECODE_ERRORS:
                self.json = False

    def __repr__(self) -> str:
        return f"<Text of {len(self.scanned)}>"

    def data(self) -> bytes:
        """`base` as bytes."""
        return self.base if isinstance(self.base, bytes) else self.base.encode("utf-8", "surrogatepass")

    def write(self, data: bytes) -> None:
        """Put another text in its place."""
        if self._as_value:
            self._holder[self._key] = _decode(data)
        else:
            self._holder[self._key] = data.decode("utf-8", "surrogatepass")


def blanked(data: bytes) -> bytes:
    """JSON text with its escapes replaced by what they stand for, or by blanks, each as long as it was."""
    if b"\\" not in data:
        return data
    return _ESCAPE.sub(lambda found: _BLANKS.get(found[0]) or b" " * len(found[0]), data)


def collect(doc: Any, *, results: bool = True, known: Collection[str] = ()) -> list[Text]:
    """The texts of a decoded request in their order, in any of the APIs.

    Without `results`, what tools returned is left out. Strings in `known` are left out as well: with the texts of the
    canonical body in it, what is left of the client's own body is what was not translated.
    """
    texts: list[Text] = []
    waiting: list[tuple[Any, Any, str, bool, Any]] = [(None, None, "", False, doc)]
    while waiting:
        holder, key, name, result, value = waiting.pop()
        kind = type(value)
        if kind is str:
            if value and value not in known and (name in _SPOKEN or not _is_media(name, value)):
                inside = name == "arguments" or ("\\" in value and value.lstrip()[:1] in _BEGINS)
                texts.append(Text(holder, key, value, json=inside, result=result))
        elif kind is list:
            waiting += [
                (value, place, name if type(item) is str else "", result, item)
                for place, item in zip(range(len(value) - 1, -1, -1), reversed(value), strict=True)
                if type(item) in _WALKED
            ]
        elif kind is dict:
            if name in _VALUES or (name == "response" and result):
                result = result or name == "response"
                if value and (results or not result):
                    text = Text(holder, key, value, json=True, as_value=True, result=result)
                    if not known or text.data().decode() not in known:
                        texts.append(text)
                continue
            result = result or name in _RESULT_HOLDERS or _is_result(value)
            if result and not results:
                continue
            waiting += [
                (value, inner, inner, result, item)
                for inner, item in reversed(value.items())
                if type(item) in _WALKED and not (inner in _MAYBE_PASSED_OVER and _is_passed_over(inner, item))
            ]
    return texts


_WALKED = frozenset([str, list, dict])
_VALUES = frozenset(["arguments", "args", "input"])  # of a tool call, where they are objects


def _is_passed_over(name: str, value: Any) -> bool:
    return (name in _NAMES and type(value) is str) or (name in _SCHEMAS and type(value) is dict)


def _is_result(value: dict[str, Any]) -> bool:
    """Whether an object of a request tells what a tool returned."""
    if value.get("role") in ("tool", "function"):
        return True
    kind = value.get("type")
    return isinstance(kind, str) and kind.endswith(("tool_result", "_output"))


def _is_media(name: str, value: str) -> bool:
    if len(value) < _OPAQUE_CHARACTERS:
        return False
    if value.startswith("data:") and ";base64," in value[:256]:
        return True
    if name in _OPAQUE or (name in _MEDIA and len(value) >= MEDIA_CHARACTERS):
        return _BASE64.fullmatch(value[:_SAMPLE]) is not None and _BASE64.fullmatch(value[-_SAMPLE:]) is not None
    return False
