"""What the gateway and every adapter say to each other about one inference request: small structs, no I/O.

`Call` is the validated request, `Target` where it goes, `Usage` what the provider says it consumed, `Answer` a whole
reply ready for the client and `UpstreamProblem` a failure told in words that may be shown to a client. The canonical
form of bodies is the OpenAI API's JSON and its stream chunks; they stay bytes wherever nothing must change.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from providers.catalog import Kind  # which loads the rows of installed packages, and those import this module

NO_HEADS: Mapping[str, bytes] = MappingProxyType({})
NO_NAMES: Mapping[str, str] = MappingProxyType({})

OPENAI = "openai"  # the dialect whose bodies are the canonical form

MAX_TOKENS = 1_000_000_000  # a provider that reports more than this for one request is not believed


class Usage(msgspec.Struct, gc=False):
    """Tokens of one answer. `input` includes `cached`, `cache_write`, `input_audio` and `input_image`; `output`
    includes `reasoning` and `output_audio`. These parts are disjoint: together they are never more than the whole.

    `reported` is true when the numbers are the provider's own, false when they are an estimate.
    """

    input: int
    cached: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    reported: bool = True
    input_audio: int = 0
    output_audio: int = 0
    input_image: int = 0


class Call(msgspec.Struct):
    """A validated inference request. `body` is exactly what the numbers in here were read from.

    `limit` is the output limit the client asked for, in tokens, and `limit_field` the body field that carried it
    ("" when none). `n` is how many outputs the upstream may generate in all, each up to the limit (choices times
    prompts; `best_of` counted; 0 for embeddings). `messages` counts messages or prompts. `prompt_tokens` is the exact
    prompt size of requests whose prompt is token numbers, else 0. `media_bytes` are the bytes of data URLs and base64
    payloads inside `body`; `others` counts content parts of a type that is not known here. `fields` are the top-level
    keys of the body. `pool` is the gateway-only field of that name, never sent upstream. `surcharge` names a field that
    asks for what costs more than the prices say ("" when none does).

    `body` is always in the canonical form. Where the client spoke another API, `dialect` names it and `native` is what
    it sent: a provider that speaks the same API gets that instead, and `native_headers` with it (whole header lines,
    each ended by CRLF). `native_only` names a part of the native body that the canonical form cannot carry ("" when
    all of it is carried): only providers that speak the dialect can be asked. `dropped` are fields the translation into
    the canonical form left out, in the caller's names; `names` is what the caller calls those fields of the canonical
    form that it calls otherwise (`gateway.dialects.names`).
    """

    endpoint: str  # "chat" | "completions" | "embeddings"
    model: str
    body: bytes
    fields: frozenset[str] = frozenset()
    stream: bool = False
    wants_usage: bool = False  # the client itself asked for the usage chunk of a stream
    limit: int | None = None
    limit_field: str = ""
    n: int = 1
    messages: int = 0
    prompt_tokens: int = 0
    media_bytes: int = 0
    images: int = 0
    audios: int = 0
    files: int = 0
    others: int = 0
    encoding: str = "float"  # embeddings: "float" | "base64"
    dimensions: int | None = None
    pool: str | None = None
    surcharge: str = ""
    dialect: str = OPENAI  # | "anthropic" | "gemini" | "ollama" | "responses"
    native: bytes = b""
    native_headers: bytes = b""
    native_only: str = ""
    dropped: tuple[str, ...] = ()
    names: Mapping[str, str] = NO_NAMES

    @property
    def size(self) -> int:
        """The bytes of the larger of the two bodies: what the input may at most be read from."""
        return max(len(self.body), len(self.native))


class Target(msgspec.Struct, frozen=True):
    """Where a call goes: the provider's catalogue row and the model's name there ("" = the name the client used).

    `strict`: a parameter that the provider cannot honour and that means something for the answer is refused, not
    dropped. `labels` are the capabilities of the model's card. `heads` are the request heads by operation, ready but
    for Content-Length (empty in tests of pure functions).
    """

    kind: Kind
    upstream_model: str = ""
    strict: bool = True
    labels: frozenset[str] = frozenset()
    heads: Mapping[str, bytes] = NO_HEADS


class Request(msgspec.Struct, gc=False):
    """What an adapter makes of a call: the body and the operation (a key of the kind's `paths`) it is sent to.

    `dropped` are the parameters left out because the provider cannot honour them; the caller is told in a header.
    `headers` are further header lines, each ended by CRLF.
    """

    body: bytes
    operation: str
    dropped: tuple[str, ...] = ()
    headers: bytes = b""


class UnsupportedParamError(Exception):
    """The provider cannot honour this field of the request, and leaving it out would change what the answer means.

    `param` is the field as in the canonical body; `message` a whole sentence for the caller.
    """

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param, self.message = param, message


class UpstreamProblem(msgspec.Struct, gc=False):
    """An upstream's failure, safe to show: no addresses, credentials or HTML in `message`.

    `status` is the provider's HTTP status, or the one its in-band error stands for. `reason` says who must act:
    "client" (the request itself was refused), "credential" (the provider refused our key or our account),
    "rate_limit", "overloaded", "server" (the provider failed), "protocol" (the answer makes no sense) or "cut" (it
    ended too early). `retry_after_s` is the provider's own wish.
    """

    status: int
    code: str
    message: str
    reason: str = "server"
    type: str = ""
    param: str | None = None
    retry_after_s: float | None = None


class Answer(msgspec.Struct):
    """A whole reply. `body` goes to the client as it is; with `problem` set, it must not.

    `output_bytes` are the UTF-8 bytes of generated text, for an estimate where `usage` is None. `native`: the body is
    in the caller's own dialect already.
    """

    body: bytes
    usage: Usage | None = None
    output_bytes: int = 0
    problem: UpstreamProblem | None = None
    native: bool = False


class _InputDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class _OutputDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class UsageWire(msgspec.Struct, gc=False):
    """A usage object as providers send it: the fields that are read, in all spellings."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek
    input_tokens: int | None = None  # servers that answer in the newer API's names
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


_COUNTS = frozenset(("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens"))

_decode_usage = msgspec.json.Decoder(UsageWire).decode
_decode_any = msgspec.json.Decoder().decode


def parse_usage(
    raw: bytes | msgspec.Raw | dict[str, Any] | None, *, reasoning_excluded: bool = False, generates: bool = True
) -> Usage | None:
    """Read a provider's usage object in any of the known spellings. Never raises.

    None when it is missing, null, or absurd: no number at all, negative ones, more than `MAX_TOKENS`, text. Details
    (cached, reasoning, audio, …) that are absurd count as 0 and are never larger than what they are a part of.
    `reasoning_excluded`: the provider's output count leaves reasoning tokens out; they are added here.
    `generates` is false for embeddings, whose usage names no output.
    """
    if not raw:
        return None
    try:
        wire = msgspec.convert(raw, UsageWire) if isinstance(raw, dict) else _decode_usage(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        loose = _loosely(raw)
        if loose is None:
            return None
        wire = loose
    return usage_of(wire, reasoning_excluded=reasoning_excluded, generates=generates)


def usage_of(wire: UsageWire, *, reasoning_excluded: bool = False, generates: bool = True) -> Usage | None:
    """The same for a usage object that was decoded already."""
    given = wire.prompt_tokens if wire.prompt_tokens is not None else wire.input_tokens
    made = wire.completion_tokens if wire.completion_tokens is not None else wire.output_tokens
    total = wire.total_tokens
    if made is None:
        if given is None or (total is None and generates):
            return None
        made = total - given if total is not None and generates else 0
    elif given is None:
        if total is None:
            return None
        given = total - made
    if not (0 <= given <= MAX_TOKENS and 0 <= made <= MAX_TOKENS):
        return None
    outputs = wire.completion_tokens_details or wire.output_tokens_details
    reasoning = _part(outputs.reasoning_tokens, MAX_TOKENS) if outputs is not None else 0
    if reasoning_excluded and total != given + made:
        made += reasoning
    reasoning = min(reasoning, made)
    inputs = wire.prompt_tokens_details or wire.input_tokens_details
    cached = _part(inputs.cached_tokens, given) if inputs is not None else 0
    cached = cached or _part(wire.prompt_cache_hit_tokens, given)
    usage = Usage(given, cached, 0, made, reasoning)
    # What was cached may have been audio as well; a token counts as the first of these that it is.
    if inputs is not None:
        usage.cache_write = _part(inputs.cache_write_tokens, given - cached)
        rest = given - cached - usage.cache_write
        usage.input_audio = _part(inputs.audio_tokens, rest)
        usage.input_image = _part(inputs.image_tokens, rest - usage.input_audio)
    if outputs is not None:
        usage.output_audio = _part(outputs.audio_tokens, made - reasoning)
    return usage


def _part(value: int | None, whole: int) -> int:
    """A detail, at most the number it is a part of."""
    return min(value, whole) if value is not None and value > 0 else 0


def _loosely(raw: bytes | msgspec.Raw | dict[str, Any]) -> UsageWire | None:
    """A usage object with fields of unexpected types: details are left out then, whole floats are taken."""
    try:
        loose = raw if isinstance(raw, dict) else _decode_any(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if not isinstance(loose, dict):
        return None
    cleaned: dict[str, Any] = {}
    for name, value in loose.items():
        number = _whole(value)
        if number is not None:
            cleaned[name] = number
        elif isinstance(value, dict):
            cleaned[name] = {key: whole for key, item in value.items() if (whole := _whole(item)) is not None}
        elif value is not None and name in _COUNTS:
            return None
    try:
        return msgspec.convert(cleaned, UsageWire)
    except msgspec.MsgspecError:
        return None


def _whole(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
