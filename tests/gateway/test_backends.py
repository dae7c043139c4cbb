"""What operators have a provider's own server do: pull and delete models, ask about a job, synchronise a catalogue."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from django.test import SimpleTestCase, TestCase, TransactionTestCase

from audit.models import OutboxEntry
from budgets import access, keys
from gateway.api import backend_calls, backends
from gateway.api.backend_calls import Backend, Pull
from gateway.errors import GatewayError
from providers import services
from providers.models import Credential, Provider, ProviderProbe
from providers.upstream import Limits
from tests import environment
from tests.gateway.backend_server import FIRST, LAST, STEPS, BackendServer, step
from tests.servers import Gateway, ProviderEntry
from tests.small_server import closed_port

WITH_MODEL = ("/v1/models/pull", "/v1/models/delete")
PATHS = (*WITH_MODEL, "/v1/training/status", "/v1/catalog/sync")


def make(name: str, url: str, kind: str = "ollama", **more: Any) -> Provider:
    return services.save_provider(Provider(name=name, kind=kind, base_url=url, **more), actor="test")


def wait_for(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found


class Asking:
    """Keys and the way to ask, for both kinds of test case."""

    client: Any

    def make_keys(self) -> None:
        agent, pool = access.agent_named("team", "agent", actor="test"), access.default_pool("test")
        self.text = keys.create_key(agent, pool, "app", actor="test")[1]
        self.operator = keys.create_key(agent, pool, "ops", ("operator",), actor="test")[1]

    def ask(self, path: str, body: Any = None, *, method: str = "post", key: str | None = None) -> Any:
        key = self.operator if key is None else key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if method == "get":
            return self.client.get(path, headers=headers)
        data = "" if body is None else json.dumps(body)
        return getattr(self.client, method)(path, data, content_type="application/json", headers=headers)

    def refused(self, response: Any, status: int, code: str, param: str | None = None) -> str:
        assert response.status_code == status, response.content
        told = response.json()["error"]
        assert set(told) == {"message", "type", "param", "code"}
        assert (told["code"], told["param"]) == (code, param), told
        return str(told["message"])


@pytest.mark.database
class WhoAndWhatTests(Asking, TestCase):
    """What is refused before anybody is called."""

    databases = "__all__"

    def setUp(self) -> None:
        self.make_keys()
        self.server = self.enterContext(BackendServer())
        self.addCleanup(lambda: self.assertEqual(self.server.asked, []))
        self.addCleanup(lambda: self.assertFalse(OutboxEntry.objects.filter(action__startswith="model.").exists()))

    def test_without_a_key_it_is_401_and_without_the_scope_403(self) -> None:
        make("o", self.server.url)
        make("s", self.server.url, kind="synapse")
        for path in PATHS:
            body = {"model": "m", "job_id": "j"}
            self.refused(self.ask(path, body, key=""), 401, "invalid_api_key")
            self.refused(self.ask(path, body, key=self.text), 403, "forbidden")
        self.refused(self.ask("/v1/models/delete", {"model": "m"}, method="delete", key=self.text), 403, "forbidden")
        self.refused(self.ask("/v1/training/status?job=j", method="get", key=self.text), 403, "forbidden")

    def test_other_methods_are_405(self) -> None:
        for path, method, allowed in (
            ("/v1/models/pull", "get", "POST"),
            ("/v1/models/delete", "get", "POST, DELETE"),
            ("/v1/training/status", "put", "GET, POST"),
            ("/v1/catalog/sync", "get", "POST"),
        ):
            response = self.ask(path, method=method)
            self.refused(response, 405, "method_not_allowed")
            assert set(response["Allow"].split(", ")) - {"HEAD"} == set(allowed.split(", "))

    def test_a_provider_nobody_knows_or_of_another_kind_or_disabled_is_refused(self) -> None:
        make("o", self.server.url)
        make("s", self.server.url, kind="synapse")
        make("off", self.server.url, enabled=False)
        for path, body, wrong in (
            *((path, {"model": "m"}, "s") for path in WITH_MODEL),
            ("/v1/training/status", {"job_id": "j"}, "o"),
            ("/v1/catalog/sync", {}, "o"),
        ):
            answer = self.ask(path, {**body, "provider": "nobody"})
            assert "nobody" in self.refused(answer, 404, "provider_not_found", "provider")
            self.refused(self.ask(path, {**body, "provider": wrong}), 400, "provider_unsuitable", "provider")
        answer = self.ask("/v1/models/pull", {"model": "m", "provider": "off"})
        assert "disabled" in self.refused(answer, 400, "provider_unsuitable", "provider")

    def test_without_a_name_there_must_be_exactly_one(self) -> None:
        make("off", self.server.url, enabled=False)
        make("other", self.server.url, kind="custom")
        for path in PATHS:
            body = {"model": "m", "job_id": "j"}
            self.refused(self.ask(path, body), 404, "provider_not_found", "provider")
        make("o1", self.server.url)
        make("o2", self.server.url, kind="ollama-v1")
        message = self.refused(self.ask("/v1/models/pull", {"model": "m"}), 400, "provider_ambiguous", "provider")
        assert "“o1”, “o2”" in message

    def test_the_model_must_be_a_name_of_a_model(self) -> None:
        make("o", self.server.url)
        for model in (
            *("", " ", "a b", "a\nb", "../x", "a/../b", "http://host/m", "a//b", "/etc/passwd", "-x", "é", "a?b"),
            *("a%2fb", "x" * 257, 5, None, ["m"], {"a": 1}, True, "\ud800"),
        ):
            for path in WITH_MODEL:
                with self.subTest(path, model=model):
                    param = None if model == "\ud800" else "model"
                    self.refused(self.ask(path, {"model": model}), 400, "invalid_request", param)
        self.refused(self.ask("/v1/models/pull", {}), 400, "invalid_request", "model")
        self.refused(self.ask("/v1/models/delete?model=..", method="delete"), 400, "invalid_request", "model")

    def test_the_job_must_be_an_id(self) -> None:
        make("s", self.server.url, kind="synapse")
        for job in ("", "..", ".", "a/b", "a b", "a%2Fb", "a?b", "x" * 129):
            with self.subTest(job=job):
                answer = self.client.get(
                    "/v1/training/status", {"job": job}, headers={"Authorization": f"Bearer {self.operator}"}
                )
                self.refused(answer, 400, "invalid_request", "job")
        self.refused(self.ask("/v1/training/status", method="get"), 400, "invalid_request", "job")
        self.refused(self.ask("/v1/training/status", {"job_id": 17}), 400, "invalid_request", "job_id")

    def test_bodies_must_be_objects_and_fields_of_their_type(self) -> None:
        make("o", self.server.url)
        self.refused(self.ask("/v1/models/pull", {"model": "m", "stream": "no"}), 400, "invalid_request", "stream")
        self.refused(self.ask("/v1/models/pull", {"model": "m", "provider": 1}), 400, "invalid_request", "provider")
        headers = {"Authorization": f"Bearer {self.operator}"}
        for path in PATHS:
            for method in ("post", "delete") if path == "/v1/models/delete" else ("post",):
                for data in (b"[]", b"5", b"{", b"\xff", b"[" * 100_000, b'{"model":"a","model":"b"}'):
                    answer = getattr(self.client, method)(path, data, content_type="application/json", headers=headers)
                    self.refused(answer, 400, "invalid_request", answer.json()["error"]["param"])
            answer = self.client.post(path, b"model=m", content_type="text/plain", headers=headers)
            self.refused(answer, 415, "unsupported_media_type")

    def test_a_credential_that_cannot_be_opened_is_told(self) -> None:
        provider = make("o", self.server.url)
        services.set_credential(provider, "default", "sk-abcdefgh1234", actor="test")
        Credential.objects.update(bound_base_url="http://127.0.0.1:1")
        self.refused(self.ask("/v1/models/pull", {"model": "m"}), 502, "upstream_credential")


@pytest.mark.database
class CallsTests(Asking, TransactionTestCase):
    """What is called, and what becomes of the answer."""

    databases = "__all__"

    def setUp(self) -> None:
        self.make_keys()
        self.server = self.enterContext(BackendServer("phi4", "tiny"))
        self.provider = make("o", self.server.url)
        self.synapse = make("s", self.server.url, kind="synapse")
        self.before = len(self.entries())

    def entries(self) -> list[tuple[str, str, str, str]]:
        rows = OutboxEntry.objects.filter(action__regex=r"^(model|catalog)\.").order_by("pk")
        return [(row.action, row.target, row.level, row.data.get("outcome", "")) for row in rows]

    def settled(self, action: str, target: str, outcome: str, probes: int = 1) -> None:
        """Wait for the entries of an operation and the probe behind it."""
        wait_for(lambda: len(self.entries()) == self.before + 2)
        level = "info" if outcome == "success" else "warning"
        assert self.entries()[self.before :] == [
            (action, target, "info", ""),
            (f"{action}.ended", target, level, outcome),
        ]
        assert OutboxEntry.objects.filter(action=action).latest("pk").actor.startswith("key:")
        wait_for(lambda: self.server.probes >= probes)
        self.before += 2

    def test_a_model_is_deleted_by_post_and_by_delete(self) -> None:
        done = {"status": "success", "provider": "o", "model": "phi4"}
        answer = self.ask("/v1/models/delete", {"model": "phi4"})
        assert (answer.status_code, answer.json()) == (200, done)
        assert answer["Cache-Control"] == "no-store"
        assert self.server.models == ["tiny"]
        self.settled("model.delete", "o/phi4", "success")
        wait_for(lambda: ProviderProbe.objects.filter(provider=self.provider, models=["tiny"]).exists())
        answer = self.ask("/v1/models/delete?model=tiny&provider=o", method="delete")
        assert (answer.status_code, answer.json()) == (200, {**done, "model": "tiny"})
        self.settled("model.delete", "o/tiny", "success", probes=2)
        self.server.models.append("again:1b")
        assert self.ask("/v1/models/delete", {"model": "again:1b"}, method="delete").status_code == 200
        assert self.server.asked[-1][3] in ({"model": "again:1b"}, None)
        self.settled("model.delete", "o/again:1b", "success", probes=3)

    def test_deleting_a_model_that_is_not_there_is_the_providers_404(self) -> None:
        message = self.refused(self.ask("/v1/models/delete", {"model": "nope"}), 404, "model_not_found")
        assert "nope" in message
        self.settled("model.delete", "o/nope", "model_not_found")

    def test_a_pull_is_answered_once_with_stream_false(self) -> None:
        model = "ok:1b"
        answer = self.ask("/v1/models/pull", {"model": model, "stream": False})
        assert (answer.status_code, answer.json()) == (200, {"status": "success", "provider": "o", "model": model})
        bodies = [body for _, path, _, body in self.server.asked if path == "/api/pull"]
        assert bodies == [{"model": model, "stream": True}]
        self.settled("model.pull", f"o/{model}", "success")
        listed = ["phi4", "tiny", model]
        wait_for(lambda: ProviderProbe.objects.filter(provider=self.provider, models=listed).exists())

    def test_the_credential_is_sent(self) -> None:
        services.set_credential(self.provider, "default", "sk-abcdefgh1234", actor="test")
        assert self.ask("/v1/models/pull", {"model": "at-once", "stream": False}).status_code == 200
        _, _, headers, _ = next(asked for asked in self.server.asked if asked[1] == "/api/pull")
        assert headers["authorization"] == "Bearer sk-abcdefgh1234"
        self.settled("model.pull", "o/at-once", "success")
        assert "sk-abcdefgh1234" not in repr(backends.choose("o", backends.OLLAMA))

    def test_what_goes_wrong_in_a_pull_is_told_by_kind(self) -> None:
        for count, (model, status, code, param, words) in enumerate(
            (
                ("missing", 404, "model_not_found", "model", "file does not exist"),
                ("refused", 400, "upstream_refused", None, "invalid model name"),
                ("money", 502, "upstream_credential", None, "credential"),
                ("boom", 502, "upstream_error", None, "disk full on [address]"),
                ("html", 502, "upstream_error", None, "failed"),
                ("broken", 502, "upstream_error", None, "no space left"),
                ("cut", 502, "upstream_cut", None, "before its answer was complete"),
                ("reset", 502, "upstream_cut", None, "before its answer was complete"),
                ("unfinished", 502, "upstream_cut", None, "before its answer was complete"),
                ("nonsense", 502, "upstream_invalid_reply", None, "understood"),
                ("long", 502, "upstream_invalid_reply", None, "understood"),
            ),
            1,
        ):
            for stream in (False, True) if model in ("missing", "refused", "money", "boom", "html") else (False,):
                with self.subTest(model, stream=stream):
                    answer = self.ask("/v1/models/pull", {"model": model, "stream": stream})
                    assert words in self.refused(answer, status, code, param)
                    self.settled("model.pull", f"o/{model}", code, probes=count)

    def test_a_provider_that_is_not_there_is_a_502(self) -> None:
        Provider.objects.update(base_url=f"http://127.0.0.1:{closed_port()}")
        for path, body in (
            *((path, {"model": "m"}) for path in WITH_MODEL),
            ("/v1/training/status", {"job_id": "j"}),
            ("/v1/catalog/sync", {}),
        ):
            self.refused(self.ask(path, body), 502, "upstream_unreachable")
        wait_for(lambda: len(self.entries()) == 6)
        wait_for(lambda: ProviderProbe.objects.filter(ok=False).count() == 2)

    def test_an_address_of_another_class_than_approved_is_not_connected_to(self) -> None:
        Provider.objects.update(address_class="public")
        self.refused(self.ask("/v1/training/status?job=j", method="get"), 502, "egress_refused")
        Provider.objects.update(address_class="loopback", base_url="ftp://x")
        self.refused(self.ask("/v1/training/status?job=j", method="get"), 502, "upstream_unreachable")
        assert self.server.asked == []

    def test_a_jobs_state_is_passed_on_as_it_is(self) -> None:
        told = b'{"id": "j-17", "state": "running", "loss": 1.50}'
        self.server.replies["GET", "/v1/training/j-17"] = (200, told)
        for answer in (
            self.ask("/v1/training/status?job=j-17", method="get"),
            self.ask("/v1/training/status?job=j-17&provider=s", method="get"),
            self.ask("/v1/training/status", {"job_id": "j-17"}),
        ):
            assert (answer.status_code, answer.content) == (200, told)
            assert answer["Content-Type"] == "application/json"
        assert self.server.paths() == ["GET /v1/training/j-17"] * 3
        assert self.entries() == []  # reading is no operation
        self.refused(self.ask("/v1/training/status?job=j-18", method="get"), 404, "upstream_refused")

    def test_what_is_no_answer_to_a_question_about_a_job_is_told(self) -> None:
        for status, told, code in (
            (200, b"<html>", "upstream_invalid_reply"),
            (200, b"", "upstream_invalid_reply"),
            (307, b"", "upstream_invalid_reply"),
            (500, b"", "upstream_error"),
            (503, b'{"detail":"starting"}', "upstream_overloaded"),
            (403, b"", "upstream_credential"),
            (200, b"9" * (9 << 20), "upstream_reply_too_large"),
        ):
            self.server.replies["GET", "/v1/training/j"] = (status, told)
            self.refused(self.ask("/v1/training/status?job=j", method="get"), 502, code)

    def test_a_catalogue_is_synchronised(self) -> None:
        path = ("POST", "/v1/catalog/sync")
        for count, (told, shown) in enumerate(
            ((b'{"added": 2}', {"added": 2}), (b"", {"status": "success", "provider": "s"})), 1
        ):
            self.server.replies[path] = (200, told)
            answer = self.ask("/v1/catalog/sync", None if told else {"provider": "s"})
            assert (answer.status_code, answer.json()) == (200, shown)
            self.settled("catalog.sync", "s", "success", probes=count)
        self.server.replies[path] = (500, b'{"detail":"no network"}')
        assert "no network" in self.refused(self.ask("/v1/catalog/sync"), 502, "upstream_error")
        self.settled("catalog.sync", "s", "upstream_error", probes=3)


# --- the calls themselves, with deadlines a test can wait for -------------------------------------------------------

SHORT = Limits(connect_s=1.0, first_byte_s=0.3, gap_s=0.3, total_s=2.0)


def backend(server: BackendServer) -> Backend:
    return Backend(1, "o", server.url, "loopback")


@contextlib.contextmanager
def raising(code: str, status: int) -> Iterator[None]:
    with pytest.raises(GatewayError) as hit:
        yield
    assert (hit.value.code, hit.value.status) == (code, status)


async def collect(answer: Any, pieces: list[bytes]) -> None:
    async for piece in answer:
        pieces.append(piece)


class CallingTests(SimpleTestCase):
    async def test_a_provider_that_does_not_answer_in_time_is_a_504(self) -> None:
        ends: list[str] = []
        with BackendServer(quiet_s=1.0) as server:
            with raising("upstream_timeout", 504):
                await backend_calls.call(backend(server), "DELETE", "/api/delete", {"model": "silent"}, limits=SHORT)
            for model in ("silent", "quiet"):
                with raising("upstream_timeout", 504):
                    await Pull(backend(server), model, ends.append, limits=SHORT).run()
        assert ends == ["upstream_timeout"] * 2

    async def test_closing_a_pull_ends_it_at_the_provider_wherever_it_is(self) -> None:
        ends: list[str] = []
        with BackendServer() as server:
            pull = Pull(backend(server), "slow:begun", ends.append)
            await pull.begin()
            await pull.close()
            pull = Pull(backend(server), "slow:read", ends.append)
            await pull.begin()
            lines = pull.lines()
            assert json.loads(await anext(lines)) == FIRST
            await lines.aclose()
            running = asyncio.create_task(Pull(backend(server), "slow:cancelled", ends.append).run())
            await asyncio.sleep(0.3)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await asyncio.to_thread(wait_for, lambda: len(server.left) == 3)
        assert ends == ["client_left"] * 3

    async def test_a_pull_nobody_begins_to_read_is_given_up(self) -> None:
        ends: list[str] = []
        with BackendServer() as server:
            pull = Pull(backend(server), "slow", ends.append, unread_s=0.2)
            await pull.begin()
            await asyncio.to_thread(wait_for, lambda: server.left == ["slow"])
        assert ends == ["client_left"]

    async def test_an_answer_that_takes_long_begins_before_its_end(self) -> None:
        done = {"status": "success"}
        with BackendServer() as server:
            answer = await backends.whole(Pull(backend(server), "later"), done, head_s=0.1, ping_s=0.05)
            assert answer.streaming
            pieces = [piece async for piece in answer]
            assert len(pieces) > 3
            assert json.loads(b"".join(pieces)) == done
            answer = await backends.whole(Pull(backend(server), "cut"), done, head_s=0.0, ping_s=0.05)
            pieces.clear()
            with pytest.raises(backends.AnswerCutError):
                await collect(answer, pieces)
            assert json.loads(b"".join(pieces))["error"]["code"] == "upstream_cut"
            answer = await backends.whole(Pull(backend(server), "slow"), done, head_s=0.1)
            iterator = aiter(answer)
            assert await anext(iterator) == b" "
            await iterator.aclose()
            await asyncio.to_thread(wait_for, lambda: server.left == ["slow"])


# --- over the real processes ------------------------------------------------------------------------------------------


class Control:
    """The control process of a real gateway, asked over its own socket as workers do."""

    def __init__(self, gateway: Gateway, server: BackendServer) -> None:
        self.gateway, self.server = gateway, server

    def client(self) -> httpx.Client:
        socket_path = str(next(self.gateway.data_dir.rglob("control.sock")))
        transport = httpx.HTTPTransport(uds=socket_path)
        return httpx.Client(transport=transport, base_url="http://localhost", headers=self.gateway.auth, timeout=15)

    def listed(self) -> set[str]:
        """The models a worker lists."""
        reply = httpx.get(self.gateway.base_url + "/v1/models", headers=self.gateway.auth)
        return {model["id"] for model in reply.json()["data"]}

    def outcomes(self, target: str) -> list[str]:
        """What the audit log says of pulls that ended, or what is on its way there."""
        queries = {
            "ledger": "SELECT json_extract(body, '$.data.outcome') FROM audit_entry WHERE action = ? AND target = ?",
            "site": "SELECT json_extract(data, '$.outcome') FROM audit_outboxentry WHERE action = ? AND target = ?",
        }
        for name, query in queries.items():
            path = self.gateway.data_dir / f"{name}.sqlite3"
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
                if found := connection.execute(query, ("model.pull.ended", target)).fetchall():
                    return [outcome for (outcome,) in found]
        return []

    def pulled(self, model: str) -> tuple[list[Any], bool]:
        """The lines of a pull, and whether its answer ended as it should."""
        data = b""
        with self.client() as client, client.stream("POST", "/v1/models/pull", json={"model": model}) as reply:
            assert reply.status_code == 200, reply.read()
            assert reply.headers["content-type"] == "application/x-ndjson"
            try:
                for piece in reply.iter_raw():
                    data += piece
                ended = True
            except httpx.RemoteProtocolError:
                ended = False
        return [json.loads(line) for line in data.splitlines()], ended


@pytest.fixture(scope="module")
def control() -> Iterator[Control]:
    with BackendServer() as server:
        entries = [ProviderEntry(server.url, kind="ollama"), ProviderEntry(server.url, kind="synapse", models=["s-*"])]
        with Gateway(environment.session_dir() / "backends", providers=entries) as gateway:
            yield Control(gateway, server)


STEPPED = [FIRST, *(step(number) for number in range(1, STEPS + 1))]


@pytest.mark.processes
def test_progress_is_streamed_and_the_new_model_listed(control: Control) -> None:
    lines, ended = control.pulled("ok:stream")
    assert lines == [*STEPPED, LAST]
    assert ended
    wait_for(lambda: control.outcomes("ollama/ok:stream") == ["success"])
    wait_for(lambda: "ok:stream" in control.listed())


@pytest.mark.processes
@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("cut", "upstream_cut"),
        ("unfinished", "upstream_cut"),
        ("broken", "upstream_error"),
    ],
)
def test_a_stream_that_fails_ends_with_an_error_and_a_cut(control: Control, model: str, code: str) -> None:
    wanted = f"{model}:stream"
    lines, ended = control.pulled(wanted)
    told = lines.pop()
    assert lines == STEPPED
    assert told["error"]["code"] == code
    assert not ended
    wait_for(lambda: control.outcomes(f"ollama/{wanted}") == [code])


@pytest.mark.processes
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_the_pull_at_the_provider(control: Control, stream: bool) -> None:
    model = f"slow:{stream}"
    with control.client() as client:
        try:
            body = {"model": model, "stream": stream}
            with client.stream("POST", "/v1/models/pull", json=body, timeout=0.7) as reply:
                next(reply.iter_raw())
        except httpx.ReadTimeout:
            assert not stream
    wait_for(lambda: model in control.server.left, 3.0)
    wait_for(lambda: control.outcomes(f"ollama/{model}") == ["client_left"])
    with control.client() as client:
        assert client.get("/v1/health/providers").status_code == 200


@pytest.mark.processes
def test_a_client_that_leaves_before_anything_came_ends_the_pull_too(control: Control) -> None:
    with control.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/models/pull", json={"model": "silent:x"}, timeout=0.7)
    wait_for(lambda: control.outcomes("ollama/silent:x") == ["client_left"], 5.0)


@pytest.mark.processes
def test_a_client_that_reads_nothing_and_leaves_ends_the_pull_too(control: Control) -> None:
    with control.client() as client, client.stream("POST", "/v1/models/pull", json={"model": "flood:x"}) as reply:
        next(reply.iter_raw())
        time.sleep(1.0)  # by now nothing more can be sent
    wait_for(lambda: "flood:x" in control.server.left, 5.0)
    wait_for(lambda: control.outcomes("ollama/flood:x") == ["client_left"])


@pytest.mark.processes
def test_workers_forward_what_is_asked_of_synapse(control: Control) -> None:
    control.server.replies["GET", "/v1/training/j"] = (200, b'{"state":"done"}')
    control.server.replies["POST", "/v1/catalog/sync"] = (200, b'{"added":1}')
    base_url, auth = control.gateway.base_url, control.gateway.auth
    assert httpx.get(f"{base_url}/v1/training/status?job=j", headers=auth).json() == {"state": "done"}
    assert httpx.post(f"{base_url}/v1/catalog/sync", headers=auth).json() == {"added": 1}
    assert httpx.post(f"{base_url}/v1/catalog/sync").status_code == 401
