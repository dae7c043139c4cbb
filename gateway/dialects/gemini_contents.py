"""Conversations of the Gemini API into canonical messages, part by part, and its schemas into JSON schemas. Pure.

The API takes every field in camelCase and in snake_case, and one object where it documents a list of them; `field` and
`many` read both. What the canonical form cannot carry (files and tools of the provider) is noted in the findings: only
a provider of this API can then be asked. Format: the public API reference of `models.generateContent`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from gateway.dialects import reading
from gateway.errors import BadRequestError

FORMAT = "google-gemini-v1"  # of `reasoning_details` that carry a thought signature of this API
# The documented stand-in where a provider of this API demands a signature for a call that another model made.
STAND_IN = "skip_thought_signature_validator"

_DATA = ("text", "inlineData", "fileData", "functionCall", "functionResponse")
_OWN = ("executableCode", "codeExecutionResult", "toolCall", "toolResponse", "videoMetadata")
_SOUNDS = {"x-wav": "wav", "wave": "wav", "vnd.wave": "wav", "mpeg": "mp3", "mpga": "mp3"}
# Addresses that only the provider can read: its own files, buckets, films of a certain site.
_OWN_FILE = re.compile(
    r"(?i)gs://|https://generativelanguage\.googleapis\.com/|https?://(?:www\.)?youtu(?:\.be|be\.com)/"
)
_SNAKE = re.compile(r"(?<!^)([A-Z])")
_CAMEL = re.compile(r"_([a-z])")

_encode = msgspec.json.Encoder().encode

Part = dict[str, Any]


def field(holder: Mapping[str, Any], name: str, where: str = "") -> Any:
    """A field in either spelling. Both at once are refused: readers might not agree on which counts."""
    snake = _SNAKE.sub(lambda match: "_" + match[1].lower(), name)
    value = holder.get(name)
    if snake == name or snake not in holder:
        return value
    if name in holder:
        refuse(where + snake, f"and '{where}{name}' are the same field; send one of them")
    return holder[snake]


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


class Conversation:
    """Reads `systemInstruction` and `contents` into canonical `messages`.

    The parts read are changed in one place: where a signature is one of ours, made of another provider's, the provider
    gets its stand-in; `changed` tells that.
    """

    def __init__(self, findings: reading.Findings) -> None:
        self.messages: list[dict[str, Any]] = []
        self.changed = False
        self._findings = findings
        self._waiting: list[tuple[str, str]] = []  # name and id of calls without a result so far
        self._ids: set[str] = set()
        self._made = 0

    def system(self, value: Any) -> None:
        """The system instruction: its texts are one message."""
        if value is None:
            return
        if type(value) is str:
            texts = [value]
        else:
            if type(value) is not dict:
                refuse("systemInstruction", "must be an object with 'parts'")
            texts = []
            for place, part in enumerate(many(value.get("parts"), "systemInstruction.parts")):
                if type(part.get("text")) is not str:
                    refuse(f"systemInstruction.parts[{place}].text", "must be a string")
                texts.append(part["text"])
        if any(texts):
            self.messages.append({"role": "system", "content": "\n".join(texts)})

    def read(self, contents: Any) -> None:
        """All of `contents`; neighbours of one role are one turn. Raises `BadRequestError`."""
        turns: list[tuple[str, list[tuple[Part, str]]]] = []
        for index, content in enumerate(many(contents, "contents")):
            where = f"contents[{index}]"
            role = content.get("role") or "user"
            if role not in ("user", "model", "function"):
                refuse(f"{where}.role", "must be 'user' or 'model'")
            role = "assistant" if role == "model" else "user"
            parts = many(content.get("parts"), f"{where}.parts")
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

    # --- one turn ---------------------------------------------------------------------------------------------------

    def _user(self, placed: list[tuple[Part, str]]) -> None:
        results, parts = [], []
        for part, where in placed:
            response = field(part, "functionResponse", where)
            if response is not None:
                results.append(self._result(response, f"{where}functionResponse."))
            else:
                parts.extend(self._parts(part, where))
        self.messages.extend(results)  # right behind the calls they answer
        if parts or not results:
            self.messages.append({"role": "user", "content": content_of(parts)})

    def _model(self, placed: list[tuple[Part, str]]) -> None:
        said: list[Part] = []
        calls: list[dict[str, Any]] = []
        details: list[dict[str, Any]] = []
        thought, unsigned = "", ""
        message: dict[str, Any] = {"role": "assistant", "content": None}
        for part, where in placed:
            signature = field(part, "thoughtSignature", where)
            call = field(part, "functionCall", where)
            if call is not None:
                calls.append(self._call(call, f"{where}functionCall."))
            elif part.get("thought") is True:
                text = self._text(part, where) if part.get("text") is not None else ""
                thought, unsigned = thought + text, unsigned + text
            else:
                said.extend(self._parts(part, where))
            if type(signature) is not str or not signature:
                continue
            wrap = reading.unwrapped(signature)
            extra = {"google": {"thought_signature": signature}}
            if wrap is not None:
                details.extend(self._unwrapped(part, wrap, calls[-1] if call is not None else message))
            elif call is not None:
                calls[-1]["extra_content"] = extra
            elif part.get("thought") is True:
                details.append({"type": "reasoning.text", "text": unsigned, "signature": signature, "format": FORMAT})
                unsigned = ""
            else:
                message["extra_content"] = extra
        if said or not calls:
            message["content"] = content_of(said, joined=True)
        if thought:
            message["reasoning_content"] = thought
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

    def _parts(self, part: Part, where: str) -> list[Part]:
        """The canonical content parts of a part that is neither a call nor a result."""
        found: list[Part] = []
        if part.get("text") is not None:
            text = self._text(part, where)
            found.append({"type": "text", "text": text})
        if (blob := field(part, "inlineData", where)) is not None:
            found.append(self._inline(blob, f"{where}inlineData."))
        if (file := field(part, "fileData", where)) is not None:
            found.append(self._file(file, f"{where}fileData."))
        for name in _OWN:
            if field(part, name, where) is not None:
                self._findings.only(where + name)
        if not found and part and not any(camel(name) in _OWN or name.startswith("thought") for name in part):
            # A kind of content that is not known here: only the provider can tell what it is.
            self._findings.only(where + min(part)[:64])
            found.append({"type": "unknown"})
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
        self._ids.add(id)
        self._waiting.append((name, id))
        return {"id": id, "type": "function", "function": {"name": name, "arguments": _encode(args or {}).decode()}}

    def _new_id(self) -> str:
        """An id for a call that has none: the same for the same conversation."""
        while True:
            self._made += 1
            id = f"call_{self._made}"
            if id not in self._ids:
                return id

    def _result(self, response: Any, where: str) -> dict[str, Any]:
        if type(response) is not dict:
            refuse(where.removesuffix("."), "must be an object")
        name, told, id = string(response, "name", where), response.get("response"), response.get("id")
        if told is not None and type(told) is not dict:
            refuse(f"{where}response", "must be an object")
        message: dict[str, Any] = {"role": "tool", "tool_call_id": ""}
        waiting = next((item for item in self._waiting if item[1] == id), None)
        waiting = waiting or next((item for item in self._waiting if item[0] == name), None)
        if waiting is not None:
            self._waiting.remove(waiting)
            message["tool_call_id"] = waiting[1]
        else:  # the provider may judge
            message |= {"tool_call_id": id if type(id) is str and id else self._new_id(), "name": name}
        text, failed = _told(told or {})
        parts = [{"type": "text", "text": text}] if text else []
        for place, part in enumerate(many(response.get("parts"), f"{where}parts")):
            parts.extend(self._parts(part, f"{where}parts[{place}]."))
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
_RENAMED = {"defs": "$defs", "ref": "$ref"}


def json_schema(value: Any, where: str) -> dict[str, Any]:
    """A schema of this API, whose types are in capitals and whose counts may be strings, as a JSON schema."""
    if type(value) is not dict:
        refuse(where, "must be a schema")
    told: dict[str, Any] = {}
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
