"""The adapter for providers that are asked over the OpenAI Responses API. Formats: its public documentation.

Canonical calls are translated (`responses_request`), replies read back (`responses_reply`, `responses_stream`). A
caller who speaks this API itself is passed through in both directions: only the model, the output limit and the
gateway's own fields change.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from providers.adapters import params, problems
from providers.adapters import responses_reply as reply
from providers.adapters.responses_request import translate
from providers.adapters.responses_stream import ItemReader, NativeReader
from providers.canonical import MAX_TOKENS, Answer, Call, Request, Target, UpstreamProblem

DIALECT = "responses"

# What counts as input; the token counter refuses other fields.
_COUNTED = frozenset(
    ("model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "reasoning", "text", "truncation")
)

Headers = Iterable[tuple[bytes, bytes]]

_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Responses:
    """Requests to `/v1/responses` and what comes back."""

    local = False
    stream_types = (b"text/event-stream",)

    def build(self, call: Call, target: Target, limit: int | None) -> Request:
        """The request; `limit` as in `providers.adapters.Adapter`. Raises `UnsupportedParamError`."""
        if _is_native(call):
            return Request(_spliced(call, target, limit), "responses", headers=call.native_headers)
        if call.endpoint != "chat":
            what = f"The provider ({target.kind.label}) answers chat requests only over its Responses API"
            raise params.unsupported("prompt" if call.endpoint == "completions" else "input", target, what)
        fields, dropped = translate(call, target, limit)
        return Request(_encode(fields), "responses", dropped)

    def build_count(self, call: Call, target: Target) -> Request:
        """The request that asks the provider how many tokens the input of this call has.

        Raises `UnsupportedParamError` for content the provider cannot take; parameters do not matter.
        """
        built = self.build(call, msgspec.structs.replace(target, strict=False), None)
        values = {name: value for name, value in _decode_fields(built.body).items() if name in _COUNTED}
        return Request(_encode(values), "count", headers=built.headers)

    def read_unary(
        self, call: Call, status: int, headers: Headers, body: bytes, target: Target | None = None
    ) -> Answer:
        """Read a whole reply with status 2xx."""
        return reply.read(body, native=_is_native(call), model=_model(call, target))

    def open_stream(self, call: Call, target: Target | None = None) -> ItemReader | NativeReader:
        """A reader for the reply to a streaming call."""
        if _is_native(call):
            return NativeReader()
        return ItemReader(wants_usage=call.wants_usage, model=_model(call, target))

    def read_error(self, status: int, headers: Headers, body: bytes) -> UpstreamProblem:
        """Read a reply whose status is not 2xx."""
        return problems.from_reply(status, headers, body)

    def read_count(self, body: bytes) -> int | None:
        """The number of input tokens a reply to `build_count` tells; None when it tells none."""
        told = reply.loads(body)
        number = told.get("input_tokens") if isinstance(told, dict) else None
        return number if type(number) is int and 0 <= number <= MAX_TOKENS else None


def _is_native(call: Call) -> bool:
    return call.dialect == DIALECT and bool(call.native)


def _model(call: Call, target: Target | None) -> str:
    """What the model was called in the request, for servers that do not name it in their replies."""
    return (target.upstream_model if target is not None else "") or call.model


def _spliced(call: Call, target: Target, limit: int | None) -> bytes:
    """The client's body with the model, the output limit and without the gateway's own fields; else byte for byte."""
    rename = bool(target.upstream_model) and target.upstream_model != call.model
    if not rename and call.pool is None and "pool" not in call.fields and limit in (None, call.limit):
        return call.native
    values = _decode_fields(call.native)
    values.pop("pool", None)
    if rename:
        values["model"] = msgspec.Raw(_encode(target.upstream_model))
    if limit is not None:
        values["max_output_tokens"] = msgspec.Raw(b"%d" % limit)
    return _encode(values)
