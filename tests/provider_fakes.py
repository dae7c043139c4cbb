"""Providers on one real socket: Anthropic, Google, OpenAI (chat and Responses), Ollama and a compatible server.

    with ProviderFakes() as fakes:
        fakes.url("anthropic")          # the base URL of that kind: "anthropic", "google", "ollama", "openai",
                                        # "custom", and those of `tests.provider_fakes_kinds`
        fakes.seen[-1].doc              # everything it was sent and what it said, until `fakes.seen.clear()`

Each reads requests by its documented format and refuses what that does not allow with its own 400; each wants its
credential (`fakes.secret(kind)`) in its own header. Answers are deterministic:

- a plain prompt is answered "Hello there.", in several pieces where it is a stream;
- with a tool offered, "Let me look." and a call of `get_weather` with `{"city": "Paris"}`;
- with a tool's result as the last turn, "It is sunny in Paris.";
- every text is embedded as `VECTOR`;
- usage is 11 tokens in, 4 of them cached (Ollama tells no cache), and 7 out.

Words in the user's prompt change that; those that make it fail may stand in the model's name as well:

    THINK     reasoning before the text, where the request asked to see it, signed or encrypted as the API does;
              3 of the 7 tokens
    BOTH      two tool calls, for Paris and for Rome
    ECHO      the answer, or the argument of its call, is the prompt itself, five characters at a time
    LEAK      the same with `LEAKED`, and more text behind it
    LENGTH    ends at the output limit                FILTER    ends as filtered
    FAIL429   too many requests, wait 7 s             FAIL500   the provider failed
    FAILAUTH  the credential is refused               FAILBAD   the request is refused
    CUT       the connection is cut in the middle     SHORT     a stream that ends well, but without its last event
    MIDERR    an error in band after some text        SLOW      one piece of text, then silence until the client leaves
"""

from __future__ import annotations

import json
import select
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from tests.provider_fakes_base import (
    COUNTED,
    INPUT,
    REFUSAL,
    Api,
    InvalidError,
    Json,
    Talk,
    a_list,
    invalid,
    known,
    text,
)
from tests.provider_fakes_kinds import apis, embeds
from tests.provider_fakes_openai import Chat, Completions, Responses
from tests.provider_fakes_other import Gemini, Messages, Ollama

KINDS = ("openai", "anthropic", "google", "ollama", "custom")
_OPENAI, _CUSTOM = Chat(strict=True), Chat(strict=False)
_GEMINI = Gemini()
_APIS: dict[str, dict[str, Api]] = {
    "openai": {
        "/v1/chat/completions": _OPENAI,
        "/v1/completions": Completions(strict=True),
        "/v1/responses": Responses(),
        "/v1/responses/input_tokens": Responses(),
    },
    "custom": {"/v1/chat/completions": _CUSTOM, "/v1/completions": Completions(strict=False)},
    "anthropic": {"/v1/messages": Messages(), "/v1/messages/count_tokens": Messages()},
    "google": {},
    "ollama": {
        "/api/chat": Ollama(),
        "/api/generate": Ollama(generate=True),
        "/v1/completions": Completions(strict=False),
    },
    **apis(),
}
_AUTH = {"anthropic": "x-api-key", "google": "x-goog-api-key", "azure": "api-key"}
_STATUSES = {"FAIL429": 429, "FAIL500": 500, "FAILAUTH": 401, "FAILBAD": 400}
GONE_S = 5.0
VECTOR = [0.5, -0.25, 1.0]


@dataclass
class Seen:
    """One request, and what became of it. `sent` is the body of the reply as it was written."""

    kind: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    doc: Json = field(default_factory=dict)
    talk: Talk = field(default_factory=Talk)
    status: int = 0
    sent: bytes = b""
    refusal: str = ""
    gone: bool = False  # the client closed the connection of a slow stream


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    fakes: ProviderFakes

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what is tested; anything else is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class ProviderFakes:
    """The server; see the module. Use as a context manager."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.fakes = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def url(self, kind: str) -> str:
        """The base URL of a kind of provider."""
        return f"http://127.0.0.1:{self._server.server_port}/{kind}"

    @staticmethod
    def secret(kind: str) -> str:
        """The credential that kind wants."""
        return f"sk-{kind}-0123456789"

    def __enter__(self) -> ProviderFakes:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def api_of(kind: str, path: str) -> Api | None:
    """The API at a path of a kind of provider."""
    if kind == "google" and path.startswith("/v1beta/models/") and ":" in path:
        return _GEMINI
    return _APIS.get(kind, {}).get(path)


def embedded(kind: str, path: str, doc: Json) -> Json | None:
    """The answer to a request for embeddings; None where the path is for something else. Raises `InvalidError`."""
    texts = doc.get("input")
    usage = {"prompt_tokens": INPUT, "total_tokens": INPUT}
    if (kind in ("openai", "custom") and path == "/v1/embeddings") or embeds(kind, path):
        texts = [texts] if isinstance(texts, str) else a_list(texts, "input")
        data = [{"object": "embedding", "index": index, "embedding": VECTOR} for index in range(len(texts))]
        return {"object": "list", "data": data, "model": f"{doc['model']}-served", "usage": usage}
    if kind == "ollama" and path == "/api/embed":
        known(doc, {"model", "input", "truncate", "dimensions", "options", "keep_alive"}, "")
        texts = [texts] if isinstance(texts, str) else a_list(texts, "input")
        return {"model": f"{doc['model']}-served", "embeddings": [VECTOR for _ in texts], "prompt_eval_count": INPUT}
    if kind == "google" and path.endswith(":batchEmbedContents"):
        model = path.rpartition("/models/")[2].partition(":")[0]
        requests = a_list(doc.get("requests"), "requests")
        for request in requests:
            known(request, {"model", "content", "taskType", "title", "outputDimensionality"}, "requests[].")
            if request.get("model") != f"models/{model}":
                invalid("requests must be for the model of the path", "requests[].model")
            text(request["content"]["parts"][0].get("text"), "requests[].content")
        return {"embeddings": [{"values": VECTOR} for _ in requests], "usageMetadata": {"promptTokenCount": INPUT}}
    return None


class _Handler(BaseHTTPRequestHandler):
    """Answers for the fakes of the server it belongs to."""

    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fakes", ""
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        kind, _, rest = self.path.lstrip("/").partition("/")
        path, _, query = f"/{rest}".partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        seen = Seen(kind, path, query, headers, body)
        self.server.fakes.seen.append(seen)
        try:
            found = embedded(kind, path, json.loads(body))
        except (InvalidError, KeyError, TypeError, ValueError) as refused:
            seen.refusal = str(refused)
            self._whole(seen, 400, {"error": {"message": str(refused)}})
            return
        if found is not None:
            self._whole(seen, 200, found)
            return
        api = api_of(kind, path)
        if api is None:
            seen.refusal = f"no such path: {path}"
            self._whole(seen, 404, {"error": {"message": "Not found."}})
            return
        try:
            seen.doc = json.loads(body)
            seen.talk = api.read(path, query, headers, seen.doc)
        except InvalidError as refused:
            seen.refusal = refused.message
            self._fail(seen, api, 400, refused.message, refused.param)
            return
        except (KeyError, TypeError, ValueError, AttributeError) as odd:
            seen.refusal = f"{type(odd).__name__}: {odd}"
            self._fail(seen, api, 400, seen.refusal)
            return
        self._answer(seen, api)

    def _answer(self, seen: Seen, api: Api) -> None:
        talk = seen.talk
        header = _AUTH.get(seen.kind, "authorization")
        wanted = self.server.fakes.secret(seen.kind)
        if seen.headers.get(header, "").removeprefix("Bearer ") != wanted:
            seen.refusal = f"no credential in {header}"
            self._fail(seen, api, 401, "Invalid key.")
        elif talk.fault in _STATUSES:
            self._fail(seen, api, _STATUSES[talk.fault], REFUSAL)
        elif seen.path.endswith(("count_tokens", "input_tokens", ":countTokens")):
            assert isinstance(api, Messages | Gemini | Responses)
            self._whole(seen, 200, api.count(talk, COUNTED))
        elif talk.stream:
            self._stream(seen, api)
        else:
            self._whole(seen, 200, api.whole(talk), cut=talk.fault == "CUT")

    def _fail(self, seen: Seen, api: Api, status: int, message: str, param: str = "") -> None:
        error = api.error(status, message, param)
        self._whole(seen, error.status, error.body, error.headers)

    def _whole(
        self, seen: Seen, status: int, told: Json, headers: dict[str, str] | None = None, *, cut: bool = False
    ) -> None:
        data = json.dumps(told).encode()
        seen.status = status
        self.send_response(status)
        given = {"content-type": "application/json; charset=utf-8", "content-length": str(len(data))}
        for name, value in (given | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        seen.sent = data[: len(data) // 2] if cut else data
        self.wfile.write(seen.sent)
        self.close_connection = self.close_connection or cut

    def _stream(self, seen: Seen, api: Api) -> None:
        talk, events = seen.talk, api.events(seen.talk)
        text = json.dumps(talk.pieces[0]).encode()
        first = next(number for number, event in enumerate(events) if text in event) + 1
        seen.status = 200
        self.send_response(200)
        self.send_header("content-type", api.stream_type)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if talk.fault == "CUT":
            events = [*events[:first], events[first][: len(events[first]) // 2]]
        elif talk.fault in ("SHORT", "SLOW"):
            events = events[:first]
        elif talk.fault == "MIDERR":
            events = [*events[:first], *api.broken(talk)]
        try:
            for event in events:
                seen.sent += event
                self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
            if talk.fault == "SLOW":
                self._until_gone(seen)
            if talk.fault in ("CUT", "SLOW"):
                self.close_connection = True
            else:
                self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            seen.gone = self.close_connection = True

    def _until_gone(self, seen: Seen) -> None:
        end = time.monotonic() + GONE_S
        while time.monotonic() < end and not seen.gone:
            readable, _, _ = select.select([self.connection], [], [], 0.05)
            seen.gone = bool(readable) and not self.connection.recv(1)

    def log_message(self, *arguments: Any) -> None:
        pass
