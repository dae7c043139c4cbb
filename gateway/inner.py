"""Requests that the gateway itself makes, for an API key: of embeddings for the answer cache, of answers to warm it.

They take the path of any other request from the parsing on, so they are held, limited by route and provider, charged
to the key's pools, booked in rows of their own and shown in its usage. Nobody hears their answers but who asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from gateway import limiting, pipeline
from gateway.admission import Head
from gateway.endpoints import INFERENCE
from gateway.errors import GatewayError
from gateway.exchange import Headers
from gateway.pipeline import Job

if TYPE_CHECKING:
    from gateway.runtime import Runtime
    from gateway.snapshot import Key, Snapshot

log = logging.getLogger("hoosh.inner")


class InnerExchange:
    """An exchange without a client: what is answered is kept in `status` and `body`."""

    method = "POST"
    query = b""
    client = ""

    def __init__(self, path: str, request: bytes) -> None:
        self.path, self.request = path, request
        self.headers: Headers = []
        self.gone = self.begun = self.keep_running = False
        self.task: asyncio.Task[None] | None = None
        self.status, self.body = 0, b""

    async def read_body(self, limit_bytes: int, timeout_s: float) -> bytes:
        """The request; nobody has to be waited for."""
        return self.request

    async def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Keep a complete answer."""
        self.begun, self.status, self.body = True, status, body

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Keep the status."""
        self.begun, self.status = True, status

    async def write(self, data: bytes) -> None:
        """Keep a piece."""
        self.body += data

    async def finish(self, data: bytes = b"") -> None:
        """Keep the last piece."""
        self.body += data

    def leave(self) -> None:
        """Whoever asked does not want the answer any more. Where the request is being ended already, that stands."""
        if self.task is None or not self.task.cancelling():
            self.gone = True
            if self.task is not None:
                self.task.cancel()


class Told(NamedTuple):
    """What came of an inner request. `upstream_model`: by its name at the provider, "" where none answered."""

    status: int  # as a client would have got it; 499 = it took too long, or whoever asked has left
    code: str  # of the error, "" on success
    body: bytes
    upstream_model: str
    tokens: int  # charged for it


def make(
    runtime: Runtime, snapshot: Snapshot, key: Key, path: str, request: bytes, *, client_id: str, headers: Headers
) -> Job:
    """An inner request of a key, parsed. `client_id` is what its rows name as the client's request id, `headers` those
    of it that matter. Raises `GatewayError` for a request that is malformed."""
    endpoint = INFERENCE[path]
    job = Job(runtime, InnerExchange(path, request), endpoint)
    job.snapshot, job.key, job.head = snapshot, key, Head.inner(*headers)
    job.client_id = client_id.encode("ascii")
    job.call = endpoint.parse(request, None)
    return job


async def run(job: Job, steps: Callable[[Job], Awaitable[None]], limit_s: float) -> Told:
    """Do the `steps` of an inner request, in a task of its own, for `limit_s` seconds at most. Raises nothing but the
    caller's own cancellation, and then the request has ended, too."""
    exchange = job.exchange
    assert isinstance(exchange, InnerExchange)
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Told] = loop.create_future()
    task = exchange.task = job.task = loop.create_task(_serve(job, exchange, steps, done))
    timer = loop.call_later(limit_s, exchange.leave)
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError:
        exchange.leave()
        await asyncio.wait((task,))
        raise
    finally:
        timer.cancel()
        exchange.task = None
    return done.result() if done.done() else Told(499, "client_left", b"", "", 0)  # it was left before it began


async def _serve(
    job: Job, exchange: InnerExchange, steps: Callable[[Job], Awaitable[None]], done: asyncio.Future[Told]
) -> None:
    status, code = 200, ""
    job.runtime.jobs.add(job)
    try:
        await steps(job)
    except GatewayError as error:
        status, code = error.status, error.code or error.type
    except asyncio.CancelledError:  # by `leave`, or by a worker that stops: nobody else knows this task
        status, code = (503, "shutting_down") if job.aborted else (499, "client_left")
    except Exception:
        status, code = 500, "internal_error"
        log.exception("an inner request failed inside the gateway", extra={"request_id": job.rid_hex})
    finally:
        model = job.last.step.model if job.last is not None else job.told.model if job.told is not None else ""
        done.set_result(Told(status, code, exchange.body, model, limiting.used(job)))
        pipeline.end(job, status, code)
