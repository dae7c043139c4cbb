"""Calls that control makes to a provider on an operator's order: one answer, or a pull that tells its progress.

No database here. The provider's egress rules, certificates and credential hold as for inference; what goes wrong is a
`GatewayError`. Operators see the provider's own words (cleaned of addresses and secrets) also where it failed itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from gateway.errors import GatewayError, UpstreamBadReplyError, from_problem, from_transport
from providers.adapters import problems
from providers.adapters.ollama_replies import problem_in_band, problem_of
from providers.canonical import UpstreamProblem
from providers.failures import UpstreamError
from providers.transport import HooshTransport
from providers.upstream import Limits, Origin

# The worker that forwards waits 120 s for the head of control's reply.
CALL = Limits(connect_s=10.0, first_byte_s=100.0, gap_s=30.0, total_s=110.0, body_bytes=8 * 1024 * 1024)
# A provider is silent while it verifies what it has loaded, and tells its progress 16 times a second before that.
PULL = Limits(connect_s=10.0, first_byte_s=60.0, gap_s=1800.0, total_s=86_400.0, body_bytes=1024 * 1024 * 1024)
LINE_BYTES = 64 * 1024
SETTLE_S = 5.0  # a model nobody knows is told behind the first line of progress
UNREAD_S = 30.0  # a pull that nobody begins to read is given up
SUCCESS, CLIENT_LEFT = "success", "client_left"

_FAILURES = (httpx.HTTPError, UpstreamError, OSError, ValueError)
_NO_SUCH_MODEL = "file does not exist"  # what Ollama's registry client says

_decode = msgspec.json.Decoder().decode
_decode_line = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class Backend:
    """Everything a call needs of a provider, so that no database is asked while waiting for the network."""

    provider_id: int
    name: str
    base_url: str
    address_class: str
    ca_pem: str = ""
    pins: tuple[str, ...] = ()
    client_pem: str | None = field(default="", repr=False)
    credential: tuple[str, str] | None = field(default=None, repr=False)  # the header that carries it


async def call(backend: Backend, method: str, path: str, body: Any = None, *, limits: Limits = CALL) -> bytes:
    """The body of a 2xx reply. Raises `GatewayError`; cancelling closes the connection."""
    try:
        async with _client(backend, limits) as client, client.stream(method, path, json=body) as reply:
            data = b"".join([piece async for piece in reply.aiter_raw()])
    except _FAILURES as exc:
        raise _failure(exc) from exc
    if not reply.is_success:
        raise _refusal(reply, data)
    return data


def json_of(data: bytes) -> Any:
    """What a reply's body says. Raises `UpstreamBadReplyError` for what is no JSON."""
    try:
        return _decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise from_transport("protocol") from exc


class Pull:
    """One pull of a model by Ollama: `begin` it, then read its `lines`. Closing them ends it at the provider.

    `on_end` is called exactly once for a pull that was begun, with "success", "client_left" or an error code.
    """

    def __init__(
        self,
        backend: Backend,
        model: str,
        on_end: Callable[[str], None] = lambda _: None,
        *,
        limits: Limits = PULL,
        unread_s: float = UNREAD_S,
    ) -> None:
        self._backend, self._model, self._on_end = backend, model, on_end
        self._limits, self._unread_s = limits, unread_s
        self._held: list[bytes] = []
        self._reading = self._read()
        self._ahead: asyncio.Future[bytes] | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Order the pull and return once it makes progress. Raises `GatewayError` for one that fails at once."""
        try:
            self._held.append(await anext(self._reading))
            self._ahead = asyncio.ensure_future(anext(self._reading, b""))
            if (await asyncio.wait((self._ahead,), timeout=SETTLE_S))[0]:
                self._ahead.result()
        except BaseException:
            await self.close()
            raise
        self._unread = asyncio.get_running_loop().call_later(self._unread_s, self._give_up)

    async def lines(self) -> AsyncGenerator[bytes]:
        """The provider's lines of progress as they come, the success last. Raises `GatewayError` for any other end."""
        assert self._unread is not None
        assert self._ahead is not None
        self._unread.cancel()
        try:
            for line in self._held:
                yield line
            if line := await self._ahead:
                yield line
            async for line in self._reading:
                yield line
        finally:
            await self.close()

    async def run(self) -> None:
        """The whole pull. Raises `GatewayError`."""
        await self.begin()
        async for _ in self.lines():
            pass

    async def close(self) -> None:
        """End it wherever it is."""
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)
        await self._reading.aclose()

    def _give_up(self) -> None:
        self._closing = asyncio.get_running_loop().create_task(self.close())

    async def _read(self) -> AsyncGenerator[bytes]:
        outcome = CLIENT_LEFT
        body = {"model": self._model, "stream": True}
        try:
            async with (
                _client(self._backend, self._limits) as client,
                client.stream("POST", "/api/pull", json=body) as reply,
            ):
                if not reply.is_success:
                    raise _refusal(reply, await _beginning(reply))
                async for line in _lines(reply):
                    told = _progress(line)
                    if told.get("status") == SUCCESS:
                        outcome = SUCCESS
                    yield line
                    if outcome == SUCCESS:
                        return
            raise from_transport("reset")
        except GatewayError as exc:
            outcome = str(exc.code)
            raise
        except _FAILURES as exc:
            failure = _failure(exc)
            outcome = str(failure.code)
            raise failure from exc
        finally:
            self._on_end(outcome)


def _client(backend: Backend, limits: Limits) -> httpx.AsyncClient:
    """As `providers.transport.open_client`, with deadlines of their own: a pull outlasts any other reply."""
    origin = Origin.parse(
        backend.base_url, backend.address_class, backend.ca_pem, pins=backend.pins, client_pem=backend.client_pem
    )
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if backend.credential is not None:
        headers.update([backend.credential])
    return httpx.AsyncClient(
        base_url="http://localhost" if origin.scheme == "unix" else backend.base_url,
        transport=HooshTransport(origin, limits),
        headers=headers,
        timeout=None,  # noqa: S113  # the pool keeps the deadlines
        follow_redirects=False,
        trust_env=False,
    )


async def _lines(reply: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a body, each with its line feed; blank ones are left out. One that is not ended counts as cut."""
    held = bytearray()
    async for piece in reply.aiter_raw():
        held += piece
        while (end := held.find(b"\n") + 1) > 0:
            line = bytes(held[:end])
            del held[:end]
            if line.strip():
                yield line
        if len(held) > LINE_BYTES:
            raise from_transport("protocol")
    if held.strip():
        yield bytes(held) + b"\n"


async def _beginning(reply: httpx.Response) -> bytes:
    """What an error's body says, as far as anybody reads it."""
    data = b""
    async for piece in reply.aiter_raw():
        data += piece
        if len(data) > LINE_BYTES:
            break
    return data[:LINE_BYTES]


def _progress(line: bytes) -> dict[str, Any]:
    try:
        told = _decode_line(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise from_transport("protocol") from exc
    if told.get("error") is not None:
        raise _told(problem_in_band(told), told)
    return told


def _refusal(reply: httpx.Response, data: bytes) -> GatewayError:
    headers = [(name.lower(), value) for name, value in reply.headers.raw]
    try:
        told = _decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        told = None
    return _told(problem_of(reply.status_code, headers, data), told)


def _told(problem: UpstreamProblem, told: Any) -> GatewayError:
    """The error for a provider's own refusal or failure."""
    words = problems.clean(_words(told))
    if _NO_SUCH_MODEL in words:
        problem = UpstreamProblem(404, "model_not_found", f"The provider says: {words}", reason="client", param="model")
    elif words and problem.reason in ("server", "overloaded"):
        problem = msgspec.structs.replace(problem, message=f"The provider failed: {words}")
    return from_problem(problem)


def _words(told: Any) -> str:
    for name in ("error", "message", "detail"):
        told = told.get(name, told) if isinstance(told, dict) else told
    return told if isinstance(told, str) else ""


def _failure(exc: BaseException) -> GatewayError:
    """The error for a call without a complete reply. The transport may have wrapped the failure in one of httpx."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, UpstreamError):
            return from_transport(seen.kind)
        seen = seen.__cause__
    message = "The base URL or the certificates of this provider cannot be used. An operator must check them."
    return UpstreamBadReplyError(message, code="upstream_unreachable")
