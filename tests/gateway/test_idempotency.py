"""Repeating requests that carry an Idempotency-Key: what a worker asks, records and replays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.errors import GatewayError
from gateway.idempotency import REPLY_MAX_BYTES, Idempotency, RecordingExchange, StoredReply, Ticket
from providers.vault import Vault
from tests.gateway.harness import KEY, OTHER_KEY, GatewayServer, provider, route, usage_rows, wait_for
from tests.upstream import FaultUpstream, text_of

HEADER, PATH, BODY = b"once-1", "/v1/chat/completions", b'{"model":"m"}'


class Control:
    """Answers as control does, in memory; the line can be cut and its answers withheld."""

    def __init__(self) -> None:
        self.up, self.silent = True, False
        self.rows: dict[tuple[int, str], dict[str, Any]] = {}
        self.ends = 0
        self.workers: dict[str, Idempotency] = {}

    def add(self, worker: Idempotency, owner: str) -> Idempotency:
        self.workers[owner] = worker
        worker.send_begin, worker.send_end = self.begin, self.end
        return worker

    def begin(self, owner: str, number: int, key_id: int, digest: str, request_digest: str, rid: str) -> bool:
        if self.up and not self.silent:
            row = self.rows.setdefault((key_id, digest), {"request": request_digest, "rid": rid, "state": "running"})
            answer: tuple[Any, ...] = ("running", 0, "", None)
            if row["request"] != request_digest:
                answer = ("mismatch", 0, "", None)
            elif row["state"] == "done":
                answer = ("done", *row["reply"])
            elif row["rid"] == rid:
                answer = ("new", 0, "", None)
            asyncio.get_running_loop().call_soon(self.workers[owner].on_answer, number, *answer)
        return self.up

    def end(self, owner: str, key_id: int, digest: str, rid: str, keep: bool, *reply: Any) -> bool:
        if not self.up:
            return False
        self.ends += 1
        row = self.rows.get((key_id, digest))
        if row is not None and row["rid"] == rid and row["state"] == "running":
            if keep:
                row |= {"state": "done", "reply": reply}
            else:
                del self.rows[key_id, digest]
        return True


class Pipe:
    """An exchange that keeps what it was told to send."""

    def __init__(self) -> None:
        self.method, self.path, self.client = "POST", PATH, "127.0.0.1"
        self.headers: list[tuple[bytes, bytes]] = []
        self.gone = self.begun = self.keep_running = False
        self.task: asyncio.Task[None] | None = None
        self.sent = b""
        self.on_end: Callable[[], None] = lambda: None

    async def read_body(self, limit_bytes: int, timeout_s: float) -> bytes:
        return BODY

    async def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.on_end()
        self.begun, self.sent = True, body

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun = True

    async def write(self, data: bytes) -> None:
        self.sent += data

    async def finish(self, data: bytes = b"") -> None:
        self.on_end()
        self.sent += data


def asynchronous(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    def run(setting: Setting) -> None:
        asyncio.run(test(setting))

    run.__name__ = test.__name__
    return run


class Setting:
    """A control and workers that know the same vault key."""

    def __init__(self, directory: Path) -> None:
        self.vault_path = directory / "vault.key"
        self.vault_path.write_bytes(Vault.new_key() + b"\n")
        self.vault_path.chmod(0o600)
        self.control = Control()

    def worker(self, owner: str = "w") -> Idempotency:
        return self.control.add(Idempotency(owner, self.vault_path), owner)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


async def ticket(worker: Idempotency, rid: str = "r1", body: bytes = BODY) -> Ticket:
    told = await worker.begin(1, HEADER, PATH, body, rid)
    assert isinstance(told, Ticket)
    return told


async def refusal(worker: Idempotency, rid: str = "r2", **changes: Any) -> GatewayError:
    asked = {"key_id": 1, "header": HEADER, "path": PATH, "body": BODY, **changes}
    with pytest.raises(GatewayError) as caught:
        await worker.begin(rid=rid, **asked)
    return caught.value


@asynchronous
async def test_an_answer_is_replayed_to_every_worker_and_control_never_sees_it(setting: Setting) -> None:
    first, second = setting.worker("a"), setting.worker("b")
    recorder = RecordingExchange(Pipe(), await ticket(first))
    await recorder.respond(200, [(b"content-type", b"application/json")], b'{"secret words":1}')
    recorder.close()
    (row,) = setting.control.rows.values()
    assert b"secret" not in row["reply"][2]
    for worker in (first, second):
        assert await worker.begin(1, HEADER, PATH, BODY, "r2") == StoredReply(
            200, b"application/json", b'{"secret words":1}'
        )


@asynchronous
async def test_a_stream_is_replayed_as_it_was_delivered(setting: Setting) -> None:
    worker, pipe = setting.worker(), Pipe()
    recorder = RecordingExchange(pipe, await ticket(worker))
    await recorder.begin(200, [(b"content-type", b"text/event-stream; charset=utf-8")])
    await recorder.write(b"data: 1\n\n")
    await recorder.finish(b"data: [DONE]\n\n")
    told = await worker.begin(1, HEADER, PATH, BODY, "r2")
    assert told == StoredReply(200, b"text/event-stream; charset=utf-8", pipe.sent)


@pytest.mark.parametrize("way", ["respond", "finish"])
def test_control_knows_the_answer_before_the_last_byte_is_delivered(setting: Setting, way: str) -> None:
    async def scenario() -> None:
        pipe = Pipe()
        pipe.on_end = lambda: states.extend(row["state"] for row in setting.control.rows.values())
        recorder = RecordingExchange(pipe, await ticket(setting.worker()))
        if way == "respond":
            await recorder.respond(200, [], b"{}")
        else:
            await recorder.begin(200, [])
            await recorder.finish(b"{}")

    states: list[str] = []
    asyncio.run(scenario())
    assert states == ["done"]


@asynchronous
async def test_refusals_say_what_the_caller_can_do(setting: Setting) -> None:
    worker = setting.worker()
    running = await ticket(worker)
    error = await refusal(worker)
    assert (error.status, error.code, error.retry_after_s) == (409, "idempotency_in_progress", 1)
    for changes in ({"body": b"{}"}, {"path": "/v1/completions"}):
        error = await refusal(worker, **changes)
        assert (error.status, error.code) == (422, "idempotency_mismatch")
    running.keep(200, b"application/json", None)
    error = await refusal(worker)
    assert (error.status, error.code, error.should_retry) == (409, "idempotency_reply_not_kept", False)
    other = await worker.begin(2, HEADER, PATH, b"{}", "r3")
    assert isinstance(other, Ticket), "another API key has idempotency keys of its own"


@pytest.mark.parametrize("header", [b"", b"x" * 256, b"caf\xc3\xa9", b"a\tb", b"a\x7f"])
def test_a_header_that_is_no_key_is_refused(setting: Setting, header: bytes) -> None:
    error = asyncio.run(refusal(setting.worker(), header=header))
    assert (error.status, error.code, error.param) == (400, "invalid_idempotency_key", "idempotency-key")
    assert setting.control.rows == {}


def test_the_longest_key_is_taken(setting: Setting) -> None:
    assert isinstance(asyncio.run(setting.worker().begin(1, b"x" * 255, PATH, BODY, "r")), Ticket)


@pytest.mark.parametrize(
    ("status", "by_provider", "kept"),
    [
        *((200, False, True), (201, False, True), (400, True, True), (404, True, True), (422, True, True)),
        *((400, False, False), (404, False, False), (408, True, False), (409, True, False), (425, True, False)),
        *((429, True, False), (429, False, False), (500, True, False), (503, False, False)),
    ],
)
def test_what_another_try_could_change_is_not_kept(
    setting: Setting, status: int, by_provider: bool, kept: bool
) -> None:
    async def scenario() -> Ticket | StoredReply:
        worker = setting.worker()
        recorder = RecordingExchange(Pipe(), await ticket(worker))
        recorder.refused_by_provider = by_provider
        await recorder.respond(status, [], b"{}")
        recorder.close()
        return await worker.begin(1, HEADER, PATH, BODY, "r2")

    assert isinstance(asyncio.run(scenario()), StoredReply) is kept


@asynchronous
async def test_a_cut_stream_and_a_client_that_left_are_forgotten(setting: Setting) -> None:
    worker = setting.worker()
    cut = RecordingExchange(Pipe(), await ticket(worker))
    await cut.begin(200, [])
    await cut.write(b"data: half\n\n")
    cut.close()
    left = Pipe()
    recorder = RecordingExchange(left, await ticket(worker, "r2"))
    await recorder.begin(200, [])
    left.gone = True  # and the route drains the answer all the same
    await recorder.finish(b"data: [DONE]\n\n")
    recorder.close()
    assert await ticket(worker, "r3")


@pytest.mark.parametrize("stream", [False, True])
def test_a_large_answer_is_delivered_and_not_kept(setting: Setting, stream: bool) -> None:
    async def scenario() -> None:
        worker, pipe = setting.worker(), Pipe()
        recorder = RecordingExchange(pipe, await ticket(worker))
        half = b"x" * (REPLY_MAX_BYTES // 2 + 1)
        if stream:
            await recorder.begin(200, [])
            await recorder.write(half)
            await recorder.finish(half)
        else:
            await recorder.respond(200, [], half + half)
        assert pipe.sent == half + half
        assert (await refusal(worker)).code == "idempotency_reply_not_kept"

    asyncio.run(scenario())


@asynchronous
async def test_the_recorder_is_the_exchange_it_wraps(setting: Setting) -> None:
    pipe = Pipe()
    recorder = RecordingExchange(pipe, await ticket(setting.worker()))
    assert (recorder.method, recorder.path, recorder.gone, recorder.begun) == ("POST", PATH, False, False)
    recorder.keep_running = True
    pipe.gone = pipe.begun = True
    assert (pipe.keep_running, recorder.keep_running, recorder.gone, recorder.begun) == (True, True, True, True)


@asynchronous
async def test_without_control_nothing_runs(setting: Setting) -> None:
    worker = setting.worker()
    setting.control.up = False
    error = await refusal(worker)
    assert (error.status, error.code, error.retry_after_s) == (503, "idempotency_unavailable", 1)
    assert (await refusal(Idempotency("unwired", setting.vault_path))).code == "idempotency_unavailable"


@asynchronous
async def test_what_control_never_heard_of_or_refused_is_not_told_as_ended(setting: Setting) -> None:
    worker = setting.worker()
    setting.control.up = False
    for number in range(100):
        assert (await refusal(worker, header=b"once-%d" % number)).code == "idempotency_unavailable"
    setting.control.up = True
    await ticket(worker)
    for _ in range(10):
        assert (await refusal(worker)).code == "idempotency_in_progress"
        assert (await refusal(worker, body=b"{}")).code == "idempotency_mismatch"
    assert setting.control.ends == 0


def test_an_answer_that_does_not_come_in_time_is_a_503_and_the_request_is_forgotten(setting: Setting) -> None:
    async def scenario() -> None:
        worker = setting.control.add(Idempotency("w", setting.vault_path, answer_s=0.05), "w")
        setting.control.silent = True
        assert (await refusal(worker)).code == "idempotency_unavailable"
        assert setting.control.ends == 1
        setting.control.silent = False
        assert await ticket(worker, "r3")

    asyncio.run(scenario())


@asynchronous
async def test_a_line_that_breaks_while_control_is_asked_ends_the_wait_at_once(setting: Setting) -> None:
    worker = setting.worker()
    setting.control.silent = True
    asking = asyncio.create_task(refusal(worker))
    await asyncio.sleep(0.01)
    worker.disconnected()
    async with asyncio.timeout(1):
        assert (await asking).code == "idempotency_unavailable"


@asynchronous
async def test_a_caller_that_leaves_while_control_is_asked_leaves_nothing_behind(setting: Setting) -> None:
    worker = setting.worker()
    asking = asyncio.create_task(worker.begin(1, HEADER, PATH, BODY, "r1"))
    await asyncio.sleep(0)
    assert setting.control.rows
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    assert setting.control.rows == {}


@asynchronous
async def test_an_end_that_cannot_be_told_is_told_when_the_line_is_up_again(setting: Setting) -> None:
    worker = setting.worker()
    running = await ticket(worker)
    setting.control.up = False
    worker.disconnected()
    running.keep(200, b"application/json", b"{}")
    setting.control.up = True
    async with asyncio.timeout(5):
        while not setting.control.ends:
            await asyncio.sleep(0.01)
    assert isinstance(await worker.begin(1, HEADER, PATH, BODY, "r2"), StoredReply)
    worker.close()


@asynchronous
async def test_an_end_control_did_not_read_before_it_died_is_told_to_its_successor(setting: Setting) -> None:
    worker = setting.worker()
    running = await ticket(worker)
    (before,) = (dict(row) for row in setting.control.rows.values())
    running.keep(200, b"application/json", b"{}")
    for digest in setting.control.rows:
        setting.control.rows[digest] = before  # the successor's database knows nothing of the end
    setting.control.up = False
    worker.disconnected()
    setting.control.up = True
    assert isinstance(await worker.begin(1, HEADER, PATH, BODY, "r2"), StoredReply)
    worker.close()


@asynchronous
async def test_an_end_on_its_way_from_another_worker_is_waited_for(setting: Setting) -> None:
    first, second = setting.worker("a"), setting.worker("b")
    running = await ticket(first)
    asking = asyncio.create_task(second.begin(1, HEADER, PATH, BODY, "r2"))
    await asyncio.sleep(0.01)
    running.keep(200, b"application/json", b"{}")
    assert isinstance(await asking, StoredReply)


@asynchronous
async def test_answers_stay_readable_when_the_vault_key_is_rotated(setting: Setting) -> None:
    first, second = setting.worker("a"), setting.worker("b")
    (await ticket(first)).keep(200, b"application/json", b"old")
    assert isinstance(await second.begin(1, HEADER, PATH, BODY, "r2"), StoredReply)
    old = setting.vault_path.read_bytes()
    setting.vault_path.write_bytes(Vault.new_key() + b"\n" + old)
    third = setting.worker("c")
    told = await third.begin(1, b"once-2", PATH, BODY, "r3")
    assert isinstance(told, Ticket)
    told.keep(200, b"application/json", b"new")
    assert await second.begin(1, b"once-2", PATH, BODY, "r4") == StoredReply(200, b"application/json", b"new")
    setting.vault_path.write_bytes(Vault.new_key() + b"\n")
    assert (await refusal(setting.worker("d"))).code == "idempotency_reply_not_kept"


# Through the request path


class Served:
    """A worker over a misbehaving upstream, with a control of this file."""

    def __init__(self, server: GatewayServer, up: FaultUpstream, directory: Path) -> None:
        self.server, self.up, self.directory, self.control = server, up, directory, Control()
        server.call(lambda: self.control.add(server.runtime.idempotency, server.runtime.options.owner))

    def post(self, model: str = "ok", *, once: str | None = "once-1", key: str = KEY, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} | ({"idempotency-key": once} if once is not None else {})
        return httpx.post(self.server.url + PATH, json=self.body(model, **more), headers=headers, timeout=20)

    def body(self, model: str, **more: Any) -> dict[str, Any]:
        return {"model": model, "messages": [{"role": "user", "content": "one two"}], **more}

    def calls(self) -> int:
        return len([request for request in self.up.requests if request.path.endswith("/chat/completions")])

    def states(self) -> list[str]:
        return [row["state"] for row in self.control.rows.values()]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    vault = tmp_path / "vault.key"
    vault.write_bytes(Vault.new_key() + b"\n")
    vault.chmod(0o600)
    with (
        FaultUpstream() as up,
        GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server,
    ):
        yield Served(server, up, tmp_path)


def code_of(reply: httpx.Response) -> str:
    return str(reply.json()["error"]["code"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_repetition_gets_the_same_bytes_and_costs_nothing(binding: str, served: Served, stream: bool) -> None:
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    first, second = served.post(max_tokens=5, **more), served.post(max_tokens=5, **more)
    assert text_of(5).split()[0] in first.text
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert second.headers["content-type"] == first.headers["content-type"]
    assert (second.headers["x-hoosh-idempotent-replay"], first.headers.get("x-hoosh-idempotent-replay")) == (
        "true",
        None,
    )
    assert second.headers["x-hoosh-request"] != first.headers["x-hoosh-request"]
    assert (served.calls(), len(usage_rows(served.directory))) == (1, 1)


def test_without_the_header_nothing_is_asked_or_kept(served: Served) -> None:
    for _ in range(2):
        assert served.post(once=None).status_code == 200
    assert (served.calls(), served.control.rows, served.control.ends) == (2, {}, 0)


def test_two_at_once_one_runs_and_the_other_is_told(served: Served) -> None:
    replies: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: replies.append(served.post("first-300ms"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    told, answered = sorted(replies, key=lambda reply: -reply.status_code)
    assert (told.status_code, code_of(told), told.headers["retry-after"]) == (409, "idempotency_in_progress", "1")
    assert (answered.status_code, served.calls()) == (200, 1)
    assert served.post("first-300ms").content == answered.content


def test_another_body_or_path_is_refused_and_another_api_key_is_not(served: Served) -> None:
    assert served.post().status_code == 200
    reply = served.post(max_tokens=3)
    assert (reply.status_code, code_of(reply)) == (422, "idempotency_mismatch")
    assert served.post(key=OTHER_KEY, max_tokens=3).status_code == 200


@pytest.mark.parametrize("value", ["", "x" * 256, "caf\u00e9"])
def test_a_header_that_is_no_key_is_400(served: Served, value: str) -> None:
    headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"idempotency-key", value.encode())]
    content = json.dumps(served.body("ok")).encode()
    reply = httpx.post(served.server.url + PATH, content=content, headers=headers, timeout=20)
    assert (reply.status_code, code_of(reply)) == (400, "invalid_idempotency_key")
    assert served.calls() == 0


def test_two_different_keys_are_400_and_one_given_twice_is_one(served: Served) -> None:
    content = json.dumps(served.body("ok")).encode()
    for second, status in (("once-2", 400), ("once-1", 200)):
        headers = [("authorization", f"Bearer {KEY}"), ("idempotency-key", "once-1"), ("idempotency-key", second)]
        reply = httpx.post(served.server.url + PATH, content=content, headers=headers, timeout=20)
        assert reply.status_code == status
        if status == 400:
            assert (code_of(reply), reply.json()["error"]["param"]) == ("invalid_idempotency_key", "idempotency-key")
            assert served.calls() == 0


@pytest.mark.parametrize(
    ("model", "status"), [("boom-500", 502), ("rate-limit", 429), ("boom-409", 409), ("cut-first", 502), ("", 400)]
)
def test_what_another_try_could_change_runs_again(served: Served, model: str, status: int) -> None:
    for _ in range(2):
        reply = served.post(model)
        assert reply.status_code == status, reply.text
        assert "x-hoosh-idempotent-replay" not in reply.headers
    wait_for(lambda: served.states() == [])


def test_a_providers_own_refusal_is_replayed(served: Served) -> None:
    first, second = served.post("boom-422"), served.post("boom-422")
    assert (first.status_code, second.status_code, second.content) == (422, 422, first.content)
    assert second.headers["x-hoosh-idempotent-replay"] == "true"
    assert served.calls() == 1


@pytest.mark.parametrize("model", ["cut", "error-event"])
def test_a_stream_that_was_cut_runs_again(served: Served, model: str) -> None:
    for _ in range(2):
        with contextlib.suppress(httpx.RemoteProtocolError):
            served.post(model, stream=True)
        wait_for(lambda: served.states() == [])
    assert served.calls() == 2


def test_a_client_that_leaves_mid_stream_is_forgotten(binding: str, served: Served) -> None:
    headers = {"authorization": f"Bearer {KEY}", "idempotency-key": "once-1"}
    content = served.body("slow-20ms", stream=True, max_tokens=500)
    with httpx.stream("POST", served.server.url + PATH, json=content, headers=headers, timeout=20) as reply:
        pieces = reply.iter_bytes()  # kept: its end would close the connection
        next(pieces)
        assert served.states() == ["running"]
    wait_for(lambda: served.states() == [])
    assert served.post("ok").status_code == 200


def test_while_control_is_away_only_requests_with_the_header_suffer(served: Served) -> None:
    served.control.up = False
    reply = served.post()
    assert (reply.status_code, code_of(reply), reply.headers["retry-after"]) == (503, "idempotency_unavailable", "1")
    assert served.post(once=None).status_code == 200
    served.control.up = True
    wait_for(lambda: served.post().status_code == 200)
