"""Tools of the Responses API as functions, the only tools that every provider knows, and the way back. Pure.

A function keeps its name. The tools of a `namespace` become functions named `namespace__tool`. A `custom` tool, whose
input is free text, becomes a function with the one argument `input`. Tools that the provider itself runs (web search
and others) are left out. Both directions are worked out from the client's request alone, so that an answer can be
translated back long after. Formats: the API's public documentation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import msgspec

from gateway.errors import BadRequestError
from providers import responses_items as items

Json = dict[str, Any]

NAME_CHARACTERS = 64  # what most providers allow for the name of a function
INPUT = "input"

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_-]")
_CALLABLE = ("function", "custom")


class Origin(msgspec.Struct, frozen=True):
    """What a function was in the client's request."""

    name: str
    namespace: str = ""
    custom: bool = False


class Tools(msgspec.Struct):
    """The tools of a request: as functions, what each was, and the types of those left out."""

    functions: list[Json] = []
    origins: dict[str, Origin] = {}
    names: dict[tuple[str, str], str] = {}  # of functions, by namespace and name
    hosted: list[str] = []

    def name_of(self, name: str, namespace: Any) -> str:
        """The function name of a tool the client calls by these; also of one that is not among the tools now."""
        space = namespace if isinstance(namespace, str) else ""
        return self.names.get((space, name)) or (flat_name(space, name) if space else name)

    def origin_of(self, function: str) -> Origin:
        """What a function that was called is for the client."""
        return self.origins.get(function) or Origin(function)


def flat_name(namespace: str, name: str) -> str:
    """A function name for a tool of a namespace: readable, allowed everywhere, different for different tools."""
    whole = f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"
    plain = _FORBIDDEN.sub("_", whole)
    if plain == whole and len(plain) <= NAME_CHARACTERS:
        return plain
    return _marked(plain, namespace, name)


def _marked(plain: str, namespace: str, name: str) -> str:
    mark = hashlib.blake2b(f"{namespace}\0{name}".encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"{plain[: NAME_CHARACTERS - len(mark) - 1]}_{mark}"


def read(doc: Mapping[str, Any]) -> Tools:
    """The tools of a request, those that came inside its input included. Raises `BadRequestError`."""
    told = Tools()
    given = doc.get("tools")
    if given is not None:
        _add(told, given, "tools")
    sent = doc.get("input")
    for index, item in enumerate(sent if isinstance(sent, list) else ()):
        if isinstance(item, dict) and item.get("type") in ("additional_tools", "tool_search_output"):
            _add(told, item.get("tools") or [], f"input[{index}].tools")
    return told


def _add(told: Tools, given: Any, where: str, namespace: str = "", about: str = "") -> None:
    if type(given) is not list:
        refuse(where, "must be an array")
    for index, tool in enumerate(given):
        place = f"{where}[{index}]"
        if type(tool) is not dict or type(kind := tool.get("type")) is not str:
            refuse(place, "must be an object with a 'type'")
        if kind not in (*_CALLABLE, "namespace"):
            told.hosted.append(kind)
            continue
        inner = tool.get(kind)
        name = tool.get("name") or (inner.get("name") if type(inner) is dict else None)
        if type(name) is not str or not name:
            refuse(f"{place}.name", "must be a non-empty string")
        if kind == "namespace":
            if namespace:
                refuse(f"{place}.type", "must not be 'namespace' inside a namespace")
            words = tool.get("description")
            _add(told, tool.get("tools"), f"{place}.tools", name, words if type(words) is str else "")
        elif (namespace, name) not in told.names:
            _add_one(told, tool, Origin(name, namespace, kind == "custom"), about)
            about = ""  # what the namespace is for is told once


def _add_one(told: Tools, tool: Json, origin: Origin, about: str) -> None:
    name = flat_name(origin.namespace, origin.name) if origin.namespace else origin.name
    if name in told.origins:
        name = _marked(name, origin.namespace, origin.name)
    told.names[origin.namespace, origin.name] = name
    told.origins[name] = origin
    function = custom_function(name, tool) if origin.custom else items.nested_function(name, tool)
    if about:
        own = function["function"].get("description")
        function["function"]["description"] = f"{about}{items.GAP}{own}" if own else about
    told.functions.append(function)


def custom_function(name: str, tool: Mapping[str, Any]) -> Json:
    """A tool that takes free text as a function with one argument; a grammar can only be described."""
    inner = tool.get("custom")
    source: Mapping[str, Any] = inner if isinstance(inner, dict) else tool
    words = [source["description"]] if isinstance(source.get("description"), str) else []
    shape = source.get("format")
    grammar = shape.get("grammar", shape) if isinstance(shape, dict) and shape.get("type") == "grammar" else None
    if isinstance(grammar, dict) and isinstance(grammar.get("definition"), str):
        syntax = grammar.get("syntax")
        words.append(f"The input must match this {syntax} grammar:\n{grammar['definition']}")
    about = {"type": "string", "description": "The whole input of the tool, as plain text."}
    schema = {"type": "object", "properties": {INPUT: about}, "required": [INPUT], "additionalProperties": False}
    function: Json = {"name": name, "parameters": schema}
    if words:
        function["description"] = items.GAP.join(words)
    return {"type": "function", "function": function}


def input_of(arguments: str) -> str:
    """The free text in the arguments of such a function; the arguments themselves where they are cut or odd."""
    try:
        told = msgspec.json.decode(arguments)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return arguments
    text = told.get(INPUT) if isinstance(told, dict) else told
    return text if isinstance(text, str) else arguments


def arguments_of(text: str) -> str:
    """The arguments of such a function for a free text."""
    return msgspec.json.encode({INPUT: text}).decode()


class Choice(msgspec.Struct):
    """What may be called: the functions, the canonical `tool_choice` (None = not said), and what cannot be said."""

    functions: list[Json]
    choice: Any = None
    native_only: str = ""


def choose(doc: Mapping[str, Any], tools: Tools) -> Choice:
    """What a request's `tool_choice` comes to. Raises `BadRequestError`.

    `allowed_tools` becomes a shorter list of functions. A choice that forces a tool which the provider runs itself
    cannot be carried.
    """
    given = doc.get("tool_choice")
    if given is None or given in ("auto", "none", "required"):
        forced = given == "required" and not tools.functions and bool(tools.hosted)
        return Choice(tools.functions, given if tools.functions else None, "tool_choice" if forced else "")
    if type(given) is not dict or type(given.get("type")) is not str:
        refuse("tool_choice", "must be 'auto', 'none', 'required' or an object with a 'type'")
    kind = given["type"]
    if kind in _CALLABLE:
        name = _called(given, tools)
        if not name:
            refuse("tool_choice.name", "must be a non-empty string")
        if name not in tools.origins:
            refuse("tool_choice.name", "must be the name of one of the 'tools'")
        return Choice(tools.functions, {"type": "function", "function": {"name": name}})
    if kind != "allowed_tools":
        return Choice(tools.functions, None, "tool_choice")
    inner = given.get("allowed_tools")
    source = inner if type(inner) is dict else given
    listed, mode = source.get("tools"), source.get("mode", "auto")
    if type(listed) is not list or mode not in ("auto", "required"):
        refuse("tool_choice", "must have 'tools', an array, and the 'mode' 'auto' or 'required'")
    allowed = _allowed(listed, tools)
    kept = [function for function in tools.functions if function["function"]["name"] in allowed]
    forced = mode == "required" and not kept
    return Choice(kept, mode if kept else None, "tool_choice" if forced else "")


def _called(tool: Mapping[str, Any], tools: Tools) -> str:
    inner = tool.get(str(tool.get("type")))
    name = tool.get("name") or (inner.get("name") if type(inner) is dict else None)
    return tools.name_of(name, tool.get("namespace")) if type(name) is str else ""


def _allowed(listed: Iterable[Any], tools: Tools) -> set[str]:
    allowed = set()
    for tool in listed:
        if type(tool) is not dict:
            continue
        if tool.get("type") == "namespace":
            allowed |= {name for name, origin in tools.origins.items() if origin.namespace == tool.get("name")}
        else:
            allowed.add(_called(tool, tools))
    return allowed


def refuse(param: str, what: str) -> NoReturn:
    """Refuse one field of the request."""
    raise BadRequestError(f"'{param}' {what}.", param=param)
