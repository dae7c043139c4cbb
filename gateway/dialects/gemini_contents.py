"""Conversations of the Gemini API into canonical messages, part by part, and its schemas into JSON schemas. Pure.

The API takes every field in camelCase and in snake_case, and one object where it documents a list of them; `field` and
`many` read both. What the canonical form cannot carry (files and tools of the provider) is noted in the findings: only
a provider of this API can then be asked. Format: the public API reference of `models.generateContent`.
"""

from __future__ import annotations

import base64
import functools
import re
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import msgspec

from gateway.dialects import reading
from gateway.errors import BadRequestError

FORMAT = "google-gemini-v1"  # of `reasoning_details` that carry a thought signature of this API
# The documented stand-in where a provider of this API demands a signature for a call that another model made.
STAND_IN = "skip_thought_signature_validator"

CONTENTS_MAX = 4096
PARTS_MAX = 16_384  # of one request, those inside of function responses among them

_MEDIA = ("inlineData", "fileData")
_OWN = ("executableCode", "codeExecutionResult", "toolCall", "toolResponse")
# A part holds one of these. What stands beside it says how to take it.
_DATA = ("text", *_MEDIA, "functionCall", "functionResponse", *_OWN)
_BESIDE = frozenset({"thought", "thoughtSignature", "videoMetadata", "mediaResolution", "partMetadata"})
_FOLDED: Mapping[str, str] = MappingProxyType({name.lower(): name for name in _DATA})
_SOUNDS = {"x-wav": "wav", "wave": "wav", "vnd.wave": "wav", "mpeg": "mp3", "mpga": "mp3"}
# Addresses that only the provider can read: its own files, buckets, films of a certain site.
_OWN_FILE = re.compile(
    r"(?i)gs://|https://generativelanguage\.googleapis\.com/|https?://(?:www\.)?youtu(?:\.be|be\.com)/"
)
_CAPITAL = re.compile(r"(?<!^)([A-Z])")
_CAMEL = re.compile(r"_([a-z])")

_encode = msgspec.json.Encoder().encode

Part = dict[str, Any]


def field(holder: Mapping[str, Any], name: str, where: str = "") -> Any:
    """A field in either spelling. Both at once are refused: readers might not agree on which counts."""
    snake = _snake(name)
    value = holder.get(name)
    if snake == name or snake not in holder:
        return value
    if name in holder:
        refuse(where + snake, f"and '{where}{name}' are the same field; send one of them")
    return holder[snake]


@functools.lru_cache(maxsize=256)
def _snake(name: str) -> str:
    return _CAPITAL.sub(lambda match: "_" + match[1].lower(), name)


def camel(name: str) -> str:
    """A field's name in camelCase."""
    return _CAMEL.sub(lambda match: match[1].upper(), name)


def many(value: Any, where: str) -> list[dict[str, Any]]:
    """A list of objects; one alone stands for a list of it. Raises `BadRequestError`."""
    if value is None:
        return []
    listed = [value] if type(value) is dict else value
    if type(listed) is not list or any(type(item) is not dict for item in listed):
        refuse(where, "must be an array of objects")
    return listed


def string(holder: Mapping[str, Any], name: str, where: str) -> str:
    """A field that must be a non-empty string. Raises `BadRequestError`."""
    value = field(holder, name, where)
    if type(value) is not str or not value:
        refuse(where + name, "must be a non-empty string")
    return value


def data_of(part: Part, where: str) -> str:
    """The name of the field that holds a part's content, "" when it has none. `where` ends with a dot.

    Several in one part are refused: what is read here would not be all that the provider reads.
    """
    found = ""
    for key, value in part.items():
        name = _FOLDED.get(key.replace("_", "").lower())
        if name is None or value is None:
            continue
        if key not in (name, _snake(name)):
            refuse(where + key[:64], f"is not known; write '{name}'")
        if found == name:
            field(part, name, where)  # in both spellings
        if found:
            refuse(where + name, f"and '{found}' cannot stand in one part; send a part for each")
        found = name
    return found


def only_text(part: Part, where: str) -> str:
    """The text of a part in a place where nothing else can stand. Raises `BadRequestError`."""
    name = data_of(part, where)
    if name not in ("", "text"):
        refuse(where + name, "cannot stand here; only text can")
    if type(part.get("text")) is not str:
        refuse(f"{where}text", "must be a string")
    text: str = part["text"]
    return text


class Conversation:
    """Reads `systemInstruction` and `contents` into canonical `messages`.

    The parts read are changed in one place: where a signature is one of ours, made of another provider's, the provider
    gets its stand-in; `changed` tells that.
    """

    def __init__(self, findings: reading.Findings) -> None:
        self.messages: list[dict[str, Any]] = []
        self.changed = False
        self._findings = findings
        # The calls by their ids, and their numbers by their names, in order; a call that got its result is in `_told`.
        self._calls: dict[str, deque[int]] = {}
        self._named: dict[str, deque[int]] = {}
        self._call_ids: list[str] = []
        self._told: set[int] = set()
        self._made = 0
        self._parts_read = 0

    def system(self, value: Any) -> None:
        """The system instruction: its texts are one message."""
        if value is None:
            return
        if type(value) is str:
            texts = [value]
        else:
            if type(value) is not dict:
                refuse("systemInstruction", "must be an object with 'parts'")
            parts = self._listed(value.get("parts"), "systemInstruction.parts")
            texts = [only_text(part, f"systemInstruction.parts[{place}].") for place, part in enumerate(parts)]
        if any(texts):
            self.messages.append({"role": "system", "content": "\n".join(texts)})

    def read(self, contents: Any) -> None:
        """All of `contents`; neighbours of one role are one turn. Raises `BadRequestError`."""
        turns: list[tuple[str, list[tuple[Part, str]]]] = []
        listed = many(contents, "contents")
        if len(listed) > CONTENTS_MAX:
            refuse("contents", f"must not hold more than {CONTENTS_MAX} items")
        for index, content in enumerate(listed):
            where = f"contents[{index}]"
            role = content.get("role") or "user"
            if role not in ("user", "model", "function"):
                refuse(f"{where}.role", "must be 'user' or 'model'")
            role = "assistant" if role == "model" else "user"
            parts = self._listed(content.get("parts"), f"{where}.parts")
            placed = [(part, f"{where}.parts[{place}].") for place, part in enumerate(parts)]
            if turns and turns[-1][0] == role:
                turns[-1][1].extend(placed)
            else:
                turns.append((role, placed))
        if not turns:
            refuse("contents", "must be a non-empty array")
        for role, placed in turns:
            if role == "assistant":
                self._model(placed)
            else:
                self._user(placed)

    def _listed(self, value: Any, where: str) -> list[Part]:
        """A list of parts. All of them are counted before any is read."""
        parts = many(value, where)
        self._parts_read += len(parts)
        if self._parts_read > PARTS_MAX:
            refuse(where, f"must not bring the request above {PARTS_MAX} parts; send fewer")
        return parts

    # --- one turn ---------------------------------------------------------------------------------------------------

    def _user(self, placed: list[tuple[Part, str]]) -> None:
        results, parts = [], []
        for part, where in placed:
            kind = data_of(part, where)
            if kind == "functionResponse":
                results.append(self._result(field(part, kind, where), f"{where}{kind}."))
            else:
                parts.extend(self._parts(part, kind, where))
        self.messages.extend(results)  # right behind the calls they answer
        if parts or not results:
            self.messages.append({"role": "user", "content": content_of(parts)})

    def _model(self, placed: list[tuple[Part, str]]) -> None:
        said: list[Part] = []
        calls: list[dict[str, Any]] = []
        details: list[dict[str, Any]] = []
        thought: list[str] = []
        unsigned: list[str] = []  # the thoughts since the last signature
        message: dict[str, Any] = {"role": "assistant", "content": None}
        for part, where in placed:
            signature = field(part, "thoughtSignature", where)
            kind = data_of(part, where)
            call = field(part, "functionCall", where)
            thinks = part.get("thought") is True
            if call is not None:
                calls.append(self._call(call, f"{where}functionCall."))
            elif kind == "functionResponse":
                refuse(where + kind, "cannot stand in a turn of the model")
            elif thinks and kind == "text":
                text = self._text(part, where)
                thought.append(text)
                unsigned.append(text)
            else:
                said.extend(self._parts(part, kind, where))
            if type(signature) is not str or not signature:
                continue
            wrap = reading.unwrapped(signature)
            extra = {"google": {"thought_signature": signature}}
            if wrap is not None:
                details.extend(self._unwrapped(part, wrap, calls[-1] if call is not None else message))
            elif call is not None:
                calls[-1]["extra_content"] = extra
            elif thinks:
                text = "".join(unsigned)
                details.append({"type": "reasoning.text", "text": text, "signature": signature, "format": FORMAT})
                unsigned.clear()
            else:
                message["extra_content"] = extra
        if said or not calls:
            message["content"] = content_of(said, joined=True)
        if any(thought):
            message["reasoning_content"] = "".join(thought)
        if details:
            message["reasoning_details"] = details
        if calls:
            message["tool_calls"] = calls
        self.messages.append(message)

    def _unwrapped(self, part: Part, wrap: dict[str, Any], holder: dict[str, Any]) -> list[dict[str, Any]]:
        """The reasoning details a signature of ours holds; the part gets a signature that its own provider takes."""
        self.changed = True
        part.pop("thought_signature", None)
        part.pop("thoughtSignature", None)
        extra = reading.extra_of(wrap.get("extra_content"))
        if extra is not None:
            holder["extra_content"] = extra
            part["thoughtSignature"] = extra["google"]["thought_signature"]
        elif "content" not in holder:  # a call
            part["thoughtSignature"] = STAND_IN
        return [item for item in reading.details_of(wrap) if isinstance(item.get("type"), str)]

    # --- one part ---------------------------------------------------------------------------------------------------

    def _parts(self, part: Part, kind: str, where: str) -> list[Part]:
        """The canonical content parts of a part whose content is in the field `kind`, neither a call nor a result."""
        found: list[Part] = []
        if kind in _MEDIA and part.get("thought") is True:
            refuse(where + kind, "cannot stand in a thought")
        if kind == "text":
            found.append({"type": "text", "text": self._text(part, where)})
        elif kind == "inlineData":
            found.append(self._inline(field(part, kind, where), f"{where}{kind}."))
        elif kind == "fileData":
            found.append(self._file(field(part, kind, where), f"{where}{kind}."))
        elif kind in _OWN:
            self._findings.only(where + kind)
        elif unknown := [name for name, value in part.items() if value is not None and camel(name) not in _BESIDE]:
            # A kind of content that is not known here: only the provider can tell what it is.
            self._findings.only(where + min(unknown)[:64])
            found.append({"type": "unknown"})
        if field(part, "videoMetadata", where) is not None:
            self._findings.only(f"{where}videoMetadata")
        return found

    @staticmethod
    def _text(part: Part, where: str) -> str:
        if type(part.get("text")) is not str:
            refuse(f"{where}text", "must be a string")
        text: str = part["text"]
        return text

    @staticmethod
    def _inline(blob: Any, where: str) -> Part:
        if type(blob) is not dict:
            refuse(where.removesuffix("."), "must be an object")
        kind, data = string(blob, "mimeType", where), string(blob, "data", where)
        family, _, sort = kind.lower().partition(";")[0].strip().partition("/")
        if "-" in data or "_" in data:
            data = data.translate(_STANDARD)  # this API takes both alphabets of base64, others one
        if family == "text" and (text := _decoded(data)) is not None:
            return {"type": "text", "text": text}  # as few providers take text files
        if family == "image":
            return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
        if family == "audio":
            return {"type": "input_audio", "input_audio": {"data": data, "format": _SOUNDS.get(sort, sort)}}
        name = reading.text_of(blob, "displayName") or f"file.{sort.rpartition('.')[2] or 'bin'}"
        return {"type": "file", "file": {"filename": name, "file_data": f"data:{kind};base64,{data}"}}

    def _file(self, file: Any, where: str) -> Part:
        if type(file) is not dict:
            refuse(where.removesuffix("."), "must be an object")
        address, kind = string(file, "fileUri", where), field(file, "mimeType", where)
        image = type(kind) is str and kind.lower().startswith("image/")
        if image and address.startswith(("https://", "http://")) and not _OWN_FILE.match(address):
            return {"type": "image_url", "image_url": {"url": address}}
        self._findings.only(f"{where}fileUri")
        return {"type": "file", "file": {"file_id": address}}

    def _call(self, call: Any, where: str) -> dict[str, Any]:
        if type(call) is not dict:
            refuse(where.removesuffix("."), "must be an object")
        name, args, id = string(call, "name", where), call.get("args"), call.get("id")
        if args is not None and type(args) is not dict:
            refuse(f"{where}args", "must be an object")
        if type(id) is not str or not id:
            id = self._new_id()
        number = len(self._call_ids)
        self._call_ids.append(id)
        self._calls.setdefault(id, deque()).append(number)
        self._named.setdefault(name, deque()).append(number)
        return {"id": id, "type": "function", "function": {"name": name, "arguments": _encode(args or {}).decode()}}

    def _new_id(self) -> str:
        """An id for a call that has none: the same for the same conversation."""
        while True:
            self._made += 1
            id = f"call_{self._made}"
            if id not in self._calls:
                return id

    def _answered(self, name: str, id: Any) -> str:
        """The id of the first call that a result can belong to: by its id, else by its name; "" when there is none."""
        for waiting in (self._calls.get(id) if type(id) is str else None, self._named.get(name)):
            while waiting:
                number = waiting.popleft()
                if number not in self._told:
                    self._told.add(number)
                    return self._call_ids[number]
        return ""

    def _result(self, response: Any, where: str) -> dict[str, Any]:
        if type(response) is not dict:
            refuse(where.removesuffix("."), "must be an object")
        name, told, id = string(response, "name", where), response.get("response"), response.get("id")
        if told is not None and type(told) is not dict:
            refuse(f"{where}response", "must be an object")
        message: dict[str, Any] = {"role": "tool", "tool_call_id": self._answered(name, id)}
        if not message["tool_call_id"]:  # the provider may judge
            message |= {"tool_call_id": id if type(id) is str and id else self._new_id(), "name": name}
        text, failed = _told(told or {})
        parts = [{"type": "text", "text": text}] if text else []
        for place, part in enumerate(self._listed(response.get("parts"), f"{where}parts")):
            inner = f"{where}parts[{place}]."
            kind = data_of(part, inner)
            if kind in ("functionCall", "functionResponse"):
                refuse(inner + kind, "cannot stand in a result")
            parts.extend(self._parts(part, kind, inner))
        message["content"] = content_of(parts)
        if failed:
            message["is_error"] = True
        return message


_STANDARD = str.maketrans("-_", "+/")


def _decoded(data: str) -> str | None:
    """The UTF-8 text in base64, None when it is none."""
    try:
        return base64.b64decode(data + "=" * (-len(data) % 4), validate=True).decode()
    except ValueError:
        return None


def _told(response: dict[str, Any]) -> tuple[str, bool]:
    """A result as text, and whether it tells a failure. The keys `output` and `error` are the API's own."""
    if len(response) == 1:
        key, value = next(iter(response.items()))
        if key in ("output", "result", "error"):
            return (value if type(value) is str else _encode(value).decode()), key == "error"
    return (_encode(response).decode() if response else ""), False


def content_of(parts: list[Part], *, joined: bool = False) -> str | list[Part]:
    """Parts as a message's content. A lone text is a string; with `joined` all texts are one, as answers come cut."""
    if (joined or len(parts) <= 1) and all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


# --- schemas --------------------------------------------------------------------------------------------------------

_NUMBERS = frozenset({"maxItems", "minItems", "maxLength", "minLength", "maxProperties", "minProperties"})
_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_WHERE_MAX = 512
_RENAMED = {"defs": "$defs", "ref": "$ref"}


def json_schema(value: Any, where: str) -> dict[str, Any]:
    """A schema of this API, whose types are in capitals and whose counts may be strings, as a JSON schema."""
    if type(value) is not dict:
        refuse(where, "must be a schema")
    told: dict[str, Any] = {}
    where = where[:_WHERE_MAX]  # as long as the way down, for each of the schemas at its end
    for key, item in value.items():
        name = camel(key)
        name = _RENAMED.get(name, name)
        if item is None or name in ("propertyOrdering", "nullable"):
            continue
        if name == "type":
            if item != "TYPE_UNSPECIFIED":
                told[name] = _lower(item)
        elif name in ("properties", "$defs"):
            if type(item) is not dict:
                refuse(f"{where}.{key}", "must be an object")
            told[name] = {inner: json_schema(schema, f"{where}.{key}.{inner[:64]}") for inner, schema in item.items()}
        elif name == "items" or (name == "additionalProperties" and type(item) is dict):
            told[name] = json_schema(item, f"{where}.{key}")
        elif name in _SCHEMAS and type(item) is list:
            told[name] = [json_schema(schema, f"{where}.{key}[{place}]") for place, schema in enumerate(item)]
        elif name in _NUMBERS and type(item) is str and item.isdecimal():
            told[name] = int(item)
        elif name == "example":
            told["examples"] = [item]
        else:
            told[name] = item
    if value.get("nullable") is True and type(told.get("type")) is str:
        told["type"] = [told["type"], "null"]
        if type(told.get("enum")) is list:
            told["enum"] = [*told["enum"], None]
    return told


def _lower(kind: Any) -> Any:
    if type(kind) is list:
        return [_lower(item) for item in kind]
    return kind.lower() if type(kind) is str else kind


def refuse(param: str, what: str) -> NoReturn:
    """Raise the refusal of one field."""
    raise BadRequestError(f"'{param}' {what}.", param=param)
