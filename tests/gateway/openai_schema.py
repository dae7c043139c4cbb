"""What the OpenAI API's answers look like, kept here as data: every endpoint we serve, and how to hold an answer to it.

    assert not problems(json.loads(body), CHAT)

Source: OpenAI's published API description (required fields, and which of them may be null) and, where it is newer, the
types of its own SDK, against which `test_openai_schema` holds these. A schema is a type (`str`, `int`, `bool`, `dict`
for any object, `object` for anything, None), `one_of(…)` texts, a tuple of alternatives, a list with one schema for all
items, or a dict of an object's fields. Field names end in:

    "?"   may be left out
    "~"   OpenAI demands it, and servers that imitate its API leave it out
    ""    everybody has it

What the gateway makes itself is held to everything, and may have no field that is not named here, among them the
gateway's own extensions (`reasoning_content`, …). An answer of a provider that speaks this API passes as it is: those
are held to what every one has (`lenient`), since what else is in them is the provider's.
"""

from __future__ import annotations

import json
from typing import Any

from tests.gateway.matrix_clients import events

Schema = Any
Fields = dict[str, Schema]


class Words(frozenset[str]):
    """One of these texts."""


class Theirs:
    """What only providers tell."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema


def one_of(*words: str) -> Words:
    """The schema of a text that is one of these."""
    return Words(words)


def problems(value: Any, schema: Schema, *, lenient: bool = False, where: str = "$") -> list[str]:
    """What is wrong with a decoded answer, one message each."""
    if isinstance(schema, tuple):
        found = [problems(value, one, lenient=lenient, where=where) for one in schema]
        return min(found, key=len) if all(found) else []
    if isinstance(schema, Theirs):
        return problems(value, schema.schema, lenient=True, where=where) if lenient else [f"{where}: not the API's"]
    if isinstance(schema, Words):
        return [] if isinstance(value, str) and value in schema else [f"{where}: {value!r} is none of {sorted(schema)}"]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{where}: {value!r} is no array"]
        told = enumerate(value)
        return [bad for at, one in told for bad in problems(one, schema[0], lenient=lenient, where=f"{where}[{at}]")]
    if isinstance(schema, dict):
        return _of_object(value, schema, lenient=lenient, where=where)
    fits = value is None if schema is None else isinstance(value, schema)
    if schema is int or schema is float:
        fits = isinstance(value, int if schema is int else (int, float)) and not isinstance(value, bool)
    return [] if fits else [f"{where}: {value!r} is no {getattr(schema, '__name__', 'null')}"]


def _of_object(value: Any, schema: Schema, *, lenient: bool, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: {value!r} is no object"]
    found = []
    fields = {name.rstrip("?~"): name for name in schema}
    for name, field in fields.items():
        if lenient and field.endswith("?") and value.get(name) is None:
            continue  # null is as good as nothing
        if name in value:
            found += problems(value[name], schema[field], lenient=lenient, where=f"{where}.{name}")
        elif not field.endswith("?") and not (lenient and field.endswith("~")):
            found.append(f"{where}.{name}: is missing")
    unknown = [] if lenient else sorted(set(value) - set(fields))
    return found + [f"{where}.{name}: OpenAI has no such field" for name in unknown]


# --- what several have ------------------------------------------------------------------------------------------------

TEXT_OR_NULL = (str, None)
_NUMBER_OR_NULL = (float, None)
_DETAILS = {
    "cached_tokens?": int,
    "cache_write_tokens?": int,
    "audio_tokens?": int,
    "text_tokens?": int,
    "image_tokens?": int,
}
_OUTPUT_DETAILS = {
    "reasoning_tokens?": int,
    "audio_tokens?": int,
    "text_tokens?": int,
    "accepted_prediction_tokens?": int,
    "rejected_prediction_tokens?": int,
}
USAGE: Fields = {
    "prompt_tokens": int,
    "completion_tokens": int,
    "total_tokens": int,
    "prompt_tokens_details?": _DETAILS,
    "completion_tokens_details?": _OUTPUT_DETAILS,
}
_LOGPROB = {"token": str, "logprob": float, "bytes": ([int], None)}
LOGPROBS: Fields = {"content": ([{**_LOGPROB, "top_logprobs": [_LOGPROB]}], None), "refusal": ([dict], None)}
FINISH = one_of("stop", "length", "tool_calls", "content_filter", "function_call")
# What of other APIs has no place in this one, told in fields that its clients ignore or send back (docs/dialects.md).
_EXTENSIONS = {
    "reasoning_content?": str,
    "reasoning_details?": [{"type": str, "format?": str, "text?": str, "signature?": str, "data?": str, "id?": str}],
    "extra_content?": {"google": {"thought_signature": str}},
}
ERROR: Fields = {"error": {"message": str, "type": str, "param": TEXT_OR_NULL, "code": TEXT_OR_NULL}}

# --- chat completions -------------------------------------------------------------------------------------------------

TOOL_CALL: Fields = {
    "id": str,
    "type": one_of("function"),
    "function": {"name": str, "arguments": str},
    "extra_content?": dict,
}
MESSAGE: Fields = {
    "role": one_of("assistant"),
    "content": (str, None, Theirs([dict])),  # Mistral's list, with the reasoning in it
    "refusal~": TEXT_OR_NULL,
    "annotations?": [dict],
    "tool_calls?": [TOOL_CALL],
    **_EXTENSIONS,
}
CHAT: Fields = {
    "id": str,
    "object": one_of("chat.completion"),
    "created": int,
    "model": str,
    "choices": [{"index": int, "message": MESSAGE, "logprobs~": (LOGPROBS, None), "finish_reason": FINISH}],
    "usage?": USAGE,
    "service_tier?": TEXT_OR_NULL,
    "system_fingerprint?": TEXT_OR_NULL,
}
DELTA: Fields = {
    "role?": one_of("assistant"),
    "content?": (str, None, Theirs([dict])),
    "refusal?": TEXT_OR_NULL,
    "annotations?": [dict],
    "tool_calls?": [
        {
            "index": int,
            "id?": str,
            "type?": one_of("function"),
            "function?": {"name?": str, "arguments?": str},
            "extra_content?": dict,
        }
    ],
    **_EXTENSIONS,
}
CHUNK: Fields = {
    "id": str,
    "object": (one_of("chat.completion.chunk"), Theirs(one_of(""))),  # Azure's first chunk has no names
    "created": int,
    "model": str,
    "choices": [{"index": int, "delta": DELTA, "logprobs?": (LOGPROBS, None), "finish_reason": (FINISH, None)}],
    "usage?": (USAGE, None),
    "service_tier?": TEXT_OR_NULL,
    "system_fingerprint?": TEXT_OR_NULL,
    "obfuscation?": str,
}

# --- the other endpoints ----------------------------------------------------------------------------------------------

_COMPLETION = {
    "id": str,
    "object": one_of("text_completion"),
    "created": int,
    "model": str,
    "system_fingerprint?": TEXT_OR_NULL,
}
_TEXT_CHOICE = {"index": int, "text": str, "logprobs~": (dict, None)}
_TEXT_FINISH = one_of("stop", "length", "content_filter")
COMPLETION: Fields = {**_COMPLETION, "choices": [{**_TEXT_CHOICE, "finish_reason": _TEXT_FINISH}], "usage?": USAGE}
# The API has one object for whole answers and for the pieces of a stream, whose finish is null before the last.
COMPLETION_CHUNK: Fields = {
    **_COMPLETION,
    "choices": [{**_TEXT_CHOICE, "finish_reason": (_TEXT_FINISH, None)}],
    "usage?": (USAGE, None),
}
EMBEDDINGS: Fields = {
    "id?": str,  # ours: Mistral's SDK takes no embeddings without
    "object": one_of("list"),
    "model": str,
    "data": [{"object": one_of("embedding"), "index": int, "embedding": ([float], str)}],
    "usage": {"prompt_tokens": int, "total_tokens": int},
}
MODEL: Fields = {"id": str, "object": one_of("model"), "created": int, "owned_by": str}
MODELS: Fields = {"object": one_of("list"), "data": [MODEL]}

# --- Responses --------------------------------------------------------------------------------------------------------

RESPONSE_USAGE: Fields = {
    "input_tokens": int,
    "input_tokens_details": {"cached_tokens": int, "cache_write_tokens~": int},
    "output_tokens": int,
    "output_tokens_details": {"reasoning_tokens": int},
    "total_tokens": int,
}
_ITEM_STATUS = one_of("in_progress", "completed", "incomplete")
OUTPUT_TEXT: Fields = {"type": one_of("output_text"), "text": str, "annotations": [dict], "logprobs~": [dict]}
REFUSAL: Fields = {"type": one_of("refusal"), "refusal": str}
SUMMARY_TEXT: Fields = {"type": one_of("summary_text"), "text": str}
MESSAGE_ITEM: Fields = {
    "type": one_of("message"),
    "id": str,
    "status": _ITEM_STATUS,
    "role": one_of("assistant"),
    "content": [(OUTPUT_TEXT, REFUSAL)],
}
REASONING_ITEM: Fields = {
    "type": one_of("reasoning"),
    "id": str,
    "summary": [SUMMARY_TEXT],
    "content?": [dict],
    "encrypted_content?": TEXT_OR_NULL,
    "status?": _ITEM_STATUS,
}
CALL_ITEM: Fields = {
    "type": one_of("function_call"),
    "id?": str,
    "call_id": str,
    "name": str,
    "arguments": str,
    "status?": _ITEM_STATUS,
    "namespace?": str,
}
ITEM = (MESSAGE_ITEM, REASONING_ITEM, CALL_ITEM)
RESPONSE_ERROR: Fields = {"code": str, "message": str}
_STATUS = one_of("completed", "failed", "in_progress", "cancelled", "queued", "incomplete")
RESPONSE: Fields = {
    "id": str,
    "object": one_of("response"),
    "created_at": float,
    "status": _STATUS,
    "background?": (bool, None),
    "completed_at?": _NUMBER_OR_NULL,
    "error": (RESPONSE_ERROR, None),
    "incomplete_details": ({"reason": one_of("max_output_tokens", "content_filter")}, None),
    "instructions": (str, list, None),
    "max_output_tokens?": (int, None),
    "max_tool_calls?": (int, None),
    "metadata~": (dict, None),
    "model": str,
    "output": [ITEM],
    "parallel_tool_calls": bool,
    "previous_response_id?": TEXT_OR_NULL,
    "prompt_cache_key?": TEXT_OR_NULL,
    "reasoning?": ({"effort": TEXT_OR_NULL, "summary": TEXT_OR_NULL}, None),
    "safety_identifier?": TEXT_OR_NULL,
    "service_tier?": TEXT_OR_NULL,
    "store?": (bool, None),
    "temperature~": _NUMBER_OR_NULL,
    "text?": {"format": dict, "verbosity?": TEXT_OR_NULL},
    "tool_choice~": (str, dict),
    "tools": [dict],
    "top_logprobs?": (int, None),
    "top_p~": _NUMBER_OR_NULL,
    "truncation?": TEXT_OR_NULL,
    "usage?": (RESPONSE_USAGE, None),
    "user?": TEXT_OR_NULL,
}


def _event(kind: str, **fields: Schema) -> tuple[str, Schema]:
    return kind, {"type": one_of(kind), "sequence_number": int, **fields}


_AT = {"item_id": str, "output_index": int}
_IN_TEXT = {**_AT, "content_index": int}
_IN_SUMMARY = {**_AT, "summary_index": int}
_LAST = {"response": RESPONSE}
RESPONSE_EVENTS: dict[str, Schema] = dict(
    [
        *(_event(f"response.{name}", **_LAST) for name in ("created", "in_progress", "completed", "incomplete")),
        _event("response.failed", **_LAST),
        _event("response.output_item.added", output_index=int, item=ITEM),
        _event("response.output_item.done", output_index=int, item=ITEM),
        _event("response.content_part.added", **_IN_TEXT, part=(OUTPUT_TEXT, REFUSAL)),
        _event("response.content_part.done", **_IN_TEXT, part=(OUTPUT_TEXT, REFUSAL)),
        _event("response.output_text.delta", **_IN_TEXT, delta=str, **{"logprobs~": [dict]}),
        _event("response.output_text.done", **_IN_TEXT, text=str, **{"logprobs~": [dict]}),
        _event("response.refusal.delta", **_IN_TEXT, delta=str),
        _event("response.refusal.done", **_IN_TEXT, refusal=str),
        _event("response.reasoning_summary_part.added", **_IN_SUMMARY, part=SUMMARY_TEXT),
        _event("response.reasoning_summary_part.done", **_IN_SUMMARY, part=SUMMARY_TEXT),
        _event("response.reasoning_summary_text.delta", **_IN_SUMMARY, delta=str),
        _event("response.reasoning_summary_text.done", **_IN_SUMMARY, text=str),
        _event("response.function_call_arguments.delta", **_AT, delta=str),
        _event("response.function_call_arguments.done", **_AT, arguments=str),
        # Clients look for the error inside an object as well: it is told in both places.
        _event("error", code=TEXT_OR_NULL, message=str, param=TEXT_OR_NULL, **{"error?": ERROR["error"]}),
    ]
)

# --- whole answers and streams ----------------------------------------------------------------------------------------

WHOLE: dict[str, Schema] = {"openai": CHAT, "completions": COMPLETION, "responses": RESPONSE, "embeddings": EMBEDDINGS}
PIECES: dict[str, Schema] = {"openai": CHUNK, "completions": COMPLETION_CHUNK}


def wrong_in(client: str, body: bytes, *, stream: bool, lenient: bool) -> list[str]:
    """What is wrong with the whole answer or the stream a client of this API got ("openai", "completions",
    "responses", "embeddings"). A stream may end early or with an error."""
    if not stream:
        return problems(json.loads(body), WHOLE[client], lenient=lenient)
    found = []
    for number, (_, event) in enumerate(events(body)):
        if event == "[DONE]":
            continue
        told = json.loads(event)
        schema = RESPONSE_EVENTS.get(told.get("type", "")) if client == "responses" else PIECES[client]
        if schema is None:
            found.append(f"event {number}: there is no event {told.get('type')!r}")
            continue
        ours = set(told) == {"error"}  # the gateway's own, behind whatever came before
        found += problems(told, ERROR if ours else schema, lenient=lenient and not ours, where=f"event {number}")
    return found
